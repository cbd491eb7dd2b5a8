//! What the resources of a group do (A6): [`Group`] starts and stops them, each with the grant that it needs,
//! and what comes of that is told and remembered.

use nbd_frontend::config::agent::FinalAction;

use super::Node;
use super::config::PlacedGroup;
use super::event::{Effect, Permit};
use super::failures::{Failures, Forgotten};
use super::moving::{Failback, Moving};
use super::placement::Cause;
use crate::alert;
use crate::control::State;
use crate::group::{self, Group};
use crate::membership::Peer;
use crate::monitor;

/// A group that did not stop is stopped again after this long, for as long as this node lives.
const STOP_AGAIN_MS: u64 = 30_000;

#[derive(Debug)]
pub(super) struct Control {
    pub(super) group: Group,
    /// An operator stopped it, here or through the other node.
    pub(super) stopped: bool,
    pub(super) failures: Failures,
    /// Why it is being started, from the decision until it is online or failed.
    pub(super) cause: Option<Cause>,
    /// The grants it needs are being asked for.
    pub(super) waits_for_grant: bool,
    /// When it was last decided to start it.
    pub(super) started_ms: u64,
    /// Why a start by hand was given up: the arbiter did not grant it in time.
    pub(super) refused_start: Option<String>,
    /// That it starts without a proof of the other node's end was told.
    pub(super) doubt_told: bool,
    pub(super) waits_for: Option<String>,
    /// Given to the other node, and not yet running there.
    pub(super) given_ms: Option<u64>,
    /// It was given away when the other node fell silent.
    pub(super) unclaimed: bool,
    /// It is being stopped so that the other node can have it.
    pub(super) moving: Option<Moving>,
    /// The decision to start it without a word from the other must stand this long.
    pub(super) decided: Option<(Cause, u64)>,
    was_online: bool,
    /// A mirror of it holds its answers.
    was_held: bool,
    /// It came here by a failover; whether it may go back has been so since.
    pub(super) failback: Option<Failback>,
    /// Of a monitor: taken once it has stopped, or does not stop, and why.
    pub(super) action_due: Option<(FinalAction, &'static str)>,
    /// When it last did not stop.
    stop_failed_ms: Option<u64>,
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

impl Control {
    pub(super) fn new(placed: &PlacedGroup) -> Self {
        Self {
            group: Group::new(placed.config.clone()),
            stopped: false,
            failures: Failures::default(),
            cause: None,
            waits_for_grant: false,
            started_ms: 0,
            refused_start: None,
            doubt_told: false,
            waits_for: None,
            given_ms: None,
            unclaimed: false,
            moving: None,
            decided: None,
            was_online: false,
            was_held: false,
            failback: None,
            action_due: None,
            stop_failed_ms: None,
            ungranted: Vec::new(),
            demoting: Vec::new(),
        }
    }

    /// Given away, and the other node was not heard to have it yet.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.is_given() || self.unclaimed
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
        let in_agent = &self.config.groups[group].in_agent;
        let mut found = states.iter().zip(in_agent);
        let is_whole = found.all(|(state, in_agent)| {
            *state == State::Online || (*in_agent && *state == State::Offline)
        });
        if is_whole && let Some(rights) = &mut self.rights {
            for mirror in self.config.groups[group].mirrors.iter().flatten() {
                rights.keep(*mirror);
            }
        }
        let control = &mut self.controls[group];
        control.group.adopt(self.now_ms, states);
        if control.group.state() == State::Online {
            control.was_online = true;
            self.fx.push(Effect::Ready { group, ready: true });
            self.monitor_step(monitor::Event::GroupOnline { group });
        } else if is_whole {
            // What lived in the agent went with it; the service did not.
            self.group_step(group, group::Event::Start);
        } else {
            // Part of it runs: what that is worth is not known, so it starts from the bottom.
            self.group_step(group, group::Event::Stop { force: false });
        }
    }

    pub(super) fn on_resource_done(
        &mut self,
        group: usize,
        number: u64,
        result: Result<(), group::Failure>,
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

    /// What monitors would find while a mirror holds its answers tells nothing of what they watch.
    pub(super) fn note_held(&mut self, group: usize) {
        let holds = |mirror: usize| {
            self.mirrors[mirror]
                .view
                .is_some_and(|view| view.primary && (view.suspended || view.frozen))
        };
        let held = self.group_mirrors(group).into_iter().any(holds);
        if held == std::mem::replace(&mut self.controls[group].was_held, held) {
            return;
        }
        self.monitor_step(if held {
            monitor::Event::GroupHeld { group }
        } else {
            monitor::Event::GroupReleased { group }
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
                    self.await_grant(group, number, resource, timeout_ms);
                    return;
                }
                if let (group::Action::Stop { .. }, Some(mirror)) =
                    (action, self.config.groups[group].mirrors[resource])
                {
                    self.controls[group].demoting.push((number, mirror));
                }
                self.run(group, number, resource, action, timeout_ms);
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
                self.controls[group].failures.start_failed(self.now_ms);
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
                self.controls[group].stop_failed_ms = Some(self.now_ms);
                self.end_move(group, Err(format!("{name} does not stop: {reason}")));
                let action = self.config.groups[group].final_action;
                let due = self.controls[group].action_due.take();
                let (action, why) = due.unwrap_or((action, "a group does not stop"));
                self.take_final_action(action, why);
            }
        }
    }

    fn on_started(&mut self, group: usize, name: &str) {
        let here = self.config.my_name().to_owned();
        self.alert(alert::GROUP_STARTED, format!("{name} is online."));
        let control = &mut self.controls[group];
        control.failures.start();
        control.given_ms = None;
        if control.cause.take() == Some(Cause::Failover) {
            control.failures.failed_over(self.now_ms);
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
        control.stop_failed_ms = None;
        if control.moving.is_some() {
            control.given_ms = Some(self.now_ms);
        }
        if after_failure {
            control.failures.start_failed(self.now_ms);
        }
        self.on_group_stopped_for_discard(group);
        let elsewhere = self.membership.peer() == Peer::Up && self.could_run_there(group);
        if let Some((action, why)) = self.controls[group].action_due.take() {
            self.take_final_action(action, why);
        } else if after_failure && !elsewhere {
            let action = self.config.groups[group].final_action;
            self.take_final_action(action, "a group cannot be started");
        }
    }

    /// What kept it from starting is long ago.
    fn forget_failures(&mut self, group: usize) {
        let patience = self.config.groups[group].patience;
        let forgotten = self.controls[group].failures.forget(self.now_ms, &patience);
        let Some(forgotten) = forgotten else { return };
        let name = &self.config.groups[group].config.name;
        let text = match forgotten {
            Forgotten::FailedStart => format!(
                "That {name} could not be started on {} is long ago: it may be tried again.",
                self.config.my_name()
            ),
            Forgotten::LastAction => {
                format!("That a monitor had {name} stopped is long ago: it may start again.")
            }
        };
        self.alert(alert::FAILURE_FORGOTTEN, text);
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

    /// A group that was found running when this agent started never asked for one before.
    fn await_grant(&mut self, group: usize, number: u64, resource: usize, timeout_ms: u64) {
        let mirror = self.config.groups[group].mirrors[resource];
        if let (Some(mirror), Some(rights)) = (mirror, &mut self.rights) {
            rights.want(mirror, true);
        }
        self.controls[group].ungranted.push(Ungranted {
            number,
            resource,
            timeout_ms,
            since_ms: self.now_ms,
        });
    }

    /// Starts that got their grant go; those that did not in their time have failed, as have those of a group that is on
    /// its way down, which would wait for them.
    fn advance_ungranted(&mut self, group: usize) {
        for waiting in std::mem::take(&mut self.controls[group].ungranted) {
            let Ungranted {
                number,
                resource,
                timeout_ms,
                since_ms,
            } = waiting;
            if self.controls[group].group.state() != State::OnlinePending {
                let result = Err("its group is stopped".into());
                self.group_step(group, group::Event::Done { number, result });
            } else if self.is_granted(group, resource) {
                self.run(group, number, resource, group::Action::Start, timeout_ms);
            } else if self.now_ms.saturating_sub(since_ms) >= timeout_ms {
                let result = Err("the arbiter did not grant it in time".into());
                self.group_step(group, group::Event::Done { number, result });
            } else {
                self.controls[group].ungranted.push(waiting);
            }
        }
    }

    fn run(
        &mut self,
        group: usize,
        number: u64,
        resource: usize,
        action: group::Action,
        timeout_ms: u64,
    ) {
        if let (group::Action::Start, Some(mirror), Some(rights)) = (
            action,
            self.config.groups[group].mirrors[resource],
            &mut self.rights,
        ) {
            rights.on_promoting(mirror);
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
            force: self.controls[group].cause == Some(Cause::Operator { force: true }),
        }
    }

    /// What held a stop up may be over, and nothing else frees the other node to start the group.
    fn stop_again(&mut self, group: usize) {
        let control = &mut self.controls[group];
        let due = control
            .stop_failed_ms
            .is_some_and(|failed_ms| self.now_ms.saturating_sub(failed_ms) >= STOP_AGAIN_MS);
        if due && control.group.state() == State::Failed {
            control.stop_failed_ms = Some(self.now_ms);
            self.group_step(group, group::Event::Stop { force: true });
        }
    }

    pub(super) fn advance_groups(&mut self) {
        for group in 0..self.controls.len() {
            self.group_step(group, group::Event::Tick);
            self.stop_again(group);
            self.forget_failures(group);
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

    /// The other node's word is new.
    pub(super) fn on_report(&mut self, first: bool) {
        for group in 0..self.controls.len() {
            let Some(there) = self.peer_group(group).copied() else {
                continue;
            };
            self.controls[group].unclaimed = false;
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
}
