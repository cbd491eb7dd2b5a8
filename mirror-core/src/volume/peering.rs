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
use super::{Sent, Volume};
use crate::control::Connection;
use crate::layout::superblock::FEATURES_INCOMPATIBLE;
use crate::link::handshake::{Rule, Scope, Side, Strategy, Verdict, decide};
use crate::request::{Answer, Failure};
use crate::units::{Epoch, ExtentIndex, LinkId, Sequence, Uuid};
use crate::wire::message::{
    DiskState, Envelope, Hello, InitialSync, Message, Mode, Role, VERSION_MAX, VERSION_MIN,
};

/// Time between keepalives on an idle link.
const PING_MS: u64 = 1_000;
/// Extents in one `DoubtChunk`.
const DOUBT_CHUNK: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
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
    id: LinkId,
    phase: Phase,
    hello: Option<Box<Hello>>,
    verdict: Option<Verdict>,
    their_verdict: Option<(u16, u8)>,
    opened_ms: u64,
    heard_ms: u64,
    pinged_ms: u64,
    peer_epoch: Epoch,
    pub(super) peer_role: Role,
    pub(super) peer_disk: DiskState,
    /// Writes go to the peer and wait for it.
    pub(super) replicating: bool,
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
            last_hello: None,
        }
    }
}

impl Volume {
    pub(super) fn link_ready(&self) -> bool {
        self.link().is_some_and(|link| link.phase == Phase::Ready)
    }

    /// Between hello and ready: what was said of this side must stay true.
    pub(super) fn in_handshake(&self) -> bool {
        self.link().is_some_and(|link| link.phase != Phase::Ready)
    }

    pub(super) fn is_replicating(&self) -> bool {
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
        self.sent.insert(sequence, what);
        sequence
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
            peer_epoch: Epoch(0),
            peer_role: Role::Unknown,
            peer_disk: DiskState::Unknown,
            replicating: false,
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
        let waiting = self
            .link()
            .is_some_and(|link| link.phase == Phase::Draining);
        let drained = self.requests.is_drained()
            && !self.flushing.is_running()
            && self.replica.is_drained()
            && !self.store.is_superblock_pending()
            && !self.commands.is_changing_role();
        if !waiting || !drained {
            return;
        }
        let hello = Box::new(self.hello());
        self.send(Message::Hello(hello));
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Hello;
        }
        self.judge();
    }

    pub(super) fn on_message(&mut self, id: LinkId, envelope: Envelope) {
        let now = self.now.monotonic_ms;
        let Some(link) = self.peering.link.as_mut().filter(|link| link.id == id) else {
            return;
        };
        link.heard_ms = now;
        link.peer_epoch = link.peer_epoch.max(envelope.epoch);
        match (envelope.message, link.phase) {
            (Message::Hello(hello), Phase::Draining | Phase::Hello) if link.hello.is_none() => {
                self.on_hello(hello, envelope.epoch);
            }
            (
                Message::Verdict { rule, strategy },
                Phase::Draining | Phase::Hello | Phase::Verdict,
            ) => {
                link.their_verdict = Some((rule, strategy));
                self.compare_verdicts();
            }
            (Message::Ping { stamp_ms }, _) => self.send(Message::Pong { stamp_ms }),
            (Message::Pong { .. }, _) => {}
            (Message::Goodbye { clean }, _) => self.on_goodbye(clean),
            (message, Phase::Settling | Phase::Ready) => self.on_session_message(id, message),
            (_, _) => self.break_link("a message came before its time"),
        }
    }

    pub(super) fn tick_link(&mut self) {
        let now = self.now.monotonic_ms;
        let timeout = self.config.peer_timeout_ms;
        let Some(link) = &mut self.peering.link else {
            return;
        };
        if now.saturating_sub(link.heard_ms) > timeout {
            self.break_link("the peer is silent");
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
        self.on_peer_gone();
        self.replica.on_link_lost();
        self.on_link_lost_commands();
        self.release_held();
        self.pump_flush();
        self.unpark();
        self.retry_commands();
    }

    fn hello(&self) -> Hello {
        let flags = &self.superblock.flags;
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES_INCOMPATIBLE,
            cluster: self.config.cluster,
            mirror: self.config.mirror,
            node: self.config.node,
            incarnation: self.incarnation,
            peer_incarnation_seen: self.superblock.peer.incarnation,
            mode: mode_code(self.config.mode),
            size_bytes: self.superblock.size_bytes,
            usable_bytes: self.superblock.usable_bytes,
            logical_block_bytes: self.config.logical_block_bytes,
            block_shift: self.superblock.block_shift,
            config_digest: self.config.config_digest,
            generations: self.superblock.generations,
            role: self.role,
            disk: self.disk_state(),
            crashed_primary: flags.primary && self.role != Role::Primary,
            last_primary: flags.last_primary,
            was_equal: self.superblock.peer.was_equal,
            discard_local: flags.discard_local,
            full_resync: flags.full_resync,
            initial_sync: initial_sync_code(self.config.initial_sync),
            fast_zero: self.config.fast_zero,
            full_sync: self.superblock.peer.full_sync,
        }
    }

    /// Keeps the reason for `explain` and reports it if it is a new one.
    fn refuse_handshake(&mut self, problem: String) {
        if self.peering.last_problem.as_ref() != Some(&problem) {
            self.report(Notice::error("handshake-refused", problem.clone()));
            self.peering.last_problem = Some(problem);
        }
    }

    fn on_hello(&mut self, hello: Box<Hello>, epoch: Epoch) {
        if let Some(problem) = self.mismatch(&hello) {
            self.refuse_handshake(problem);
            self.break_link("the two sides do not fit");
            return;
        }
        // Another incarnation has lost what it acknowledged and did not flush (D4).
        if hello.incarnation != self.superblock.peer.incarnation {
            let doubt = self.log.take_peer_doubt();
            for range in doubt {
                self.weak.insert(range.extent());
                self.mark_dirty(range);
            }
        }
        if let Some(link) = &mut self.peering.link {
            link.peer_role = hello.role;
            link.peer_disk = hello.disk;
            link.peer_epoch = epoch;
            link.hello = Some(hello.clone());
        }
        self.peering.last_hello = Some(hello);
        self.judge();
    }

    /// Everything that must be equal, or fit, before anything is decided. Names the first misfit.
    fn mismatch(&self, hello: &Hello) -> Option<String> {
        let me = &self.config;
        let peer = &me.peer_name;
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            return Some(format!(
                "{peer} speaks protocol versions {} to {}, this node {VERSION_MIN} to {VERSION_MAX}: upgrade the older one",
                hello.version_min, hello.version_max
            ));
        }
        if hello.cluster != me.cluster || hello.mirror != me.mirror {
            return Some(format!(
                "{peer} serves another cluster or mirror: check both configurations"
            ));
        }
        if hello.node == me.node {
            return Some("both nodes have the same identity: start one with another --node".into());
        }
        if hello.node != me.peer {
            return Some(format!(
                "the node that answered is not {peer}: check addresses and node names"
            ));
        }
        if hello.mode != mode_code(me.mode)
            || hello.initial_sync != initial_sync_code(me.initial_sync)
        {
            return Some(format!(
                "mode or initial_sync differ between this node and {peer}: use the same file on both"
            ));
        }
        if hello.config_digest != me.config_digest {
            return Some(format!(
                "shared settings differ between this node and {peer} (peer_loss, or the order of the nodes): use the same file on both"
            ));
        }
        let sizes = [self.superblock.size_bytes, hello.size_bytes];
        let needed = sizes[0].max(sizes[1]);
        for (name, usable) in [
            (&me.node_name, self.superblock.usable_bytes),
            (peer, hello.usable_bytes),
        ] {
            if usable < needed {
                return Some(format!(
                    "the data partition of {name} holds {usable} bytes, the mirror has {needed}: enlarge it"
                ));
            }
        }
        None
    }

    /// Both hellos are known: decide, and tell the other side what.
    fn judge(&mut self) {
        let Some(link) = &mut self.peering.link else {
            return;
        };
        if link.phase != Phase::Hello {
            return;
        }
        let Some(theirs) = link.hello.clone() else {
            return;
        };
        link.phase = Phase::Verdict;
        let peer_epoch = link.peer_epoch;
        let first = self.config.first;
        let ours = self.hello();
        let me = Side::of(&ours, &theirs, self.superblock.epoch, first);
        let peer = Side::of(&theirs, &ours, peer_epoch, !first);
        let verdict = decide(&me, &peer, self.config.initial_sync);
        if let Some(link) = &mut self.peering.link {
            link.verdict = Some(verdict);
        }
        self.send(Message::Verdict {
            rule: verdict.rule.code(),
            strategy: verdict.strategy.code(),
        });
        self.compare_verdicts();
    }

    fn compare_verdicts(&mut self) {
        let Some(link) = &self.peering.link else {
            return;
        };
        let (Some(verdict), Some((rule, strategy))) = (link.verdict, link.their_verdict) else {
            return;
        };
        let mirrored = verdict.strategy.mirrored().code();
        if (rule, strategy) != (verdict.rule.code(), mirrored) {
            self.report(Notice::error(
                "handshake-disagreed",
                format!("the two sides judge their data differently (rule {}): both need the same version", verdict.rule),
            ));
            self.break_link("the verdicts differ");
            return;
        }
        let news = self.peering.last_rule != Some(verdict.rule)
            || self.peering.connection == Connection::Connecting;
        self.peering.last_rule = Some(verdict.rule);
        if news {
            self.report(Notice::info(
                "handshake",
                format!("rule {} decides: {:?}", verdict.rule, verdict.strategy),
            ));
        }
        self.carry_out(verdict, news);
    }

    fn carry_out(&mut self, verdict: Verdict, news: bool) {
        self.agree_size();
        match verdict.strategy {
            Strategy::Source(_) => self.begin_source(),
            Strategy::Target(scope) => self.begin_target(scope),
            Strategy::Idle => {
                self.meet_peer();
                self.persist(After::Nothing);
                self.set_ready(false);
            }
            Strategy::SplitBrain | Strategy::Unrelated => {
                let (connection, kind) = if verdict.strategy == Strategy::SplitBrain {
                    (Connection::SplitBrain, "split-brain")
                } else {
                    (Connection::Unrelated, "unrelated")
                };
                self.peering.connection = connection;
                if news {
                    self.report(Notice::error(
                        kind,
                        format!("rule {}: nothing is discarded; 'mirrorctl explain {}' shows the choices", verdict.rule, self.config.name),
                    ));
                }
                self.break_link("no common data");
            }
            Strategy::Refuse => {
                self.refuse_handshake(format!(
                    "rule {}: see 'mirrorctl explain {}'",
                    verdict.rule, self.config.name
                ));
                self.break_link("refused by rule");
            }
        }
    }

    /// Takes the larger agreed size, or the smaller usable one at the first meeting. The needs of
    /// both disks decide the logical block.
    fn agree_size(&mut self) {
        let Some(hello) = self.link().and_then(|link| link.hello.clone()) else {
            return;
        };
        let block = self
            .superblock
            .logical_block_bytes
            .max(hello.logical_block_bytes);
        self.superblock.logical_block_bytes = block;
        let agreed = match self.superblock.size_bytes.max(hello.size_bytes) {
            0 => self.superblock.usable_bytes.min(hello.usable_bytes),
            size => size,
        };
        let size_bytes = agreed - agreed % u64::from(block);
        if size_bytes != self.superblock.size_bytes {
            let old = self.superblock.size_bytes;
            self.superblock.size_bytes = size_bytes;
            self.bitmap.set_size(size_bytes);
            if old > 0 {
                self.mark_growth(old, size_bytes);
            }
            self.fx.push(Effect::Resized { size_bytes });
        }
    }

    /// The peer has been met: its incarnation is the one that acknowledges from now on.
    pub(super) fn meet_peer(&mut self) {
        let Some(hello) = self.link().and_then(|link| link.hello.clone()) else {
            return;
        };
        let peer_epoch = self.link().map_or(Epoch(0), |link| link.peer_epoch);
        self.peering.peer_seen = true;
        self.superblock.flags.doubtful = false;
        self.superblock.epoch = self.superblock.epoch.max(peer_epoch);
        self.superblock.peer.node = hello.node;
        self.superblock.peer.incarnation = hello.incarnation;
        self.superblock.peer.stopped_cleanly = false;
        self.superblock.peer.confirmed_down = false;
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
        self.peering.last_problem = None;
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

    /// The target's bits come first; `on_bitmap_end` goes on.
    fn begin_source(&mut self) {
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Settling;
            link.is_source = true;
        }
    }

    /// This side is the target. A primary that a newer promotion left behind steps down first.
    fn begin_target(&mut self, scope: Scope) {
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Settling;
        }
        if self.role == Role::Primary {
            self.report(Notice::error(
                "stepped-down",
                format!(
                    "{} was promoted later: this node stops serving",
                    self.config.peer_name
                ),
            ));
            self.stop_serving();
            self.role = Role::Secondary;
            self.fail_all(Answer::Failed(Failure::NotPrimary));
        }
        self.prepare_target(scope);
    }

    /// Sends this side's bits and doubts to the source.
    pub(super) fn send_bitmap(&mut self) {
        let block_shift = self.bitmap.block_shift();
        let mut messages: Vec<Message> = self
            .bitmap
            .dirty_pages()
            .map(|(first_block, words)| Message::BitmapChunk {
                first_block,
                block_shift,
                words: words.to_vec(),
            })
            .collect();
        let mut weak: Vec<u32> = self.weak.iter().map(|extent| extent.0).collect();
        weak.sort_unstable();
        messages.extend(weak.chunks(DOUBT_CHUNK).map(|extents| Message::DoubtChunk {
            extents: extents.to_vec(),
        }));
        messages.push(Message::BitmapEnd);
        for message in messages {
            self.send(message);
        }
    }

    fn on_session_message(&mut self, id: LinkId, message: Message) {
        match message {
            Message::BitmapChunk {
                first_block,
                block_shift,
                words,
            } => {
                self.bitmap.merge(first_block, block_shift, &words);
            }
            Message::DoubtChunk { extents } => {
                self.weak.extend(extents.into_iter().map(ExtentIndex));
            }
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
            Message::Refused { sequence } => self.on_refused(sequence),
            Message::ReadReply { sequence, data, .. } => {
                if let Some(Sent::Read(owner)) = self.take_sent(sequence) {
                    self.on_peer_read_reply(owner, data);
                }
            }
            Message::ReadFailed { sequence } => {
                if let Some(Sent::Read(owner)) = self.take_sent(sequence) {
                    self.fail_peer_read(owner);
                }
            }
            Message::CompareResult { sequence, unequal } => {
                if let Some(Sent::Walk(owner)) = self.take_sent(sequence) {
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
                if let Some(Sent::Promote) = self.take_sent(sequence) {
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
            | Message::Goodbye { .. } => self.break_link("a message came out of turn"),
        }
    }

    fn on_acknowledged(&mut self, sequence: Sequence) {
        match self.take_sent(sequence) {
            Some(Sent::Write(owner)) => self.on_write_acknowledged(owner),
            Some(Sent::Flush) => self.on_peer_flushed(),
            Some(Sent::Walk(owner)) => self.on_walk_acknowledged(owner),
            Some(Sent::Detached) => self.on_detach_acknowledged(),
            Some(Sent::Read(_) | Sent::Promote) | None => {}
        }
    }

    fn on_refused(&mut self, sequence: Sequence) {
        match self.take_sent(sequence) {
            Some(what) => {
                // Put it back for those who look through what is out there.
                self.sent.insert(sequence, what);
                self.on_peer_disk_failed();
            }
            None => self.on_peer_disk_failed(),
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
        let node: Uuid = self.config.peer;
        self.break_link("the peer left");
        if clean && equal {
            self.superblock.peer.node = node;
            self.superblock.peer.stopped_cleanly = true;
            self.persist(After::Nothing);
        }
    }
}

fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Sync => 0,
        Mode::Semisync => 1,
        Mode::Async => 2,
    }
}

fn initial_sync_code(initial_sync: InitialSync) -> u8 {
    match initial_sync {
        InitialSync::Full => 0,
        InitialSync::Sparse => 1,
        InitialSync::Skip => 2,
    }
}
