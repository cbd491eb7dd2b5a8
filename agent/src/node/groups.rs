//! Groups, from the decision to the last resource (A6): `placement` says whether one should start here,
//! the arbiter grants what it needs, [`Group`] starts and stops its resources, and what comes of that is
//! told and remembered.

use std::collections::VecDeque;

use super::Node;
use super::config::PlacedGroup;
use super::event::{Effect, Permit};
use super::placement::{Cause, Other, Placement, Reason, Situation, place};
use crate::alert;
use crate::arbiter::call::Refusal;
use crate::control::State;
use crate::group::{self, Group};
use crate::membership::Peer;
use crate::monitor;

/// Longest that a start by hand waits for the arbiter.
const BY_HAND_MS_MAX: u64 = 30_000;
/// Failovers that are remembered for the limit.
const FAILOVERS_MAX: usize = 64;
/// Looks in a row at which a mirror under a group that is online was no primary, before that counts: the
/// first may have been on their way since before it was promoted.
const LOST_VIEWS: u32 = 3;

#[derive(Debug)]
pub(super) struct Control {
    pub(super) group: Group,
    /// An operator stopped it, here or through the other node.
    pub(super) stopped: bool,
    /// Its last start failed here.
    pub(super) failed: bool,
    /// Why it is being started, from the decision until it is online or failed.
    pub(super) cause: Option<Cause>,
    /// The grants it needs are being asked for.
    pub(super) waits_for_grant: bool,
    /// When it was last decided to start it.
    started_ms: u64,
    pub(super) waits_for: Option<String>,
    /// Given to the other node, and not yet running there.
    pub(super) given_ms: Option<u64>,
    /// It is being stopped so that the other node can have it.
    pub(super) moving: Option<Moving>,
    failovers_ms: VecDeque<u64>,
    /// The decision to start it without a word from the other must stand this long.
    decided: Option<(Cause, u64)>,
    was_online: bool,
    /// It came here by a failover; whether it may go back has been so since.
    failback: Option<Failback>,
    /// Of a monitor or a failed start: taken once it has stopped.
    pub(super) action_due: bool,
    /// A start that waits for the grant of its mirror.
    ungranted: Vec<Ungranted>,
    /// Stops of mirrors that are under way: number and mirror.
    demoting: Vec<(u64, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Ungranted {
    number: u64,
    resource: usize,
    timeout_ms: u64,
    since_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Failback {
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
    Command(super::event::CommandId),
    Order(u32),
    /// A monitor, a standby, a failback.
    Node,
}

impl Control {
    pub(super) fn new(placed: &PlacedGroup) -> Self {
        Self {
            group: Group::new(placed.config.clone()),
            stopped: false,
            failed: false,
            cause: None,
            waits_for_grant: false,
            started_ms: 0,
            waits_for: None,
            given_ms: None,
            moving: None,
            failovers_ms: VecDeque::new(),
            decided: None,
            was_online: false,
            failback: None,
            action_due: false,
            ungranted: Vec::new(),
            demoting: Vec::new(),
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.given_ms.is_some()
    }

    pub(super) fn is_failed(&self) -> bool {
        self.group.state() == State::Failed
    }
}

impl Node {
    pub(super) fn on_found(&mut self, group: usize, states: &[State]) {
        if states.iter().all(|state| *state == State::Offline) {
            return;
        }
        let control = &mut self.controls[group];
        control.group.adopt(self.now_ms, states);
        if control.group.state() == State::Online {
            control.was_online = true;
            self.fx.push(Effect::Ready { group, ready: true });
            self.monitor_step(monitor::Event::GroupOnline { group });
        } else {
            // Part of it runs: what that is worth is not known, so it starts from the bottom.
            self.group_step(group, group::Event::Stop { force: false });
        }
    }

    pub(super) fn on_resource_done(
        &mut self,
        group: usize,
        number: u64,
        result: Result<(), String>,
    ) {
        let demoting = &mut self.controls[group].demoting;
        if let Some(at) = demoting.iter().position(|(stop, _)| *stop == number) {
            let (_, mirror) = demoting.swap_remove(at);
            if let (Ok(()), Some(rights)) = (&result, &mut self.rights) {
                rights.on_demoted(mirror);
            }
        }
        self.group_step(group, group::Event::Done { number, result });
    }

    pub(super) fn group_step(&mut self, group: usize, event: group::Event) {
        let mut effects = Vec::new();
        self.controls[group]
            .group
            .step(self.now_ms, event, &mut effects);
        for effect in effects {
            self.on_group(group, effect);
        }
        self.note_online(group);
    }

    fn note_online(&mut self, group: usize) {
        let online = self.controls[group].group.state() == State::Online;
        if online == std::mem::replace(&mut self.controls[group].was_online, online) {
            return;
        }
        for mirror in self.group_mirrors(group) {
            self.mirrors[mirror].secondary_views = 0;
        }
        self.fx.push(Effect::Ready {
            group,
            ready: online,
        });
        self.monitor_step(if online {
            monitor::Event::GroupOnline { group }
        } else {
            monitor::Event::GroupGone { group }
        });
    }

    fn on_group(&mut self, group: usize, effect: group::Effect) {
        let name = self.config.groups[group].config.name.clone();
        match effect {
            group::Effect::Run {
                number,
                resource,
                action,
                timeout_ms,
            } => {
                if action == group::Action::Start && !self.is_granted(group, resource) {
                    self.controls[group].ungranted.push(Ungranted {
                        number,
                        resource,
                        timeout_ms,
                        since_ms: self.now_ms,
                    });
                    return;
                }
                if let (group::Action::Stop { .. }, Some(mirror)) =
                    (action, self.config.groups[group].mirrors[resource])
                {
                    self.controls[group].demoting.push((number, mirror));
                }
                let permit = self.permit(group, resource);
                self.fx.push(Effect::Run {
                    group,
                    number,
                    resource,
                    action,
                    timeout_ms,
                    permit,
                });
            }
            group::Effect::Started => self.on_started(group, &name),
            group::Effect::StartFailed { resource, reason } => {
                let resource = &self.config.groups[group].config.resources[resource].name;
                let text = format!("{resource} of {name} could not be started: {reason}.");
                self.alert(alert::RESOURCE_FAILED, text);
                self.alert(
                    alert::GROUP_START_FAILED,
                    format!("{name} could not be started here."),
                );
                self.controls[group].cause = None;
                self.controls[group].failed = true;
            }
            group::Effect::Stopped { after_failure } => {
                self.alert(alert::GROUP_STOPPED, format!("{name} is offline."));
                self.on_stopped(group, after_failure);
            }
            group::Effect::StopFailed { resource, reason } => {
                let resource = &self.config.groups[group].config.resources[resource].name;
                let text = format!(
                    "{resource} of {name} does not stop: {reason}. It counts as running here."
                );
                self.alert(alert::GROUP_STOP_FAILED, text);
                self.end_move(group, Err(format!("{name} does not stop: {reason}")));
                let action = self.config.groups[group].final_action;
                self.take_final_action(action, "a group does not stop");
            }
        }
    }

    fn on_started(&mut self, group: usize, name: &str) {
        let here = self.config.my_name().to_owned();
        self.alert(alert::GROUP_STARTED, format!("{name} is online."));
        let control = &mut self.controls[group];
        control.failed = false;
        control.given_ms = None;
        if control.cause.take() == Some(Cause::Failover) {
            if control.failovers_ms.len() == FAILOVERS_MAX {
                control.failovers_ms.pop_front();
            }
            control.failovers_ms.push_back(self.now_ms);
            control.failback = Some(Failback::default());
            self.alert(alert::FAILED_OVER, format!("{name} failed over to {here}."));
        }
    }

    fn on_stopped(&mut self, group: usize, after_failure: bool) {
        for mirror in self.group_mirrors(group) {
            if let Some(rights) = &mut self.rights {
                rights.want(mirror, false);
            }
        }
        let control = &mut self.controls[group];
        control.cause = None;
        control.failback = None;
        control.waits_for_grant = false;
        if control.moving.is_some() {
            control.given_ms = Some(self.now_ms);
        }
        if after_failure {
            control.failed = true;
        }
        self.on_group_stopped_for_discard(group);
        let elsewhere = self.membership.peer() == Peer::Up && self.could_run_there(group);
        if (after_failure && !elsewhere) || std::mem::take(&mut self.controls[group].action_due) {
            let action = self.config.groups[group].final_action;
            self.take_final_action(action, "a group cannot be started");
        }
    }

    pub(super) fn group_mirrors(&self, group: usize) -> Vec<usize> {
        self.config.groups[group]
            .mirrors
            .iter()
            .flatten()
            .copied()
            .collect()
    }

    /// A mirror that is promoted needs an epoch of its own for it; after a restart that is a new one.
    fn is_granted(&self, group: usize, resource: usize) -> bool {
        match (self.config.groups[group].mirrors[resource], &self.rights) {
            (Some(mirror), Some(rights)) => rights.is_usable(mirror, self.now_ms),
            _ => true,
        }
    }

    /// Starts that got their grant go; those that did not in their time have failed.
    fn advance_ungranted(&mut self, group: usize) {
        for waiting in std::mem::take(&mut self.controls[group].ungranted) {
            let Ungranted {
                number,
                resource,
                timeout_ms,
                since_ms,
            } = waiting;
            if self.is_granted(group, resource) {
                let permit = self.permit(group, resource);
                self.fx.push(Effect::Run {
                    group,
                    number,
                    resource,
                    action: group::Action::Start,
                    timeout_ms,
                    permit,
                });
            } else if self.now_ms.saturating_sub(since_ms) >= timeout_ms {
                let result = Err("the arbiter did not grant it in time".to_owned());
                self.group_step(group, group::Event::Done { number, result });
            } else {
                self.controls[group].ungranted.push(waiting);
            }
        }
    }

    fn permit(&self, group: usize, resource: usize) -> Permit {
        // What proves that the other side of a mirror is silent proves it for what stands on the mirror.
        let mirrors = &self.config.groups[group].mirrors;
        let Some(mirror) = mirrors[resource].or(mirrors.iter().flatten().next().copied()) else {
            return Permit::default();
        };
        Permit {
            grant: self.rights.as_ref().and_then(|rights| rights.grant(mirror)),
            // The agent's word, for what it is worth: confirmed, or by the resolvers alone.
            peer_down: self.rights.is_none() && self.partition.may_act(),
        }
    }

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
            && !self.controls[group].stopped
            && !self.standby
    }

    /// As far as data goes, it could be started here.
    pub(super) fn is_able(&self, group: usize) -> bool {
        let control = &self.controls[group];
        if control.group.state() != State::Offline {
            return true;
        }
        let refused = |mirror: usize| {
            self.rights.as_ref().is_some_and(|rights| {
                matches!(rights.refusal(mirror), Some(Refusal::Outdated { .. }))
            })
        };
        self.group_mirrors(group).into_iter().all(|mirror| {
            !refused(mirror)
                && self.mirrors[mirror]
                    .view
                    .is_some_and(|view| view.current && !view.split_brain)
        })
    }

    /// The other node says that it could run it.
    fn could_run_there(&self, group: usize) -> bool {
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
            && there.state != State::Failed
            && !report.standby
            && !report.starting
            && !report.isolated
    }

    fn other(&self) -> Other {
        use super::partition::Stage;
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
                let left_in_step = self.membership.peer() == Peer::Left && state.in_step_at_leave;
                left_in_step
                    || state
                        .view
                        .is_some_and(|view| view.peer_outdated || view.connected)
            });
        Situation {
            here: control.group.state(),
            other: self.other(),
            there: there.map_or(State::Offline, |there| match (there.state, there.failed) {
                (State::Offline, true) => State::Failed,
                (state, _) => state,
            }),
            given: there.is_some_and(|there| there.given),
            there_able: self.could_run_there(group),
            preferred,
            starting: self.starting_until_ms.is_some(),
            isolated: self.is_freezing(),
            standby: self.standby || self.leaving.is_some(),
            allowed: placed.nodes.contains(&me),
            stopped: control.stopped || there.is_some_and(|there| there.stopped),
            failed: control.failed,
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

    fn is_limited(&self, group: usize) -> bool {
        let placed = &self.config.groups[group];
        let since_ms = self.now_ms.saturating_sub(placed.failover_window_ms);
        let recent = self.controls[group]
            .failovers_ms
            .iter()
            .filter(|at_ms| **at_ms >= since_ms)
            .count();
        placed.failovers_max > 0 && recent >= placed.failovers_max as usize
    }

    pub(super) fn advance_groups(&mut self) {
        for group in 0..self.controls.len() {
            self.group_step(group, group::Event::Tick);
            self.advance_ungranted(group);
            if self.controls[group].waits_for_grant {
                self.await_grants(group);
            } else {
                self.consider(group);
            }
            self.take_back(group);
            self.notice_lost_primary(group);
            self.consider_failback(group);
        }
    }

    /// A mirror that is no longer primary under a group that runs: its daemon was restarted, and what was
    /// mounted on it is gone. It and what stands on it start again.
    fn notice_lost_primary(&mut self, group: usize) {
        if self.controls[group].group.state() != State::Online
            || self.controls[group].moving.is_some()
        {
            return;
        }
        let lost = self.config.groups[group].mirrors.iter().position(|mirror| {
            mirror.is_some_and(|mirror| self.mirrors[mirror].secondary_views >= LOST_VIEWS)
        });
        let Some(resource) = lost else { return };
        let placed = &self.config.groups[group].config;
        let text = format!(
            "{} of {} lost its mirror: mirrord was restarted under it. It is started again.",
            placed.resources[resource].name, placed.name
        );
        self.alert(alert::RESOURCE_FAILED, text);
        self.group_step(group, group::Event::Restart { resource });
    }

    /// A group that failed over goes back to the node that it prefers, once that could have run it for a
    /// whole heartbeat time-out.
    fn consider_failback(&mut self, group: usize) {
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

    fn consider(&mut self, group: usize) {
        let control = &self.controls[group];
        if control.given_ms.is_some() || control.moving.is_some() {
            return;
        }
        let situation = self.situation(group);
        match place(&situation) {
            Placement::Stay => {
                self.controls[group].decided = None;
                self.wait_for(group, None);
            }
            Placement::Wait(reason) => {
                self.controls[group].decided = None;
                let text = self.explain_wait(group, reason);
                self.wait_for(group, Some(text));
            }
            Placement::Start(cause) => {
                // The other node may be about to say that it starts it too.
                let settle_ms = if situation.other == Other::Up && !situation.preferred {
                    2 * self.membership.interval_ms()
                } else {
                    0
                };
                let (_, since_ms) = *self.controls[group]
                    .decided
                    .get_or_insert((cause, self.now_ms));
                if self.now_ms.saturating_sub(since_ms) >= settle_ms {
                    self.start_group(group, cause);
                }
            }
        }
    }

    pub(super) fn start_group(&mut self, group: usize, cause: Cause) {
        let name = self.config.groups[group].config.name.clone();
        let here = self.config.my_name().to_owned();
        self.wait_for(group, None);
        let control = &mut self.controls[group];
        control.decided = None;
        control.cause = Some(cause);
        control.failed = false;
        if cause == Cause::Failover {
            self.alert(
                alert::FAILING_OVER,
                format!("Failing over the group {name} to {here}."),
            );
        }
        if self.partition.is_unproven() {
            let text = format!(
                "{name} starts although nothing proves that {} is down: it may be active on both nodes.",
                self.config.peer_name()
            );
            self.alert(alert::MAY_BE_ACTIVE_TWICE, text);
        }
        self.controls[group].waits_for_grant = true;
        self.controls[group].started_ms = self.now_ms;
        for mirror in self.group_mirrors(group) {
            if let Some(rights) = &mut self.rights {
                rights.want(mirror, true);
            }
        }
        self.await_grants(group);
    }

    /// The arbiter first: no resource starts before every mirror of the group has its grant.
    fn await_grants(&mut self, group: usize) {
        let name = self.config.groups[group].config.name.clone();
        let mirrors = self.group_mirrors(group);
        if let Some(rights) = &self.rights {
            let missing = mirrors
                .iter()
                .copied()
                .find(|mirror| !rights.is_live(*mirror, self.now_ms));
            if let Some(mirror) = missing {
                let reason = match rights.refusal(mirror) {
                    Some(refusal) => format!("the arbiter: {refusal}"),
                    None => "the arbiter's answer".to_owned(),
                };
                let still = if self.is_started_by_hand(group) {
                    self.may_still_start_by_hand(group)
                } else {
                    matches!(place(&self.situation(group)), Placement::Start(_))
                };
                if still {
                    self.wait_for(group, Some(reason));
                } else {
                    for mirror in mirrors {
                        if let Some(rights) = &mut self.rights {
                            rights.want(mirror, false);
                        }
                    }
                    self.controls[group].waits_for_grant = false;
                    self.controls[group].cause = None;
                }
                return;
            }
        }
        self.controls[group].waits_for_grant = false;
        self.wait_for(group, None);
        self.alert(alert::GROUP_STARTING, format!("{name} starts."));
        self.group_step(group, group::Event::Start);
    }

    /// An operator's word, until its first resource starts.
    pub(super) fn is_started_by_hand(&self, group: usize) -> bool {
        let control = &self.controls[group];
        control.waits_for_grant && control.cause == Some(Cause::Operator)
    }

    /// Not beside the other node, and not for ever.
    fn may_still_start_by_hand(&self, group: usize) -> bool {
        let active_there = self.membership.peer() == Peer::Up
            && self
                .peer_group(group)
                .is_some_and(|there| matches!(there.state, State::Online));
        let since_ms = self.controls[group].started_ms;
        let late = self.now_ms.saturating_sub(since_ms) >= BY_HAND_MS_MAX;
        !active_there && !late && !self.is_freezing()
    }

    fn wait_for(&mut self, group: usize, what: Option<String>) {
        if self.controls[group].waits_for == what {
            return;
        }
        // A countdown in the text is no news.
        let plain = |text: &Option<String>| {
            text.as_ref()
                .map(|text| text.replace(|c: char| c.is_ascii_digit(), ""))
        };
        let news = plain(&self.controls[group].waits_for) != plain(&what);
        if let (Some(what), true) = (&what, news) {
            let text = format!(
                "{} waits for {what}.",
                self.config.groups[group].config.name
            );
            let limited = self.is_limited(group);
            self.alert(
                if limited {
                    alert::FAILOVER_LIMIT
                } else {
                    alert::GROUP_WAITS
                },
                text,
            );
        }
        self.controls[group].waits_for = what;
    }

    fn explain_wait(&self, group: usize, reason: Reason) -> String {
        let peer = self.config.peer_name();
        match reason {
            Reason::StartupDelay => "the end of the start-up delay".into(),
            Reason::CutOff => "an end of the isolation of this node".into(),
            Reason::OtherStarts => format!("{peer}, which is starting"),
            Reason::Partition => format!("the decision about the silence of {peer}"),
            Reason::ForcedStopFailed => {
                format!("{peer}: its forced stop failed, so it may still run")
            }
            Reason::Data => {
                let behind = self
                    .group_mirrors(group)
                    .into_iter()
                    .find(|mirror| !self.mirrors[*mirror].view.is_some_and(|view| view.current));
                let mirror = behind.map_or("its mirror", |mirror| {
                    self.config.mirrors[mirror].name.as_str()
                });
                format!("up-to-date data of {mirror} on this node")
            }
            Reason::Linked => format!("its mirrors to notice that {peer} is gone"),
            Reason::Connection => format!("the connection of its mirrors to {peer}"),
            Reason::OtherHasNewer => {
                format!(
                    "{peer}, which may have newer data; if it is gone for good, start the group by hand"
                )
            }
            Reason::FailoverLimit => {
                "an operator: it failed over too often and stays stopped".into()
            }
        }
    }

    /// Ends what the other node has, or will never have.
    fn take_back(&mut self, group: usize) {
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
            Some((State::Failed, _) | (_, true)) if up => {
                Err(format!("{name} could not be started on {peer}"))
            }
            Some((State::OnlinePending | State::OfflinePending, _)) if up => return,
            _ if !up => Err(format!("{peer} is not heard any more")),
            _ if late => Err(format!("{peer} did not start {name} in time")),
            _ => return,
        };
        self.controls[group].given_ms = None;
        let came_back = outcome.is_err();
        self.end_move(group, outcome);
        if came_back && !self.standby && self.leaving.is_none() && up {
            self.start_group(group, Cause::Operator);
        }
    }

    fn end_move(&mut self, group: usize, outcome: Result<(), String>) {
        let Some(moving) = self.controls[group].moving.take() else {
            return;
        };
        let took_ms = self.now_ms.saturating_sub(moving.since_ms);
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
    fn check_data_there(&self, group: usize) -> Result<(), String> {
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

    /// The other node's word is new.
    pub(super) fn on_report(&mut self, first: bool) {
        for group in 0..self.controls.len() {
            let Some(there) = self.peer_group(group).copied() else {
                continue;
            };
            if first && there.stopped {
                self.controls[group].stopped = true;
            }
            let active = |state| {
                matches!(
                    state,
                    State::Online | State::OnlinePending | State::OfflinePending
                )
            };
            let both = active(there.state) && active(self.controls[group].group.state());
            let told = self.orders.both_active(group, both);
            if both && !told {
                let text = format!(
                    "{} is active on both nodes: `mirrorctl group resolve` keeps one.",
                    self.config.groups[group].config.name
                );
                self.alert(alert::BOTH_ACTIVE, text);
            }
        }
        self.on_peer_orders();
    }

    pub(super) fn monitor_step(&mut self, event: monitor::Event) {
        let mut effects = Vec::new();
        self.monitors.step(self.now_ms, event, &mut effects);
        for effect in effects {
            self.on_monitor(effect);
        }
    }

    fn on_monitor(&mut self, effect: monitor::Effect) {
        let name = |node: &Self, monitor: usize| node.config.monitors[monitor].name.clone();
        match effect {
            monitor::Effect::Probe {
                number,
                monitor,
                timeout_ms,
            } => self.fx.push(Effect::Probe {
                number,
                monitor,
                timeout_ms,
            }),
            monitor::Effect::Warn { monitor, reason } => {
                let text = format!("{}: {reason}.", name(self, monitor));
                self.monitor_faults[monitor] = Some(reason);
                self.alert(alert::MONITOR_WARNING, text);
            }
            monitor::Effect::Recovered { monitor } => {
                self.monitor_faults[monitor] = None;
                let text = format!("{} is in order again.", name(self, monitor));
                self.alert(alert::MONITOR_RECOVERED, text);
            }
            monitor::Effect::Restart {
                monitor,
                group,
                resource,
                reason,
            } => {
                let text = format!("{}: {reason}; restart.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                let event = match resource {
                    Some(resource) => group::Event::Restart { resource },
                    None => group::Event::RestartAll,
                };
                self.group_step(group, event);
            }
            monitor::Effect::Failover {
                monitor,
                group,
                reason,
            } => {
                let text = format!("{}: {reason}; failover.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                if let Err(why) = self.give(group, MovedBy::Node) {
                    self.alert(
                        alert::FAILOVER_CANCELLED,
                        format!("The failover does not take place: {why}."),
                    );
                }
            }
            monitor::Effect::FinalAction { monitor, reason } => {
                let text = format!("{}: {reason}; final action.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                let action = self.config.monitor_actions[monitor];
                if let Some(group) = self.config.monitors[monitor].group {
                    self.group_step(group, group::Event::Stop { force: false });
                }
                self.take_final_action(action, "a monitor found a fault that nothing mended");
            }
        }
    }
}
