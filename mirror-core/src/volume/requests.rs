//! Client requests, from arrival to answer.
//!
//! A write takes its range lock, then its hot extent, then goes to the local disk and the peer at
//! once. It is answered when both legs are in; a leg that is lost leaves dirty bits behind before
//! anything else (D2), and the answer then waits for D5. Lock and extent are given back together
//! with the answer.
//!
//! In semisync and async the answer comes earlier (`ack_policy`). Lock and extent are given back with the
//! second leg then, too; until then the write is in the table without its client and without its payload.

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::effect::Effect;
use super::event::{DiskFault, Output};
use super::log::LogWaiter;
use super::range_lock::{Owner, Use};
use super::{Io, Sent, Volume};
use crate::buffer::Buffer;
use crate::request::{Answer, Failure, Operation, Request};
use crate::units::{ByteRange, IoToken, REQUEST_BYTES_MAX, RequestId, Sequence};
use crate::wire::message::{DiskState, Message, Role};

/// What a write does to the range.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Data {
        data: Buffer,
        fua: bool,
    },
    Zeroes {
        fua: bool,
        no_hole: bool,
        trim: bool,
    },
}

impl Change {
    /// The disk operation that makes the change.
    pub(super) fn effect(self, io: IoToken, range: ByteRange) -> Effect {
        match self {
            Self::Data { data, fua } => Effect::Write {
                io,
                range,
                data,
                fua,
            },
            Self::Zeroes { fua, no_hole, .. } => Effect::WriteZeroes {
                io,
                range,
                no_hole,
                fua,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Locking,
    Heating,
    /// Hot, but a handshake is under way or answers are suspended.
    Parked,
    Running,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Idle,
    Running,
    Done,
    /// Will not get this write: bits are set, or the disk is written off.
    Lost,
}

#[derive(Debug)]
struct Write {
    /// None for a repair of the local disk from the peer.
    id: Option<RequestId>,
    range: ByteRange,
    /// None once it was answered and is on its way: nobody asks for it any more.
    change: Option<Change>,
    stage: Stage,
    local: Leg,
    peer: Leg,
    /// The last operation of those that were answered before this one was submitted.
    barrier: Sequence,
    /// The message that carries it to the peer.
    sequence: Sequence,
    /// Semisync: the peer has it and will do it.
    received: bool,
    /// Answered ahead of the peer.
    answered: bool,
    /// When the peer was asked for what it has acknowledged.
    asked_ms: Option<u64>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Read {
    range: ByteRange,
}

#[derive(Debug)]
struct PeerRead {
    id: RequestId,
    range: ByteRange,
    /// Write back what the peer sends: the local read failed.
    repair: bool,
    running: bool,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    writes: FxHashMap<Owner, Write>,
    reads: FxHashMap<RequestId, Read>,
    peer_reads: FxHashMap<Owner, PeerRead>,
    /// Complete here, but the answer waits (D5, D13).
    held: FxHashSet<Owner>,
    parked: Vec<Owner>,
    /// Waited for proof of the lease when the line that they rested on was cut: the peer lacks them now.
    overtaken: Vec<RequestId>,
    /// Wait until their blocks are compared. Bounded by the requests that clients may have in flight.
    unsure_reads: Vec<(RequestId, ByteRange)>,
}

impl Requests {
    pub(super) fn with_capacity(writes: usize) -> Self {
        Self {
            writes: FxHashMap::with_capacity_and_hasher(writes, FxBuildHasher),
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.reads.is_empty()
            && self.peer_reads.is_empty()
            && self.overtaken.is_empty()
            && self.unsure_reads.is_empty()
    }

    /// Nothing runs against a disk or the old peer; what is left is held, parked or queued behind.
    pub(super) fn is_drained(&self) -> bool {
        self.peer_reads.values().all(|read| !read.running)
            && self
                .writes
                .iter()
                .all(|(owner, write)| write.stage != Stage::Running || self.held.contains(owner))
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty() || !self.overtaken.is_empty()
    }

    pub(super) fn has_overtaken(&self) -> bool {
        !self.overtaken.is_empty()
    }

    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Changes in the table, those too that were answered ahead of the peer, and reads.
    pub(super) fn count(&self) -> usize {
        self.writes.len() + self.reads.len() + self.unsure_reads.len()
    }

    pub(super) fn hold_unsure(&mut self, id: RequestId, range: ByteRange) {
        self.unsure_reads.push((id, range));
    }

    pub(super) fn take_unsure(&mut self) -> Vec<(RequestId, ByteRange)> {
        std::mem::take(&mut self.unsure_reads)
    }

    pub(super) fn unsure_ranges(&self) -> Vec<ByteRange> {
        self.unsure_reads.iter().map(|(_, range)| *range).collect()
    }

    pub(super) fn range_of(&self, owner: Owner) -> Option<ByteRange> {
        self.writes.get(&owner).map(|write| write.range)
    }
}

impl Volume {
    pub(super) fn on_request(&mut self, request: Request) {
        let Request {
            id,
            range,
            operation,
        } = request;
        if self.role != Role::Primary || !self.serving || self.halted {
            self.answer(id, Answer::Failed(Failure::NotPrimary));
            return;
        }
        if self.gate.is_failing() {
            self.answer(id, Answer::Failed(Failure::Io));
            return;
        }
        let is_flush = matches!(operation, Operation::Flush);
        let is_change = !is_flush && !matches!(operation, Operation::Read);
        if is_change && self.has_no_disk() {
            self.answer(id, Answer::Failed(Failure::Io));
            return;
        }
        if !is_flush && !self.is_valid(range, &operation) {
            self.answer(id, Answer::Failed(Failure::Invalid));
            return;
        }
        match operation {
            Operation::Read => self.begin_read(id, range),
            Operation::Flush => self.request_client_flush(id),
            Operation::Write { data, fua } => {
                self.counters.writes += 1;
                self.counters.bytes_written += u64::from(range.length);
                self.begin_write(id, range, Change::Data { data, fua });
            }
            Operation::Trim { fua } => {
                let no_hole = false;
                self.begin_write(
                    id,
                    range,
                    Change::Zeroes {
                        fua,
                        no_hole,
                        trim: true,
                    },
                );
            }
            Operation::WriteZeroes { fast: true, .. } if !self.fast_zero() => {
                self.answer(id, Answer::Failed(Failure::NotSupported));
            }
            Operation::WriteZeroes { fua, no_hole, .. } => {
                self.begin_write(
                    id,
                    range,
                    Change::Zeroes {
                        fua,
                        no_hole,
                        trim: false,
                    },
                );
            }
        }
    }

    pub(super) fn on_write_granted(&mut self, owner: Owner) {
        if let Some(write) = self.requests.writes.get_mut(&owner) {
            write.stage = Stage::Heating;
            let extent = write.range.extent();
            self.heat(LogWaiter::Write(owner), extent);
        } else {
            self.on_peer_read_granted(owner);
        }
    }

    /// The extent is hot and pinned.
    pub(super) fn on_write_hot(&mut self, owner: Owner) {
        self.log_queue.running += 1;
        let Some(range) = self.requests.range_of(owner) else {
            return;
        };
        if self.in_handshake() || self.is_suspended() {
            self.park_write(owner);
            self.requests.parked.push(owner);
            return;
        }
        self.admit_write(owner, range);
    }

    pub(super) fn park_write(&mut self, owner: Owner) {
        if let Some(write) = self.requests.writes.get_mut(&owner) {
            write.stage = Stage::Parked;
        }
    }

    /// Lets parked writes run: the handshake ended, or answers alone are allowed now.
    pub(super) fn unpark(&mut self) {
        if self.in_handshake() || self.is_suspended() {
            return;
        }
        for owner in std::mem::take(&mut self.requests.parked) {
            if let Some(range) = self.requests.range_of(owner) {
                self.admit_write(owner, range);
            }
        }
    }

    /// Writes that were held for want of a peer go to the new one.
    pub(super) fn resend_held(&mut self) {
        if !self.is_replicating() {
            return;
        }
        let mut held: Vec<Owner> = self.requests.held.iter().copied().collect();
        held.sort_unstable_by_key(|owner| owner.0);
        for owner in held {
            let write = self
                .requests
                .writes
                .get_mut(&owner)
                .expect("held writes exist");
            if write.peer == Leg::Lost && write.failure.is_none() {
                write.peer = Leg::Running;
                self.requests.held.remove(&owner);
                self.send_write(owner);
                self.advance_write(owner);
            }
        }
    }

    pub(super) fn on_write_applied(&mut self, owner: Owner, result: Result<Output, DiskFault>) {
        let usable = self.disk_usable();
        let Some(write) = self.requests.writes.get_mut(&owner) else {
            return;
        };
        let range = write.range;
        match result {
            Ok(_) => {
                write.local = Leg::Done;
                self.log.note_local_write(range.extent());
            }
            Err(DiskFault::NoSpace) if usable && write.id.is_none() => {
                // A block that cannot be read here stays so: what the peer gave back has no place.
                write.local = Leg::Done;
            }
            Err(DiskFault::NoSpace) if usable => {
                // The peer may have the data and we have not: the block differs, and the client is
                // told that its write failed. A resync makes both sides equal again.
                write.local = Leg::Done;
                write.failure = Some(Failure::NoSpace);
                self.mark_dirty(range);
                self.want_resync();
            }
            Err(_) => {
                write.local = Leg::Lost;
                self.on_local_disk_failed("a write failed");
            }
        }
        self.advance_write(owner);
    }

    pub(super) fn on_write_acknowledged(&mut self, owner: Owner, asked_ms: u64) {
        let Some(write) = self.requests.writes.get_mut(&owner) else {
            return;
        };
        write.peer = Leg::Done;
        write.asked_ms = Some(asked_ms);
        let range = write.range;
        self.log.note_peer_write(range);
        self.note_leg_over(range);
        self.advance_write(owner);
        self.pump_backlog();
    }

    pub(super) fn on_write_received(&mut self, owner: Owner) {
        if let Some(write) = self.requests.writes.get_mut(&owner) {
            write.received = true;
            self.advance_write(owner);
        }
    }

    /// The peer will not acknowledge anything that is out there: bits first, then the rest.
    pub(super) fn on_writes_lost_peer(&mut self) {
        self.clear_line();
        self.backlog.note_cut();
        let waiting = self.backlog.take_waiting();
        self.requests.parked.extend(waiting);
        let mut owners: Vec<Owner> = self
            .requests
            .writes
            .iter()
            .filter(|(_, write)| write.peer == Leg::Running)
            .map(|(owner, _)| *owner)
            .collect();
        owners.sort_unstable_by_key(|owner| owner.0);
        for owner in &owners {
            let write = self.requests.writes.get_mut(owner).expect("listed above");
            write.peer = Leg::Lost;
            let range = write.range;
            self.mark_dirty(range);
            self.note_leg_over(range);
        }
        for owner in owners {
            self.advance_write(owner);
        }
        let overtaken = self.take_ahead();
        if !overtaken.is_empty() {
            self.requests.overtaken.extend(overtaken);
            if self.is_alone_durable() {
                self.release_overtaken();
            }
            self.want_alone();
        }
        let mut reads: Vec<Owner> = self.requests.peer_reads.keys().copied().collect();
        reads.sort_unstable_by_key(|owner| owner.0);
        for owner in reads {
            self.fail_peer_read(owner);
        }
    }

    pub(super) fn on_read_done(&mut self, id: RequestId, result: Result<Output, DiskFault>) {
        let Some(read) = self.requests.reads.remove(&id) else {
            return;
        };
        match result {
            // A disk that failed meanwhile may have dropped what it had not flushed.
            _ if !self.disk_usable() => self.begin_peer_read(id, read.range, false),
            Ok(Output::Data(data)) => self.answer_read(id, data, None),
            Ok(_) => self.answer_read(id, vec![0; read.range.length as usize].into(), None),
            Err(_) => self.begin_peer_read(id, read.range, self.disk_usable()),
        }
    }

    pub(super) fn on_peer_read_reply(
        &mut self,
        owner: Owner,
        asked_ms: u64,
        range: ByteRange,
        data: Buffer,
    ) {
        let asked = self.requests.peer_reads.get(&owner).map(|read| read.range);
        if asked.is_some_and(|asked| asked != range || data.len() != asked.length as usize) {
            self.break_link("an answer to a read that was not asked");
            return;
        }
        let Some(read) = self.requests.peer_reads.remove(&owner) else {
            return;
        };
        self.answer_read(read.id, data.clone(), Some(asked_ms));
        if !read.repair || !self.disk_usable() {
            self.unlock(owner, read.range);
            return;
        }
        // The lock taken before the read stays until the local disk has the data (D6).
        let write = Write {
            id: None,
            range: read.range,
            change: Some(Change::Data { data, fua: false }),
            stage: Stage::Heating,
            local: Leg::Idle,
            peer: Leg::Done,
            barrier: Sequence(0),
            sequence: Sequence(0),
            received: false,
            answered: false,
            asked_ms: None,
            failure: None,
        };
        self.requests.writes.insert(owner, write);
        self.heat(LogWaiter::Write(owner), read.range.extent());
    }

    pub(super) fn fail_peer_read(&mut self, owner: Owner) {
        if let Some(read) = self.requests.peer_reads.remove(&owner) {
            self.answer(read.id, Answer::Failed(Failure::Io));
            self.unlock(owner, read.range);
        }
    }

    /// Answers what may be answered now: D5 or D13 is durable, or the peer is back.
    pub(super) fn release_held(&mut self) {
        let mut held: Vec<Owner> = self.requests.held.iter().copied().collect();
        held.sort_unstable_by_key(|owner| owner.0);
        for owner in held {
            self.advance_write(owner);
        }
        if self.is_alone_durable() {
            self.release_overtaken();
        }
        self.release_held_flushes();
    }

    /// What the line was cut under is on record (D5), or a resync brought it to the peer.
    pub(super) fn release_overtaken(&mut self) {
        for id in std::mem::take(&mut self.requests.overtaken) {
            self.answer(id, Answer::Done);
        }
    }

    pub(super) fn fail_overtaken(&mut self, answer: &Answer) {
        for id in std::mem::take(&mut self.requests.overtaken) {
            self.answer(id, answer.clone());
        }
    }

    /// Every request gets the same answer: this side will not serve any more.
    pub(super) fn fail_all(&mut self, answer: Answer) {
        // What was answered and leaves the table now is no less behind for that.
        self.backlog.note_cut();
        self.clear_log_waiters();
        self.requests.parked.clear();
        self.requests.held.clear();
        self.backlog.take_waiting();
        let mut owners: Vec<Owner> = self.requests.writes.keys().copied().collect();
        owners.sort_unstable_by_key(|owner| owner.0);
        let mut dropped = Vec::with_capacity(owners.len());
        for owner in owners {
            let write = self.requests.writes.get_mut(&owner).expect("listed above");
            if write.local != Leg::Running || self.halted {
                dropped.extend(
                    self.requests
                        .writes
                        .remove(&owner)
                        .map(|write| (owner, write)),
                );
            } else if let Some(id) = write.id.take() {
                // Its disk operation still runs: lock and extent stay until that is done.
                let range = write.range;
                self.mark_dirty(range);
                self.answer(id, answer.clone());
            }
        }
        // All are out of the table before the first lock is given back, so none of them starts.
        for (owner, write) in dropped {
            if write.stage == Stage::Running {
                self.mark_dirty(write.range);
            }
            if write.peer == Leg::Running {
                self.note_leg_over(write.range);
            }
            self.finish_write(owner, &write, &answer);
        }
        let mut reads: Vec<RequestId> = self.requests.reads.drain().map(|(id, _)| id).collect();
        reads.sort_unstable();
        for id in reads {
            self.answer(id, answer.clone());
        }
        let mut reads: Vec<Owner> = self.requests.peer_reads.keys().copied().collect();
        reads.sort_unstable_by_key(|owner| owner.0);
        for owner in reads {
            self.fail_peer_read(owner);
        }
        self.fail_overtaken(&answer);
        self.fail_unsure_reads(&answer);
        self.fail_flushes(&answer);
        self.fail_waiting(&answer);
    }

    pub(super) fn answer(&mut self, id: RequestId, answer: Answer) {
        self.release(id, answer, None);
    }

    pub(super) fn unlock(&mut self, owner: Owner, range: ByteRange) {
        let mut granted = Vec::new();
        self.locks.release(owner, range, &mut granted);
        self.grant_locks(granted);
    }

    fn grant_locks(&mut self, granted: Vec<Owner>) {
        for owner in granted {
            if self.is_walk_step(owner) {
                self.on_walk_granted(owner);
            } else {
                self.on_write_granted(owner);
            }
        }
    }

    fn is_valid(&self, range: ByteRange, operation: &Operation) -> bool {
        let block = u64::from(self.superblock.logical_block_bytes);
        let shaped = range.within_one_extent()
            && range.end() <= self.superblock.size_bytes
            && range.offset.is_multiple_of(block)
            && u64::from(range.length).is_multiple_of(block);
        shaped
            && match operation {
                Operation::Write { data, .. } => {
                    range.length <= REQUEST_BYTES_MAX && data.len() == range.length as usize
                }
                Operation::Read => range.length <= REQUEST_BYTES_MAX,
                _ => true,
            }
    }

    fn begin_write(&mut self, id: RequestId, range: ByteRange, change: Change) {
        let owner = Owner(self.next_id());
        let write = Write {
            id: Some(id),
            range,
            change: Some(change),
            stage: Stage::Locking,
            local: Leg::Idle,
            peer: Leg::Idle,
            barrier: self.backlog.barrier(),
            sequence: Sequence(0),
            received: false,
            answered: false,
            asked_ms: None,
            failure: None,
        };
        self.requests.writes.insert(owner, write);
        if self.locks.acquire(owner, range, Use::Write) {
            self.on_write_granted(owner);
        }
    }

    /// Sends a hot write on its way to both sides.
    pub(super) fn run_write(&mut self, owner: Owner) {
        let usable = self.disk_usable();
        let replicating = self.is_replicating();
        let Some(write) = self.requests.writes.get_mut(&owner) else {
            return;
        };
        write.stage = Stage::Running;
        let range = write.range;
        let to_peer = write.peer == Leg::Idle;
        write.local = if usable { Leg::Running } else { Leg::Lost };
        if to_peer {
            write.peer = if replicating { Leg::Running } else { Leg::Lost };
        }
        if to_peer && !replicating {
            self.mark_dirty(range);
        }
        if usable {
            self.apply_write(owner);
        }
        if to_peer && replicating {
            self.send_write(owner);
        }
        if !usable {
            self.advance_write(owner);
        }
    }

    fn apply_write(&mut self, owner: Owner) {
        let io = self.start_io(Io::Write(owner));
        let write = &self.requests.writes[&owner];
        let range = write.range;
        let change = write.change.clone().expect("a write that was not begun");
        let effect = change.effect(io, range);
        self.fx.push(effect);
    }

    fn send_write(&mut self, owner: Owner) {
        let sequence = self.next_sequence(Sent::Write(owner));
        let write = self
            .requests
            .writes
            .get_mut(&owner)
            .expect("a write that is sent is in the table");
        write.sequence = sequence;
        // What an earlier run of the peer received went with it.
        write.received = false;
        // In sync mode everything that was answered is complete at the peer already.
        let depends_on = write.barrier;
        let range = write.range;
        let change = write
            .change
            .as_ref()
            .expect("a write that was not answered");
        let message = match change {
            Change::Data { data, fua } => Message::Write {
                sequence,
                depends_on,
                range,
                fua: *fua,
                data: data.clone(),
            },
            Change::Zeroes {
                fua, trim: true, ..
            } => Message::Trim {
                sequence,
                depends_on,
                range,
                fua: *fua,
            },
            Change::Zeroes { fua, no_hole, .. } => Message::WriteZeroes {
                sequence,
                depends_on,
                range,
                fua: *fua,
                no_hole: *no_hole,
            },
        };
        let bytes = match &message {
            Message::Write { .. } => range.length,
            _ => 0,
        };
        self.send_in_line(bytes, message);
        if self.runs_ahead() {
            self.backlog.note_sent(range);
        }
    }

    fn note_leg_over(&mut self, range: ByteRange) {
        if self.runs_ahead() {
            self.backlog.note_over(range);
        }
    }

    /// Answers a write ahead of the peer, and lets later ones pass it. What is left waits for the peer.
    fn answer_ahead(&mut self, owner: Owner) {
        let Some(write) = self.requests.writes.get_mut(&owner) else {
            return;
        };
        let Some(id) = write.id.take() else {
            return;
        };
        write.answered = true;
        write.change = None;
        let (range, sequence) = (write.range, write.sequence);
        self.backlog
            .note_answered(owner, range, self.now.monotonic_ms);
        self.backlog.note_barrier(sequence);
        self.release_ahead(id);
        self.leave_log_ahead();
        let mut granted = Vec::new();
        self.locks.let_pass(owner, range, &mut granted);
        self.grant_locks(granted);
    }

    /// Answers a write whose legs are all in, if it may be answered.
    fn advance_write(&mut self, owner: Owner) {
        let Some(write) = self.requests.writes.get(&owner) else {
            return;
        };
        if write.stage != Stage::Running || write.local == Leg::Running {
            return;
        }
        if write.peer == Leg::Running {
            // A disk that failed since says nothing for what it had done; the peer's is the only one then.
            let done_here =
                write.local == Leg::Done && write.failure.is_none() && self.disk_usable();
            if done_here && self.is_enough(write.received) {
                self.answer_ahead(owner);
            }
            return;
        }
        let answer = match (write.local, write.peer, write.failure) {
            (_, _, Some(failure)) => Answer::Failed(failure),
            (Leg::Lost, Leg::Lost, None) => Answer::Failed(Failure::Io),
            _ => Answer::Done,
        };
        let lacking = write.local == Leg::Lost || write.peer == Leg::Lost;
        if write.id.is_some() && answer == Answer::Done && lacking && !self.may_answer_now() {
            self.requests.held.insert(owner);
            self.want_alone();
            return;
        }
        self.drop_write(owner, &answer);
    }

    fn drop_write(&mut self, owner: Owner, answer: &Answer) {
        self.requests.held.remove(&owner);
        if let Some(write) = self.requests.writes.remove(&owner) {
            self.finish_write(owner, &write, answer);
        }
    }

    fn finish_write(&mut self, owner: Owner, write: &Write, answer: &Answer) {
        if let Some(id) = write.id {
            self.release(id, answer.clone(), write.asked_ms);
        }
        let extent = write.range.extent();
        if write.answered {
            let writes = &self.requests.writes;
            let is_out = |owner| {
                writes
                    .get(&owner)
                    .is_some_and(|write: &Write| write.answered)
            };
            self.backlog.note_settled(write.range, is_out);
            self.unpin_answered(extent);
        } else if matches!(write.stage, Stage::Parked | Stage::Running) {
            self.leave_log(extent);
        }
        self.unlock(owner, write.range);
    }

    pub(super) fn begin_read(&mut self, id: RequestId, range: ByteRange) {
        if !self.disk_usable() {
            self.begin_peer_read(id, range, false);
            return;
        }
        if self.is_in_doubt(range) {
            self.await_recheck(id, range);
            return;
        }
        self.requests.reads.insert(id, Read { range });
        let io = self.start_io(Io::Read(id));
        self.fx.push(Effect::Read { io, range });
    }

    fn answer_read(&mut self, id: RequestId, data: Buffer, asked_ms: Option<u64>) {
        self.counters.reads += 1;
        self.counters.bytes_read += data.len() as u64;
        self.release(id, Answer::Data(data), asked_ms);
    }

    fn is_current_at_peer(&self, range: ByteRange) -> bool {
        self.link_ready()
            && self
                .link()
                .is_some_and(|link| link.peer_disk == DiskState::UpToDate)
            && (self.recheck.is_some() || !self.bitmap.any_in(range))
    }

    /// What held the lock until now may have gone without the peer.
    fn on_peer_read_granted(&mut self, owner: Owner) {
        let Some(read) = self.requests.peer_reads.get_mut(&owner) else {
            return;
        };
        let range = read.range;
        read.running = true;
        if self.is_current_at_peer(range) {
            self.send_peer_read(owner);
        } else if self.disk_usable()
            && let Some(read) = self.requests.peer_reads.remove(&owner)
        {
            // It was written here since, and so made readable.
            self.unlock(owner, range);
            self.begin_read(read.id, range);
        } else {
            self.fail_peer_read(owner);
        }
    }

    fn begin_peer_read(&mut self, id: RequestId, range: ByteRange, repair: bool) {
        if !self.is_current_at_peer(range) {
            self.answer(id, Answer::Failed(Failure::Io));
            return;
        }
        let owner = Owner(self.next_id());
        self.requests.peer_reads.insert(
            owner,
            PeerRead {
                id,
                range,
                repair,
                running: false,
            },
        );
        if self.locks.acquire(owner, range, Use::Exclusive) {
            self.on_write_granted(owner);
        }
    }

    fn send_peer_read(&mut self, owner: Owner) {
        let range = self.requests.peer_reads[&owner].range;
        let sequence = self.next_sequence(Sent::Read(owner));
        self.send(Message::ReadRequest { sequence, range });
    }
}
