//! How long a node that starts must wait before it starts its groups (A5).
//!
//! The other node may just be finding out that this one is gone: it notices after the heartbeat
//! time-out and one interval, gives this one the head start that is due to it, then runs the forced stop,
//! each attempt of which may take its time-out, and waits until the stop is confirmed. A node that starts
//! groups before that can be stopped while it starts them, or run them beside the other.
//!
//! `delay = 2 × fence delay + (1 + retries) × forced-stop time-out + stop wait + heartbeat time-out +
//! heartbeat interval`
//!
//! The first three are zero without `[forced_stop]`.

use std::fmt;
use std::time::Duration;

use super::draft::AgentDraft;
use super::{AgentConfig, ForcedStop, Heartbeat};

/// The longest head start, in units of `fence_delay`: the second node's where neither ran a group.
const FENCE_DELAYS_MAX: u32 = 2;

/// What `service_startup_delay = "auto"` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    forced_stop: Option<Stop>,
    heartbeat_timeout: Duration,
    heartbeat_interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stop {
    fence_delay: Duration,
    attempts: u32,
    timeout: Duration,
    stop_wait: Duration,
}

impl Sum {
    pub fn of(forced_stop: Option<&ForcedStop>, heartbeat: &Heartbeat) -> Self {
        Self {
            forced_stop: forced_stop.map(|stop| Stop {
                fence_delay: stop.fence_delay,
                attempts: 1 + stop.retries,
                timeout: stop.timeout,
                stop_wait: stop.stop_wait,
            }),
            heartbeat_timeout: heartbeat.timeout,
            heartbeat_interval: heartbeat.interval,
        }
    }

    /// The same before the file is known to be right; `None` without `[heartbeat]`.
    pub fn of_draft(draft: &AgentDraft) -> Option<Self> {
        let heartbeat = draft.heartbeat.as_ref()?;
        let interval = heartbeat.interval.value;
        Some(Self {
            forced_stop: draft.forced_stop.as_ref().map(|stop| Stop {
                fence_delay: stop.fence_delay(interval, draft.arbiter.is_some()).value,
                attempts: 1 + stop.retries,
                timeout: stop.timeout,
                stop_wait: stop.stop_wait(),
            }),
            heartbeat_timeout: heartbeat.timeout.value,
            heartbeat_interval: interval,
        })
    }

    pub fn total(&self) -> Duration {
        let stop = self.forced_stop.map_or(Duration::ZERO, |stop| {
            stop.fence_delay * FENCE_DELAYS_MAX + stop.timeout * stop.attempts + stop.stop_wait
        });
        stop + self.heartbeat_timeout + self.heartbeat_interval
    }
}

/// The total and its parts, for people.
impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = ", shown(self.total()))?;
        if let Some(stop) = self.forced_stop {
            let fence_delay = shown(stop.fence_delay);
            write!(f, "{FENCE_DELAYS_MAX} × {fence_delay} fence delay + ")?;
            if stop.attempts > 1 {
                write!(f, "{} × ", stop.attempts)?;
            }
            write!(f, "{} forced stop + ", shown(stop.timeout))?;
            write!(f, "{} stop wait + ", shown(stop.stop_wait))?;
        }
        write!(
            f,
            "{} heartbeat timeout + {} heartbeat interval",
            shown(self.heartbeat_timeout),
            shown(self.heartbeat_interval)
        )
    }
}

impl AgentConfig {
    /// The start-up delay and where it comes from, for people.
    pub fn startup_delay_explained(&self) -> String {
        let sum = Sum::of(self.forced_stop.as_ref(), &self.heartbeat);
        if self.startup_delay == self.startup_delay_needed {
            return sum.to_string();
        }
        format!(
            "{} as written, where {sum} are computed",
            shown(self.startup_delay)
        )
    }
}

/// In seconds where they are whole, so that the parts of a sum can be added up by eye.
pub(super) fn shown(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
