//! Serving again at once after the process of a primary died, on a machine that ran on.
//!
//! Nothing that the dead process had written is lost then, so every answered write is here; only what was
//! under way may differ between the sides, and that lies under the extents that were hot. This side keeps
//! its incarnation, the handshake makes it the source, and it declares the peer up to date, which it is: it
//! ran on and has every answered write, too. What is left is to make the two equal again. This side does
//! that while it serves, block by block, and it trusts its own disk no further than it must: a flush may have
//! failed as the process died.
//!
//! * A read of a block in doubt waits until the block has been compared with the peer's, and goes first.
//! * Where they differ the peer's content is fetched and written here, as a block that cannot be read is.
//!   The peer is never written to, so it could take over at any time.
//! * When the peer is lost, what is left is trusted: nothing completed dies with a process.
//!
//! Each step is one of [`walk`](super::walk) and holds its range lock throughout. `docs/decisions` has the
//! argument. It knows nothing of why the process died; whether the machine ran on is a fact that the driver
//! brings (`Seed::boot`).

use super::effect::Effect;
use super::event::{DiskFault, Output};
use super::notice::Notice;
use super::range_lock::Owner;
use super::store::After;
use super::walk::{Stage, Walk};
use super::{Io, Sent, Volume};
use crate::buffer::Buffer;
use crate::control::SyncKind;
use crate::dirty::block_set::BlockSet;
use crate::layout::log_record::Trust;
use crate::layout::metadata::Loaded;
use crate::link::handshake::Scope;
use crate::request::Answer;
use crate::resync::hash::{COMPARE_BYTES, block_hashes};
use crate::units::{ByteRange, EXTENT_BYTES, REQUEST_BYTES_MAX, RequestId, Uuid};
use crate::wire::message::{DiskState, Message, Mode, Role};

/// Extents that two crashes in a row may leave in doubt, by the slots of the log. More is left to a resync.
const CRASHES: u64 = 2;

/// What earlier runs had under way: every block that is dirty here.
#[derive(Debug)]
pub(super) struct Recheck {
    /// Nobody has compared them yet. Bounded by [`CRASHES`].
    unsure: BlockSet,
    /// Those of them that no step has begun with.
    untouched: BlockSet,
}

/// The last run was a primary in step with its peer, it died, and its machine ran on: whatever it had
/// written is still here. Where anything else is amiss the peer copies first.
pub(super) fn runs_on(loaded: &Loaded, mode: Mode, boot: Uuid) -> bool {
    let superblock = &loaded.superblock;
    let (flags, peer, run) = (&superblock.flags, &superblock.peer, &superblock.run);
    let unknown = Uuid::default();
    let same_boot = boot != unknown && run.boot == boot && run.incarnation != unknown;
    let whole = !flags.inconsistent && !flags.outdated && !flags.failed && !flags.doubtful;
    let in_step = !peer.outdated && !peer.detached && superblock.generations.base.is_none();
    let readable =
        !loaded.fell_back && loaded.bad_pages.is_empty() && loaded.log.trust != Trust::Doubtful;
    // In the other modes the peer may lack what was answered.
    mode == Mode::Sync && flags.primary && same_boot && whole && in_step && readable
}

impl Volume {
    /// This side is the source and both bitmaps are in. A peer that ran on and is up to date in the same
    /// generation has every answered write, whatever is dirty: then a recheck is enough.
    pub(super) fn judge_recheck(&mut self, scope: Scope) {
        let current = self.superblock.generations.current;
        let peer_is_whole = self.link().is_some_and(|link| {
            let hello = link.hello.as_ref();
            link.peer_disk == DiskState::UpToDate
                && hello.is_some_and(|hello| hello.generations.current == current)
        });
        let slots = u64::from(self.superblock.log_slots);
        let blocks_max = CRASHES * slots * (EXTENT_BYTES / self.bitmap.block_bytes());
        let few = (1..=blocks_max).contains(&self.bitmap.dirty_blocks());
        self.recheck = None;
        if self.runs_on && scope == Scope::Bitmap && peer_is_whole && few {
            self.plan_recheck();
        } else {
            self.runs_on = false;
        }
    }

    fn plan_recheck(&mut self) {
        let mut unsure = BlockSet::new(self.bitmap.block_shift(), self.superblock.size_bytes);
        let mut from = 0;
        while let Some(block) = self.bitmap.next_dirty(from) {
            let run = self.bitmap.run_at(block, u32::MAX);
            unsure.insert(run);
            // Should it come to a resync after all, it compares first.
            self.weak.insert(run.extent());
            from = run.end().div_ceil(self.bitmap.block_bytes());
        }
        let untouched = unsure.clone();
        self.recheck = Some(Recheck { unsure, untouched });
    }

    pub(super) fn begin_recheck(&mut self) {
        self.resync_due_ms = None;
        let total_bytes = self.bitmap.dirty_bytes();
        let pace = self.new_pace();
        let walk = Walk::new(SyncKind::Recheck, Stage::Walking, total_bytes, pace);
        self.walk = Some(walk);
        self.report(Notice::info(
            "recheck-started",
            format!(
                "comparing {total_bytes} bytes that the last run may have left half written with {}, while serving",
                self.config.peer_name
            ),
        ));
        for range in self.requests.unsure_ranges() {
            self.recheck_now(range);
        }
        self.pump_walk();
    }

    /// Somebody else is to copy to this side, or to decide.
    pub(super) fn forget_recheck(&mut self) {
        self.runs_on = false;
        self.recheck = None;
    }

    /// All is compared, and what was fetched is durable.
    pub(super) fn end_recheck(&mut self) {
        let Some(walk) = self.walk.take() else {
            return;
        };
        self.recheck = None;
        self.runs_on = false;
        self.report(Notice::info(
            "recheck-finished",
            format!(
                "{} bytes compared with {}, {} of them fetched",
                walk.done_bytes, self.config.peer_name, walk.copied_bytes
            ),
        ));
        if self.bitmap.is_clean() {
            self.weak.clear();
        }
        let pages = self.changed_pages();
        self.save_pages(&pages, After::Nothing);
        self.release_unsure_reads();
        self.want_resync();
    }

    /// Its walk has come to an early end.
    pub(super) fn on_recheck_dropped(&mut self) {
        if !self.disk_usable() {
            // The peer serves.
            self.release_unsure_reads();
        } else if self.role == Role::Primary {
            self.give_up_recheck();
        } else {
            // Nobody has read anything here since: the next handshake plans it anew.
            self.recheck = None;
        }
    }

    /// From here on what is on this side's disk counts. A resync brings the peer in step, when there is one.
    pub(super) fn give_up_recheck(&mut self) {
        self.runs_on = false;
        if self.recheck.take().is_some() {
            self.resync_due_ms = Some(self.now.monotonic_ms);
            self.release_unsure_reads();
        }
    }

    /// What came from the peer is being written here: nobody else may order writes of this disk yet.
    pub(super) fn is_fetching(&self) -> bool {
        let steps = self.walk.iter().flat_map(|walk| walk.steps.values());
        steps
            .chain(self.strays.values())
            .any(|step| step.writes > 0)
    }

    pub(super) fn is_in_doubt(&self, range: ByteRange) -> bool {
        self.recheck
            .as_ref()
            .is_some_and(|recheck| recheck.unsure.any_in(range))
    }

    /// What is dirty is so for this side's sake: the peer lacks nothing.
    pub(super) fn peer_lacks_nothing(&self) -> bool {
        self.bitmap.is_clean() || self.recheck.is_some()
    }

    /// A read waits until its blocks are compared.
    pub(super) fn await_recheck(&mut self, id: RequestId, range: ByteRange) {
        self.requests.hold_unsure(id, range);
        self.recheck_now(range);
    }

    /// Reads whose blocks are compared, or trusted, go on.
    pub(super) fn release_unsure_reads(&mut self) {
        for (id, range) in self.requests.take_unsure() {
            if self.is_in_doubt(range) && self.disk_usable() {
                self.requests.hold_unsure(id, range);
            } else {
                self.begin_read(id, range);
            }
        }
    }

    /// Whoever waits for these blocks shall not wait for the pace.
    fn recheck_now(&mut self, range: ByteRange) {
        if self
            .walk
            .as_ref()
            .is_none_or(|walk| walk.kind != SyncKind::Recheck)
        {
            return;
        }
        while let Some(run) = self
            .next_unsure(range.offset)
            .filter(|run| run.offset < range.end())
        {
            // No more than was asked for, in whole blocks.
            let block = self.bitmap.block_bytes();
            let end = range.end().next_multiple_of(block).min(run.end());
            self.begin_step(ByteRange::new(run.offset, (end - run.offset) as u32));
        }
    }

    /// The next blocks that no step has begun with, those that contain the offset included.
    pub(super) fn next_unsure(&self, offset: u64) -> Option<ByteRange> {
        let recheck = self.recheck.as_ref()?;
        recheck.untouched.next_run(offset, REQUEST_BYTES_MAX)
    }

    pub(super) fn note_begun(&mut self, range: ByteRange) {
        if let Some(recheck) = &mut self.recheck {
            recheck.untouched.remove(range);
        }
    }

    /// A step is done: its blocks are equal, or this side's are trusted.
    pub(super) fn note_sure(&mut self, range: ByteRange) {
        if let Some(recheck) = &mut self.recheck {
            recheck.unsure.remove(range);
            self.release_unsure_reads();
        }
    }

    // --- a step: read here, compare there, fetch what differs -------------------------------------

    pub(super) fn on_recheck_read(
        &mut self,
        owner: Owner,
        range: ByteRange,
        result: Result<Output, DiskFault>,
    ) {
        let Ok(Output::Data(data)) = result else {
            // What cannot be read here the peer has.
            self.fetch(owner, &[range]);
            return;
        };
        let hashes = block_hashes(&data, COMPARE_BYTES);
        self.set_step(owner, None, 1);
        let sequence = self.next_sequence(Sent::Walk(owner));
        self.send(Message::Compare {
            sequence,
            range,
            block_bytes: COMPARE_BYTES,
            // Nothing is overwritten there.
            verify: true,
            hashes,
        });
    }

    pub(super) fn fetch(&mut self, owner: Owner, runs: &[ByteRange]) {
        self.set_step(owner, None, runs.len() as u32);
        for range in runs {
            let sequence = self.next_sequence(Sent::Walk(owner));
            self.send(Message::ReadRequest {
                sequence,
                range: *range,
            });
        }
    }

    pub(super) fn on_fetched(&mut self, owner: Owner, range: ByteRange, data: Buffer) {
        if self.end_stray(owner) {
            return;
        }
        let Some(walk) = &mut self.walk else {
            return;
        };
        let Some(step) = walk.steps.get_mut(&owner) else {
            return;
        };
        let inside = step.range.offset <= range.offset && range.end() <= step.range.end();
        if !inside || data.len() != range.length as usize {
            self.break_link("an answer to a read that was not asked");
            return;
        }
        step.open -= 1;
        step.writes += 1;
        walk.copied_bytes += u64::from(range.length);
        let io = self.start_io(Io::Fetched(owner));
        let fua = false;
        self.fx.push(Effect::Write {
            io,
            range,
            data,
            fua,
        });
    }

    /// The peer cannot read it: what is here has every answered write, and a resync mends the peer.
    pub(super) fn on_fetch_failed(&mut self, owner: Owner) {
        if self.end_stray(owner) {
            return;
        }
        if let Some(step) = self.step_mut(owner) {
            step.open -= 1;
            step.equal = false;
            self.finish_step(owner);
        }
    }

    pub(super) fn on_fetched_written(&mut self, owner: Owner, result: Result<Output, DiskFault>) {
        let stray = self.strays.get_mut(&owner);
        let in_walk = self
            .walk
            .as_mut()
            .and_then(|walk| walk.steps.get_mut(&owner));
        let Some(step) = in_walk.or(stray) else {
            return;
        };
        step.writes -= 1;
        step.equal &= result.is_ok();
        if matches!(result, Err(DiskFault::Io)) {
            self.on_local_disk_failed("a write failed");
        }
        self.finish_stray(owner);
        self.finish_step(owner);
    }

    pub(super) fn fail_unsure_reads(&mut self, answer: &Answer) {
        for (id, _) in self.requests.take_unsure() {
            self.answer(id, answer.clone());
        }
    }
}
