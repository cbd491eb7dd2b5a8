//! The resources that run together on one node: their order, their states, their limits (A6).
//!
//! [`Group::step`] takes the time and one event and appends effects. It starts resources as soon as
//! those that they depend on are online, and stops them in reverse. It does not know on which node it
//! should run; that is [`crate::node`]'s.
//!
//! What always holds:
//! - A resource is started only while all that it depends on is online, and stopped only while all that
//!   depends on it is offline.
//! - A resource is offline only after a stop of it succeeded *and* every earlier run of it is answered.
//!   A start that was given up may still get somewhere behind our back; its late answer leads to another
//!   stop, and until it comes the resource counts as running here.
//! - A driver has one run of a resource at a time. A second one is asked for only after the first was
//!   answered or given up.
//! - A group that is offline asks for nothing.
//!
//! `docs/groups.md` has the table.

mod resource;
#[cfg(test)]
mod tests;

use resource::{Phase, Resource};

pub use crate::control::State;

/// What a driver may take beyond a run's time-out before the run is given up. The driver keeps the
/// time-out itself; this is only for one that is stuck.
pub const BACKSTOP_MARGIN_MS: u64 = 5_000;

/// Between a failed attempt to start a resource and the next one.
pub const RETRY_PAUSE_MS: u64 = 500;
/// A start that fails by what passes is tried again for so long, whatever the number of retries.
pub const PASSING_MS_MAX: u64 = 10_000;

/// Runs of a resource that were given up and are still unanswered, after which no other is asked for.
pub const OVERDUE_RUNS_MAX: usize = 4;

#[derive(Debug, Clone)]
pub struct GroupConfig {
    pub name: String,
    pub resources: Vec<ResourceConfig>,
}

#[derive(Debug, Clone)]
pub struct ResourceConfig {
    pub name: String,
    /// Indices of earlier resources.
    pub depends_on: Vec<usize>,
    pub start_timeout_ms: u64,
    pub stop_timeout_ms: u64,
    pub start_retries: u32,
}

/// What a driver is to do with one resource. It answers every one of them once, within the time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Also after a start that failed, without a stop between the two.
    Start,
    /// `force`: users of it are killed, and what cannot be done cleanly is done anyway. Also of a
    /// resource that is stopped already, or that started only in part.
    Stop { force: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Of a group that is offline, or that was found running in part. Ignored while it is online or on
    /// its way; refused while a resource of it does not stop.
    Start,
    /// `force`: nothing waits for users of the resources. Also turns a running stop into a forced one.
    /// A failed group tries again to stop. Nothing happens if it is offline.
    Stop {
        force: bool,
    },
    /// Stop one resource and what depends on it, and start them again. Ignored unless the group is
    /// online or on its way there.
    Restart {
        resource: usize,
    },
    /// The same with all of them.
    RestartAll,
    /// The driver's answer to [`Effect::Run`] with this number.
    Done {
        number: u64,
        result: Result<(), Failure>,
    },
    Tick,
}

/// Why a resource did not start or stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// By the resource's own word the same may succeed in a moment: a mirror that is just being compared
    /// with its peer, for instance. Such a start does not count as one that failed, which would keep the
    /// group away from this node until an operator clears it, and from both where it happens on both.
    pub passing: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self {
            reason,
            passing: false,
        }
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Run {
        number: u64,
        resource: usize,
        action: Action,
        timeout_ms: u64,
    },
    /// All resources are online. Said once after each start and restart.
    Started,
    /// A resource could not be started; what had started is being stopped again. `Stopped` or
    /// `StopFailed` follows.
    StartFailed { resource: usize, reason: String },
    /// All resources are offline. `after_failure`: because one of them could not be started.
    Stopped { after_failure: bool },
    /// A resource does not stop, forced or not. The group is failed, and counts as running here. If
    /// what hung comes to an end later, `Stopped` follows after all.
    StopFailed { resource: usize, reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Up,
    Down,
}

#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    resources: Vec<Resource>,
    goal: Goal,
    /// The goal was reached and that was said. False from an order until then.
    told: bool,
    /// Of the stop that is under way.
    force: bool,
    /// The stop that is under way follows from a start that failed.
    after_failure: bool,
    next_number: u64,
    stepped_ms: u64,
}

impl Group {
    /// All resources count as offline; see [`Self::adopt`].
    pub fn new(config: GroupConfig) -> Self {
        for (index, resource) in config.resources.iter().enumerate() {
            assert!(
                resource.depends_on.iter().all(|on| *on < index),
                "the configuration puts dependencies before dependents"
            );
        }
        let resources = config
            .resources
            .iter()
            .map(|_| Resource::default())
            .collect();
        Self {
            config,
            resources,
            goal: Goal::Down,
            told: true,
            force: false,
            after_failure: false,
            next_number: 1,
            stepped_ms: 0,
        }
    }

    /// Takes over what an earlier run of the agent left, before the first step. Anything but online and
    /// offline is doubtful and will be stopped before it is used. If some run and some do not, the group
    /// is failed until it is told to start or to stop.
    pub fn adopt(&mut self, now_ms: u64, states: &[State]) {
        assert_eq!(states.len(), self.resources.len(), "one for each resource");
        assert!(self.is_all_offline() && self.told, "only before anything");
        self.stepped_ms = now_ms;
        for (resource, state) in self.resources.iter_mut().zip(states) {
            resource.phase = match state {
                State::Offline => Phase::Offline,
                State::Online => Phase::Online,
                _ => Phase::Doubtful { force: false },
            };
        }
        if !self.resources.is_empty() && self.is_all_online() {
            self.goal = Goal::Up;
        }
    }

    pub fn state(&self) -> State {
        if self.resources.iter().any(Resource::is_stuck) {
            return State::Failed;
        }
        match self.goal {
            Goal::Up if self.told => State::Online,
            Goal::Up => State::OnlinePending,
            Goal::Down if self.is_all_offline() && self.told => State::Offline,
            Goal::Down if self.told => State::Failed,
            Goal::Down => State::OfflinePending,
        }
    }

    /// In the order of the configuration.
    pub fn resource_states(&self) -> Vec<State> {
        self.resources.iter().map(Resource::state).collect()
    }

    /// What last went wrong with a resource since the group was told to start.
    pub fn resource_error(&self, resource: usize) -> Option<&str> {
        self.resources[resource].error.as_deref()
    }

    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    pub fn step(&mut self, now_ms: u64, event: Event, out: &mut Vec<Effect>) {
        self.forgive_freeze(now_ms);
        match event {
            Event::Start => self.on_start(out),
            Event::Stop { force } => self.on_stop(force),
            Event::Restart { resource } => self.on_restart(&[resource]),
            Event::RestartAll => {
                let all: Vec<usize> = (0..self.resources.len()).collect();
                self.on_restart(&all);
            }
            Event::Done { number, result } => self.on_done(now_ms, number, result, out),
            Event::Tick => {}
        }
        self.give_up_overdue(now_ms, out);
        self.advance(now_ms, out);
    }

    /// Answers that came while this node was frozen are still to be handed in: they get the margin anew.
    fn forgive_freeze(&mut self, now_ms: u64) {
        let frozen_ms = now_ms.saturating_sub(self.stepped_ms);
        self.stepped_ms = now_ms;
        if frozen_ms >= BACKSTOP_MARGIN_MS {
            for resource in &mut self.resources {
                resource.wait_at_least_until(now_ms + BACKSTOP_MARGIN_MS);
            }
        }
    }

    fn on_start(&mut self, out: &mut Vec<Effect>) {
        if self.goal == Goal::Up {
            return;
        }
        if let Some(stuck) = self.position(Resource::is_stuck) {
            let reason = "an earlier stop of it failed, and it may still run".to_owned();
            let resource = stuck;
            out.push(Effect::StartFailed {
                resource,
                reason: reason.clone(),
            });
            out.push(Effect::StopFailed { resource, reason });
            return;
        }
        if !self.told {
            return;
        }
        self.goal = Goal::Up;
        self.told = false;
        for resource in &mut self.resources {
            resource.error = None;
        }
        // Of what was found running, all that is doubtful or stands on something that is not there.
        for index in 0..self.resources.len() {
            let phase = self.resources[index].phase;
            let unfounded = phase == Phase::Online && !self.is_founded(index);
            if unfounded || matches!(phase, Phase::Doubtful { .. }) {
                self.resources[index].restart = true;
            }
        }
        self.spread_restart();
    }

    fn on_stop(&mut self, force: bool) {
        if self.state() == State::Offline {
            return;
        }
        if self.goal == Goal::Up {
            self.after_failure = false;
        }
        self.goal = Goal::Down;
        self.told = false;
        self.force |= force;
        for resource in &mut self.resources {
            resource.restart = false;
            if resource.is_stuck() && resource.overdue.len() < OVERDUE_RUNS_MAX {
                resource.phase = Phase::Doubtful { force };
            }
        }
    }

    fn on_restart(&mut self, which: &[usize]) {
        if self.goal == Goal::Down {
            return;
        }
        self.told = false;
        for index in which {
            let resource = &mut self.resources[*index];
            resource.restart = resource.phase != Phase::Offline;
        }
        self.spread_restart();
    }

    /// What is restarted takes with it what depends on it.
    fn spread_restart(&mut self) {
        for index in 0..self.resources.len() {
            let on = &self.config.resources[index].depends_on;
            let goes = on.iter().any(|on| self.resources[*on].restart);
            if goes && self.resources[index].phase != Phase::Offline {
                self.resources[index].restart = true;
            }
        }
    }

    fn on_done(
        &mut self,
        now_ms: u64,
        number: u64,
        result: Result<(), Failure>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(index) = self.position(|resource| resource.run() == Some(number)) {
            match (self.resources[index].phase, result) {
                (Phase::Starting { .. }, Ok(())) => {
                    let resource = &mut self.resources[index];
                    resource.error = None;
                    resource.passing_since_ms = None;
                    resource.phase = Phase::Online;
                }
                (Phase::Starting { attempt, .. }, Err(failure)) => {
                    self.on_start_failed(now_ms, index, attempt, failure, out);
                }
                (Phase::Stopping { .. }, Ok(())) => {
                    self.resources[index].stopped(now_ms + BACKSTOP_MARGIN_MS);
                }
                (Phase::Stopping { force, .. }, Err(failure)) => {
                    self.on_stop_failed(index, force, failure.reason, out);
                }
                (phase, _) => unreachable!("{phase:?} has no run"),
            }
        } else if let Some(index) = self.position(|resource| resource.is_overdue(number)) {
            self.resources[index].answered_late(number, result.is_ok());
        }
    }

    fn on_start_failed(
        &mut self,
        now_ms: u64,
        index: usize,
        attempt: u32,
        failure: Failure,
        out: &mut Vec<Effect>,
    ) {
        let Failure { reason, passing } = failure;
        let retries = self.config.resources[index].start_retries;
        let resource = &mut self.resources[index];
        resource.error = Some(reason.clone());
        let since_ms = *resource.passing_since_ms.get_or_insert(now_ms);
        let passing = passing && now_ms.saturating_sub(since_ms) < PASSING_MS_MAX;
        if self.goal == Goal::Up && !resource.restart && (passing || attempt < retries) {
            resource.phase = Phase::Pausing {
                next: attempt + u32::from(!passing),
                until_ms: now_ms + RETRY_PAUSE_MS,
            };
            return;
        }
        resource.passing_since_ms = None;
        // It may have started in part.
        resource.phase = Phase::Doubtful { force: false };
        if self.goal == Goal::Up && !resource.restart {
            self.give_up();
            self.after_failure = true;
            out.push(Effect::StartFailed {
                resource: index,
                reason,
            });
        }
    }

    fn on_stop_failed(&mut self, index: usize, force: bool, reason: String, out: &mut Vec<Effect>) {
        let resource = &mut self.resources[index];
        resource.error = Some(reason.clone());
        resource.stop_failed(force);
        if !resource.is_stuck() {
            return;
        }
        if self.goal == Goal::Up {
            // Of a restart. Once it has stopped after all, nothing speaks against a start here.
            self.give_up();
        }
        out.push(Effect::StopFailed {
            resource: index,
            reason,
        });
    }

    /// The group cannot be online: all of it goes down.
    fn give_up(&mut self) {
        self.goal = Goal::Down;
        self.told = false;
        self.after_failure = false;
        for resource in &mut self.resources {
            resource.restart = false;
        }
    }

    fn give_up_overdue(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        for index in 0..self.resources.len() {
            let resource = &mut self.resources[index];
            match resource.phase {
                Phase::Starting { late_ms, .. } if now_ms >= late_ms => {
                    resource.put_off();
                    // No other attempt: the first may still be at work.
                    let reason = "its start was not answered in time".to_owned();
                    self.on_start_failed(now_ms, index, u32::MAX, reason.into(), out);
                }
                Phase::Stopping { late_ms, force, .. } if now_ms >= late_ms => {
                    resource.put_off();
                    let full = resource.overdue.len() >= OVERDUE_RUNS_MAX;
                    let reason = "its stop was not answered in time".to_owned();
                    self.on_stop_failed(index, force || full, reason, out);
                }
                Phase::Unanswered { late_ms } if now_ms >= late_ms => {
                    let reason =
                        "it was stopped, but an earlier start or stop of it hangs".to_owned();
                    self.on_stop_failed(index, true, reason, out);
                }
                _ => {}
            }
        }
    }

    /// Asks for all that can be done now, and says what was reached.
    fn advance(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        for index in (0..self.resources.len()).rev() {
            self.stop_if_due(now_ms, index, out);
        }
        for index in 0..self.resources.len() {
            self.start_if_due(now_ms, index, out);
        }
        if self.told {
            return;
        }
        match self.goal {
            Goal::Up if self.is_all_online() => {
                self.told = true;
                out.push(Effect::Started);
            }
            Goal::Down if self.is_all_offline() => {
                self.told = true;
                self.force = false;
                let after_failure = std::mem::take(&mut self.after_failure);
                out.push(Effect::Stopped { after_failure });
            }
            _ => {}
        }
    }

    fn stop_if_due(&mut self, now_ms: u64, index: usize, out: &mut Vec<Effect>) {
        let resource = &self.resources[index];
        let force = match resource.phase {
            Phase::Online | Phase::Pausing { .. } if self.must_stop(index) => self.force,
            Phase::Doubtful { force } if self.must_stop(index) => self.force || force,
            _ => return,
        };
        if !self.is_free(index) {
            return;
        }
        let number = self.take_number();
        let timeout_ms = self.config.resources[index].stop_timeout_ms;
        self.resources[index].phase = Phase::Stopping {
            number,
            force,
            late_ms: now_ms
                .saturating_add(timeout_ms)
                .saturating_add(BACKSTOP_MARGIN_MS),
        };
        out.push(Effect::Run {
            number,
            resource: index,
            action: Action::Stop { force },
            timeout_ms,
        });
    }

    fn start_if_due(&mut self, now_ms: u64, index: usize, out: &mut Vec<Effect>) {
        if self.goal != Goal::Up || !self.is_founded(index) {
            return;
        }
        let attempt = match self.resources[index].phase {
            Phase::Offline => 0,
            Phase::Pausing { next, until_ms } if now_ms >= until_ms => next,
            _ => return,
        };
        let number = self.take_number();
        let timeout_ms = self.config.resources[index].start_timeout_ms;
        self.resources[index].phase = Phase::Starting {
            number,
            attempt,
            late_ms: now_ms
                .saturating_add(timeout_ms)
                .saturating_add(BACKSTOP_MARGIN_MS),
        };
        out.push(Effect::Run {
            number,
            resource: index,
            action: Action::Start,
            timeout_ms,
        });
    }

    /// Whether what is there of a resource has to go. Nobody asked yet about what was only found.
    fn must_stop(&self, index: usize) -> bool {
        !self.told && (self.goal == Goal::Down || self.resources[index].restart)
    }

    /// All that it depends on is online and stays so.
    fn is_founded(&self, index: usize) -> bool {
        self.config.resources[index].depends_on.iter().all(|on| {
            let on = &self.resources[*on];
            on.phase == Phase::Online && !on.restart
        })
    }

    /// All that depends on it is offline.
    fn is_free(&self, index: usize) -> bool {
        let with_config = self.config.resources.iter().zip(&self.resources);
        with_config
            .filter(|(config, _)| config.depends_on.contains(&index))
            .all(|(_, dependent)| dependent.phase == Phase::Offline)
    }

    fn is_all_online(&self) -> bool {
        let online = |resource: &Resource| resource.phase == Phase::Online && !resource.restart;
        self.resources.iter().all(online)
    }

    fn is_all_offline(&self) -> bool {
        let offline = |resource: &Resource| resource.phase == Phase::Offline;
        self.resources.iter().all(offline)
    }

    fn position(&self, which: impl Fn(&Resource) -> bool) -> Option<usize> {
        self.resources.iter().position(which)
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// For tests and simulations, after each step.
    pub fn check_invariants(&self) {
        for (index, resource) in self.resources.iter().enumerate() {
            resource.check_invariants();
            if matches!(resource.phase, Phase::Starting { .. }) {
                let on = &self.config.resources[index].depends_on;
                let online = |on: &usize| self.resources[*on].phase == Phase::Online;
                assert!(on.iter().all(online), "{index} starts on nothing");
            }
            if matches!(resource.phase, Phase::Stopping { .. }) {
                assert!(self.is_free(index), "{index} is pulled from under another");
            }
            if self.goal == Goal::Down {
                assert!(!resource.restart, "nothing is restarted on the way down");
            }
        }
        match self.state() {
            State::Online => assert!(self.is_all_online()),
            State::Offline => assert!(self.is_all_offline() && !self.force && !self.after_failure),
            State::OnlinePending => assert!(!self.is_all_online()),
            State::OfflinePending => assert!(!self.is_all_offline()),
            State::Failed => assert!(!self.is_all_offline()),
            State::Unknown => panic!("a node knows its own groups"),
        }
    }
}
