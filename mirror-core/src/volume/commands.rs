//! Operator commands. Each is answered once: done, or refused with the rule that decided and what
//! would change it. A command that comes during a handshake waits for its end.

use std::collections::VecDeque;

use super::Volume;
use super::effect::Effect;
use super::event::{Command, Grant};
use super::refusal::Refusal;
use super::resizing::Resizing;
use super::store::After;
use crate::control::Connection;
use crate::units::CommandId;
use crate::wire::message::{DiskState, Role};

/// Longest time a command waits for a handshake to end.
const DEFER_MS: u64 = 30_000;
/// Commands that may wait at once.
const DEFERRED_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(super) struct Promoting {
    pub(super) id: CommandId,
    pub(super) force: bool,
    pub(super) grant: Option<Grant>,
    /// In the epoch that this side held before.
    pub(super) again: bool,
    /// The role is being recorded; it is taken on when that is durable.
    pub(super) recording: bool,
}

/// On the way down: waiting for requests to end, flushing, recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaving {
    pub(super) id: CommandId,
    pub(super) stop: bool,
    pub(super) draining: bool,
}

#[derive(Debug, Default)]
pub(super) struct Commands {
    deferred: VecDeque<(CommandId, Command, u64)>,
    pub(super) promoting: Option<Promoting>,
    /// A grant that this side asked its peer about and never became primary by: the peer may have recorded its
    /// epoch, so that this side sees it elsewhere, and it is still nobody else's.
    pub(super) unused_grant: Option<u64>,
    pub(super) leaving: Option<Leaving>,
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

    /// The role of a primary is being recorded.
    pub(super) fn is_promoting(&self) -> bool {
        self.promoting.is_some_and(|promoting| promoting.recording)
    }

    /// A role change is under way: a hello now would say what is about to be untrue.
    pub(super) fn is_changing_role(&self) -> bool {
        self.is_promoting() || self.leaving.is_some()
    }
}

impl Volume {
    pub(super) fn on_command(&mut self, id: CommandId, command: Command) {
        let until = self.now.monotonic_ms + DEFER_MS;
        self.take_command(id, command, until);
    }

    /// `until`: when the command gives up waiting for a handshake.
    fn take_command(&mut self, id: CommandId, command: Command, until: u64) {
        if self.halted && matches!(command, Command::Demote) {
            self.finish_command(id, Ok("not primary: the mirror is stopped here".into()));
            return;
        }
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
        let unfinished = matches!(command, Command::Promote { .. } | Command::Reinstate { .. })
            && !self.replica.is_drained();
        let granted = self.has_arbiter()
            && matches!(command, Command::Promote { grant: Some(grant), force: false, .. }
                if grant.epoch > self.superblock.epoch.0);
        if granted && self.recovered {
            self.leave_primary();
        }
        let waits = !command.is_urgent()
            && (!self.recovered
                || unfinished && self.link().is_none()
                || granted && !self.may_overrule()
                || self.is_greeting() && !matches!(command, Command::Disconnect | Command::Stop));
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
            Command::Promote {
                peer_down,
                force,
                grant,
            } => self.promote(id, peer_down, force, grant),
            Command::Reinstate { alone } => self.reinstate(id, alone),
            Command::Lease {
                epoch,
                deadline_ms,
                confirmed,
            } => self.on_lease(id, epoch, deadline_ms, confirmed),
            Command::Freeze => self.freeze(id),
            Command::Thaw => self.thaw(id),
            Command::FailIo => self.fail_io(id),
            Command::Outdate => self.on_outdate(id),
            Command::PeerDown => self.peer_down(id),
            Command::EpochSeen { epoch } => self.on_epoch_seen(id, epoch),
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
        if !self.recovered {
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
            self.commands.unused_grant = promoting.grant.map(|grant| grant.epoch);
            self.refuse(
                promoting.id,
                "peer-lost",
                "the peer was lost before it agreed to the promotion",
                "promote with --peer-down if it is really down",
            );
        }
        self.abort_resize();
    }

    /// What a promotion that is not on record yet was meant for is no longer this side's.
    pub(super) fn give_up_promotion(&mut self) {
        if let Some(promoting) = self.commands.promoting.take() {
            self.refuse(
                promoting.id,
                "superseded",
                "a later epoch was granted to the other node",
                "look at mirrorctl status on both nodes",
            );
        }
    }

    pub(super) fn stop_serving(&mut self) {
        if std::mem::take(&mut self.serving) {
            self.fx.push(Effect::Serve { serving: false });
        }
    }

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

    /// Roles change one at a time.
    pub(super) fn refuse_busy(&mut self, id: CommandId) {
        self.refuse(
            id,
            "busy",
            "another change of role is under way",
            "wait for it",
        );
    }

    pub(super) fn refuse(
        &mut self,
        id: CommandId,
        rule: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.finish_command(id, Err(Refusal::new(rule, reason, remedy)));
    }
}
