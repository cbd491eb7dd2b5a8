//! What is known of one resource. It knows neither its dependencies nor what the group wants.

use crate::control::State;

use super::{Action, OVERDUE_RUNS_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Offline,
    /// Given up at `late_ms`.
    Starting {
        number: u64,
        attempt: u32,
        late_ms: u64,
    },
    /// An attempt failed and the next one begins then.
    Pausing {
        next: u32,
        until_ms: u64,
    },
    Online,
    Stopping {
        number: u64,
        force: bool,
        late_ms: u64,
    },
    /// It may run, wholly or in part. Nothing but a stop may follow.
    Doubtful {
        force: bool,
    },
    /// A stop of it succeeded, but an earlier run is not answered. It counts as stuck at `late_ms`.
    Unanswered {
        late_ms: u64,
    },
    /// It does not stop, and was said not to. `stopped`: a stop did succeed, but an earlier run hangs.
    Stuck {
        stopped: bool,
    },
}

/// A run that was given up and not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overdue {
    number: u64,
    action: Action,
}

#[derive(Debug)]
pub(super) struct Resource {
    pub phase: Phase,
    /// It goes down once before it counts as online. Never of one that is offline.
    pub restart: bool,
    pub overdue: Vec<Overdue>,
    /// A start that was given up ended after the present stop began.
    started_late: bool,
    pub error: Option<String>,
    /// When the first of these attempts to start failed.
    pub passing_since_ms: Option<u64>,
}

impl Default for Resource {
    fn default() -> Self {
        Self {
            phase: Phase::Offline,
            restart: false,
            overdue: Vec::new(),
            started_late: false,
            error: None,
            passing_since_ms: None,
        }
    }
}

impl Resource {
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Offline => State::Offline,
            Phase::Starting { .. } | Phase::Pausing { .. } => State::OnlinePending,
            Phase::Online => State::Online,
            Phase::Stopping { .. } | Phase::Unanswered { .. } => State::OfflinePending,
            Phase::Doubtful { .. } | Phase::Stuck { .. } => State::Failed,
        }
    }

    /// Number of the run that is waited for.
    pub fn run(&self) -> Option<u64> {
        match self.phase {
            Phase::Starting { number, .. } | Phase::Stopping { number, .. } => Some(number),
            _ => None,
        }
    }

    pub fn is_overdue(&self, number: u64) -> bool {
        self.overdue.iter().any(|run| run.number == number)
    }

    pub fn wait_at_least_until(&mut self, ms: u64) {
        match &mut self.phase {
            Phase::Starting { late_ms, .. }
            | Phase::Stopping { late_ms, .. }
            | Phase::Unanswered { late_ms } => *late_ms = (*late_ms).max(ms),
            _ => {}
        }
    }

    /// The present run is waited for no longer, but not forgotten.
    pub fn put_off(&mut self) {
        let (number, action) = match self.phase {
            Phase::Starting { number, .. } => (number, Action::Start),
            Phase::Stopping { number, force, .. } => (number, Action::Stop { force }),
            phase => unreachable!("{phase:?} has no run"),
        };
        self.overdue.push(Overdue { number, action });
    }

    /// The present stop succeeded.
    pub fn stopped(&mut self, late_ms: u64) {
        if std::mem::take(&mut self.started_late) {
            self.phase = Phase::Doubtful { force: true };
        } else if self.overdue.is_empty() {
            self.take_offline();
        } else {
            self.phase = Phase::Unanswered { late_ms };
        }
    }

    /// A run that was given up is answered after all.
    pub fn answered_late(&mut self, number: u64, succeeded: bool) {
        let at = self.overdue.iter().position(|run| run.number == number);
        let run = self.overdue.remove(at.expect("it was asked for before"));
        // Even one that failed may have got somewhere, and after the stop that followed it.
        let was_start = run.action == Action::Start;
        match self.phase {
            // The present stop may have gone before the end of that start; its success proves nothing.
            Phase::Stopping { .. } => self.started_late |= was_start,
            Phase::Unanswered { .. } | Phase::Stuck { stopped: true } => {
                if was_start {
                    self.phase = Phase::Doubtful { force: true };
                } else if self.overdue.is_empty() {
                    self.take_offline();
                }
            }
            // Something moves again: worth another attempt.
            Phase::Stuck { stopped: false } if was_start || succeeded => {
                self.phase = Phase::Doubtful { force: true };
            }
            _ => {}
        }
    }

    /// The present stop failed, or did not lead to its being offline.
    pub fn stop_failed(&mut self, force: bool) {
        self.started_late = false;
        self.phase = match self.phase {
            Phase::Unanswered { .. } => Phase::Stuck { stopped: true },
            _ if force => Phase::Stuck { stopped: false },
            _ => Phase::Doubtful { force: true },
        };
    }

    pub fn is_stuck(&self) -> bool {
        matches!(self.phase, Phase::Stuck { .. })
    }

    fn take_offline(&mut self) {
        self.phase = Phase::Offline;
        self.restart = false;
        self.passing_since_ms = None;
    }

    pub fn check_invariants(&self) {
        assert!(self.overdue.len() <= OVERDUE_RUNS_MAX);
        match self.phase {
            Phase::Offline => {
                assert!(!self.restart && self.overdue.is_empty());
            }
            // A run that was given up is followed by stops alone until it is answered.
            Phase::Starting { .. } | Phase::Pausing { .. } | Phase::Online => {
                assert!(self.overdue.is_empty());
            }
            Phase::Unanswered { .. } | Phase::Stuck { stopped: true } => {
                assert!(!self.overdue.is_empty());
            }
            Phase::Stopping { .. } | Phase::Doubtful { .. } | Phase::Stuck { .. } => {}
        }
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        assert!(
            stopping || !self.started_late,
            "a late start waits for the stop"
        );
    }
}
