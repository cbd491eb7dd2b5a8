//! The rules of the data plane, judged from outside after every step.
//!
//! Nothing here asks a volume what it thinks: the judgement is by what the disks hold, by what the
//! metadata would say after a crash now, and by what clients were told.

use mirror_core::request::{Answer, Failure};
use mirror_core::units::{ByteRange, FullSyncId, RequestId};
use mirror_core::volume::config::PeerLoss;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{DiskState, Message, Mode};

use crate::sim::client::{Asked, Pending};
use crate::sim::content;
use crate::sim::disk::Unit;
use crate::sim::mutation::Mutation;
use crate::sim::network::{NodeIndex, other};
use crate::sim::oracle::{Oracle, Promise};
use crate::sim::world::World;

impl World {
    pub(super) fn check_step(&mut self) {
        self.check_coverage();
        self.check_serving();
    }

    // --- D8 --------------------------------------------------------------------------------

    /// Never two that serve one line of data, answers or not.
    fn check_serving(&mut self) {
        // With an arbiter an old primary may wait for proof that never comes.
        let both = self.nodes.iter().all(|node| node.is_up() && node.serving);
        if both && !self.has_arbiter() && self.line[0] == self.line[1] {
            self.violate("D8", "both nodes serve".into());
        }
    }

    // --- D1 --------------------------------------------------------------------------------

    /// Wherever the two disks may differ after a crash now, one side's durable metadata says so.
    fn check_coverage(&mut self) {
        let mut changed: Vec<Unit> = Vec::new();
        for node in [0, 1] {
            changed.extend(std::mem::take(&mut self.nodes[node].data.touched));
        }
        let mut contents = Vec::new();
        changed.retain(|unit| {
            contents.clear();
            self.nodes[0].data.possible(*unit, &mut contents);
            self.nodes[1].data.possible(*unit, &mut contents);
            if contents.len() > 1 {
                self.differing.insert(*unit)
            } else {
                self.differing.remove(unit);
                false
            }
        });
        let versions = [0, 1].map(|node| self.nodes[node].metadata.version);
        let metadata_changed = versions != self.checked_versions;
        self.checked_versions = versions;
        if metadata_changed {
            changed = self.differing.iter().copied().collect();
        }
        if changed.is_empty() || !self.coverage_applies() {
            return;
        }
        let unit_bytes = u64::from(self.settings.unit_bytes);
        let uncovered = changed.into_iter().find(|unit| {
            !self
                .nodes
                .iter()
                .filter_map(|node| node.view.as_ref())
                .any(|view| view.covers(unit * unit_bytes))
        });
        if let Some(unit) = uncovered {
            let sides = [0, 1].map(|node| {
                let mut contents = Vec::new();
                self.nodes[node].data.possible(unit, &mut contents);
                contents
            });
            self.violate(
                "D1",
                format!(
                    "unit {unit} (byte {:#x}) may hold {:x?} on node 0 and {:x?} on node 1, and no durable bit or log extent covers it",
                    unit * unit_bytes,
                    sides[0],
                    sides[1]
                ),
            );
        }
    }

    /// Coverage is what a difference resync rests on, and the rest of a full copy that was cut.
    /// Before both sides have a generation, and where the superblock orders a full copy, the next
    /// handshake copies everything anyhow.
    fn coverage_applies(&mut self) -> bool {
        let mut full_syncs = [FullSyncId::NONE; 2];
        let mut difference = true;
        for (node, full_sync) in full_syncs.iter_mut().enumerate() {
            let Some(view) = self.nodes[node].durable() else {
                return false;
            };
            let superblock = &view.superblock;
            if superblock.flags.full_resync {
                return false;
            }
            difference &= !superblock.generations.current.is_none();
            *full_sync = superblock.peer.full_sync;
        }
        difference || (!full_syncs[0].is_none() && full_syncs[0] == full_syncs[1])
    }

    // --- answers ---------------------------------------------------------------------------

    pub(super) fn on_answer(&mut self, node: NodeIndex, id: RequestId, answer: Answer) {
        if self.answered_early.remove(&id) {
            return;
        }
        let Some(pending) = self.pending.remove(&id) else {
            self.violate("D12", format!("{id:?} was answered twice or never asked"));
            return;
        };
        self.trace(|| match &answer {
            Answer::Data(_) => format!("{node} → client: {id:?} data"),
            answer => format!("{node} → client: {id:?} {answer:?}"),
        });
        if self.keep_answers {
            self.answers.insert(id, answer.clone());
        }
        if pending.node != node {
            self.violate(
                "D8",
                format!("node {node} answers {id:?}, which went to the other"),
            );
            return;
        }
        let horizon = self.pending.values().map(|pending| pending.submitted).min();
        self.truths[self.line[node]].horizon = horizon.unwrap_or(self.order);
        if !matches!(answer, Answer::Failed(_)) {
            self.check_authority(node, id, &pending);
            self.check_device(node);
            if std::mem::take(&mut self.nodes[node].unproven) {
                self.take_over(node);
            }
        }
        match answer {
            Answer::Failed(failure) => self.on_failed(id, &pending, failure),
            Answer::Data(data) => self.on_read(node, id, &pending, &data),
            Answer::Done if pending.asked == Asked::Flush => self.on_flushed(node, &pending),
            Answer::Done => self.on_written(node, id, &pending),
        }
    }

    fn on_failed(&mut self, id: RequestId, pending: &Pending, failure: Failure) {
        self.tally.failed += 1;
        if pending.asked.is_change() {
            let (line, order) = (self.line[pending.node], self.order);
            self.truths[line].abandon(id.0, order);
        }
        if failure == Failure::Invalid {
            self.violate(
                "D12",
                format!("{id:?} {:?} was called invalid", pending.asked),
            );
        }
    }

    fn on_read(&mut self, node: NodeIndex, id: RequestId, pending: &Pending, data: &[u8]) {
        self.tally.reads_answered += 1;
        self.check_alone(node);
        let Some(tags) = content::decode(self.settings.unit_bytes, data) else {
            self.violate("D6", format!("{id:?} got mixed bytes"));
            return;
        };
        let units = pending.asked.units();
        if tags.len() as u64 != units.end - units.start {
            self.violate("D6", format!("{id:?} got {} bytes", data.len()));
            return;
        }
        let truth = &self.truths[self.line[node]];
        let promise = Promise::Answered(pending.submitted);
        let wrong = units
            .zip(tags)
            .find(|(unit, tag)| !truth.is_legal(*unit, *tag, promise));
        if let Some((unit, tag)) = wrong {
            let history = truth.describe(unit);
            self.violate(
                "D6",
                format!(
                    "node {node} reads {tag:x} at unit {unit}, submitted at {}: {history}",
                    pending.submitted
                ),
            );
        }
    }

    fn on_written(&mut self, node: NodeIndex, id: RequestId, pending: &Pending) {
        self.tally.writes_answered += 1;
        self.check_alone(node);
        self.check_answer_is_held(node, id, pending);
        if self.runs_ahead() {
            self.answered_us.insert(id.0, self.clock_us);
        }
        let (line, order) = (self.line[node], self.order);
        let durable = pending.asked.is_durable();
        self.truths[line].answer(id.0, durable, order);
        if durable {
            let units: Vec<Unit> = pending.asked.units().collect();
            self.check_durable(node, &units);
        }
    }

    fn on_flushed(&mut self, node: NodeIndex, pending: &Pending) {
        self.tally.flushes_answered += 1;
        self.check_alone(node);
        let line = self.line[node];
        let units = self.truths[line].flush(pending.submitted);
        self.check_durable(node, &units);
    }

    // --- D3 --------------------------------------------------------------------------------

    /// What a flush or FUA vouches for cannot be lost by any power loss, on any side that counts. Where
    /// answers run ahead, that is the side that gave them, unless it has no disk.
    fn check_durable(&mut self, node: NodeIndex, units: &[Unit]) {
        let alone = self.runs_ahead() && !self.is_left_behind(node, node);
        for side in [0, 1] {
            if self.is_left_behind(side, node) || (alone && side != node) {
                continue;
            }
            let truth = &self.truths[self.line[node]];
            let mut contents = Vec::new();
            let wrong = units.iter().find_map(|unit| {
                contents.clear();
                self.nodes[side].data.possible(*unit, &mut contents);
                contents
                    .iter()
                    .find(|tag| !truth.is_legal(*unit, **tag, Promise::Flushed))
                    .map(|tag| (*unit, *tag))
            });
            if let Some((unit, tag)) = wrong {
                let history = truth.describe(unit);
                self.violate(
                    "D3",
                    format!("flushed, but after a power loss node {side} may hold {tag:x} at unit {unit}: {history}"),
                );
                return;
            }
        }
    }

    /// Durable metadata says that this side's data does not count: its own, or its peer's about it.
    fn is_left_behind(&mut self, side: NodeIndex, serving: NodeIndex) -> bool {
        let own = self.nodes[side]
            .durable()
            .is_none_or(|view| view.is_stale() || view.superblock.generations.current.is_none());
        let said = self.nodes[other(side)]
            .durable()
            .is_some_and(|view| view.superblock.peer.outdated || view.superblock.peer.detached);
        own || (said && side != serving)
    }

    // --- D5, D8, D13 -----------------------------------------------------------------------

    /// This disk got the write, or holds what the other disk got over it: a write whose answer had to wait may
    /// have been overwritten before a resync brought the outcome of both.
    fn holds(&self, node: NodeIndex, pending: &Pending) -> bool {
        let disk = &self.nodes[node].data;
        let elsewhere = &self.nodes[other(node)].data;
        pending.asked.units().all(|unit| {
            let got = disk
                .applied_at(unit, pending.tag)
                .is_some_and(|at| at >= pending.submitted);
            let held = disk.current(unit);
            // A resync that compared first had nothing to send where zeroes were to come over zeroes.
            let same = held == pending.tag;
            // Tags grow with the writes; zeroes are everybody's.
            let is_later = held == content::ZEROES || held > pending.tag;
            let overwritten = elsewhere.applied_at(unit, pending.tag).is_some_and(|at| {
                is_later
                    && elsewhere
                        .applied_at(unit, held)
                        .is_some_and(|later| later > at)
            });
            got || same || overwritten
        })
    }

    /// An answered write is on both disks, or the side that lacks it is durably known to.
    fn check_answer_is_held(&mut self, node: NodeIndex, id: RequestId, pending: &Pending) {
        let peer = other(node);
        let here = self.holds(node, pending);
        let there = self.holds(peer, pending);
        if !here && !there {
            self.violate("D3", format!("{id:?} was answered and is on no disk"));
        } else if !there && here && self.is_on_its_way(node, pending) {
            // The peer gets it unless it is lost first; then it is dirty (D1).
        } else if !there {
            self.check_gone_alone(node, id);
        } else if !here {
            let recorded = self.nodes[peer]
                .durable()
                .is_some_and(|view| view.superblock.peer.outdated || view.superblock.peer.detached);
            if !recorded {
                self.violate(
                    "D13",
                    format!("{id:?} was answered without the disk of node {node}, and node {peer} has not recorded that"),
                );
            }
        }
    }

    fn check_gone_alone(&mut self, node: NodeIndex, id: RequestId) {
        let peer = other(node);
        let theirs = self.nodes[peer]
            .durable()
            .map(|view| (view.superblock.generations, view.is_stale()));
        let Some((generations, stale)) = theirs else {
            return;
        };
        let mine = self.nodes[node].durable().map(|view| {
            (
                view.superblock.generations.current,
                view.superblock.peer.outdated,
            )
        });
        let Some((current, outdated)) = mine else {
            return;
        };
        // A side that never had data cannot be mistaken for one that has the newest.
        let fresh = generations.current.is_none();
        let recorded = outdated && current != generations.current;
        if !fresh && !recorded {
            self.violate(
                "D5",
                format!("{id:?} was answered by node {node} alone; durable here: peer outdated {outdated}, generation {current}; there: {}", generations.current),
            );
        }
        let held = self.settings.peer_loss == PeerLoss::Hold;
        let known_down = self.nodes[node].told_down || self.nodes[node].peer_left;
        if held && !fresh && !stale && !known_down {
            self.violate(
                "D5",
                format!("{id:?} was answered by node {node} alone under peer_loss = hold, and nobody said that its peer is down"),
            );
        }
    }

    /// Nobody else answers at the same time, unless an operator made it so; and should it die now, its next run
    /// knows that it was primary.
    fn check_alone(&mut self, node: NodeIndex) {
        let peer = other(node);
        let recorded = self.nodes[node]
            .durable()
            .is_none_or(|view| view.superblock.flags.primary);
        if !recorded {
            self.violate(
                "D13",
                format!("node {node} answers, and its metadata does not say that it is primary"),
            );
        }
        let arbitrated = self.has_arbiter();
        if !arbitrated
            && self.nodes[peer].is_up()
            && self.nodes[peer].serving
            && self.line[0] == self.line[1]
        {
            self.violate(
                "D8",
                format!("node {node} answers while node {peer} serves too"),
            );
        }
    }

    pub(super) fn on_serve(&mut self, node: NodeIndex, serving: bool) {
        self.trace(|| format!("node {node} serving: {serving}"));
        self.nodes[node].serving = serving;
        self.nodes[node].unproven = false;
        if !serving {
            self.note_fall(node);
            return;
        }
        self.tally.promotions += 1;
        let peer = other(node);
        // Nobody promoted it: it was reinstated, or its demotion came to nothing.
        let again = self.is_of_its_device(node);
        self.begin_device(node);
        let line = self.line[node];
        if self.operator.diverging == Some(node) {
            // Promoted against better knowledge: what this side has is a line of its own.
            self.operator.diverging = None;
            let truth = self.line_from_disk(node);
            self.truths.push(truth);
            self.line[node] = self.truths.len() - 1;
            return;
        }
        if !std::mem::replace(&mut self.operator.founded, true) {
            // What was there before the first promotion is part of the history.
            self.truths[line] = self.line_from_disk(node);
        }
        if self.nodes[peer].serving && self.line[peer] == line && !self.has_arbiter() {
            self.violate(
                "D8",
                format!("node {node} begins to serve while node {peer} does"),
            );
            return;
        }
        if (again || self.nodes[node].goes_on) && self.has_arbiter() {
            // Its gate is shut, maybe for good, so that only an answer is wrong.
            let lost = self.excused_before(node);
            self.nodes[node].durable();
            self.nodes[node].unproven = self.judge_survivor(node, lost).is_some();
            if self.nodes[node].unproven {
                return;
            }
        }
        self.take_over(node);
    }

    /// What the node has is what counts from now on.
    fn take_over(&mut self, node: NodeIndex) {
        if let Some(old) = self.last_served.filter(|old| *old != node) {
            self.note_fall(old);
        }
        self.check_survivor(node);
        self.last_served = Some(node);
    }

    /// A device carries the epoch that it was made in, and the kernel compares it.
    fn is_of_its_device(&mut self, node: NodeIndex) -> bool {
        let epoch = self.nodes[node].durable().map(|view| view.superblock.epoch);
        epoch.is_some() && self.nodes[node].device == epoch
    }

    /// A promotion makes the kernel device anew; a reinstatement goes on with the one of the same epoch.
    fn begin_device(&mut self, node: NodeIndex) {
        let reinstated = self
            .outstanding
            .values()
            .any(|(at, command)| *at == node && matches!(command, Command::Reinstate { .. }));
        let found = self.is_of_its_device(node);
        let epoch = self.nodes[node].durable().map(|view| view.superblock.epoch);
        let kept = self.settings.mutation == Some(Mutation::KeepDevice);
        self.nodes[node].goes_on = (reinstated && found) || kept;
        if !self.nodes[node].goes_on {
            self.nodes[node].device = epoch;
            self.nodes[node].overtaken = false;
            self.nodes[other(node)].overtaken = true;
        } else if !self.has_arbiter() {
            self.check_device(node);
        }
    }

    fn check_device(&mut self, node: NodeIndex) {
        if self.nodes[node].goes_on && self.nodes[node].overtaken {
            let peer = other(node);
            self.violate(
                "D8",
                format!(
                    "node {node} goes on with a kernel device although node {peer} was primary since"
                ),
            );
        }
        self.nodes[other(node)].overtaken = true;
    }

    /// A new primary has every write that was answered before, unless its own disk lost power and
    /// nobody could give it back. What is dirty there it may yet get from its peer; what its clients read
    /// meanwhile is judged as every read.
    fn check_survivor(&mut self, node: NodeIndex) {
        let peer = other(node);
        let lost = self.excused_before(node);
        self.nodes[node].durable();
        let failed = self.nodes[node]
            .view
            .as_ref()
            .is_some_and(|view| view.superblock.flags.failed);
        let wrong = self.judge_survivor(node, lost);
        if let (Some(wrong), false) = (wrong, failed) {
            self.violate(
                "D5",
                format!(
                    "node {node} serves (node {peer} is {}) with {wrong}",
                    if self.nodes[peer].is_up() {
                        "up"
                    } else {
                        "down"
                    }
                ),
            );
            return;
        }
        self.forget_tail(node, lost);
        let line = self.line[node];
        self.truths[line].excuse_unflushed(lost);
    }

    /// Unflushed writes submitted before this may be missing on a node that begins to serve. While
    /// the nodes are connected either may have been the source for the other: a write must be there
    /// if one of them held it and ran on. One that an arbiter took the role from gives nothing back: what was
    /// answered and never flushed survives one failure, and a cache that was lost here and a node that could
    /// not be asked there are two.
    pub(super) fn excused_before(&self, node: NodeIndex) -> u64 {
        if !self.network.connected() {
            return self.nodes[node].cache_lost;
        }
        // In async nobody needs to have what the last primary answered, so it is the one to ask.
        let sole =
            |node: NodeIndex| self.settings.mode == Mode::Async && self.last_served == Some(node);
        let excuse = |node: NodeIndex| {
            let (lost, asked) = (&self.nodes[node], &self.nodes[other(node)]);
            match asked.superseded || sole(node) {
                true => lost.cache_lost,
                false => lost.cache_lost.min(asked.broken),
            }
        };
        excuse(0).max(excuse(1))
    }

    /// A resync made both sides equal: what is missing on one is missing on both.
    pub(super) fn on_resynced(&mut self) {
        let lost = self.excused_before(0);
        for node in &mut self.nodes {
            node.cache_lost = lost;
            node.superseded = false;
        }
    }

    /// A disk lost its cache. If it was the only one with the newest data, so did the mirror.
    pub(super) fn on_cache_lost(&mut self, node: NodeIndex) {
        self.order += 1;
        let order = self.order;
        self.nodes[node].cache_lost = order;
        let line = self.line[node];
        if self.runs_ahead() && self.last_served != Some(node) {
            // There a flush is answered when it is done on the other side and on its way to this one.
            let disk = &self.nodes[node].data;
            let tail = self.truths[line].tail(|unit| disk.current(unit), 0);
            self.truths[line].unflush(&tail.lost);
        }
        let peer = other(node);
        let only = self.nodes[peer]
            .durable()
            .is_none_or(|view| view.is_stale())
            || self.nodes[node]
                .durable()
                .is_some_and(|view| view.superblock.peer.outdated || view.superblock.peer.detached);
        if only {
            self.truths[line].excuse_unflushed(order);
        }
    }

    /// The history of a node that was made the truth: what its disk holds, or may hold after a
    /// power loss.
    fn line_from_disk(&self, node: NodeIndex) -> Oracle {
        let mut oracle = Oracle::new(self.runs_ahead());
        let mut contents = Vec::new();
        for unit in self.nodes[node].data.touched_units() {
            contents.clear();
            self.nodes[node].data.possible(unit, &mut contents);
            oracle.place(unit, &contents);
        }
        oracle
    }

    // --- D13: a target is inconsistent before it is overwritten ------------------------------

    pub(super) fn note_delivery(&mut self, node: NodeIndex, message: &Message) {
        if let Message::ResyncData { range, .. } | Message::ResyncZeroes { range, .. } = message {
            self.operator.resync_writes[node] = Some(*range);
        }
        if let Message::Goodbye { clean: true } = message {
            self.nodes[node].peer_left = true;
        }
        let overruled = self.last_served == Some(node) && self.nodes[node].superseded;
        if overruled && matches!(message, Message::ResyncDone { .. }) {
            // What the other has counts, though it has not served since.
            self.check_survivor(other(node));
            self.last_served = Some(other(node));
        }
    }

    pub(super) fn check_overwrite(&mut self, node: NodeIndex, range: ByteRange) {
        if self.operator.resync_writes[node] != Some(range) {
            return;
        }
        self.operator.resync_writes[node] = None;
        let verifying = self.nodes.iter().any(|node| {
            node.volume.as_ref().is_some_and(|volume| {
                volume
                    .status()
                    .sync
                    .is_some_and(|sync| sync.kind == mirror_core::control::SyncKind::Verify)
            })
        });
        let marked = self.nodes[node]
            .durable()
            .is_some_and(|view| view.superblock.flags.inconsistent);
        if !marked && !verifying && !self.nodes[node].serving {
            self.violate(
                "D13",
                format!("node {node} is overwritten by a resync at {range:?} and is not durably inconsistent"),
            );
        }
    }

    // --- D6: equal whenever both sides say so -------------------------------------------------

    /// Everything is at rest, and both sides say that they are in sync.
    pub fn is_settled(&self) -> bool {
        let quiet = self.pending.is_empty()
            && self.outstanding.is_empty()
            && self.in_transit == 0
            && self.network.connected()
            && self
                .nodes
                .iter()
                .all(|node| node.is_up() && node.data.is_idle() && node.metadata.is_idle());
        quiet
            && self.nodes.iter().all(|node| {
                node.volume.as_ref().is_some_and(|volume| {
                    let status = volume.status();
                    status.connection == mirror_core::control::Connection::Connected
                        && status.disk == DiskState::UpToDate
                        && status.out_of_sync_bytes == 0
                        && status.lag_bytes == 0
                        && status.sync.is_none()
                })
            })
    }

    /// If both sides say that they are in sync and nothing moves, they are equal.
    pub(super) fn check_settled(&mut self) {
        if !self.is_settled() {
            return;
        }
        self.tally.compared += 1;
        let different = self.nodes[0]
            .data
            .touched_units()
            .chain(self.nodes[1].data.touched_units())
            .find(|unit| self.nodes[0].data.current(*unit) != self.nodes[1].data.current(*unit));
        if let Some(unit) = different {
            let [a, b] = [0, 1].map(|node| self.nodes[node].data.current(unit));
            let history = self.truths[self.line[0]].describe(unit);
            self.violate(
                "D6",
                format!("both sides are in sync, but unit {unit} holds {a:x} on node 0 and {b:x} on node 1: {history}"),
            );
            return;
        }
        // Whatever a cache lost was given back by the peer, if that had it.
        if self.line[0] == self.line[1] {
            let lost = self.excused_before(0);
            self.check_nothing_lost(lost);
            self.forget_tail(0, lost);
            self.fall = None;
            let line = self.line[0];
            self.truths[line].excuse_unflushed(lost);
        }
        for node in &mut self.nodes {
            node.cache_lost = 0;
            node.broken = 0;
            node.told_down = false;
        }
    }

    /// Both sides are equal: what they hold is what the clients were told.
    fn check_nothing_lost(&mut self, lost: u64) {
        let of = self.last_served.unwrap_or(0);
        if let Some(wrong) = self.judge_survivor(of, lost) {
            self.violate("D5", format!("both sides hold {wrong}"));
        }
    }
}
