//! What the peer asks of this side: apply, flush, read, compare.
//!
//! Operations start as they come, but one that overlaps an earlier one, or has a barrier, waits for
//! those before it (D6). In sync mode a sender never has two overlapping ones out. Disk operations of a
//! lost link run to their end and answer nobody; no new hello is said before (D11).
//!
//! In semisync and async the operations form a line: one that has to wait holds up what came behind it, a
//! flush is one of them, and whatever was received is done, also when the link is gone. So this side always
//! holds a prefix of what its primary answered: a barrier names the last operation answered before the
//! submission of the one that carries it, and what is done is closed under that.

use std::collections::{BTreeSet, VecDeque};

use super::effect::Effect;
use super::event::{DiskFault, Output};
use super::log::LogWaiter;
use super::range_lock::Owner;
use super::requests::Change;
use super::{Io, Volume};
use crate::resync::hash::{block_hashes, unequal_blocks};
use crate::units::{ByteRange, LinkId, Sequence};
use crate::wire::message::{HASH_BYTES, Message, Role};

mod ops;

use ops::{Op, Ops, Work};

#[derive(Debug)]
pub(super) enum ReplicaIo {
    Apply(Owner),
    Resync {
        link: LinkId,
        sequence: Sequence,
        range: ByteRange,
    },
    /// `covered`: resynced ranges that are durable with it.
    Flush {
        link: LinkId,
        sequence: Sequence,
        covered: Vec<ByteRange>,
        /// It is an operation in line.
        owner: Option<Owner>,
    },
    LastFlush {
        link: LinkId,
    },
    Read {
        link: LinkId,
        sequence: Sequence,
        range: ByteRange,
    },
    Compare(Box<Comparison>),
}

#[derive(Debug)]
pub(super) struct Comparison {
    link: LinkId,
    sequence: Sequence,
    range: ByteRange,
    block_bytes: u32,
    verify: bool,
    hashes: Vec<[u8; HASH_BYTES]>,
}

#[derive(Debug, Default)]
pub(super) struct Replica {
    ops: Ops,
    /// Sequences of the ops that are not complete.
    incomplete: BTreeSet<Sequence>,
    /// Ops that wait for their barrier, in order of arrival.
    waiting: VecDeque<Owner>,
    /// Disk operations that run for the peer.
    running: usize,
    /// Written or found equal by a resync since the last flush.
    resynced: Vec<ByteRange>,
    /// That this side's disk failed is on record, and the peer may be told.
    pub(super) failure_durable: bool,
}

impl Replica {
    pub(super) fn is_drained(&self) -> bool {
        self.running == 0 && self.ops.is_empty()
    }

    /// What runs ends by itself. What has not started is forgotten where nobody was told that it would be done.
    pub(super) fn on_link_lost(&mut self, keep_waiting: bool) {
        self.resynced.clear();
        if !keep_waiting {
            self.drop_waiting();
        }
    }

    /// This side's disk takes nothing any more, or need not.
    pub(super) fn drop_waiting(&mut self) {
        let Self {
            ops, incomplete, ..
        } = self;
        ops.retain(|op| {
            let stays = op.running || op.logged;
            if !stays {
                incomplete.remove(&op.sequence);
            }
            stays
        });
        self.waiting.clear();
    }
}

impl Volume {
    pub(super) fn on_replica_message(&mut self, link: LinkId, message: Message) {
        if self.role == Role::Primary && !matches!(message, Message::ReadRequest { .. }) {
            self.break_link("the peer writes to a primary");
            return;
        }
        match message {
            Message::Write {
                sequence,
                depends_on,
                range,
                fua,
                data,
            } => {
                self.accept(
                    link,
                    sequence,
                    depends_on,
                    range,
                    Work::Change(Change::Data { data, fua }),
                );
            }
            Message::Trim {
                sequence,
                depends_on,
                range,
                fua,
            } => {
                let change = Change::Zeroes {
                    fua,
                    no_hole: false,
                    trim: true,
                };
                self.accept(link, sequence, depends_on, range, Work::Change(change));
            }
            Message::WriteZeroes {
                sequence,
                depends_on,
                range,
                fua,
                no_hole,
            } => {
                let change = Change::Zeroes {
                    fua,
                    no_hole,
                    trim: false,
                };
                self.accept(link, sequence, depends_on, range, Work::Change(change));
            }
            Message::Flush { sequence } if self.runs_ahead() => {
                let before = Sequence(sequence.0.saturating_sub(1));
                let nowhere = ByteRange::new(0, 0);
                self.accept(link, sequence, before, nowhere, Work::Flush);
            }
            Message::Flush { sequence } => {
                let covered = std::mem::take(&mut self.replica.resynced);
                self.replica_io(
                    sequence,
                    None,
                    |io| Effect::Flush { io },
                    ReplicaIo::Flush {
                        link,
                        sequence,
                        covered,
                        owner: None,
                    },
                );
            }
            Message::ReadRequest { sequence, range } => {
                let purpose = ReplicaIo::Read {
                    link,
                    sequence,
                    range,
                };
                self.replica_io(
                    sequence,
                    Some(range),
                    |io| Effect::Read { io, range },
                    purpose,
                );
            }
            Message::ResyncData {
                sequence,
                range,
                data,
            } => {
                let purpose = ReplicaIo::Resync {
                    link,
                    sequence,
                    range,
                };
                let effect = |io| Effect::Write {
                    io,
                    range,
                    data,
                    fua: false,
                };
                self.replica_io(sequence, Some(range), effect, purpose);
            }
            Message::ResyncZeroes {
                sequence,
                range,
                no_hole,
            } => {
                let purpose = ReplicaIo::Resync {
                    link,
                    sequence,
                    range,
                };
                let effect = |io| Effect::WriteZeroes {
                    io,
                    range,
                    no_hole,
                    fua: false,
                };
                self.replica_io(sequence, Some(range), effect, purpose);
            }
            Message::Compare {
                sequence,
                range,
                block_bytes,
                verify,
                hashes,
            } => {
                let comparison = Comparison {
                    link,
                    sequence,
                    range,
                    block_bytes,
                    verify,
                    hashes,
                };
                let purpose = ReplicaIo::Compare(Box::new(comparison));
                self.replica_io(
                    sequence,
                    Some(range),
                    |io| Effect::Read { io, range },
                    purpose,
                );
            }
            _ => self.break_link("not an operation"),
        }
    }

    /// The extent of a logged op is hot.
    pub(super) fn on_replica_hot(&mut self, owner: Owner) {
        self.log_queue.running += 1;
        let Some(op) = self.replica.ops.get_mut(owner) else {
            return;
        };
        op.logged = true;
        let range = op.range;
        self.mark_dirty(range);
        self.apply_replica(owner);
    }

    pub(super) fn on_replica_io(&mut self, io: ReplicaIo, result: Result<Output, DiskFault>) {
        self.replica.running -= 1;
        // What cannot be read here is not lost: the peer has it, and what it writes mends the block.
        let reading = matches!(io, ReplicaIo::Read { .. } | ReplicaIo::Compare(_));
        if result.is_err() && !reading {
            self.on_replica_fault(&io);
            return;
        }
        match io {
            ReplicaIo::Apply(owner) => self.on_applied(owner),
            ReplicaIo::Resync {
                link,
                sequence,
                range,
            } => {
                if self.is_current(link) {
                    self.note_resynced(range, true);
                    self.acknowledge(link, sequence);
                }
            }
            ReplicaIo::Flush {
                link,
                sequence,
                covered,
                owner,
            } => {
                for range in covered {
                    if self.target.is_some() {
                        self.bitmap.clear_range(range);
                    }
                }
                match owner {
                    Some(owner) => self.on_applied(owner),
                    None => self.acknowledge(link, sequence),
                }
            }
            ReplicaIo::LastFlush { link } => self.on_target_flushed(link),
            ReplicaIo::Read {
                link,
                sequence,
                range,
            } => {
                if self.is_current(link) {
                    match result {
                        Ok(Output::Data(data)) => self.send(Message::ReadReply {
                            sequence,
                            range,
                            data,
                        }),
                        _ => self.send(Message::ReadFailed { sequence }),
                    }
                }
            }
            ReplicaIo::Compare(comparison) => self.on_compare_read(&comparison, result),
        }
    }

    /// Flushes this side's disk at the end of a resync.
    pub(super) fn last_flush(&mut self, link: LinkId) {
        self.replica.running += 1;
        let io = self.start_io(Io::Replica(ReplicaIo::LastFlush { link }));
        self.fx.push(Effect::Flush { io });
    }

    fn accept(
        &mut self,
        link: LinkId,
        sequence: Sequence,
        depends_on: Sequence,
        range: ByteRange,
        work: Work,
    ) {
        if range.end() > self.superblock.size_bytes {
            self.break_link("an operation past the end of the mirror");
            return;
        }
        if depends_on >= sequence {
            self.break_link("an operation that waits for itself");
            return;
        }
        if !self.disk_usable() {
            self.refuse_operation(sequence);
            return;
        }
        let owner = Owner(self.next_id());
        let op = Op {
            link,
            sequence,
            depends_on,
            range,
            work,
            running: false,
            logged: false,
        };
        self.replica.ops.insert(owner, op);
        self.replica.incomplete.insert(sequence);
        self.replica.waiting.push_back(owner);
        self.confirm_receipt(sequence);
        self.pump_replica();
    }

    /// Starts every op whose barrier has passed and that overlaps no earlier one. Where operations form a
    /// line, the first that has to wait ends it: it is not looked at over and over, however long it is.
    fn pump_replica(&mut self) {
        if !self.disk_usable() {
            self.replica.drop_waiting();
            return;
        }
        let mut ready = Vec::new();
        let in_line = self.runs_ahead();
        let Replica {
            ops,
            incomplete,
            waiting,
            ..
        } = &mut self.replica;
        let mut at = 0;
        while let Some(&owner) = waiting.get(at) {
            let first = incomplete.first();
            let is_blocked = |op: &Op| {
                first.is_some_and(|first| *first <= op.depends_on) || ops.has_earlier_overlap(op)
            };
            match ops.get(owner) {
                Some(op) if is_blocked(op) => {
                    if in_line {
                        break;
                    }
                    at += 1;
                }
                found => {
                    ready.extend(found.map(|op| (owner, op.range)));
                    waiting.remove(at);
                }
            }
        }
        for (owner, _) in &ready {
            if let Some(op) = ops.get_mut(*owner) {
                op.running = true;
            }
        }
        for (owner, range) in ready {
            let is_change = self
                .replica
                .ops
                .get(owner)
                .is_some_and(|op| matches!(op.work, Work::Change(_)));
            if self.superblock.peer.detached && is_change {
                self.heat(LogWaiter::Replica(owner), range.extent());
            } else {
                self.apply_replica(owner);
            }
        }
    }

    fn apply_replica(&mut self, owner: Owner) {
        self.replica.running += 1;
        let op = self.replica.ops.get(owner);
        let op = op.expect("an operation that begins is in the table");
        let (link, sequence, range) = (op.link, op.sequence, op.range);
        let change = match &op.work {
            Work::Change(change) => Some(change.clone()),
            Work::Flush => None,
        };
        let effect = match change {
            Some(change) => {
                let io = self.start_io(Io::Replica(ReplicaIo::Apply(owner)));
                change.effect(io, range)
            }
            None => {
                let covered = std::mem::take(&mut self.replica.resynced);
                let io = self.start_io(Io::Replica(ReplicaIo::Flush {
                    link,
                    sequence,
                    covered,
                    owner: Some(owner),
                }));
                Effect::Flush { io }
            }
        };
        self.fx.push(effect);
    }

    fn on_applied(&mut self, owner: Owner) {
        let Some(op) = self.replica.ops.remove(owner) else {
            return;
        };
        if op.logged {
            self.log.note_local_write(op.range.extent());
            self.leave_log(op.range.extent());
        }
        self.replica.incomplete.remove(&op.sequence);
        self.acknowledge(op.link, op.sequence);
        self.pump_replica();
    }

    fn on_compare_read(&mut self, comparison: &Comparison, result: Result<Output, DiskFault>) {
        if !self.is_current(comparison.link) {
            return;
        }
        let mine = match result {
            Ok(Output::Data(data)) => block_hashes(&data, comparison.block_bytes),
            _ => Vec::new(),
        };
        let unequal = unequal_blocks(&comparison.hashes, &mine);
        if !comparison.verify && unequal.iter().all(|word| *word == 0) {
            self.note_resynced(comparison.range, false);
        }
        self.send(Message::CompareResult {
            sequence: comparison.sequence,
            unequal,
        });
    }

    fn note_resynced(&mut self, range: ByteRange, copied: bool) {
        self.replica.resynced.push(range);
        if let Some(target) = &mut self.target {
            target.note(range, copied);
        }
    }

    fn on_replica_fault(&mut self, io: &ReplicaIo) {
        let (link, sequence) = match io {
            ReplicaIo::Apply(owner) => match self.replica.ops.remove(*owner) {
                Some(op) => {
                    self.replica.incomplete.remove(&op.sequence);
                    if op.logged {
                        self.leave_log(op.range.extent());
                    }
                    (op.link, op.sequence)
                }
                None => return,
            },
            ReplicaIo::Flush {
                link,
                sequence,
                owner,
                ..
            } => {
                if let Some(owner) = owner {
                    self.replica.ops.remove(*owner);
                    self.replica.incomplete.remove(sequence);
                }
                (*link, *sequence)
            }
            ReplicaIo::Resync { link, sequence, .. } | ReplicaIo::Read { link, sequence, .. } => {
                (*link, *sequence)
            }
            ReplicaIo::Compare(comparison) => (comparison.link, comparison.sequence),
            ReplicaIo::LastFlush { link } => (*link, Sequence(0)),
        };
        self.on_local_disk_failed("an operation for the peer failed");
        self.replica.drop_waiting();
        if self.is_current(link) {
            self.refuse_operation(sequence);
        }
    }

    /// Refuses an operation, and with it all others: the peer goes on alone then. Until the failure
    /// is durable here nothing is said; the refusal follows when it is.
    pub(super) fn refuse_operation(&mut self, sequence: Sequence) {
        if self.replica.failure_durable {
            self.send(Message::Refused { sequence });
        }
    }

    pub(super) fn acknowledge(&mut self, link: LinkId, sequence: Sequence) {
        if self.is_current(link) {
            self.send(Message::Ack {
                sequences: vec![sequence],
            });
        }
    }

    fn replica_io(
        &mut self,
        sequence: Sequence,
        range: Option<ByteRange>,
        effect: impl FnOnce(crate::units::IoToken) -> Effect,
        purpose: ReplicaIo,
    ) {
        if range.is_some_and(|range| range.end() > self.superblock.size_bytes) {
            self.break_link("an operation past the end of the mirror");
            return;
        }
        if !self.disk_usable() {
            match purpose {
                ReplicaIo::Read { .. } => self.send(Message::ReadFailed { sequence }),
                _ => self.refuse_operation(sequence),
            }
            return;
        }
        self.replica.running += 1;
        let io = self.start_io(Io::Replica(purpose));
        self.fx.push(effect(io));
    }
}
