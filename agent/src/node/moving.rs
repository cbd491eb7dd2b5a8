//! A running group changes hands: it is stopped here while the other node stands ready, given away, and
//! taken back where the other does not start it. A group that failed over may go back by itself.

use super::Node;
use super::event::CommandId;
use super::placement::Cause;
use crate::alert;
use crate::control::State;
use crate::group;
use crate::membership::Peer;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Failback {
    possible_since_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Moving {
    pub(super) since_ms: u64,
    /// Who asked: see `orders`.
    pub(super) by: MovedBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MovedBy {
    Command(CommandId),
    Order(u32),
    /// A standby, a failback.
    Node,
    Monitor,
}

impl Node {
    /// Hands a running group to the other node. The error says why that cannot be.
    pub(super) fn give(&mut self, group: usize, by: MovedBy) -> Result<(), String> {
        let name = self.config.groups[group].config.name.clone();
        let peer = self.config.peer_name().to_owned();
        if self.controls[group].moving.is_some() {
            return Err(format!("{name} is moving already"));
        }
        if self.membership.peer() != Peer::Up {
            return Err(format!("{peer} is not heard"));
        }
        self.check_data_there(group)?;
        if !self.could_run_there(group) {
            return Err(format!(
                "{peer} cannot take {name}: it is starting, on standby, cut off, not one of its nodes, \
                 or failed to start it before (`mirrorctl status` there says which)"
            ));
        }
        self.alert(alert::SWITCHING_OVER, format!("{name} moves to {peer}."));
        self.controls[group].moving = Some(Moving {
            since_ms: self.now_ms,
            by,
        });
        self.alert(alert::GROUP_STOPPING, format!("{name} stops."));
        self.group_step(group, group::Event::Stop { force: false });
        Ok(())
    }

    /// Ends what the other node has, or will never have.
    pub(super) fn take_back(&mut self, group: usize) {
        let Some(given_ms) = self.controls[group].given_ms else {
            return;
        };
        let name = self.config.groups[group].config.name.clone();
        let peer = self.config.peer_name().to_owned();
        let there = self
            .peer_group(group)
            .map(|there| (there.state, there.failed));
        let up = self.membership.peer() == Peer::Up;
        let patience_ms: u64 = self.config.groups[group]
            .config
            .resources
            .iter()
            .map(|resource| resource.start_timeout_ms)
            .sum::<u64>()
            + 4 * self.membership.timeout_ms();
        let late = self.now_ms.saturating_sub(given_ms) >= patience_ms;
        let outcome = match there {
            Some((State::Online, _)) if up => Ok(()),
            Some((State::Offline, true)) if up => {
                Err(format!("{name} could not be started on {peer}"))
            }
            Some((State::Failed, _)) if up => Err(format!(
                "{name} could not be started on {peer}, and did not stop there"
            )),
            Some((State::OnlinePending | State::OfflinePending, _)) if up => return,
            _ if !up => Err(format!("{peer} is not heard any more")),
            _ if late => Err(format!("{peer} did not start {name} in time")),
            _ => return,
        };
        self.controls[group].given_ms = None;
        self.controls[group].unclaimed = !up;
        // Where it may run in part, it is started nowhere else.
        let is_offline_there = matches!(there, Some((State::Offline, _)));
        let comes_back = outcome.is_err() && is_offline_there;
        self.end_move(group, outcome);
        if comes_back && !self.standby && self.leaving.is_none() && up {
            self.start_group(group, Cause::Operator { force: false });
        }
    }

    /// Somebody decided otherwise before the other node had it.
    pub(super) fn withdraw_move(&mut self, group: usize, why: &str) {
        self.controls[group].given_ms = None;
        let name = &self.config.groups[group].config.name;
        let outcome = Err(format!("{name} {why} meanwhile"));
        self.end_move(group, outcome);
    }

    pub(super) fn end_move(&mut self, group: usize, outcome: Result<(), String>) {
        let Some(moving) = self.controls[group].moving.take() else {
            return;
        };
        let took_ms = self.now_ms.saturating_sub(moving.since_ms);
        if outcome.is_ok() && moving.by == MovedBy::Monitor {
            self.controls[group].failures.failed_over(self.now_ms);
        }
        if outcome.is_ok() {
            let text = format!(
                "{} moved to {}: {:.1} s without service.",
                self.config.groups[group].config.name,
                self.config.peer_name(),
                took_ms as f64 / 1000.0
            );
            self.alert(alert::SWITCHED_OVER, text);
        }
        self.on_moved(moving.by, outcome, took_ms);
    }

    /// Everything that was answered here is on the other side of each of its mirrors.
    pub(super) fn check_data_there(&self, group: usize) -> Result<(), String> {
        let peer = self.config.peer_name();
        for mirror in self.group_mirrors(group) {
            let view = self.mirrors[mirror].view.unwrap_or_default();
            let mirror = &self.config.mirrors[mirror].name;
            if !view.connected {
                return Err(format!(
                    "{mirror} is not connected: {peer} would miss what was written"
                ));
            }
            if !view.peer_current || view.out_of_sync_bytes > 0 {
                return Err(format!(
                    "{peer} is not up to date for {mirror}; wait for the resync"
                ));
            }
        }
        Ok(())
    }

    /// A group that failed over goes back to the node that it prefers, once that could have run it for a
    /// whole heartbeat time-out.
    pub(super) fn consider_failback(&mut self, group: usize) {
        let placed = &self.config.groups[group];
        let Some(failback) = self.controls[group].failback else {
            return;
        };
        let wanted = placed.failback
            && self.controls[group].group.state() == State::Online
            && self.controls[group].moving.is_none()
            && !self.situation(group).preferred;
        let possible = wanted
            && self.membership.peer() == Peer::Up
            && self.could_run_there(group)
            && self.check_data_there(group).is_ok();
        if !possible {
            self.controls[group].failback = Some(Failback::default());
            return;
        }
        let since_ms = failback.possible_since_ms.unwrap_or(self.now_ms);
        self.controls[group].failback = Some(Failback {
            possible_since_ms: Some(since_ms),
        });
        if self.now_ms.saturating_sub(since_ms) < self.membership.timeout_ms() {
            return;
        }
        // Tried once: a group that cannot go back does not bounce.
        self.controls[group].failback = None;
        let text = format!(
            "{} goes back to {}.",
            self.config.groups[group].config.name,
            self.config.peer_name()
        );
        self.alert(alert::FAILING_BACK, text);
        if let Err(why) = self.give(group, MovedBy::Node) {
            let text = format!("It does not go back: {why}.");
            self.alert(alert::FAILOVER_CANCELLED, text);
        }
    }

    /// The other node was heard while this one was frozen: what runs there is no longer this node's.
    pub(super) fn give_way_where_active_there(&mut self) {
        for group in 0..self.controls.len() {
            let active = self
                .peer_group(group)
                .is_some_and(|there| matches!(there.state, State::Online | State::OnlinePending));
            let state = self.controls[group].group.state();
            if active && matches!(state, State::Online | State::OnlinePending) {
                self.fail_io();
                let name = self.config.groups[group].config.name.clone();
                let text = format!("{name} stops: it runs on the other node since.");
                self.alert(alert::GROUP_STOPPING, text);
                self.group_step(group, group::Event::Stop { force: true });
            }
        }
    }
}
