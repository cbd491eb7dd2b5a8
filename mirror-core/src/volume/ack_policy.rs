//! When a write is enough of a success to be answered, and how far answers may run ahead of the peer.
//!
//! In sync mode both disks have a write before it is answered. In semisync the local disk has it and the peer
//! has received it; in async the local disk has it and it is in line for the peer. The *backlog* is what was
//! handed on and not acknowledged: bounded by `queue_bytes` and [`BACKLOG_WRITES_MAX`], and what of it was
//! answered is the lag: what a failover now would lose. A write that finds it full waits for room.
//!
//! Why the peer holds a prefix of what was answered: writes travel in one line, and each names the last
//! operation that was answered before it was submitted; the peer begins it only when everything up to there is
//! complete (`replica`). Whatever cuts the line, what the peer has done is closed under "was answered before".
//!
//! Why nothing of it is forgotten: a write keeps its pin in the activity log until the peer has acknowledged
//! it, answered or not (D4), and a link that is lost turns it into dirty bits first (D2).

use std::collections::VecDeque;

use super::Volume;
use super::range_lock::Owner;
use crate::units::{ByteRange, Sequence};
use crate::wire::message::{Message, Mode};

/// Writes that may be out and not acknowledged, whatever their size.
pub const BACKLOG_WRITES_MAX: usize = 16_384;

/// The smallest piece of payload memory that a write takes.
const PIECE_BYTES_MIN: u64 = 4096;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Handed on and not acknowledged, in payload memory.
    footprint_bytes: u64,
    writes: usize,
    /// Of these: answered.
    lag_bytes: u64,
    /// Answered writes in order, with the time; those that are acknowledged are skipped.
    answered: VecDeque<(Owner, u64)>,
    answered_writes: usize,
    /// Hot writes that wait for room, in order. Bounded by the requests in flight.
    waiting: VecDeque<Owner>,
    /// The last operation of those that were answered: the barrier of whatever is submitted now.
    barrier: Sequence,
    /// The flush that is out and behind which nothing was sent yet.
    last_flush: Option<Flush>,
    /// The queue ran full, and the peer is being told that it will be inconsistent.
    pub(super) degrading: bool,
    /// Since when the peer lacks something answered that no line leads to any more.
    behind_since_ms: Option<u64>,
}

/// A flush in line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flush {
    pub(super) sequence: Sequence,
    pub(super) received: bool,
}

impl Backlog {
    pub(super) fn barrier(&self) -> Sequence {
        self.barrier
    }

    /// Writes that were answered and are in the table of requests still.
    pub(super) fn answered_writes(&self) -> usize {
        self.answered_writes
    }

    pub(super) fn note_sent(&mut self, range: ByteRange) {
        self.footprint_bytes += footprint(range);
        self.writes += 1;
        self.last_flush = None;
    }

    /// The peer has it, or will not get it.
    pub(super) fn note_over(&mut self, range: ByteRange) {
        self.footprint_bytes -= footprint(range);
        self.writes -= 1;
    }

    pub(super) fn note_answered(&mut self, owner: Owner, range: ByteRange, now_ms: u64) {
        self.answered.push_back((owner, now_ms));
        self.answered_writes += 1;
        self.lag_bytes += u64::from(range.length);
    }

    pub(super) fn note_barrier(&mut self, sequence: Sequence) {
        self.barrier = self.barrier.max(sequence);
    }

    /// An answered write leaves the table. `is_out`: what of the others is there still.
    pub(super) fn note_settled(&mut self, range: ByteRange, is_out: impl Fn(Owner) -> bool) {
        self.answered_writes -= 1;
        self.lag_bytes -= u64::from(range.length);
        while self
            .answered
            .front()
            .is_some_and(|(owner, _)| !is_out(*owner))
        {
            self.answered.pop_front();
        }
    }

    /// The line is cut: what was answered and is in it leaves the peer behind.
    pub(super) fn note_cut(&mut self) {
        if let Some((_, since_ms)) = self.answered.front() {
            self.behind_since_ms = self.behind_since_ms.or(Some(*since_ms));
        }
        self.last_flush = None;
        self.degrading = false;
    }

    pub(super) fn note_alone(&mut self, now_ms: u64) {
        self.behind_since_ms = self.behind_since_ms.or(Some(now_ms));
    }

    pub(super) fn note_caught_up(&mut self) {
        self.behind_since_ms = None;
    }

    /// The peer lacks what was answered, and only a resync brings it there.
    pub(super) fn is_behind(&self) -> bool {
        self.behind_since_ms.is_some()
    }

    pub(super) fn last_flush(&self) -> Option<Flush> {
        self.last_flush
    }

    pub(super) fn note_flush(&mut self, sequence: Sequence) {
        self.last_flush = Some(Flush {
            sequence,
            received: false,
        });
    }

    pub(super) fn note_flush_received(&mut self, sequence: Sequence) {
        if let Some(flush) = &mut self.last_flush
            && flush.sequence == sequence
        {
            flush.received = true;
        }
    }

    pub(super) fn footprint_bytes(&self) -> u64 {
        self.footprint_bytes
    }

    fn has_room(&self, range: ByteRange, queue_bytes: u64) -> bool {
        self.writes == 0
            || (self.writes < BACKLOG_WRITES_MAX
                && self.footprint_bytes + footprint(range) <= queue_bytes)
    }

    pub(super) fn take_waiting(&mut self) -> VecDeque<Owner> {
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn check_invariants(&self) {
        assert!(
            self.answered_writes <= self.answered.len(),
            "an answered write is not in line"
        );
        assert!(
            self.writes > 0 || self.footprint_bytes == 0,
            "the backlog holds bytes of no write"
        );
        assert!(
            self.answered_writes > 0 || self.lag_bytes == 0,
            "a lag of no write"
        );
    }
}

/// What a write's payload takes of the pool.
fn footprint(range: ByteRange) -> u64 {
    u64::from(range.length)
        .next_power_of_two()
        .max(PIECE_BYTES_MIN)
}

impl Volume {
    /// Answers may run ahead of the peer's disk.
    pub(super) fn runs_ahead(&self) -> bool {
        self.config.mode.runs_ahead()
    }

    /// A write that the local disk has and the peer has not acknowledged may be answered.
    pub(super) fn is_enough(&self, received: bool) -> bool {
        match self.config.mode {
            Mode::Sync => false,
            Mode::Semisync => received,
            Mode::Async => true,
        }
    }

    /// Clients wait for something.
    pub(super) fn has_active_requests(&self) -> bool {
        self.requests.count() > self.backlog.answered_writes()
    }

    /// A hot write goes to both sides, or waits in line for room.
    pub(super) fn admit_write(&mut self, owner: Owner, range: ByteRange) {
        let ahead = self.runs_ahead() && self.is_replicating() && self.disk_usable();
        let full = !self.backlog.waiting.is_empty()
            || !self.backlog.has_room(range, self.config.queue_bytes);
        if ahead && full && !self.falls_behind() {
            self.park_write(owner);
            self.backlog.waiting.push_back(owner);
        } else {
            self.run_write(owner);
        }
    }

    /// Nobody waits for room any more.
    pub(super) fn run_waiting(&mut self) {
        for owner in self.backlog.take_waiting() {
            self.run_write(owner);
        }
    }

    /// Room was made: the next in line go.
    pub(super) fn pump_backlog(&mut self) {
        while let Some(owner) = self.backlog.waiting.front().copied() {
            let Some(range) = self.requests.range_of(owner) else {
                self.backlog.waiting.pop_front();
                continue;
            };
            if !self.backlog.has_room(range, self.config.queue_bytes) {
                return;
            }
            self.backlog.waiting.pop_front();
            self.run_write(owner);
        }
    }

    /// Bytes and age of what was answered and the peer may lack.
    pub(super) fn lag(&self) -> (u64, u64) {
        if !self.runs_ahead() {
            return (0, 0);
        }
        let now_ms = self.now.monotonic_ms;
        let oldest = self.backlog.answered.front().map(|(_, since_ms)| *since_ms);
        let behind = self.backlog.behind_since_ms;
        let since_ms = [oldest, behind].into_iter().flatten().min();
        let bits = match behind {
            Some(_) => self.bitmap.dirty_bytes(),
            None => 0,
        };
        (
            self.backlog.lag_bytes + bits,
            since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
        )
    }

    /// Semisync: what was sent is there, and will be done whatever becomes of the link.
    pub(super) fn on_received(&mut self, sequence: Sequence) {
        match self.sent.get(&sequence).map(|awaited| awaited.what) {
            Some(super::Sent::Write(owner)) => self.on_write_received(owner),
            Some(super::Sent::FlushAhead) => {
                self.backlog.note_flush_received(sequence);
                self.on_flush_received(sequence);
            }
            _ => {}
        }
    }

    /// Tells a semisync primary that an operation is here.
    pub(super) fn confirm_receipt(&mut self, sequence: Sequence) {
        if self.config.mode == Mode::Semisync {
            self.send(Message::Received {
                sequences: vec![sequence],
            });
        }
    }
}
