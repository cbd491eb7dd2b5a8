//! Operator commands. Each is answered once: done, or refused with the rule that decided and what
//! would change it. A command that comes during a handshake waits for its end.

use std::collections::VecDeque;

use super::Sent;
use super::Volume;
use super::effect::Effect;
use super::event::Command;
use super::flushing::FlushFor;
use super::notice::Notice;
use super::refusal::Refusal;
use super::resizing::Resizing;
use super::store::After;
use crate::control::{Connection, SyncKind};
use crate::link::handshake::Strategy;
use crate::units::{CommandId, Epoch, FullSyncId, LinkId, Sequence};
use crate::wire::message::{DiskState, Message, Role};

/// Longest time a command waits for a handshake to end.
const DEFER_MS: u64 = 30_000;
/// Commands that may wait at once.
const DEFERRED_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Promoting {
    id: CommandId,
    force: bool,
    /// The role is being recorded; it is taken on when that is durable.
    recording: bool,
}

/// On the way down: waiting for requests to end, flushing, recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaving {
    id: CommandId,
    stop: bool,
    draining: bool,
}

#[derive(Debug, Default)]
pub(super) struct Commands {
    deferred: VecDeque<(CommandId, Command, u64)>,
    promoting: Option<Promoting>,
    leaving: Option<Leaving>,
    pub(super) resizing: Option<Resizing>,
    /// What the finished command says, while its record becomes durable.
    flagged: Option<(CommandId, Flagged)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flagged {
    Discard,
    Full,
}

impl Commands {
    /// A demotion or stop is under way: no new link is taken up.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// A role change is under way: a hello now would say what is about to be untrue.
    pub(super) fn is_changing_role(&self) -> bool {
        self.promoting.is_some_and(|promoting| promoting.recording) || self.leaving.is_some()
    }
}

impl Volume {
    pub(super) fn on_command(&mut self, id: CommandId, command: Command) {
        let until = self.now.monotonic_ms + DEFER_MS;
        self.take_command(id, command, until);
    }

    /// `until`: when the command gives up waiting for a handshake.
    fn take_command(&mut self, id: CommandId, command: Command, until: u64) {
        if self.halted || self.stopped {
            self.refuse(
                id,
                "not-running",
                "the mirror is stopped here",
                "restart mirrord and look at its log",
            );
            return;
        }
        // What a lost primary had under way here must not land among what this side is told next.
        let unfinished = matches!(command, Command::Promote { .. }) && !self.replica.is_drained();
        let waits = !self.recovered
            || unfinished && self.link().is_none()
            || self.is_greeting() && !matches!(command, Command::Disconnect | Command::Stop);
        if waits {
            if self.commands.deferred.len() < DEFERRED_MAX {
                self.commands.deferred.push_back((id, command, until));
            } else {
                self.refuse(
                    id,
                    "busy",
                    "too many commands wait for the handshake",
                    "try again",
                );
            }
            return;
        }
        match command {
            Command::Promote { peer_down, force } => self.promote(id, peer_down, force),
            Command::Demote => self.demote(id),
            Command::Connect => {
                self.set_connect(true);
                self.finish_command(id, Ok("looking for the peer".into()));
            }
            Command::Disconnect => {
                self.set_connect(false);
                self.close_link();
                self.finish_command(id, Ok("disconnected".into()));
            }
            Command::Resync {
                full,
                discard_local,
            } => self.resync(id, full, discard_local),
            Command::Pause => self.pause(id, true),
            Command::Resume => self.pause(id, false),
            Command::Verify { repair } => self.verify(id, repair),
            Command::Resize => self.begin_resize(id),
            Command::Stop => self.leave(id, true),
        }
    }

    pub(super) fn finish_command(&mut self, id: CommandId, result: Result<String, Refusal>) {
        self.fx.push(Effect::CommandDone { id, result });
    }

    /// Takes them up when nothing of a lost link is under way any more.
    pub(super) fn advance_deferred(&mut self) {
        if !self.commands.deferred.is_empty() && self.replica.is_drained() {
            self.retry_commands();
        }
    }

    /// Takes deferred commands up again: the handshake ended one way or the other.
    pub(super) fn retry_commands(&mut self) {
        if self.is_greeting() || !self.recovered {
            return;
        }
        for (id, command, until) in std::mem::take(&mut self.commands.deferred) {
            self.take_command(id, command, until);
        }
    }

    pub(super) fn tick_commands(&mut self) {
        let now = self.now.monotonic_ms;
        let (late, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.commands.deferred)
                .into_iter()
                .partition(|(_, _, until)| *until <= now);
        self.commands.deferred = waiting;
        for (id, _, _) in late {
            self.refuse(
                id,
                "handshake-running",
                "the handshake with the peer does not end",
                "look at mdstat and the log of both nodes",
            );
        }
    }

    pub(super) fn fail_commands(&mut self) {
        let mut ids: Vec<CommandId> = self
            .commands
            .deferred
            .drain(..)
            .map(|(id, _, _)| id)
            .collect();
        ids.extend(self.commands.promoting.take().map(|promoting| promoting.id));
        ids.extend(self.commands.leaving.take().map(|leaving| leaving.id));
        ids.extend(self.commands.flagged.take().map(|(id, _)| id));
        for id in ids {
            self.refuse(
                id,
                "metadata-failed",
                "writing metadata failed",
                "replace the cluster partition and restart mirrord",
            );
        }
        self.abort_resize();
    }

    pub(super) fn on_link_lost_commands(&mut self) {
        if let Some(promoting) = self
            .commands
            .promoting
            .filter(|promoting| !promoting.recording)
        {
            self.commands.promoting = None;
            self.refuse(
                promoting.id,
                "peer-lost",
                "the peer was lost before it agreed to the promotion",
                "promote with --peer-down if it is really down",
            );
        }
        self.abort_resize();
    }

    pub(super) fn stop_serving(&mut self) {
        if std::mem::take(&mut self.serving) {
            self.fx.push(Effect::Serve { serving: false });
        }
    }

    // --- promote ---------------------------------------------------------------------------

    fn promote(&mut self, id: CommandId, peer_down: bool, force: bool) {
        if self.role == Role::Primary {
            if peer_down && !self.link_ready() {
                self.on_peer_confirmed_down();
                self.finish_command(id, Ok("already primary; the peer counts as down".into()));
            } else {
                self.finish_command(id, Ok("already primary".into()));
            }
            return;
        }
        if self.commands.promoting.is_some() || self.commands.leaving.is_some() {
            self.refuse(
                id,
                "busy",
                "another change of role is under way",
                "wait for it",
            );
            return;
        }
        if self.disk_state() == DiskState::Failed {
            self.refuse(
                id,
                "disk-failed",
                "the disk of this node failed",
                "replace it, init the mirror here and let it resync",
            );
            return;
        }
        if self.link_ready() {
            self.promote_connected(id, force);
        } else {
            self.promote_alone(id, peer_down, force);
        }
    }

    fn promote_connected(&mut self, id: CommandId, force: bool) {
        let peer = self.config.peer_name.clone();
        let (peer_role, idle) = self.link().map_or((Role::Unknown, false), |link| {
            (link.peer_role, link.strategy() == Some(Strategy::Idle))
        });
        if peer_role == Role::Primary {
            self.refuse(
                id,
                "peer-is-primary",
                format!("{peer} is primary"),
                format!("demote it on {peer} first"),
            );
            return;
        }
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind == SyncKind::Verify)
        {
            self.abort_walk("a promotion");
        }
        match self.disk_state() {
            DiskState::UpToDate => {}
            _ if idle && force => {}
            _ if idle => {
                self.refuse(
                    id,
                    "no-data-yet",
                    "neither side has data that counts",
                    "promote with --force on the side whose data is to be the truth",
                );
                return;
            }
            _ => {
                self.refuse(
                    id,
                    "resync-target",
                    format!("this side is being copied from {peer} and is not up to date"),
                    format!("promote {peer}, or wait for the resync to end"),
                );
                return;
            }
        }
        self.commands.promoting = Some(Promoting {
            id,
            force,
            recording: false,
        });
        let sequence = self.next_sequence(Sent::Promote);
        let epoch = Epoch(self.superblock.epoch.0 + 1);
        self.send(Message::PromoteRequest { sequence, epoch });
    }

    fn promote_alone(&mut self, id: CommandId, peer_down: bool, force: bool) {
        let peer = self.config.peer_name.clone();
        let fresh = self.superblock.generations.current.is_none();
        if !force {
            match self.disk_state() {
                DiskState::UpToDate => {}
                DiskState::Outdated => {
                    self.refuse(
                        id,
                        "outdated",
                        format!("{peer} went on without this side, or may have: the data here is possibly old"),
                        format!("bring {peer} back; --force accepts the loss of what only {peer} has"),
                    );
                    return;
                }
                _ if fresh => {
                    self.refuse(
                        id,
                        "no-data-yet",
                        "this side was never synchronised",
                        "promote with --force if its data partition holds the truth",
                    );
                    return;
                }
                _ => {
                    self.refuse(
                        id,
                        "inconsistent",
                        "a resync into this side has begun and not ended",
                        format!("bring {peer} back; --force accepts a mixture of old and new data"),
                    );
                    return;
                }
            }
            // While this side was down the peer may have gone on, and stopped since, cleanly or not:
            // its being down says nothing about who has the newest data.
            if !self.peering.peer_seen {
                self.refuse(
                    id,
                    "peer-not-seen",
                    format!("this node has not seen {peer} since it started: {peer} may be ahead"),
                    format!("bring {peer} back; --force accepts the loss of what only {peer} has"),
                );
                return;
            }
            if !peer_down && !self.superblock.peer.stopped_cleanly {
                self.refuse(
                    id,
                    "peer-may-be-ahead",
                    format!("{peer} was lost and may have gone on alone"),
                    format!("bring {peer} back, or promote with --peer-down if it is really down and did not go on"),
                );
                return;
            }
        }
        if peer_down || force {
            self.superblock.peer.confirmed_down = true;
        }
        self.record_promotion(id, force);
    }

    pub(super) fn on_promote_request(&mut self, link: LinkId, sequence: Sequence, epoch: Epoch) {
        let racing = self
            .commands
            .promoting
            .is_some_and(|promoting| promoting.recording || self.config.first);
        let copying = self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind != SyncKind::Verify);
        let refuse =
            self.role == Role::Primary || racing || copying || self.commands.leaving.is_some();
        if refuse {
            self.send(Message::PromoteReply {
                sequence,
                granted: false,
            });
            return;
        }
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind == SyncKind::Verify)
        {
            self.abort_walk("the peer's promotion");
        }
        // From here on the peer is as good as primary: a promotion asked for here meanwhile, and a
        // resync toward it, must not begin.
        if let Some(link) = &mut self.peering.link {
            link.peer_role = Role::Primary;
            link.is_source = false;
        }
        self.superblock.epoch = self.superblock.epoch.max(epoch);
        self.superblock.flags.last_primary = false;
        self.persist(After::PeerPromoted { link, sequence });
    }

    pub(super) fn on_peer_promoted_durable(&mut self, link: LinkId, sequence: Sequence) {
        if self.is_current(link) {
            self.send(Message::PromoteReply {
                sequence,
                granted: true,
            });
        }
    }

    pub(super) fn on_promote_reply(&mut self, granted: bool) {
        let Some(promoting) = self
            .commands
            .promoting
            .filter(|promoting| !promoting.recording)
        else {
            return;
        };
        let still = self.disk_state() == DiskState::UpToDate
            || self
                .link()
                .is_some_and(|link| link.strategy() == Some(Strategy::Idle));
        if granted && still && self.target.is_none() {
            self.record_promotion(promoting.id, promoting.force);
        } else {
            self.commands.promoting = None;
            self.refuse(
                promoting.id,
                "peer-refused",
                format!(
                    "{} is primary, is being promoted, or copies to this side",
                    self.config.peer_name
                ),
                "look at mdstat on both nodes, and try again when a resync has ended",
            );
        }
    }

    fn record_promotion(&mut self, id: CommandId, force: bool) {
        self.commands.promoting = Some(Promoting {
            id,
            force,
            recording: true,
        });
        if force {
            self.force_truth();
        }
        let superblock = &mut self.superblock;
        superblock.epoch.0 += 1;
        superblock.flags.primary = true;
        superblock.flags.last_primary = true;
        superblock.flags.log_active = true;
        superblock.flags.clean_stop = false;
        self.persist(After::Promoted { id });
    }

    /// `--force`: this side's data becomes the truth, whatever it is.
    fn force_truth(&mut self) {
        let state = self.disk_state();
        if state == DiskState::UpToDate && self.link_ready() {
            return;
        }
        // From here on this side is no longer what a full copy that was cut has made of it.
        self.superblock.peer.full_sync = FullSyncId::NONE;
        if self.superblock.size_bytes == 0 {
            let block = u64::from(self.superblock.logical_block_bytes);
            let usable = self.superblock.usable_bytes;
            self.superblock.size_bytes = usable - usable % block;
            self.bitmap.set_size(self.superblock.size_bytes);
            self.fx.push(Effect::Resized {
                size_bytes: self.superblock.size_bytes,
            });
        }
        let fresh = self.superblock.generations.current.is_none();
        if state == DiskState::Inconsistent && !fresh {
            // Nobody knows which blocks a broken resync has mixed.
            self.bitmap.set_all();
            let pages = self.unsaved_pages();
            self.save_pages(&pages, After::Nothing);
        }
        let generation = self.draw_generation();
        self.superblock.generations.advance(generation);
        if !fresh {
            self.superblock.peer.outdated = true;
        }
        let flags = &mut self.superblock.flags;
        flags.inconsistent = false;
        flags.outdated = false;
        flags.doubtful = false;
        flags.discard_local = false;
        self.report(Notice::warning(
            "forced",
            format!("this side was {state:?} and is now the truth, as generation {generation}"),
        ));
    }

    pub(super) fn on_promoted(&mut self, id: CommandId) {
        let Some(promoting) = self.commands.promoting.take() else {
            return;
        };
        self.role = Role::Primary;
        self.serving = true;
        self.end_alone();
        self.fx.push(Effect::Serve { serving: true });
        self.report(Notice::info(
            "promoted",
            format!("primary from epoch {} on", self.superblock.epoch.0),
        ));
        let forced = promoting.force
            && self
                .link()
                .is_some_and(|link| link.strategy() == Some(Strategy::Idle));
        if forced {
            self.renegotiate();
        } else if let Some(link) = &mut self.peering.link
            && link.strategy() != Some(Strategy::Idle)
            && link.peer_disk != DiskState::Failed
            && link.is_ready()
        {
            link.replicating = true;
            link.is_source = true;
            self.send_state();
        }
        self.finish_command(
            id,
            Ok(format!("primary, epoch {}", self.superblock.epoch.0)),
        );
    }

    // --- demote and stop -------------------------------------------------------------------

    fn demote(&mut self, id: CommandId) {
        if self.role != Role::Primary {
            self.finish_command(id, Ok("already secondary".into()));
        } else if self.is_suspended() && (self.requests.has_held() || self.requests.has_parked()) {
            self.refuse(
                id,
                "io-suspended",
                "answered writes would be lost: requests wait for the peer",
                "bring the peer back, or confirm its stop with promote --peer-down",
            );
        } else {
            self.leave(id, false);
        }
    }

    fn leave(&mut self, id: CommandId, stop: bool) {
        if self.commands.leaving.is_some() || self.commands.promoting.is_some() {
            self.refuse(
                id,
                "busy",
                "another change of role is under way",
                "wait for it",
            );
            return;
        }
        self.stop_serving();
        if stop && self.role != Role::Primary {
            // A secondary that takes leave does not go on alone, whatever happens to it after this;
            // a primary says so only once its last write is flushed.
            let clean = self.disk_state() == DiskState::UpToDate;
            self.send(Message::Goodbye { clean });
            self.set_connect(false);
            self.close_link();
        } else if self.is_greeting() {
            self.close_link();
        }
        self.abort_walk(if stop { "stopping" } else { "demotion" });
        self.commands.leaving = Some(Leaving {
            id,
            stop,
            draining: true,
        });
    }

    /// Goes on with a demotion or stop once the last request is answered.
    pub(super) fn advance_leaving(&mut self) {
        let Some(leaving) = self.commands.leaving.filter(|leaving| leaving.draining) else {
            return;
        };
        let waits_for_word =
            self.requests.has_held() || self.requests.has_parked() || self.flushing.has_held();
        if self.is_suspended() && waits_for_word {
            // The peer was lost meanwhile. Without a link, and none is made while leaving, nobody
            // would ever end the wait.
            self.commands.leaving = None;
            self.serving = true;
            self.fx.push(Effect::Serve { serving: true });
            self.refuse(
                leaving.id,
                "io-suspended",
                "the peer was lost meanwhile, and requests wait for it",
                "bring the peer back, or confirm its stop with promote --peer-down",
            );
            return;
        }
        let drained = self.requests.is_empty()
            && self.flushing.is_idle()
            && self.replica.is_drained()
            && self.strays.is_empty()
            && !self.log.is_committing();
        if !drained {
            return;
        }
        self.commands.leaving = Some(Leaving {
            draining: false,
            ..leaving
        });
        let what = if leaving.stop {
            FlushFor::Stop(leaving.id)
        } else {
            FlushFor::Demote(leaving.id)
        };
        self.request_flush(what);
    }

    pub(super) fn on_demote_flushed(&mut self, id: CommandId) {
        self.save_before_leaving(After::DemotePages { id });
    }

    pub(super) fn on_stop_flushed(&mut self, id: CommandId) {
        self.save_before_leaving(After::StopPages { id });
    }

    /// What only the log covers becomes bits on disk, before the log is let go (D4).
    fn save_before_leaving(&mut self, after: After) {
        let doubt = self.log.take_peer_doubt();
        for range in doubt {
            self.mark_dirty(range);
        }
        if !self.disk_usable() {
            let lost = self.log.locally_unflushed();
            for extent in lost {
                if let Some(range) = self.bitmap.extent_range(extent) {
                    self.mark_dirty(range);
                }
            }
        }
        let pages = self.changed_pages();
        self.save_pages(&pages, after);
    }

    pub(super) fn on_demote_pages(&mut self, id: CommandId) {
        self.release_log();
        self.persist(After::Demoted { id });
    }

    pub(super) fn on_demoted(&mut self, id: CommandId) {
        self.commands.leaving = None;
        self.role = Role::Secondary;
        self.log.reset(self.superblock.log_epoch);
        self.end_alone();
        self.report(Notice::info("demoted", "secondary"));
        self.send_state();
        self.finish_command(id, Ok("secondary".into()));
    }

    pub(super) fn on_stop_pages(&mut self, id: CommandId) {
        self.release_log();
        self.superblock.flags.clean_stop = true;
        self.persist(After::Stopped { id });
    }

    pub(super) fn on_stopped(&mut self, id: CommandId) {
        self.commands.leaving = None;
        self.role = Role::Secondary;
        self.stopped = true;
        self.log.reset(self.superblock.log_epoch);
        self.send(Message::Goodbye {
            clean: self.disk_state() == DiskState::UpToDate,
        });
        self.set_connect(false);
        self.close_link();
        self.report(Notice::info("stopped", "stopped cleanly"));
        self.finish_command(id, Ok("stopped".into()));
    }

    fn release_log(&mut self) {
        let flags = &mut self.superblock.flags;
        flags.primary = false;
        // While the peer has no disk, its writes come through the log of this side.
        flags.log_active = self.superblock.peer.detached;
        self.superblock.log_epoch += 1;
    }

    // --- resync, verify --------------------------------------------------------------------

    fn resync(&mut self, id: CommandId, full: bool, discard_local: bool) {
        let flagged = match (full, discard_local) {
            (_, true) => Flagged::Discard,
            (true, false) => Flagged::Full,
            (false, false) => {
                self.set_connect(true);
                self.want_resync();
                self.finish_command(
                    id,
                    Ok("resync runs whenever the sides are connected and differ".into()),
                );
                return;
            }
        };
        if self.commands.flagged.is_some() {
            self.refuse(id, "busy", "another resync is being ordered", "wait for it");
            return;
        }
        if flagged == Flagged::Discard {
            if self.role == Role::Primary {
                self.refuse(
                    id,
                    "primary",
                    "a primary's data is in use",
                    "demote it first",
                );
                return;
            }
            if self.peering.connection == Connection::Connected {
                self.refuse(
                    id,
                    "no-split-brain",
                    "the sides are connected: there is nothing to give up",
                    "see mirrorctl explain",
                );
                return;
            }
            self.superblock.flags.discard_local = true;
        } else {
            self.superblock.flags.full_resync = true;
        }
        self.commands.flagged = Some((id, flagged));
        self.persist(After::Flagged { id });
    }

    pub(super) fn on_flagged(&mut self, id: CommandId) {
        let Some((_, flagged)) = self.commands.flagged.take_if(|(flagged, _)| *flagged == id)
        else {
            return;
        };
        self.set_connect(true);
        let message = match flagged {
            Flagged::Discard => {
                // The next handshake ends the split brain, so it is no longer to be waited out.
                self.peering.connection = Connection::Connecting;
                "this side will be overwritten by its peer"
            }
            Flagged::Full => {
                self.renegotiate();
                "everything will be copied"
            }
        };
        self.finish_command(id, Ok(message.into()));
    }

    fn pause(&mut self, id: CommandId, paused: bool) {
        if self.pause_walk(paused) {
            self.finish_command(id, Ok(if paused { "paused" } else { "resumed" }.into()));
        } else {
            self.refuse(
                id,
                "nothing-runs",
                "no resync or verify is running",
                "see mirrorctl mdstat",
            );
        }
    }

    fn verify(&mut self, id: CommandId, repair: bool) {
        let Some((is_source, peer_disk)) = self
            .link()
            .filter(|link| link.is_ready())
            .map(|link| (link.is_source, link.peer_disk))
        else {
            self.refuse(
                id,
                "not-connected",
                "there is nothing to compare with",
                "connect first",
            );
            return;
        };
        if !is_source {
            self.refuse(
                id,
                "not-the-source",
                format!("this side is kept equal to {}", self.config.peer_name),
                format!("run it on {}", self.config.peer_name),
            );
            return;
        }
        if self.disk_state() != DiskState::UpToDate || peer_disk != DiskState::UpToDate {
            self.refuse(
                id,
                "not-up-to-date",
                "one side is not up to date",
                "wait for the resync to end",
            );
            return;
        }
        if self.walk.is_some() || self.target.is_some() {
            self.refuse(id, "busy", "a resync or verify is running", "wait for it");
            return;
        }
        self.last_verify_mismatch_bytes = None;
        self.begin_verify(repair);
        self.finish_command(id, Ok("verify started".into()));
    }

    fn refuse(
        &mut self,
        id: CommandId,
        rule: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.finish_command(id, Err(Refusal::new(rule, reason, remedy)));
    }
}
