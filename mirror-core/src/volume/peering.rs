//! The life of a link: hello, verdict, bitmaps, data, loss.
//!
//! ```text
//!  LinkUp → drained? → Hello ⇄ Hello → Verdict ⇄ Verdict → target sends its bitmap → source saves
//!  the union → ResyncStart/Ready or ResyncDone/Ack → Ready (data flows)
//! ```
//!
//! A side answers a new hello only when all work of the old session is finished, disk completions
//! included (D11), and when its superblock on disk is the one it speaks of. Between hello and ready
//! client writes are parked, so what was said stays true. The whole handshake has a time limit.

use super::effect::Effect;
use super::notice::Notice;
use super::store::After;
use super::{Awaited, Sent, Volume};
use crate::control::Connection;
use crate::link::handshake::{Rule, Strategy, Verdict};
use crate::units::{Epoch, LinkId, Sequence};
use crate::wire::message::{DiskState, Envelope, Hello, Message, Role};

/// Time between keepalives on an idle link.
const PING_MS: u64 = 1_000;
/// A peer that answers pings and leaves an operation unanswered for this many peer time-outs has a
/// disk that hangs, and is as good as lost. A busy disk may well take longer than one.
const ACK_TIMEOUT_FACTOR: u64 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Waiting for the work of the old session to end.
    Draining,
    Hello,
    Verdict,
    /// The target's bitmap travels, the source saves the union, both prepare.
    Settling,
    Ready,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) phase: Phase,
    pub(super) hello: Option<Box<Hello>>,
    pub(super) verdict: Option<Verdict>,
    pub(super) their_verdict: Option<(u16, u8)>,
    opened_ms: u64,
    heard_ms: u64,
    pinged_ms: u64,
    /// When the peer last acknowledged something.
    acknowledged_ms: u64,
    pub(super) peer_epoch: Epoch,
    pub(super) peer_role: Role,
    pub(super) peer_disk: DiskState,
    /// Writes go to the peer and wait for it.
    pub(super) replicating: bool,
    /// They do not for the moment: the queue was full, and a resync brings them what they miss (`falling_behind`).
    pub(super) behind: bool,
    /// This side's data is what the other is to hold: the source of the handshake, until one of the
    /// two is promoted.
    pub(super) is_source: bool,
}

impl Link {
    pub(super) fn id(&self) -> LinkId {
        self.id
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    pub(super) fn is_older_than(&self, age_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.opened_ms) > age_ms
    }

    /// How long nothing came from the peer.
    pub(super) fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms)
    }

    pub(super) fn peer_fast_zero(&self) -> bool {
        self.hello.as_ref().is_none_or(|hello| hello.fast_zero)
    }

    pub(super) fn strategy(&self) -> Option<Strategy> {
        self.verdict.map(|verdict| verdict.strategy)
    }
}

#[derive(Debug)]
pub(super) struct Peering {
    pub(super) link: Option<Link>,
    pub(super) connection: Connection,
    pub(super) wanted: bool,
    /// Seen since this run began: then what we know of the peer is not from an earlier life.
    pub(super) peer_seen: bool,
    pub(super) last_rule: Option<Rule>,
    /// Why the last handshake was refused; said once, since it is tried again for ever.
    pub(super) last_problem: Option<String>,
    /// The rule that refused it, if it came that far.
    pub(super) refused_by: Option<Rule>,
    /// What the peer said of itself last, for `explain`.
    pub(super) last_hello: Option<Box<Hello>>,
}

impl Default for Peering {
    fn default() -> Self {
        Self {
            link: None,
            connection: Connection::Connecting,
            wanted: false,
            peer_seen: false,
            last_rule: None,
            last_problem: None,
            refused_by: None,
            last_hello: None,
        }
    }
}

impl Volume {
    pub(super) fn link_ready(&self) -> bool {
        self.link().is_some_and(|link| link.phase == Phase::Ready)
    }

    /// A link is up and not ready.
    pub(super) fn is_greeting(&self) -> bool {
        self.link().is_some_and(|link| link.phase != Phase::Ready)
    }

    /// The peer has said hello on this link: whoever calls it down knows less than this side.
    pub(super) fn has_greeted(&self) -> bool {
        self.link().is_some_and(|link| link.hello.is_some())
    }

    /// Between hello and ready: what was said of this side must stay true, so client writes wait. A
    /// side that has gone on alone for good says the same whatever is written; it need not wait for
    /// a peer that has yet to say anything, since its disk may hang for hours.
    pub(super) fn in_handshake(&self) -> bool {
        let silent = self.link().is_none_or(|link| link.hello.is_none());
        self.is_greeting() && !(silent && self.is_alone_durable())
    }

    pub(super) fn is_replicating(&self) -> bool {
        self.link()
            .is_some_and(|link| link.replicating && !link.behind)
    }

    /// The peer takes part, whether or not every write goes there at once.
    pub(super) fn has_follower(&self) -> bool {
        self.link().is_some_and(|link| link.replicating)
    }

    pub(super) fn is_current(&self, id: LinkId) -> bool {
        self.link().is_some_and(|link| link.id == id)
    }

    pub(super) fn set_connect(&mut self, wanted: bool) {
        self.peering.wanted = wanted;
        if !wanted {
            self.peering.connection = Connection::Standalone;
        } else if self.peering.connection == Connection::Standalone {
            self.peering.connection = Connection::Connecting;
        }
        self.fx.push(Effect::Connect { wanted });
    }

    pub(super) fn send(&mut self, message: Message) {
        if matches!(
            message,
            Message::Ack { .. } | Message::ReadReply { .. } | Message::Confirmed { .. }
        ) {
            self.gate.note_word(self.now.monotonic_ms);
        }
        if let Some(link) = &self.peering.link {
            let envelope = Envelope {
                epoch: self.superblock.epoch,
                message,
            };
            self.fx.push(Effect::Send {
                link: link.id,
                envelope,
            });
        }
    }

    pub(super) fn next_sequence(&mut self, what: Sent) -> Sequence {
        let sequence = Sequence(self.next_id());
        let since_ms = self.now.monotonic_ms;
        self.sent.insert(sequence, Awaited { what, since_ms });
        sequence
    }

    fn take_sent(&mut self, sequence: Sequence) -> Option<Awaited> {
        self.sent.remove(&sequence)
    }

    pub(super) fn send_state(&mut self) {
        let (role, disk) = (self.role, self.disk_state());
        if self.link_ready() {
            self.send(Message::State { role, disk });
        }
    }

    pub(super) fn on_link_up(&mut self, id: LinkId) {
        let busy = self.halted || self.stopped || self.commands.is_leaving();
        if busy || !self.peering.wanted {
            self.fx.push(Effect::CloseLink { link: id });
            return;
        }
        if self.peering.link.is_some() {
            // The peer has given up the old link before we noticed.
            self.lose_link("the peer made a new link");
        }
        let now = self.now.monotonic_ms;
        self.peering.link = Some(Link {
            id,
            phase: Phase::Draining,
            hello: None,
            verdict: None,
            their_verdict: None,
            opened_ms: now,
            heard_ms: now,
            pinged_ms: now,
            acknowledged_ms: now,
            peer_epoch: Epoch(0),
            peer_role: Role::Unknown,
            peer_disk: DiskState::Unknown,
            replicating: false,
            behind: false,
            is_source: false,
        });
        self.resume_handshake();
    }

    pub(super) fn on_link_down(&mut self, id: LinkId) {
        if self.is_current(id) {
            self.lose_link("the connection broke");
        }
    }

    /// Closes the link from this side.
    pub(super) fn close_link(&mut self) {
        if let Some(link) = &self.peering.link {
            self.fx.push(Effect::CloseLink { link: link.id });
            self.lose_link("closed here");
        }
    }

    /// Starts over with a new hello, because what was said is no longer true.
    pub(super) fn renegotiate(&mut self) {
        self.close_link();
    }

    /// Says hello once nothing of the old session is left.
    pub(super) fn resume_handshake(&mut self) {
        match self.link().map(|link| link.phase) {
            Some(Phase::Draining) => {}
            Some(Phase::Hello) => return self.judge(),
            _ => return,
        }
        let drained = (self.is_quiet() || !self.in_handshake())
            && self.replica.is_drained()
            && self.strays.is_empty()
            && !self.store.is_superblock_pending()
            && !self.commands.is_changing_role();
        if !drained {
            return;
        }
        let hello = Box::new(self.hello());
        self.send(Message::Hello(hello));
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Hello;
        }
        self.judge();
    }

    /// Nothing of the clients is under way on disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.requests.is_drained() && !self.flushing.is_running()
    }

    pub(super) fn on_message(&mut self, id: LinkId, envelope: Envelope) {
        let now = self.now.monotonic_ms;
        let Some(link) = self.peering.link.as_mut().filter(|link| link.id == id) else {
            return;
        };
        link.heard_ms = now;
        link.peer_epoch = link.peer_epoch.max(envelope.epoch);
        let (phase, greeted) = (link.phase, link.hello.is_some());
        if self.has_arbiter() && self.judge_epoch(&envelope) {
            return;
        }
        match (envelope.message, phase) {
            (Message::Hello(hello), Phase::Draining | Phase::Hello) if !greeted => {
                self.on_hello(hello, envelope.epoch);
            }
            (
                Message::Verdict { rule, strategy },
                Phase::Draining | Phase::Hello | Phase::Verdict,
            ) => {
                if let Some(link) = &mut self.peering.link {
                    link.their_verdict = Some((rule, strategy));
                }
                self.compare_verdicts();
            }
            (Message::Ping { stamp_ms }, _) => self.send(Message::Pong { stamp_ms }),
            (Message::Pong { .. }, _) => {}
            (Message::Confirm { number }, _) => self.on_confirm(envelope.epoch, number),
            (Message::Confirmed { number }, _) => self.on_confirmed(number),
            (Message::Goodbye { clean }, _) => self.on_goodbye(clean),
            (message, Phase::Settling | Phase::Ready) => self.on_session_message(id, message),
            (_, _) => self.break_link("a message came before its time"),
        }
    }

    /// Epochs that an arbiter granted bind (D8): a primary that meets a later one is none any more, and
    /// nobody takes writes from an earlier one. True if that was the end of the link.
    fn judge_epoch(&mut self, envelope: &Envelope) -> bool {
        let own = self.superblock.epoch;
        if envelope.epoch > own && self.role == Role::Primary {
            self.step_aside(envelope.epoch);
            self.persist(After::Nothing);
            return true;
        }
        let is_order = matches!(
            envelope.message,
            Message::Write { .. }
                | Message::Trim { .. }
                | Message::WriteZeroes { .. }
                | Message::Flush { .. }
        );
        if envelope.epoch < own && is_order {
            self.break_link("it orders writes of an earlier epoch");
            return true;
        }
        false
    }

    pub(super) fn tick_link(&mut self) {
        let now = self.now.monotonic_ms;
        let timeout = self.config.peer_timeout_ms;
        let Some(link) = &mut self.peering.link else {
            return;
        };
        if link.silent_ms(now) > timeout {
            self.break_link("the peer is silent");
            return;
        }
        let ack_limit = timeout.saturating_mul(ACK_TIMEOUT_FACTOR);
        // Behind a long line everything waits its turn: there, only a peer that gets nothing done is lost.
        let turn_ms = match self.config.mode.runs_ahead() {
            true => link.acknowledged_ms,
            false => 0,
        };
        let oldest = self
            .sent
            .values()
            .map(|awaited| awaited.since_ms.max(turn_ms))
            .min();
        if oldest.is_some_and(|since| now.saturating_sub(since) > ack_limit) {
            self.break_link("the peer does not get its work done");
            return;
        }
        let handing_over = self
            .walk
            .as_ref()
            .and_then(super::walk::Walk::finishing_since);
        if handing_over.is_some_and(|since| now.saturating_sub(since) > ack_limit) {
            self.break_link("the peer does not take the end of the resync");
            return;
        }
        let handshake_limit = timeout.saturating_mul(5);
        if link.phase != Phase::Ready && now.saturating_sub(link.opened_ms) > handshake_limit {
            self.break_link("the handshake takes too long");
            return;
        }
        if now.saturating_sub(link.pinged_ms) >= PING_MS.min(timeout / 3) {
            link.pinged_ms = now;
            self.send(Message::Ping { stamp_ms: now });
        }
    }

    /// The other side broke the protocol, or went silent.
    pub(super) fn break_link(&mut self, why: &str) {
        if let Some(link) = &self.peering.link {
            self.fx.push(Effect::CloseLink { link: link.id });
            self.lose_link(why);
        }
    }

    fn lose_link(&mut self, why: &str) {
        let Some(link) = self.peering.link.take() else {
            return;
        };
        if self.peering.connection == Connection::Connected {
            self.peering.connection = Connection::Connecting;
            self.report(Notice::warning(
                "peer-lost",
                format!("lost {}: {why}", self.config.peer_name),
            ));
        }
        if !self.peering.wanted {
            self.peering.connection = Connection::Standalone;
        }
        drop(link);
        self.drop_walk();
        self.resync_due_ms = None;
        self.target = None;
        self.exchange = None;
        self.on_peer_gone();
        self.replica.on_link_lost(self.config.mode.runs_ahead());
        self.on_link_lost_commands();
        self.release_held();
        self.pump_flush();
        self.unpark();
        self.retry_commands();
    }

    /// Data may flow. `replicating`: writes go to the peer from now on.
    pub(super) fn set_ready(&mut self, replicating: bool) {
        let Some(link) = &mut self.peering.link else {
            return;
        };
        let was_ready = link.phase == Phase::Ready;
        link.phase = Phase::Ready;
        link.replicating = replicating;
        self.peering.connection = Connection::Connected;
        if std::mem::take(&mut self.size_untold) {
            let size_bytes = self.superblock.size_bytes;
            self.fx.push(Effect::Resized { size_bytes });
        }
        self.peering.last_problem = None;
        self.peering.refused_by = None;
        if !was_ready {
            self.report(Notice::info(
                "connected",
                format!("connected to {}", self.config.peer_name),
            ));
            self.send_state();
        }
        self.resend_held();
        self.repeat_held_flushes();
        self.unpark();
        self.pump_flush();
        self.retry_commands();
    }

    fn on_session_message(&mut self, id: LinkId, message: Message) {
        match message {
            Message::BitmapChunk { .. } | Message::DoubtChunk { .. } | Message::BitmapEnd
                if self.link_ready() =>
            {
                self.break_link("bits came out of turn");
            }
            Message::BitmapChunk { .. } | Message::DoubtChunk { .. } => self.on_chunk(id, message),
            Message::BitmapEnd => self.on_bitmap_end(id),
            Message::Write { .. }
            | Message::Trim { .. }
            | Message::WriteZeroes { .. }
            | Message::Flush { .. }
            | Message::ReadRequest { .. }
            | Message::ResyncData { .. }
            | Message::ResyncZeroes { .. }
            | Message::Compare { .. } => self.on_replica_message(id, message),
            Message::Ack { sequences } => {
                for sequence in sequences {
                    self.on_acknowledged(sequence);
                }
            }
            Message::Received { sequences } => {
                for sequence in sequences {
                    self.on_received(sequence);
                }
            }
            // What it answers stays awaited: it is lost with everything else that is out.
            Message::Refused { .. } => self.on_peer_disk_failed(),
            Message::ReadReply {
                sequence,
                range,
                data,
            } => match self.take_sent(sequence) {
                Some(Awaited {
                    what: Sent::Read(owner),
                    since_ms,
                }) => self.on_peer_read_reply(owner, since_ms, range, data),
                Some(Awaited {
                    what: Sent::Walk(owner),
                    ..
                }) => self.on_fetched(owner, range, data),
                _ => {}
            },
            Message::ReadFailed { sequence } => {
                match self.take_sent(sequence).map(|awaited| awaited.what) {
                    Some(Sent::Read(owner)) => self.fail_peer_read(owner),
                    Some(Sent::Walk(owner)) => self.on_fetch_failed(owner),
                    _ => {}
                }
            }
            Message::CompareResult { sequence, unequal } => {
                if let Some(Sent::Walk(owner)) =
                    self.take_sent(sequence).map(|awaited| awaited.what)
                {
                    self.on_compared(owner, &unequal);
                }
            }
            Message::ResyncStart {
                total_bytes,
                full_sync,
            } => self.on_resync_start(id, total_bytes, full_sync),
            Message::ResyncReady => self.on_resync_ready(),
            Message::ResyncDone { generations } => self.on_resync_done(id, generations),
            Message::ResyncDoneAck => self.on_resync_done_ack(id),
            Message::ResyncPaused { paused } => self.on_peer_paused(paused),
            Message::State { role, disk } => self.on_peer_state(role, disk),
            Message::PromoteRequest { sequence, epoch } => {
                self.on_promote_request(id, sequence, epoch)
            }
            Message::PromoteReply { sequence, granted } => {
                if let Some(Sent::Promote) = self.take_sent(sequence).map(|awaited| awaited.what) {
                    self.on_promote_reply(granted);
                }
            }
            Message::Detached { sequence, extents } => {
                self.on_peer_detached(id, sequence, &extents)
            }
            Message::ResizePropose { usable_bytes } => self.on_resize_proposed(usable_bytes),
            Message::ResizeOffer { usable_bytes } => self.on_resize_offer(usable_bytes),
            Message::ResizeCommit { size_bytes } => self.on_resize_commit(size_bytes),
            Message::ResizeCommitted { size_bytes } => self.on_resize_committed(size_bytes),
            Message::Hello(_)
            | Message::Verdict { .. }
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::Confirm { .. }
            | Message::Confirmed { .. }
            | Message::Goodbye { .. } => self.break_link("a message came out of turn"),
        }
    }

    fn on_acknowledged(&mut self, sequence: Sequence) {
        let Some(Awaited { what, since_ms }) = self.take_sent(sequence) else {
            return;
        };
        if let Some(link) = &mut self.peering.link {
            link.acknowledged_ms = self.now.monotonic_ms;
        }
        match what {
            Sent::Write(owner) => self.on_write_acknowledged(owner, since_ms),
            Sent::Flush => self.on_peer_flushed(),
            Sent::Walk(owner) => self.on_walk_acknowledged(owner),
            Sent::Detached => self.on_detach_acknowledged(),
            Sent::Chunk => self.on_chunk_acknowledged(),
            Sent::Read(_) | Sent::Promote | Sent::FlushAhead => {}
        }
    }

    fn on_peer_state(&mut self, role: Role, disk: DiskState) {
        if disk == DiskState::Failed {
            self.on_peer_disk_failed();
        }
        if let Some(link) = &mut self.peering.link {
            link.peer_role = role;
            link.peer_disk = disk;
        }
        if role == Role::Primary && self.superblock.flags.last_primary {
            self.superblock.flags.last_primary = false;
            self.persist(After::Nothing);
        }
        let follows = self
            .link()
            .is_some_and(|link| link.is_ready() && !link.is_source);
        if role == Role::Primary && follows && self.target.is_none() && !self.bitmap.is_clean() {
            // What a verify marked while this side was the one to copy from: only a handshake tells
            // the new source.
            self.renegotiate();
        }
    }

    fn on_goodbye(&mut self, clean: bool) {
        let equal = self.link_ready()
            && self.bitmap.is_clean()
            && self.disk_state() == DiskState::UpToDate
            && self
                .link()
                .is_some_and(|link| link.peer_disk == DiskState::UpToDate);
        self.report(Notice::info(
            "peer-left",
            format!("{} left on purpose", self.config.peer_name),
        ));
        if clean && equal {
            // Before the link goes: what is still out there may be answered on this word.
            self.superblock.peer.node = self.config.peer;
            self.superblock.peer.stopped_cleanly = true;
            self.persist(After::Nothing);
        }
        self.break_link("the peer left");
    }
}
