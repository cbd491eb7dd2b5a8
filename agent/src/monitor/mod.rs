//! What is watched, and what follows from a fault: restart → failover → final action (A6).
//!
//! [`Monitors::step`] takes the time and one event and appends effects. It asks for probes, counts the
//! faults that come back, and asks for action when a monitor's retries are used up. It knows neither how
//! anything is probed nor whether an action was carried out: a group that goes down or comes back is told
//! to it, and a fault that stays after an action leads to the next one.
//!
//! What always holds:
//! - A monitor has one probe open at most. One that is not answered in time is a fault, and another one
//!   for each interval that passes; the next probe waits for the answer, so that probes that hang on a
//!   dead device never pile up.
//! - A monitor that rests asks for nothing and does nothing: those of a group unless that group is online here and the
//!   mirrors under it answer, and while suspended all but the one of the agent itself.
//! - A pause of this node is no fault of what is watched: what was open across it is asked again.
//!
//! `docs/groups.md` has the table.

#[cfg(test)]
mod tests;
mod watch;

use crate::control::Health;

use watch::{Verdict, Watch};

/// What a driver may take beyond a probe's time-out before the core counts a fault by itself.
pub const BACKSTOP_MARGIN_MS: u64 = 2_000;

/// A monitor that was in order for so long without a break has its restarts and failovers anew.
pub const FORGET_AFTER_MS: u64 = 30 * 60 * 1_000;

#[derive(Debug, Clone)]
pub struct MonitorConfig {
    pub name: String,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// Faults in a row, after the first, before anything is done.
    pub retries: u32,
    /// It runs only while this group is online here. Without one there is nothing to restart or to move,
    /// and the final action comes first.
    pub group: Option<usize>,
    /// What is restarted; none: the whole group.
    pub resource: Option<usize>,
    pub restarts_max: u32,
    pub failovers_max: u32,
    pub warn_only: bool,
    /// About the agent itself, and no group: it begins at once and is never suspended, for a watchdog that is not fed
    /// resets the machine.
    pub is_own: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Answer to [`Effect::Probe`] with this number.
    Probed {
        number: u64,
        result: Result<(), String>,
    },
    GroupOnline {
        group: usize,
    },
    /// It is on its way down or gone: monitors of it rest.
    GroupGone {
        group: usize,
    },
    /// A mirror under it holds its answers until its rights, or the fate of its peer, are known: what waits for it
    /// is no fault, and a restart would wait as well.
    GroupHeld {
        group: usize,
    },
    GroupReleased {
        group: usize,
    },
    Suspend,
    Resume,
    /// Time passed. Expected several times an interval.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Probe {
        number: u64,
        monitor: usize,
        timeout_ms: u64,
    },
    /// The first fault of a row.
    Warn { monitor: usize, reason: String },
    /// In order again, after a warning.
    Recovered { monitor: usize },
    /// Restart the resource, or the group where it is none.
    Restart {
        monitor: usize,
        group: usize,
        resource: Option<usize>,
        reason: String,
    },
    Failover {
        monitor: usize,
        group: usize,
        reason: String,
    },
    /// Not said again before the monitor was in order.
    FinalAction { monitor: usize, reason: String },
}

#[derive(Debug)]
pub struct Monitors {
    watches: Vec<Watch>,
    /// By group; longer as groups come up.
    groups: Vec<GroupState>,
    suspended: bool,
    next_number: u64,
    stepped_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct GroupState {
    online: bool,
    held: bool,
}

impl Monitors {
    pub fn new(configs: Vec<MonitorConfig>) -> Self {
        Self {
            watches: configs.into_iter().map(Watch::new).collect(),
            groups: Vec::new(),
            suspended: false,
            next_number: 1,
            stepped_ms: None,
        }
    }

    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    pub fn health(&self, monitor: usize) -> Health {
        let watch = &self.watches[monitor];
        let held = watch
            .config
            .group
            .is_some_and(|group| self.group(group).held);
        if (self.suspended && !watch.config.is_own) || held {
            return Health::Suspend;
        }
        watch.health()
    }

    /// The fault that lasts, if one does.
    pub fn detail(&self, monitor: usize) -> Option<&str> {
        self.watches[monitor].reason()
    }

    pub fn step(&mut self, now_ms: u64, event: Event, out: &mut Vec<Effect>) {
        self.notice_pause(now_ms);
        match event {
            Event::Probed { number, result } => self.on_probed(now_ms, number, result, out),
            Event::GroupOnline { group } => self.group_mut(group).online = true,
            Event::GroupGone { group } => self.group_mut(group).online = false,
            Event::GroupHeld { group } => self.group_mut(group).held = true,
            Event::GroupReleased { group } => self.group_mut(group).held = false,
            Event::Suspend => self.suspended = true,
            Event::Resume => self.suspended = false,
            Event::Tick => {}
        }
        for index in 0..self.watches.len() {
            self.wake_or_rest(now_ms, index);
            let verdict = self.watches[index].notice_silence(now_ms);
            act(index, &self.watches[index], verdict, out);
            self.probe_if_due(now_ms, index, out);
        }
    }

    /// This node did not run for longer than a probe and its interval take together: whatever was open
    /// then tells of the pause.
    fn notice_pause(&mut self, now_ms: u64) {
        let Some(stepped_ms) = self.stepped_ms.replace(now_ms) else {
            return;
        };
        let paused_ms = now_ms.saturating_sub(stepped_ms);
        for watch in &mut self.watches {
            let config = &watch.config;
            if paused_ms > config.interval_ms.saturating_add(config.timeout_ms) {
                watch.ask_again(now_ms);
            }
        }
    }

    fn on_probed(
        &mut self,
        now_ms: u64,
        number: u64,
        result: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let asked = |watch: &Watch| watch.open_number() == Some(number);
        if let Some(index) = self.watches.iter().position(asked) {
            let verdict = self.watches[index].on_answer(now_ms, result);
            act(index, &self.watches[index], verdict, out);
        }
    }

    fn group(&self, group: usize) -> GroupState {
        self.groups.get(group).copied().unwrap_or_default()
    }

    fn group_mut(&mut self, group: usize) -> &mut GroupState {
        if self.groups.len() <= group {
            self.groups.resize(group + 1, GroupState::default());
        }
        &mut self.groups[group]
    }

    fn wake_or_rest(&mut self, now_ms: u64, index: usize) {
        let config = &self.watches[index].config;
        let suspended = self.suspended && !config.is_own;
        let answers = |group| {
            let GroupState { online, held } = self.group(group);
            online && !held
        };
        let awake = !suspended && config.group.is_none_or(answers);
        let watch = &mut self.watches[index];
        if awake && !watch.is_awake() {
            watch.wake(now_ms);
        } else if !awake && watch.is_awake() {
            watch.rest();
        }
    }

    fn probe_if_due(&mut self, now_ms: u64, index: usize, out: &mut Vec<Effect>) {
        let watch = &mut self.watches[index];
        if !watch.is_due(now_ms) {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        watch.open(now_ms, number);
        out.push(Effect::Probe {
            number,
            monitor: index,
            timeout_ms: watch.config.timeout_ms,
        });
    }

    /// For tests and simulations, after each step.
    pub fn check_invariants(&self) {
        for watch in &self.watches {
            watch.check_invariants();
            let suspended = self.suspended && !watch.config.is_own;
            assert!(!(suspended && watch.is_awake()), "it should rest");
        }
    }
}

fn act(monitor: usize, watch: &Watch, verdict: Option<Verdict>, out: &mut Vec<Effect>) {
    let config = &watch.config;
    let reason = || watch.reason().unwrap_or_default().to_owned();
    let group = || {
        config
            .group
            .expect("only a monitor of a group restarts or moves it")
    };
    out.extend(verdict.map(|verdict| match verdict {
        Verdict::Warn => Effect::Warn {
            monitor,
            reason: reason(),
        },
        Verdict::Recovered => Effect::Recovered { monitor },
        Verdict::Restart => Effect::Restart {
            monitor,
            group: group(),
            resource: config.resource,
            reason: reason(),
        },
        Verdict::Failover => Effect::Failover {
            monitor,
            group: group(),
            reason: reason(),
        },
        Verdict::FinalAction => Effect::FinalAction {
            monitor,
            reason: reason(),
        },
    }));
}
