//! Carries out what a volume asks for: disk and metadata work with its delays and faults, answers, notices.

use mirror_core::request::Answer;
use mirror_core::units::ByteRange;
use mirror_core::volume::effect::Effect;
use mirror_core::volume::event::{Command, DiskFault, Output, WAKE_MS};

use crate::sim::client::Asked;
use crate::sim::content::{self, ZEROES};
use crate::sim::disk::{Task, Unit};
use crate::sim::mutation::Mutation;
use crate::sim::network::NodeIndex;
use crate::sim::node::SimNode;
use crate::sim::world::{Happening, World};

impl World {
    pub(super) fn carry_out_all(&mut self, node: NodeIndex, mut effects: Vec<Effect>) {
        for effect in effects.drain(..) {
            self.carry_out(node, effect);
        }
        self.effects = effects;
    }

    pub(super) fn carry_out(&mut self, node: NodeIndex, effect: Effect) {
        match effect {
            Effect::Read { io, range } => {
                if self.settings.mutation == Some(Mutation::UngatedReads) {
                    let units = self.nodes[node].data.units_of(range);
                    self.reads_out.insert((node, io), units);
                }
                self.submit_data(node, io, range, Task::Read);
            }
            Effect::ReadSparse { io, range } => self.submit_data(node, io, range, Task::ReadSparse),
            Effect::Write {
                io,
                range,
                data,
                fua,
            } => match content::decode(self.settings.unit_bytes, &data) {
                Some(tags) => self.submit_data(node, io, range, Task::Write { tags, fua }),
                None => self.violate("D6", format!("node {node} writes mixed bytes to {range:?}")),
            },
            Effect::WriteZeroes { io, range, fua, .. } => {
                let units = self.nodes[node].data.units_of(range);
                let tags = vec![ZEROES; (units.end - units.start) as usize];
                self.submit_data(node, io, range, Task::Write { tags, fua });
            }
            Effect::Flush { io } => {
                self.submit_data(node, io, ByteRange::new(0, 0), Task::Flush);
            }
            Effect::WriteMetadata { io, offset, bytes } => {
                self.submit_metadata(node, io, offset, bytes);
            }
            Effect::Send { link, envelope } => self.transmit(node, link, envelope),
            Effect::CloseLink { link } => {
                if self.network.is_open(node, link) {
                    self.trace(|| format!("{node} closes its link"));
                    // What was sent before is still delivered; the reset comes behind it.
                    let delay_us = self.random.between(10, 1_000);
                    self.schedule(delay_us, Happening::LinkDown { node, link });
                }
            }
            Effect::Connect { wanted } => {
                self.network.wanted[node] = wanted;
                self.look_for_peer();
            }
            Effect::Serve { serving } => self.on_serve(node, serving),
            Effect::Answer { id, answer } => self.on_answer(node, id, answer),
            Effect::ConfirmWanted { ticket } => self.on_confirm_wanted(node, ticket),
            Effect::CommandDone { id, result } => {
                self.trace(|| format!("{node} command {id:?}: {result:?}"));
                match self.outstanding.remove(&id) {
                    None => self.violate("D12", format!("command {id:?} ended twice")),
                    Some((_, Command::Stop)) if result.is_ok() => {
                        let life = self.nodes[node].life;
                        self.schedule(2_000, Happening::Exit { node, life });
                    }
                    Some(_) => {}
                }
                self.outcomes.insert(id, result);
            }
            Effect::Measure => {
                let life = self.nodes[node].life;
                self.schedule(500, Happening::Measured { node, life });
            }
            // Messages have no bytes here.
            Effect::Compress { .. } | Effect::Resized { .. } => {}
            Effect::Wake => {
                let life = self.nodes[node].life;
                self.schedule(WAKE_MS * 1000, Happening::Wake { node, life });
            }
            Effect::Report(notice) => {
                self.trace(|| format!("{node} reports {}: {}", notice.kind, notice.message));
                if notice.kind == "connected" {
                    self.nodes[node].peer_left = false;
                }
                self.tally.rechecks += u64::from(notice.kind == "recheck-started");
                if matches!(notice.kind.as_str(), "resync-finished" | "recheck-finished") {
                    // What a full disk left out has been made good; a failed one stays so until it is
                    // opened anew.
                    self.nodes[node].doomed = false;
                    self.nodes[node].told_down = false;
                    self.on_resynced();
                }
                self.nodes[node].notices.push((notice.kind, notice.message));
            }
        }
    }

    pub(super) fn submit_data(
        &mut self,
        node: NodeIndex,
        io: mirror_core::units::IoToken,
        range: ByteRange,
        mut task: Task,
    ) {
        let units = self.nodes[node].data.units_of(range);
        let span = match task {
            Task::Flush => self.settings.flush_us,
            _ => self.settings.disk_us,
        };
        let delay_us = self.span(span);
        if matches!(task, Task::Flush) {
            self.sync_points[node] += 1;
        }
        if let Task::Write { tags, .. } = &mut task {
            if range.end() > self.settings.size_bytes + self.settings.room_bytes {
                self.violate(
                    "D12",
                    format!("node {node} writes past the mirror: {range:?}"),
                );
                return;
            }
            if let Some(overlap) = self.nodes[node].data.overlapping_write(&units) {
                let theirs = overlap.units.clone();
                self.violate(
                    "D6",
                    format!("node {node} has overlapping writes in flight: units {theirs:?} and {units:?}"),
                );
            }
            self.check_overwrite(node, range);
            self.mutate_write(node, &units, tags, delay_us);
        }
        let fault = self.fault_of(node, &task);
        self.trace(|| match &task {
            Task::Write { tags, fua } => {
                let first = tags.first().copied().unwrap_or(ZEROES);
                format!("{node} disk: {io:?} write {units:?} tag {first:x} fua {fua}")
            }
            task => format!("{node} disk: {io:?} {} {units:?}", task_name(task)),
        });
        let early = self.random.coin();
        let number = self.nodes[node].data.submit(io, units, task, early);
        if let Some(fault) = fault {
            self.nodes[node].data.inject(number, fault);
        }
        let life = self.nodes[node].life;
        self.schedule(delay_us, Happening::DataDone { node, life, number });
    }

    pub(super) fn fault_of(&mut self, node: NodeIndex, task: &Task) -> Option<DiskFault> {
        let armed = self.nodes[node].is_armed();
        let granted = !self.settings.operator
            || (!self.nodes[node].doomed && self.other_holds_everything(node));
        if !armed || !granted {
            return None;
        }
        let state = &mut self.nodes[node];
        let fault = match task {
            Task::Write { .. } if std::mem::take(&mut state.fail_next_write) => Some(DiskFault::Io),
            Task::Write { .. } if std::mem::take(&mut state.full_next_write) => {
                Some(DiskFault::NoSpace)
            }
            Task::Flush if std::mem::take(&mut state.fail_next_flush) => Some(DiskFault::Io),
            _ => None,
        };
        self.nodes[node].doomed |= fault.is_some();
        fault
    }

    pub(super) fn submit_metadata(
        &mut self,
        node: NodeIndex,
        io: mirror_core::units::IoToken,
        offset: u64,
        bytes: Vec<u8>,
    ) {
        let mut bytes = bytes;
        self.sync_points[node] += 1;
        if self.settings.mutation == Some(Mutation::ForgetDirtyBits) {
            forget_bits(&self.nodes[node], offset, &mut bytes);
        }
        self.trace(|| {
            let region = crate::sim::metadata_disk::Region::of(offset);
            format!("{node} metadata: {io:?} {region:?} {} bytes", bytes.len())
        });
        let fault = std::mem::take(&mut self.nodes[node].fail_next_metadata);
        let number = self.nodes[node].metadata.submit(io, offset, bytes, fault);
        let (life, delay_us) = (self.nodes[node].life, self.span(self.settings.disk_us));
        self.schedule(delay_us, Happening::MetadataDone { node, life, number });
    }

    /// The mutation that answers as soon as the local disk has a write.
    pub(super) fn answer_early(&mut self, node: NodeIndex, written: Option<std::ops::Range<Unit>>) {
        if self.settings.mutation != Some(Mutation::AnswerBeforePeer) || !self.nodes[node].serving {
            return;
        }
        let Some(written) = written else {
            return;
        };
        let answered = self.pending.iter().find(|(_, pending)| {
            pending.node == node && pending.asked.is_change() && pending.asked.units() == written
        });
        if let Some(id) = answered.map(|(id, _)| *id) {
            self.on_answer(node, id, Answer::Done);
            self.answered_early.insert(id);
        }
    }

    /// The mutation that answers a read without a look at the lease.
    pub(super) fn answer_ungated(
        &mut self,
        node: NodeIndex,
        io: mirror_core::units::IoToken,
        result: &Result<Output, DiskFault>,
    ) {
        let mutated = self.settings.mutation == Some(Mutation::UngatedReads);
        let Ok(Output::Data(data)) = result else {
            return;
        };
        let units = self.reads_out.remove(&(node, io));
        let Some(units) = units.filter(|_| mutated && self.nodes[node].serving) else {
            return;
        };
        let asked = self.pending.iter().find(|(_, pending)| {
            pending.node == node && pending.asked == Asked::read(units.clone())
        });
        if let Some(id) = asked.map(|(id, _)| *id) {
            self.on_answer(node, id, Answer::Data(data.clone()));
            self.answered_early.insert(id);
        }
    }

    /// Lets a mutation change what a write does.
    pub(super) fn mutate_write(
        &mut self,
        node: NodeIndex,
        units: &std::ops::Range<Unit>,
        tags: &mut [content::Tag],
        delay_us: u64,
    ) {
        let on_primary = self.nodes[node].serving;
        let reorder = match self.settings.mutation {
            Some(Mutation::ReorderLocal) => on_primary,
            Some(Mutation::ReorderPeer) => !on_primary,
            Some(Mutation::DropReplicaWrite) if !on_primary && self.random.percent(5) => {
                // The disk writes what it has already: the new content never gets there.
                for (unit, tag) in units.clone().zip(tags.iter_mut()) {
                    *tag = self.nodes[node].data.current(unit);
                }
                return;
            }
            _ => false,
        };
        if reorder && self.random.percent(20) && tags.iter().all(|tag| *tag == tags[0]) {
            // Completes at once, and lands once more after whatever overlaps it by then.
            let (units, tag) = (units.clone(), tags[0]);
            let late_us = delay_us + self.random.between(2_000, 20_000);
            self.schedule(late_us, Happening::LandLate { node, units, tag });
        }
    }
}

/// Rewrites bitmap pages on their way to disk as if nothing were dirty.
pub(super) fn forget_bits(node: &SimNode, offset: u64, bytes: &mut [u8]) {
    use mirror_core::layout::bitmap_page;
    use mirror_core::layout::geometry::{Geometry, METADATA_BLOCK_BYTES, WORDS_PER_PAGE};
    let Ok(geometry) = Geometry::new(node.config.usable_bytes, 12, 1) else {
        return;
    };
    if offset >= geometry.bitmap_offset() {
        let first = (offset - geometry.bitmap_offset()) / METADATA_BLOCK_BYTES;
        for (page, block) in bytes
            .chunks_exact_mut(METADATA_BLOCK_BYTES as usize)
            .enumerate()
        {
            bitmap_page::encode_into(first as u32 + page as u32, &[0; WORDS_PER_PAGE], block);
        }
    }
}

pub(super) fn task_name(task: &Task) -> &'static str {
    match task {
        Task::Read => "read",
        Task::ReadSparse => "sparse read",
        Task::Write { .. } => "write",
        Task::Flush => "flush",
    }
}
