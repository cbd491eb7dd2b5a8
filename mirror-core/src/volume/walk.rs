//! Walking the disk: as the source of a resync, to verify, or to recheck what a dead process left.
//!
//! Each step holds the lock of its range from before it reads here until the peer has acknowledged
//! (D6), so an application write can neither slip in between nor be overtaken. Copied ranges stay
//! dirty until a flush of the peer covers them: that is the checkpoint, after which both sides clear
//! their bits (D2). A resync makes as many passes as it takes, then hands over the generation.

use rustc_hash::{FxHashMap, FxHashSet};

use super::effect::Effect;
use super::event::{DiskFault, Output};
use super::flushing::FlushFor;
use super::notice::Notice;
use super::range_lock::{Owner, Use};
use super::store::After;
use super::{Io, Sent, Volume};
use crate::buffer::Buffer;
use crate::control::SyncKind;
use crate::resync::hash::{COMPARE_BYTES, VERIFY_BYTES, block_hashes, is_zero};
use crate::resync::pace::Pace;
use crate::units::{ByteRange, EXTENT_BYTES, ExtentIndex, REQUEST_BYTES_MAX};
use crate::wire::message::{InitialSync, Message};

/// Wait before a resync that met unreadable blocks tries those again.
const UNREADABLE_RETRY_MS: u64 = 10_000;
/// Unreadable ranges that one walk names in events; the rest only counts.
const UNREADABLE_REPORTED_MAX: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The target prepares.
    Starting,
    Walking,
    /// The generation is being handed over.
    Finishing,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) range: ByteRange,
    data: Option<Buffer>,
    /// Messages that the peer has yet to acknowledge.
    pub(super) open: u32,
    /// Writes under way here, of a recheck.
    pub(super) writes: u32,
    /// Both sides hold the same when it is done.
    pub(super) equal: bool,
}

impl Step {
    fn new(range: ByteRange) -> Self {
        Self {
            range,
            data: None,
            open: 0,
            writes: 0,
            equal: true,
        }
    }

    /// Nothing of it is under way, on either side.
    fn is_idle(&self) -> bool {
        self.open == 0 && self.writes == 0
    }
}

#[derive(Debug)]
pub(super) struct Walk {
    pub(super) kind: SyncKind,
    pub(super) stage: Stage,
    repair: bool,
    /// Next byte to look at.
    cursor: u64,
    pub(super) steps: FxHashMap<Owner, Step>,
    pace: Pace,
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    pub(super) copied_bytes: u64,
    mismatch_bytes: u64,
    pub(super) paused: bool,
    finishing_since_ms: u64,
    copied: Vec<ByteRange>,
    copied_since_checkpoint: u64,
    /// Ranges that the running flush covers, and its number.
    checkpointing: Vec<ByteRange>,
    checkpoint: Option<u64>,
    unreadable: Unreadable,
}

/// What the source could not read. One bad block must not keep its neighbours from the peer: a run
/// that fails is tried again block by block, and what is left then waits for the next attempt.
#[derive(Debug, Default)]
struct Unreadable {
    /// Extents walked one block at a time.
    extents: FxHashSet<ExtentIndex>,
    /// A run of this pass failed and is worth another pass.
    again: bool,
    /// Single blocks of this pass that failed.
    bytes: u64,
    reported: u64,
}

impl Walk {
    pub(super) fn new(kind: SyncKind, stage: Stage, total_bytes: u64, pace: Pace) -> Self {
        Self {
            kind,
            stage,
            repair: false,
            cursor: 0,
            steps: FxHashMap::default(),
            pace,
            total_bytes,
            done_bytes: 0,
            copied_bytes: 0,
            mismatch_bytes: 0,
            paused: false,
            finishing_since_ms: 0,
            copied: Vec::new(),
            copied_since_checkpoint: 0,
            checkpointing: Vec::new(),
            checkpoint: None,
            unreadable: Unreadable::default(),
        }
    }

    /// The generation is being handed over from now on.
    pub(super) fn finish(&mut self, now_ms: u64) {
        self.stage = Stage::Finishing;
        self.finishing_since_ms = now_ms;
    }

    /// Since when the peer has to take the end over, if it came that far.
    pub(super) fn finishing_since(&self) -> Option<u64> {
        (self.stage == Stage::Finishing).then_some(self.finishing_since_ms)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    fn is_underway(&self) -> bool {
        self.stage == Stage::Walking && !self.paused
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The range became dirty for a new reason: no checkpoint may clear it.
    pub(super) fn forget(&mut self, range: ByteRange) {
        self.copied.retain(|copied| !copied.overlaps(range));
        self.checkpointing.retain(|copied| !copied.overlaps(range));
    }
}

impl Volume {
    pub(super) fn begin_verify(&mut self, repair: bool) {
        let pace = self.new_pace();
        let mut walk = Walk::new(
            SyncKind::Verify,
            Stage::Walking,
            self.superblock.size_bytes,
            pace,
        );
        walk.repair = repair;
        self.walk = Some(walk);
        self.report(Notice::info("verify-started", "comparing both sides"));
        self.pump_walk();
    }

    pub(super) fn is_walk_step(&self, owner: Owner) -> bool {
        self.walk
            .as_ref()
            .is_some_and(|walk| walk.steps.contains_key(&owner))
    }

    /// A step has its range lock.
    pub(super) fn on_walk_granted(&mut self, owner: Owner) {
        let Some(walk) = &self.walk else {
            return;
        };
        let range = walk.steps[&owner].range;
        let compare = match walk.kind {
            SyncKind::Verify | SyncKind::Recheck => true,
            SyncKind::Resync | SyncKind::Full => self.weak.contains(range.extent()),
        };
        let io = self.start_io(Io::Walk(owner));
        self.fx.push(if compare {
            Effect::Read { io, range }
        } else {
            Effect::ReadSparse { io, range }
        });
    }

    pub(super) fn on_walk_read(&mut self, owner: Owner, result: Result<Output, DiskFault>) {
        let Some(range) = self
            .walk
            .as_ref()
            .and_then(|walk| walk.steps.get(&owner))
            .map(|step| step.range)
        else {
            return;
        };
        let is = |kind| self.walk.as_ref().is_some_and(|walk| walk.kind == kind);
        if is(SyncKind::Recheck) {
            self.on_recheck_read(owner, range, result);
            return;
        }
        let verify = is(SyncKind::Verify);
        match result {
            Err(_) => self.on_walk_read_failed(owner, range),
            Ok(Output::Data(data)) if verify || self.weak.contains(range.extent()) => {
                let block_bytes = compare_bytes(verify);
                let hashes = block_hashes(&data, block_bytes);
                self.set_step(owner, Some(data), 1);
                let sequence = self.next_sequence(Sent::Walk(owner));
                self.send(Message::Compare {
                    sequence,
                    range,
                    block_bytes,
                    verify,
                    hashes,
                });
            }
            Ok(Output::Data(data)) if !is_zero(&data) => {
                self.set_step(owner, None, 1);
                self.copy(owner, range, data);
            }
            Ok(_) => {
                // A full first sync leaves the target allocated; every other one may leave holes.
                let full = self
                    .walk
                    .as_ref()
                    .is_some_and(|walk| walk.kind == SyncKind::Full);
                let no_hole = full && self.config.initial_sync == InitialSync::Full;
                self.set_step(owner, None, 1);
                let sequence = self.next_sequence(Sent::Walk(owner));
                self.send(Message::ResyncZeroes {
                    sequence,
                    range,
                    no_hole,
                });
            }
        }
    }

    pub(super) fn on_compared(&mut self, owner: Owner, unequal: &[u64]) {
        self.end_stray(owner);
        let Some(walk) = &mut self.walk else {
            return;
        };
        let (verify, recheck) = (
            walk.kind == SyncKind::Verify,
            walk.kind == SyncKind::Recheck,
        );
        let Some(step) = walk.steps.get_mut(&owner) else {
            return;
        };
        let runs = unequal_runs(step.range, unequal, compare_bytes(verify));
        let data = step.data.take();
        let whole = step.range;
        if runs.is_empty() {
            self.end_step(owner);
            return;
        }
        if recheck {
            self.fetch(owner, &runs);
            return;
        }
        if verify {
            for run in &runs {
                walk.mismatch_bytes += u64::from(run.length);
            }
            self.report(Notice::error(
                "verify-mismatch",
                format!(
                    "the sides differ at {}",
                    runs.iter()
                        .map(|run| format!("{run:?}"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ));
            for run in runs {
                self.mark_dirty(run);
            }
            self.end_step(owner);
            return;
        }
        let Some(data) = data else {
            return;
        };
        self.set_step(owner, None, runs.len() as u32);
        for run in runs {
            let start = (run.offset - whole.offset) as usize;
            self.copy(owner, run, data.slice(start, run.length as usize));
        }
    }

    pub(super) fn on_walk_acknowledged(&mut self, owner: Owner) {
        if self.end_stray(owner) {
            return;
        }
        if let Some(step) = self.step_mut(owner) {
            step.open -= 1;
            self.finish_step(owner);
        }
    }

    pub(super) fn step_mut(&mut self, owner: Owner) -> Option<&mut Step> {
        self.walk.as_mut()?.steps.get_mut(&owner)
    }

    /// Ends a step of which nothing is under way any more.
    pub(super) fn finish_step(&mut self, owner: Owner) {
        if self.step_mut(owner).is_some_and(|step| step.is_idle()) {
            self.end_step(owner);
        }
    }

    /// A flush that was to make copied ranges durable at the peer has ended.
    pub(super) fn on_checkpoint(&mut self, number: u64, durable: bool) {
        let Some(walk) = self
            .walk
            .as_mut()
            .filter(|walk| walk.checkpoint == Some(number))
        else {
            return;
        };
        walk.checkpoint = None;
        let ranges = std::mem::take(&mut walk.checkpointing);
        if durable {
            for range in ranges {
                self.bitmap.clear_range(range);
            }
        }
        self.pump_walk();
    }

    /// The walk cannot go on. Bits stay; a resync is taken up again when its reason to stop is over,
    /// or by the next handshake.
    pub(super) fn abort_walk(&mut self, why: &str) {
        self.stop_walk(why, 0);
    }

    fn stop_walk(&mut self, why: &str, retry_after_ms: u64) {
        if let Some(walk) = &self.walk {
            if walk.kind != SyncKind::Verify {
                self.resync_due_ms = Some(self.now.monotonic_ms + retry_after_ms);
            }
            self.report(Notice::warning("resync-stopped", format!("stopped: {why}")));
        }
        self.drop_walk();
    }

    fn on_walk_read_failed(&mut self, owner: Owner, range: ByteRange) {
        let block_bytes = self.bitmap.block_bytes();
        let Some(walk) = &mut self.walk else {
            return;
        };
        if walk.kind == SyncKind::Verify {
            self.abort_walk("a block cannot be read here");
            return;
        }
        let unreadable = &mut walk.unreadable;
        if u64::from(range.length) > block_bytes && unreadable.extents.insert(range.extent()) {
            unreadable.again = true;
        } else {
            unreadable.bytes += u64::from(range.length);
            unreadable.reported += 1;
            if unreadable.reported <= UNREADABLE_REPORTED_MAX {
                self.report(Notice::error(
                    "read-failed",
                    format!("cannot read {range:?} here: the blocks stay out of sync"),
                ));
            }
        }
        self.give_up_step(owner);
    }

    /// Nothing of the step reached the peer: its blocks stay dirty.
    fn give_up_step(&mut self, owner: Owner) {
        let now = self.now.monotonic_ms;
        let Some(walk) = &mut self.walk else {
            return;
        };
        if let Some(step) = walk.steps.remove(&owner) {
            walk.pace.done(u64::from(step.range.length), now);
            self.unlock(owner, step.range);
        }
        self.pump_walk();
    }

    /// Gives the ranges of a walk back, except those that the peer still works on.
    pub(super) fn drop_walk(&mut self) {
        self.backlog.degrading = false;
        let Some(walk) = self.walk.take() else {
            return;
        };
        let mut steps: Vec<_> = walk.steps.into_iter().collect();
        steps.sort_unstable_by_key(|(owner, _)| owner.0);
        let (idle, strays): (Vec<_>, Vec<_>) =
            steps.into_iter().partition(|(_, step)| step.is_idle());
        self.strays.extend(strays);
        for (owner, step) in idle {
            self.unlock(owner, step.range);
        }
        if walk.kind == SyncKind::Recheck {
            self.on_recheck_dropped();
        }
    }

    /// The link of the strays is gone, and whatever they still do there ends before the next hello (D11).
    /// What they still write here keeps its range.
    pub(super) fn release_strays(&mut self) {
        let mut owners: Vec<Owner> = self.strays.keys().copied().collect();
        owners.sort_unstable_by_key(|owner| owner.0);
        for owner in owners {
            if let Some(step) = self.strays.get_mut(&owner) {
                step.open = 0;
            }
            self.finish_stray(owner);
        }
    }

    /// The peer answered a message of a walk that was dropped. False if it was none of those.
    pub(super) fn end_stray(&mut self, owner: Owner) -> bool {
        let Some(step) = self.strays.get_mut(&owner) else {
            return false;
        };
        step.open -= 1;
        self.finish_stray(owner);
        true
    }

    pub(super) fn finish_stray(&mut self, owner: Owner) {
        if self.strays.get(&owner).is_some_and(Step::is_idle)
            && let Some(step) = self.strays.remove(&owner)
        {
            self.unlock(owner, step.range);
        }
    }

    pub(super) fn tick_walk(&mut self) {
        let now = self.now.monotonic_ms;
        if let Some(target) = &mut self.target {
            target.meter.tick(now);
        }
        if let Some(walk) = &mut self.walk {
            walk.pace.tick(now, walk.is_underway());
            self.pump_walk();
        } else if self.resync_due_ms.is_some_and(|due| now >= due) {
            self.want_resync();
        }
    }

    /// A walk that has left clients alone for a while goes on. Where they are active something happens often enough for
    /// that; where they no longer are, ticks come.
    pub(super) fn resume_walk(&mut self) {
        let now = self.now.monotonic_ms;
        let walk = self.walk.as_mut();
        if walk.is_some_and(|walk| walk.pace.has_rested(now)) {
            self.pump_walk();
        }
    }

    pub(super) fn new_pace(&self) -> Pace {
        Pace::new(
            self.config.resync_rates,
            self.config.resync_in_flight,
            self.now.monotonic_ms,
        )
    }

    fn note_clients(&mut self) {
        let active = self.has_active_requests().then_some(self.now.monotonic_ms);
        if let Some(walk) = &mut self.walk
            && let Some(at_ms) = active.max(self.clients_return_ms)
        {
            walk.pace.note_clients(at_ms);
        }
    }

    pub(super) fn pump_walk(&mut self) {
        loop {
            self.note_clients();
            let now = self.now.monotonic_ms;
            let Some(walk) = &self.walk else {
                return;
            };
            if !walk.is_underway() || !walk.pace.may_start(now) {
                return;
            }
            let next = match walk.kind {
                SyncKind::Verify => next_range(walk.cursor, self.superblock.size_bytes),
                SyncKind::Recheck => self.next_unsure(walk.cursor),
                SyncKind::Resync | SyncKind::Full => self
                    .bitmap
                    .next_dirty(walk.cursor / self.bitmap.block_bytes())
                    .map(|block| {
                        let offset = block * self.bitmap.block_bytes();
                        let extent = ExtentIndex((offset / EXTENT_BYTES) as u32);
                        let one_by_one = walk.unreadable.extents.contains(&extent);
                        let bytes_max = if one_by_one {
                            (self.bitmap.block_bytes() as u32).min(REQUEST_BYTES_MAX)
                        } else {
                            REQUEST_BYTES_MAX
                        };
                        self.bitmap.run_at(block, bytes_max)
                    }),
            };
            let Some(range) = next else {
                self.end_pass();
                return;
            };
            let cursor = range.end().next_multiple_of(match walk.kind {
                SyncKind::Verify => 1,
                _ => self.bitmap.block_bytes(),
            });
            if let Some(walk) = &mut self.walk {
                walk.cursor = cursor;
            }
            self.begin_step(range);
        }
    }

    pub(super) fn begin_step(&mut self, range: ByteRange) {
        let owner = Owner(self.next_id());
        let now = self.now.monotonic_ms;
        let Some(walk) = &mut self.walk else {
            return;
        };
        walk.pace.started(u64::from(range.length), now);
        walk.steps.insert(owner, Step::new(range));
        if walk.kind == SyncKind::Recheck {
            self.note_begun(range);
        }
        if self.locks.acquire(owner, range, Use::Exclusive) {
            self.on_walk_granted(owner);
        }
    }

    /// Nothing left in this pass: checkpoint, another pass, or the end.
    fn end_pass(&mut self) {
        let Some(walk) = &mut self.walk else {
            return;
        };
        if !walk.steps.is_empty() || walk.checkpoint.is_some() {
            return;
        }
        if walk.kind == SyncKind::Verify {
            self.end_verify();
        } else if !walk.copied.is_empty() {
            self.take_checkpoint();
        } else if walk.kind == SyncKind::Recheck {
            self.end_recheck();
        } else if self.bitmap.is_clean() {
            if self.may_hand_over() {
                self.hand_over();
            }
        } else if walk.unreadable.bytes > 0 && !walk.unreadable.again {
            let why = format!(
                "{} bytes cannot be read here; writing them anew, or promoting the peer's older data by force, ends that",
                walk.unreadable.bytes
            );
            self.stop_walk(&why, UNREADABLE_RETRY_MS);
        } else {
            walk.unreadable.again = false;
            walk.unreadable.bytes = 0;
            walk.cursor = 0;
            self.pump_walk();
        }
    }

    fn take_checkpoint(&mut self) {
        let number = self.next_id();
        let Some(walk) = &mut self.walk else {
            return;
        };
        if walk.checkpoint.is_some() {
            return;
        }
        walk.checkpoint = Some(number);
        walk.checkpointing = std::mem::take(&mut walk.copied);
        walk.copied_since_checkpoint = 0;
        self.request_flush(FlushFor::Checkpoint(number));
        // Too many bits on disk only cost time, so the pages need not be waited for.
        let pages = self.bitmap.changed_pages();
        self.save_pages(&pages, After::Nothing);
    }

    fn end_verify(&mut self) {
        let Some(walk) = self.walk.take() else {
            return;
        };
        self.last_verify_mismatch_bytes = Some(walk.mismatch_bytes);
        let message = format!(
            "{} bytes compared, {} differ",
            walk.done_bytes, walk.mismatch_bytes
        );
        self.report(if walk.mismatch_bytes == 0 {
            Notice::info("verify-finished", message)
        } else {
            Notice::warning("verify-finished", message)
        });
        let pages = self.unsaved_pages();
        self.save_pages(&pages, After::Nothing);
        if walk.repair {
            self.want_resync();
        }
    }

    fn copy(&mut self, owner: Owner, range: ByteRange, data: Buffer) {
        if let Some(walk) = &mut self.walk {
            walk.copied_bytes += u64::from(range.length);
        }
        let sequence = self.next_sequence(Sent::Walk(owner));
        self.send(Message::ResyncData {
            sequence,
            range,
            data,
        });
    }

    pub(super) fn set_step(&mut self, owner: Owner, data: Option<Buffer>, open: u32) {
        if let Some(step) = self.step_mut(owner) {
            step.data = data;
            step.open = open;
        }
    }

    fn end_step(&mut self, owner: Owner) {
        let now = self.now.monotonic_ms;
        let Some(walk) = &mut self.walk else {
            return;
        };
        let Some(step) = walk.steps.remove(&owner) else {
            return;
        };
        let bytes = u64::from(step.range.length);
        walk.pace.done(bytes, now);
        walk.done_bytes += bytes;
        if walk.kind != SyncKind::Verify && step.equal {
            walk.copied.push(step.range);
            walk.copied_since_checkpoint += bytes;
        }
        let due = walk.copied_since_checkpoint >= self.config.checkpoint_bytes;
        let recheck = walk.kind == SyncKind::Recheck;
        self.unlock(owner, step.range);
        if recheck {
            self.note_sure(step.range);
        }
        if due {
            self.take_checkpoint();
        }
        self.pump_walk();
    }
}

/// The next stretch to verify, inside one extent.
fn next_range(cursor: u64, size_bytes: u64) -> Option<ByteRange> {
    let extent_end = (cursor / EXTENT_BYTES + 1) * EXTENT_BYTES;
    let end = (cursor + u64::from(REQUEST_BYTES_MAX))
        .min(extent_end)
        .min(size_bytes);
    (cursor < end).then(|| ByteRange::new(cursor, (end - cursor) as u32))
}

/// Bytes that one hash stands for.
fn compare_bytes(verify: bool) -> u32 {
    match verify {
        true => VERIFY_BYTES,
        false => COMPARE_BYTES,
    }
}

/// The unequal blocks of a comparison as runs of bytes.
fn unequal_runs(range: ByteRange, unequal: &[u64], block_bytes: u32) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    let blocks = range.length.div_ceil(block_bytes);
    for block in 0..blocks {
        let word = unequal
            .get((block / 64) as usize)
            .copied()
            .unwrap_or(u64::MAX);
        if word >> (block % 64) & 1 == 0 {
            continue;
        }
        let start = block * block_bytes;
        let length = block_bytes.min(range.length - start);
        let offset = range.offset + u64::from(start);
        match runs.last_mut() {
            Some(last) if last.end() == offset => last.length += length,
            _ => runs.push(ByteRange::new(offset, length)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unequal_blocks_become_runs_and_the_last_may_be_short() {
        let range = ByteRange::new(1 << 20, 3 * 4096 + 512);
        assert_eq!(
            unequal_runs(range, &[0b1101], 4096),
            [
                ByteRange::new(1 << 20, 4096),
                ByteRange::new((1 << 20) + 8192, 4096 + 512)
            ]
        );
    }
}
