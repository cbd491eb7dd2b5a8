//! Stopping the other node from outside, so that what it ran may be started here.
//!
//! Stands between membership and the groups: [`plan()`] says whether this node may stop the other, and
//! when; [`Fencing`] sees one forced stop through, and tries between times whether one would work.
//! `docs/forced-stop.md` has the rules in words.
//!
//! Invariants: nothing counts as down that was not confirmed; a forced stop ends, one way or the other,
//! within [`FencingConfig::longest_ms`] of its first call; at most one runs at a time.
//!
//! It does not know how a node is stopped, which node it is, or what is started afterwards.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Plan, Situation, WhyNot, in_next_round, plan};

use nbd_frontend::config::agent::ForcedStop;

/// Longest pause between a failed attempt and the next; never longer than what is left of the attempt.
const RETRY_PAUSE_MS_MAX: u64 = 1000;
/// Longest pause between two questions whether the node is down.
const QUERY_INTERVAL_MS_MAX: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencingConfig {
    /// Longest that one attempt, one question or one trial may take.
    pub timeout_ms: u64,
    /// Attempts after the first.
    pub retries: u32,
    /// Longest wait from the acceptance of a stop to its confirmation.
    pub stop_wait_ms: u64,
    /// How often it is tried whether a stop would work; 0 is never.
    pub check_interval_ms: u64,
}

impl FencingConfig {
    /// From the first call to the outcome.
    pub fn longest_ms(&self) -> u64 {
        let attempts = u64::from(self.retries) + 1;
        self.timeout_ms
            .saturating_mul(attempts)
            .saturating_add(self.stop_wait_ms)
    }

    fn query_interval_ms(&self) -> u64 {
        QUERY_INTERVAL_MS_MAX.min(self.stop_wait_ms / 4).max(1)
    }
}

impl From<&ForcedStop> for FencingConfig {
    fn from(config: &ForcedStop) -> Self {
        let ms = |duration: std::time::Duration| {
            u64::try_from(duration.as_millis()).expect("the configuration bounds every duration")
        };
        Self {
            timeout_ms: ms(config.timeout),
            retries: config.retries,
            stop_wait_ms: ms(config.stop_wait),
            check_interval_ms: ms(config.check_interval),
        }
    }
}

/// What a call for a stop came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It will go down; whether it is down must still be asked.
    Accepted,
    /// It is down.
    Confirmed,
}

/// Numbers are those of the effects that asked. Reasons are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Stop the other node, but not before this pause is over. Does nothing while a stop is under way.
    Begin { after_ms: u64 },
    /// It is heard again, or this node lost its right to stop it. A call that went out cannot be taken
    /// back: it is seen through, and no other follows.
    Cancel,
    Answered {
        number: u64,
        result: Result<Stopped, String>,
    },
    /// True if it is down.
    QueryAnswered {
        number: u64,
        result: Result<bool, String>,
    },
    CheckAnswered {
        number: u64,
        result: Result<(), String>,
    },
    /// Time passed. Expected several times a second.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Call for a stop; give the call up after the time-out.
    Stop { number: u64 },
    /// Ask whether it is down.
    Query { number: u64 },
    /// Try whether a stop would work, without stopping anything.
    Check { number: u64 },
    /// It is down.
    Completed { took_ms: u64 },
    /// It may still run.
    Failed { reason: String },
    /// Given up on request. Nothing that was asked of it took effect as far as anyone knows.
    Cancelled,
    /// A stop would not work any more, with the reason, or works again.
    HealthChanged { ok: bool, reason: Option<String> },
}

/// Whether a stop would work, as far as the last trial or call tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Unknown,
    Works,
    Fails { reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// Nothing was called yet.
    Waiting,
    Calling,
    Confirming,
}

#[derive(Debug)]
enum State {
    Idle,
    Waiting {
        until_ms: u64,
    },
    /// `out_ms` is absent in the pause between two attempts.
    Calling {
        stop: Stop,
        attempt: u32,
        number: u64,
        out_ms: Option<u64>,
        next_ms: u64,
    },
    Confirming {
        stop: Stop,
        accepted_ms: u64,
        asked: Option<(u64, u64)>,
        next_ms: u64,
        reason: Option<String>,
    },
}

/// One forced stop since its first call.
#[derive(Debug, Clone, Copy)]
struct Stop {
    called_ms: u64,
    /// A later success of any of its calls counts; one of an earlier forced stop does not.
    first_number: u64,
    cancelled: bool,
}

#[derive(Debug)]
pub struct Fencing {
    config: FencingConfig,
    state: State,
    number_next: u64,
    health: Health,
    /// Number and time of the trial that runs.
    check: Option<(u64, u64)>,
    check_next_ms: u64,
}

impl Fencing {
    /// The first trial is due at once.
    pub fn new(config: FencingConfig, now_ms: u64) -> Self {
        assert!(config.timeout_ms > 0, "an attempt needs time");
        Self {
            config,
            state: State::Idle,
            number_next: 1,
            health: Health::Unknown,
            check: None,
            check_next_ms: now_ms,
        }
    }

    pub fn phase(&self) -> Phase {
        match self.state {
            State::Idle => Phase::Idle,
            State::Waiting { .. } => Phase::Waiting,
            State::Calling { .. } => Phase::Calling,
            State::Confirming { .. } => Phase::Confirming,
        }
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn step(&mut self, now_ms: u64, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Begin { after_ms } => self.on_begin(now_ms, after_ms),
            Event::Cancel => self.on_cancel(out),
            Event::Answered { number, result } => self.on_answered(now_ms, number, result, out),
            Event::QueryAnswered { number, result } => {
                self.on_query_answered(now_ms, number, result, out);
            }
            Event::CheckAnswered { number, result } => self.on_check_answered(number, result, out),
            Event::Tick => {}
        }
        self.call_when_due(now_ms, out);
        self.confirm_when_due(now_ms, out);
        self.check_when_due(now_ms, out);
    }

    fn on_begin(&mut self, now_ms: u64, after_ms: u64) {
        if matches!(self.state, State::Idle) {
            let until_ms = now_ms.saturating_add(after_ms);
            self.state = State::Waiting { until_ms };
        }
    }

    fn on_cancel(&mut self, out: &mut Vec<Effect>) {
        match &mut self.state {
            State::Idle => {}
            State::Waiting { .. } | State::Calling { out_ms: None, .. } => {
                self.state = State::Idle;
                out.push(Effect::Cancelled);
            }
            State::Calling { stop, .. } | State::Confirming { stop, .. } => stop.cancelled = true,
        }
    }

    fn on_answered(
        &mut self,
        now_ms: u64,
        answered: u64,
        result: Result<Stopped, String>,
        out: &mut Vec<Effect>,
    ) {
        let stop = match &self.state {
            State::Calling { stop, .. } | State::Confirming { stop, .. } => *stop,
            State::Idle | State::Waiting { .. } => return,
        };
        if answered < stop.first_number {
            return;
        }
        match result {
            Ok(Stopped::Confirmed) => self.complete(now_ms, stop, out),
            Ok(Stopped::Accepted) => {
                if matches!(self.state, State::Calling { .. }) {
                    self.state = State::Confirming {
                        stop,
                        accepted_ms: now_ms,
                        asked: None,
                        next_ms: now_ms,
                        reason: None,
                    };
                }
            }
            Err(fault) => {
                let State::Calling { number, out_ms, .. } = &self.state else {
                    return;
                };
                if answered == *number && out_ms.is_some() {
                    self.end_attempt(now_ms, fault, out);
                }
            }
        }
    }

    fn on_query_answered(
        &mut self,
        now_ms: u64,
        number: u64,
        result: Result<bool, String>,
        out: &mut Vec<Effect>,
    ) {
        let interval_ms = self.config.query_interval_ms();
        let State::Confirming {
            stop,
            asked,
            next_ms,
            reason,
            ..
        } = &mut self.state
        else {
            return;
        };
        if number < stop.first_number {
            return;
        }
        match result {
            Ok(true) => {
                let stop = *stop;
                self.complete(now_ms, stop, out);
            }
            answer => {
                if asked.is_some_and(|(current, _)| current == number) {
                    *asked = None;
                    *next_ms = now_ms.saturating_add(interval_ms);
                    *reason = answer.err();
                }
            }
        }
    }

    /// Begins an attempt whose time has come, and ends one that took too long.
    fn call_when_due(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        if let State::Calling {
            out_ms: Some(out_ms),
            ..
        } = self.state
        {
            let timeout_ms = self.config.timeout_ms;
            if now_ms.saturating_sub(out_ms) >= timeout_ms {
                self.end_attempt(now_ms, no_answer(timeout_ms), out);
            }
        }
        match &mut self.state {
            State::Waiting { until_ms } if now_ms >= *until_ms => {
                let number = take_number(&mut self.number_next);
                let stop = Stop {
                    called_ms: now_ms,
                    first_number: number,
                    cancelled: false,
                };
                self.state = State::Calling {
                    stop,
                    attempt: 1,
                    number,
                    out_ms: Some(now_ms),
                    next_ms: now_ms,
                };
                out.push(Effect::Stop { number });
            }
            State::Calling {
                attempt,
                number,
                out_ms: out_ms @ None,
                next_ms,
                ..
            } if now_ms >= *next_ms => {
                *attempt += 1;
                *number = take_number(&mut self.number_next);
                *out_ms = Some(now_ms);
                out.push(Effect::Stop { number: *number });
            }
            _ => {}
        }
    }

    fn end_attempt(&mut self, now_ms: u64, fault: String, out: &mut Vec<Effect>) {
        let attempts = self.config.retries + 1;
        let timeout_ms = self.config.timeout_ms;
        let State::Calling {
            stop,
            attempt,
            out_ms,
            next_ms,
            ..
        } = &mut self.state
        else {
            return;
        };
        if stop.cancelled {
            self.state = State::Idle;
            out.push(Effect::Cancelled);
            return;
        }
        if *attempt >= attempts {
            let reason = match attempts {
                1 => fault,
                attempts => format!("{fault} (attempt {attempts} of {attempts})"),
            };
            self.fail(reason, out);
            return;
        }
        let began_ms = out_ms.take().unwrap_or(now_ms);
        *next_ms = began_ms
            .saturating_add(timeout_ms)
            .min(now_ms.saturating_add(RETRY_PAUSE_MS_MAX));
    }

    /// Asks again, and gives up when the wait is over.
    fn confirm_when_due(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let config = self.config;
        let State::Confirming {
            accepted_ms,
            asked,
            next_ms,
            reason,
            ..
        } = &mut self.state
        else {
            return;
        };
        if now_ms.saturating_sub(*accepted_ms) >= config.stop_wait_ms {
            let wait_ms = config.stop_wait_ms;
            let reason = match reason.take() {
                None => format!("it was accepted, but the node is not down after {wait_ms} ms"),
                Some(fault) => format!(
                    "it was accepted, but whether the node is down was not learned in {wait_ms} ms: {fault}"
                ),
            };
            self.fail(reason, out);
            return;
        }
        if let Some((_, asked_ms)) = *asked
            && now_ms.saturating_sub(asked_ms) >= config.timeout_ms
        {
            *asked = None;
            *next_ms = now_ms;
            *reason = Some(no_answer(config.timeout_ms));
        }
        if asked.is_none() && now_ms >= *next_ms {
            let number = take_number(&mut self.number_next);
            *asked = Some((number, now_ms));
            out.push(Effect::Query { number });
        }
    }

    fn complete(&mut self, now_ms: u64, stop: Stop, out: &mut Vec<Effect>) {
        self.state = State::Idle;
        out.push(Effect::Completed {
            took_ms: now_ms.saturating_sub(stop.called_ms),
        });
        self.learn_health(Ok(()), out);
    }

    fn fail(&mut self, reason: String, out: &mut Vec<Effect>) {
        self.state = State::Idle;
        out.push(Effect::Failed {
            reason: reason.clone(),
        });
        self.learn_health(Err(reason), out);
    }

    /// No trial begins while a stop runs: it would only be in its way.
    fn check_when_due(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let interval_ms = self.config.check_interval_ms;
        let timeout_ms = self.config.timeout_ms;
        if let Some((_, asked_ms)) = self.check
            && now_ms.saturating_sub(asked_ms) >= timeout_ms
        {
            self.check = None;
            self.learn_health(Err(no_answer(timeout_ms)), out);
        }
        let idle = matches!(self.state, State::Idle);
        if interval_ms == 0 || !idle || self.check.is_some() || now_ms < self.check_next_ms {
            return;
        }
        let number = take_number(&mut self.number_next);
        self.check = Some((number, now_ms));
        self.check_next_ms = now_ms.saturating_add(interval_ms);
        out.push(Effect::Check { number });
    }

    fn on_check_answered(
        &mut self,
        number: u64,
        result: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        if self.check.is_some_and(|(current, _)| current == number) {
            self.check = None;
            self.learn_health(result, out);
        }
    }

    fn learn_health(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        let failed = matches!(self.health, Health::Fails { .. });
        match result {
            Ok(()) => {
                self.health = Health::Works;
                if failed {
                    out.push(Effect::HealthChanged {
                        ok: true,
                        reason: None,
                    });
                }
            }
            Err(reason) => {
                self.health = Health::Fails {
                    reason: reason.clone(),
                };
                if !failed {
                    out.push(Effect::HealthChanged {
                        ok: false,
                        reason: Some(reason),
                    });
                }
            }
        }
    }
}

fn take_number(next: &mut u64) -> u64 {
    let number = *next;
    *next += 1;
    number
}

fn no_answer(timeout_ms: u64) -> String {
    format!("no answer within {timeout_ms} ms")
}
