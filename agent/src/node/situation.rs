//! The situation of a group, as `placement` judges it: what runs here and there, whose data is good enough,
//! and what the silence of the other node has been found to mean.

use super::Node;
use super::event::MirrorView;
use super::placement::{Other, Situation, There};
use super::stage::Stage;

use crate::arbiter::call::Refusal;
use crate::control::State;
use crate::membership::{Peer, Whose};

impl Node {
    /// It ran on the other node when that fell silent, and would come here.
    pub(super) fn would_fail_over(&self, group: usize) -> bool {
        let placed = &self.config.groups[group];
        let active = self
            .peer_group(group)
            .is_some_and(|there| there.state != State::Offline);
        active
            && placed.failover
            && placed.nodes.contains(&self.config.me)
            && self.controls[group].group.state() == State::Offline
            && !self.is_kept_stopped(group)
            && !self.standby
    }

    /// As far as data goes, it could be started here.
    pub(super) fn is_able(&self, group: usize) -> bool {
        let control = &self.controls[group];
        if control.group.state() != State::Offline {
            return true;
        }
        let mut mirrors = self.group_mirrors(group).into_iter();
        mirrors.all(|mirror| self.is_good_for_a_start(mirror))
    }

    /// The data of this side is good, by its own word and by the arbiter's.
    pub(super) fn is_good_for_a_start(&self, mirror: usize) -> bool {
        let view = self.mirrors[mirror].view;
        !self.is_outdated_on_record(mirror)
            && view.is_some_and(|view| view.current && !view.split_brain)
    }

    pub(super) fn is_outdated_on_record(&self, mirror: usize) -> bool {
        self.rights
            .as_ref()
            .is_some_and(|rights| matches!(rights.refusal(mirror), Some(Refusal::Outdated { .. })))
    }

    /// The other node says that it could run it.
    pub(super) fn could_run_there(&self, group: usize) -> bool {
        let Some(report) = &self.peer_report else {
            return false;
        };
        let there = &report.groups[group];
        self.config.groups[group]
            .nodes
            .contains(&(1 - self.config.me))
            && there.able
            && !there.failed
            && !there.stopped
            && !there.halted
            && there.state != State::Failed
            && !report.standby
            && !report.starting
            && !report.isolated
    }

    pub(super) fn other(&self) -> Other {
        match (self.membership.peer(), self.partition.stage()) {
            (Peer::Up, _) => match &self.peer_report {
                Some(report) if !report.starting => Other::Up,
                // Online there, or started by an operator: its start-up delay changes nothing.
                _ => Other::Starting,
            },
            (Peer::Left, _) => Other::Left,
            (Peer::Unknown, _) => Other::NeverHeard,
            (Peer::Lost, Stage::Alone { .. }) => Other::Gone,
            (Peer::Lost, Stage::Barred { .. }) => Other::Barred,
            (Peer::Lost, _) => Other::Undecided,
        }
    }

    pub(super) fn situation(&self, group: usize) -> Situation {
        let placed = &self.config.groups[group];
        let control = &self.controls[group];
        let there = self.peer_group(group);
        let me = self.config.me;
        let position = |node: usize| placed.nodes.iter().position(|placed| *placed == node);
        let preferred = match (position(me), position(1 - me)) {
            (Some(mine), Some(other)) => mine < other,
            (mine, _) => mine.is_some(),
        };
        let sure = self.rights.is_some()
            || self.group_mirrors(group).into_iter().all(|mirror| {
                let state = &self.mirrors[mirror];
                let peer = self.membership.peer();
                let left_in_step = peer == Peer::Left && state.in_step_at_leave;
                // A mirror that has not seen the other side since it started takes no record of its own for proof.
                let recorded = |view: MirrorView| view.peer_outdated && peer != Peer::Unknown;
                left_in_step
                    || state
                        .view
                        .is_some_and(|view| view.connected || recorded(view))
            });
        Situation {
            here: control.group.state(),
            other: self.other(),
            there: there.map_or(There::Offline, |there| match (there.state, there.failed) {
                (State::Offline, true) => There::StartFailed,
                (State::Offline, false) => There::Offline,
                _ => There::Active,
            }),
            given: there.is_some_and(|there| there.given),
            there_able: self.could_run_there(group),
            preferred,
            starting: self.starting_until_ms.is_some(),
            isolated: self.is_freezing(),
            namesake: self.membership.has_namesake(Whose::Mine),
            standby: self.standby || self.leaving.is_some(),
            allowed: placed.nodes.contains(&me),
            stopped: self.is_kept_stopped(group),
            failed: control.failures.has_failed_start(),
            able: self.is_able(group),
            sure,
            automatic_start: placed.automatic_start,
            failover: placed.failover,
            limited: self.is_limited(group),
            linked: self.rights.is_none()
                && self.group_mirrors(group).into_iter().any(|mirror| {
                    let view = self.mirrors[mirror].view;
                    view.is_some_and(|view| view.connected && view.peer_primary)
                }),
        }
    }

    /// An operator stopped it, or the last action of a monitor, on either node.
    pub(super) fn is_kept_stopped(&self, group: usize) -> bool {
        let control = &self.controls[group];
        let there = self.peer_group(group);
        control.stopped
            || control.failures.is_halted()
            || there.is_some_and(|there| there.stopped)
            || self.is_halted_there(group)
    }

    pub(super) fn is_halted_there(&self, group: usize) -> bool {
        let reset_ms = self.config.groups[group].patience.reset_ms;
        self.peer_group(group).is_some_and(|there| there.halted)
            && reset_ms.is_none_or(|reset_ms| self.peer_report_age_ms() < reset_ms)
    }

    /// A node that is silent forgets nothing any more: what it remembered counts for no longer than it would have.
    fn peer_report_age_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.peer_reported_ms)
    }

    pub(super) fn failovers_here(&self, group: usize) -> u32 {
        let patience = &self.config.groups[group].patience;
        self.controls[group]
            .failures
            .failovers(self.now_ms, patience)
    }

    /// It failed over too often lately, to this node and to the other one.
    pub(super) fn is_limited(&self, group: usize) -> bool {
        let patience = &self.config.groups[group].patience;
        let failovers_max = patience.failovers_max;
        let there = self
            .peer_group(group)
            .filter(|_| self.peer_report_age_ms() < patience.failover_window_ms)
            .map_or(0, |there| u32::from(there.failovers));
        failovers_max > 0 && self.failovers_here(group) + there >= failovers_max
    }
}
