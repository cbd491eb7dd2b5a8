//! Ceasing to be primary, and stopping: no new requests, the last ones answered, both disks flushed,
//! what only the log says turned into bits, and then the record that a restart trusts.

use super::Volume;
use super::commands::Leaving;
use super::effect::Effect;
use super::flushing::FlushFor;
use super::notice::Notice;
use super::store::After;
use crate::request::{Answer, Failure};
use crate::units::CommandId;
use crate::wire::message::{DiskState, Message, Role};

impl Volume {
    pub(super) fn demote(&mut self, id: CommandId) {
        if self.role != Role::Primary {
            self.finish_command(id, Ok("already secondary".into()));
        } else if self.is_suspended() && (self.requests.has_held() || self.requests.has_parked()) {
            self.refuse(
                id,
                "io-suspended",
                "answered writes would be lost: requests wait for the peer",
                "bring the peer back, or confirm its stop with promote --peer-down",
            );
        } else if self.is_ordered_frozen() {
            self.refuse(
                id,
                "frozen",
                "answers wait by order of the agent, and a demotion waits for them",
                "thaw, or fail-io first",
            );
        } else {
            self.leave(id, false);
        }
    }

    pub(super) fn leave(&mut self, id: CommandId, stop: bool) {
        if self.commands.leaving.is_some() || self.commands.promoting.is_some() {
            self.refuse_busy(id);
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
        // A peer that is taking the generation over is waited for: its word is what settles this side.
        let handing_over = self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.finishing_since().is_some());
        if !handing_over {
            self.abort_walk(if stop { "stopping" } else { "demotion" });
        }
        // Reads that wait for a comparison are the last that are answered here.
        self.give_up_recheck();
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
        if self.requests.has_overtaken() && self.is_replicating() && self.walk.is_none() {
            // The resync that would bring them to the peer was ended for the sake of leaving.
            self.fail_overtaken(&Answer::Failed(Failure::Io));
        }
        if !self.can_prove() {
            // Nobody would renew a lease for a side that is on its way down.
            self.fail_waiting(&Answer::Failed(Failure::Io));
        }
        let drained = self.requests.is_empty()
            && self.gate.is_empty()
            && self.flushing.is_idle()
            && self.replica.is_drained()
            && self.strays.is_empty()
            && self.walk.is_none()
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
        // The log that still says what a failed disk lost is about to go.
        self.mark_lost();
        let pages = self.changed_pages();
        self.save_pages(&pages, after);
    }

    pub(super) fn on_demote_pages(&mut self, id: CommandId) {
        self.own_tail();
        self.release_log();
        self.persist(After::Demoted { id });
    }

    pub(super) fn on_demoted(&mut self, id: CommandId) {
        self.commands.leaving = None;
        self.role = Role::Secondary;
        self.reinstatable = None;
        self.log.reset(self.superblock.log_epoch);
        self.end_alone();
        self.end_authority();
        self.report(Notice::info("demoted", "secondary"));
        self.send_state();
        self.finish_command(id, Ok("secondary".into()));
    }

    pub(super) fn on_stop_pages(&mut self, id: CommandId) {
        self.own_tail();
        self.release_log();
        self.superblock.flags.clean_stop = true;
        // Drained and flushed: all that was acknowledged here is durable, unless that flush failed.
        if self.disk_state() != DiskState::Failed {
            self.superblock.run.end();
        }
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
}
