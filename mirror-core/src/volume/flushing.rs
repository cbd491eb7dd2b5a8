//! One flush at a time over both sides, shared by everyone who waits for one (D3).
//!
//! A flush covers every write answered before it *starts*; a client's flush that arrives while one
//! runs waits for the next. It is answered when the local disk and, while replicating, the peer
//! have flushed. If the peer is lost meanwhile the answer is one that the peer does not have, so it
//! waits for D5 like a write. A failed local flush is never repeated: the disk is failed.
//!
//! In semisync and async a client's flush runs beside that, ahead of the peer: it is answered when the local
//! disk has flushed and a flush is in line for the peer, behind every write that was answered before (in
//! semisync: when the peer has received it). What the log knows to be flushed is left to the rounds over both
//! sides, which are rare then.

use super::effect::Effect;
use super::event::DiskFault;
use super::store::After;
use super::{Io, Sent, Volume};
use crate::request::{Answer, Failure};
use crate::units::{CommandId, RequestId, Sequence};
use crate::wire::message::{Message, Mode};

/// Writes that nobody flushes are flushed by ourselves after this long, so that a crash of either
/// side leaves little doubt.
const QUIET_FLUSH_MS: u64 = 5_000;

#[derive(Debug)]
pub(super) enum FlushFor {
    Request(RequestId),
    LogClean,
    /// A checkpoint of the resync, by number: its ranges are clean once the peer has flushed.
    Checkpoint(u64),
    Demote(CommandId),
    Stop(CommandId),
    Quiet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Absent,
    Running,
    Done,
    Lost,
}

#[derive(Debug)]
struct Round {
    local: Leg,
    peer: Leg,
    /// When the peer was asked.
    asked_ms: u64,
    waiters: Vec<FlushFor>,
}

/// A flush that is answered ahead of the peer.
#[derive(Debug)]
struct Ahead {
    done_here: bool,
    /// The flush in line.
    sequence: Sequence,
    received: bool,
    /// The line was cut before it was answered.
    lost: bool,
    waiters: Vec<RequestId>,
}

#[derive(Debug, Default)]
pub(super) struct Flushing {
    round: Option<Round>,
    ahead: Option<Ahead>,
    /// Bounded by the requests in flight.
    next_ahead: Vec<RequestId>,
    /// Bounded by the requests in flight and the few internal users.
    next: Vec<FlushFor>,
    /// Client flushes that are done but may not be answered alone yet.
    held: Vec<RequestId>,
    last_ms: u64,
}

impl Flushing {
    pub(super) fn is_idle(&self) -> bool {
        self.has_no_round() && self.ahead.is_none() && self.next_ahead.is_empty()
    }

    fn has_no_round(&self) -> bool {
        self.round.is_none() && self.next.is_empty()
    }

    /// A flush is with the peer, or is to be.
    pub(super) fn awaits_peer(&self) -> bool {
        let round = self.round.as_ref();
        round.is_some_and(|round| round.peer == Leg::Running) || self.ahead.is_some()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn is_running(&self) -> bool {
        self.round.is_some() || self.ahead.is_some()
    }
}

impl Volume {
    pub(super) fn request_flush(&mut self, what: FlushFor) {
        self.flushing.next.push(what);
        self.pump_flush();
    }

    pub(super) fn request_client_flush(&mut self, id: RequestId) {
        if self.runs_ahead() {
            self.flushing.next_ahead.push(id);
            self.pump_flush_ahead();
        } else {
            self.request_flush(FlushFor::Request(id));
        }
    }

    /// Begins the next flush ahead of the peer; without a line to it, or a disk here, it takes a round.
    fn pump_flush_ahead(&mut self) {
        if self.flushing.ahead.is_some() || self.flushing.next_ahead.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.flushing.next_ahead);
        if self.halted || !self.has_follower() || !self.disk_usable() {
            self.take_round(waiters);
            return;
        }
        let flush = self.backlog.last_flush();
        let (sequence, received) = match flush {
            // Nothing was sent behind it.
            Some(flush) => (flush.sequence, flush.received),
            // What was answered is not in line: a flush there would say nothing of it.
            None if !self.is_replicating() => (self.backlog.barrier(), true),
            None => {
                let sequence = self.next_sequence(Sent::FlushAhead);
                self.send_in_line(0, Message::Flush { sequence });
                self.backlog.note_flush(sequence);
                (sequence, false)
            }
        };
        self.flushing.ahead = Some(Ahead {
            done_here: false,
            sequence,
            received,
            lost: false,
            waiters,
        });
        let io = self.start_io(Io::FlushAhead);
        self.fx.push(Effect::Flush { io });
    }

    fn take_round(&mut self, waiters: Vec<RequestId>) {
        let waiters = waiters.into_iter().map(FlushFor::Request);
        self.flushing.next.extend(waiters);
        self.pump_flush();
    }

    pub(super) fn on_local_flush_ahead(&mut self, result: Result<(), DiskFault>) {
        if result.is_err() {
            self.on_local_disk_failed("a flush failed");
        }
        if let Some(ahead) = &mut self.flushing.ahead {
            ahead.done_here = true;
        }
        self.advance_flush_ahead();
    }

    pub(super) fn on_flush_received(&mut self, sequence: Sequence) {
        if let Some(ahead) = &mut self.flushing.ahead
            && ahead.sequence == sequence
        {
            ahead.received = true;
            self.advance_flush_ahead();
        }
    }

    fn advance_flush_ahead(&mut self) {
        let in_line = self.config.mode == Mode::Async;
        if !self.disk_usable()
            && let Some(ahead) = self.flushing.ahead.take_if(|ahead| ahead.done_here)
        {
            // What this disk has flushed says nothing any more.
            self.take_round(ahead.waiters);
            self.pump_flush_ahead();
            return;
        }
        let Some(ahead) = self
            .flushing
            .ahead
            .take_if(|ahead| ahead.done_here && (ahead.lost || ahead.received || in_line))
        else {
            return;
        };
        for id in ahead.waiters {
            if ahead.lost {
                self.answer_flush(id, None);
            } else {
                self.counters.flushes += 1;
                self.release_ahead(id);
            }
        }
        if !ahead.lost {
            self.backlog.note_barrier(ahead.sequence);
        }
        self.pump_flush_ahead();
    }

    pub(super) fn pump_flush(&mut self) {
        let nothing = self.flushing.round.is_some() || self.flushing.next.is_empty();
        if nothing || self.halted || self.in_handshake() {
            return;
        }
        let waiters = std::mem::take(&mut self.flushing.next);
        self.log.begin_flush();
        self.flushing.last_ms = self.now.monotonic_ms;
        let local = if self.disk_usable() {
            let io = self.start_io(Io::Flush);
            self.fx.push(Effect::Flush { io });
            Leg::Running
        } else {
            Leg::Absent
        };
        let peer = if self.has_follower() {
            let sequence = self.next_sequence(Sent::Flush);
            self.send_in_line(0, Message::Flush { sequence });
            Leg::Running
        } else {
            Leg::Absent
        };
        self.flushing.round = Some(Round {
            local,
            peer,
            asked_ms: self.now.monotonic_ms,
            waiters,
        });
        self.advance_flush();
    }

    pub(super) fn on_local_flush(&mut self, result: Result<(), DiskFault>) {
        if let Some(round) = &mut self.flushing.round {
            round.local = if result.is_ok() { Leg::Done } else { Leg::Lost };
        }
        if result.is_err() {
            self.on_local_disk_failed("a flush failed");
        }
        self.advance_flush();
    }

    pub(super) fn on_peer_flushed(&mut self) {
        if let Some(round) = &mut self.flushing.round {
            round.peer = Leg::Done;
        }
        self.advance_flush();
    }

    pub(super) fn on_flush_lost_peer(&mut self) {
        if let Some(round) = &mut self.flushing.round
            && round.peer == Leg::Running
        {
            round.peer = Leg::Lost;
        }
        if let Some(ahead) = &mut self.flushing.ahead {
            ahead.lost = true;
        }
        self.advance_flush();
        self.advance_flush_ahead();
    }

    pub(super) fn tick_flush(&mut self) {
        let quiet = self.now.monotonic_ms.saturating_sub(self.flushing.last_ms) >= QUIET_FLUSH_MS;
        // A log full of unflushed extents has nothing to evict: flush before writes must wait.
        let crowded = self.log.unflushed() > self.log.capacity() / 2;
        if (quiet || crowded) && self.log.has_unflushed() && self.flushing.has_no_round() {
            self.request_flush(FlushFor::Quiet);
        }
    }

    /// Flushes that lost their peer and were not answered cover the new one too.
    pub(super) fn repeat_held_flushes(&mut self) {
        if self.is_replicating() {
            let held = std::mem::take(&mut self.flushing.held);
            self.flushing
                .next
                .extend(held.into_iter().map(FlushFor::Request));
        }
    }

    /// Answers flushes that had to wait for D5.
    pub(super) fn release_held_flushes(&mut self) {
        for id in std::mem::take(&mut self.flushing.held) {
            self.answer_flush(id, None);
        }
    }

    /// Whatever a client asked for, also of the round that runs: who finishes it may no longer serve then.
    pub(super) fn fail_flushes(&mut self, answer: &Answer) {
        let mut waiters = std::mem::take(&mut self.flushing.next);
        if self.halted {
            if let Some(round) = self.flushing.round.take() {
                self.log.end_flush(false, false);
                waiters.extend(round.waiters);
            }
        } else if let Some(round) = &mut self.flushing.round {
            let requests = round
                .waiters
                .extract_if(.., |waiter| matches!(waiter, FlushFor::Request(_)));
            waiters.extend(requests);
        }
        let mut ahead = std::mem::take(&mut self.flushing.next_ahead);
        match &mut self.flushing.ahead {
            // Its disk operation still runs.
            Some(running) if !self.halted => ahead.append(&mut running.waiters),
            _ => ahead.extend(
                self.flushing
                    .ahead
                    .take()
                    .into_iter()
                    .flat_map(|ahead| ahead.waiters),
            ),
        }
        waiters.extend(ahead.into_iter().map(FlushFor::Request));
        for waiter in waiters {
            match waiter {
                FlushFor::Request(id) => self.answer(id, answer.clone()),
                other if !self.halted => self.flushing.next.push(other),
                _ => {}
            }
        }
        for id in std::mem::take(&mut self.flushing.held) {
            self.answer(id, answer.clone());
        }
    }

    fn advance_flush(&mut self) {
        let finished = self
            .flushing
            .round
            .as_ref()
            .is_some_and(|round| round.local != Leg::Running && round.peer != Leg::Running);
        if !finished {
            return;
        }
        let Some(Round {
            local,
            peer,
            asked_ms,
            waiters,
        }) = self.flushing.round.take()
        else {
            return;
        };
        let here = local == Leg::Done;
        let there = peer == Leg::Done;
        // A peer that is away keeps its doubt; a disk that is away has been written off, and what
        // it did not flush was noted when it failed.
        self.log
            .end_flush(here || local == Leg::Absent || local == Leg::Lost, there);
        for waiter in waiters {
            match waiter {
                // No disk is left to vouch for anything, whatever this one said before it failed.
                FlushFor::Request(id) if (!here && !there) || self.has_no_disk() => {
                    self.answer(id, Answer::Failed(Failure::Io));
                }
                FlushFor::Request(id) => self.answer_flush(id, there.then_some(asked_ms)),
                FlushFor::LogClean => self.on_log_flushed(),
                FlushFor::Checkpoint(number) => self.on_checkpoint(number, there),
                FlushFor::Demote(id) => self.on_demote_flushed(id),
                FlushFor::Stop(id) => self.on_stop_flushed(id),
                FlushFor::Quiet => {}
            }
        }
        self.pump_flush();
        self.pump_log();
    }

    /// After a flush that was meant to clean the log: what the lost peer may lack becomes bits.
    fn on_log_flushed(&mut self) {
        if !self.has_follower() && !self.in_handshake() {
            let doubt = self.log.take_peer_doubt();
            for range in doubt {
                self.mark_dirty(range);
            }
            let pages = self.unsaved_pages();
            self.save_pages(&pages, After::LogCleaned);
        } else {
            self.on_log_cleaned();
        }
    }

    fn answer_flush(&mut self, id: RequestId, asked_ms: Option<u64>) {
        if self.may_answer_now() {
            self.counters.flushes += 1;
            self.release(id, Answer::Done, asked_ms);
        } else {
            self.flushing.held.push(id);
            self.want_alone();
        }
    }
}
