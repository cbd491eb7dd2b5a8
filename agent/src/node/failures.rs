//! What is remembered of a group that failed, and for how long: a start that failed keeps it from this node, a
//! monitor's last action keeps it stopped on both, and failovers are limited in number. Each ends by an
//! operator's word or by itself, so that a fault that is long over needs nobody to say so.

use std::collections::VecDeque;

/// Failovers that are remembered for the limit.
const FAILOVERS_MAX: usize = 1_000;

/// How long what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Failovers within [`Self::failover_window_ms`] after which there is no other; zero: no limit.
    pub failovers_max: u32,
    pub failover_window_ms: u64,
    /// After this a failed start and a monitor's last action are forgotten; none: not before an operator says so.
    pub reset_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// It may be started here again.
    FailedStart,
    /// It may be started on either node again.
    LastAction,
}

#[derive(Debug, Default)]
pub struct Failures {
    /// When a start failed here, and nothing has succeeded since.
    start_failed_ms: Option<u64>,
    /// When the last action of a monitor stopped it.
    halted_ms: Option<u64>,
    /// Oldest first.
    failovers_ms: VecDeque<u64>,
}

impl Failures {
    pub fn start_failed(&mut self, now_ms: u64) {
        self.start_failed_ms = Some(now_ms);
    }

    /// It starts, or has started.
    pub fn start(&mut self) {
        self.start_failed_ms = None;
    }

    pub fn halt(&mut self, now_ms: u64) {
        self.halted_ms = Some(now_ms);
    }

    pub fn failed_over(&mut self, now_ms: u64) {
        if self.failovers_ms.len() == FAILOVERS_MAX {
            self.failovers_ms.pop_front();
        }
        self.failovers_ms.push_back(now_ms);
    }

    /// An operator says that it is mended.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn has_failed_start(&self) -> bool {
        self.start_failed_ms.is_some()
    }

    pub fn is_halted(&self) -> bool {
        self.halted_ms.is_some()
    }

    /// Failovers that still count.
    pub fn failovers(&self, now_ms: u64, patience: &Patience) -> u32 {
        let since_ms = now_ms.saturating_sub(patience.failover_window_ms);
        let recent = self.failovers_ms.iter().filter(|at_ms| **at_ms > since_ms);
        u32::try_from(recent.count()).expect("their number is limited")
    }

    /// Forgets what is long ago, and says so. One at a time.
    pub fn forget(&mut self, now_ms: u64, patience: &Patience) -> Option<Forgotten> {
        let reset_ms = patience.reset_ms?;
        let is_over = |since_ms: &mut u64| now_ms.saturating_sub(*since_ms) >= reset_ms;
        if self.start_failed_ms.take_if(is_over).is_some() {
            Some(Forgotten::FailedStart)
        } else if self.halted_ms.take_if(is_over).is_some() {
            Some(Forgotten::LastAction)
        } else {
            None
        }
    }

    /// Until what keeps the group from this node is forgotten; none: never, or nothing does.
    pub fn forgotten_in_ms(&self, now_ms: u64, patience: &Patience) -> Option<u64> {
        let since_ms = self.start_failed_ms.max(self.halted_ms)?;
        let over_ms = since_ms.saturating_add(patience.reset_ms?);
        Some(over_ms.saturating_sub(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_MS: u64 = 1_000;

    fn patience(reset_ms: Option<u64>) -> Patience {
        Patience {
            failovers_max: 2,
            failover_window_ms: WINDOW_MS,
            reset_ms,
        }
    }

    #[test]
    fn every_mark_lasts_until_its_time_is_over_or_an_operator_clears_it() {
        use Forgotten::{FailedStart, LastAction};
        for failed in [None, Some(100)] {
            for halted in [None, Some(100), Some(300)] {
                for reset_ms in [None, Some(500)] {
                    for now_ms in [300, 599, 600, 799, 800, u64::MAX] {
                        let mut failures = Failures::default();
                        failed.into_iter().for_each(|at| failures.start_failed(at));
                        halted.into_iter().for_each(|at| failures.halt(at));
                        let patience = patience(reset_ms);
                        let left = failures.forgotten_in_ms(now_ms, &patience);
                        let mut forgotten = Vec::new();
                        while let Some(what) = failures.forget(now_ms, &patience) {
                            forgotten.push(what);
                        }
                        let over = |at: Option<u64>| {
                            at.is_some_and(|at| reset_ms.is_some_and(|reset| now_ms - at >= reset))
                        };
                        let expected = [(over(failed), FailedStart), (over(halted), LastAction)];
                        let expected = expected.into_iter().filter(|(over, _)| *over);
                        let expected: Vec<_> = expected.map(|(_, what)| what).collect();
                        assert_eq!(forgotten, expected, "{failed:?} {halted:?} {now_ms}");
                        assert_eq!(
                            failures.has_failed_start(),
                            failed.is_some() && !over(failed)
                        );
                        assert_eq!(failures.is_halted(), halted.is_some() && !over(halted));
                        let kept = failures.has_failed_start() || failures.is_halted();
                        let marked = failed.is_some() || halted.is_some();
                        assert_eq!(left.is_some(), marked && reset_ms.is_some());
                        assert_eq!(left == Some(0), marked && reset_ms.is_some() && !kept);
                        failures.clear();
                        assert!(!failures.has_failed_start() && !failures.is_halted());
                    }
                }
            }
        }
    }

    #[test]
    fn a_start_that_succeeds_takes_back_that_one_failed_and_no_more() {
        let mut failures = Failures::default();
        failures.start_failed(1);
        failures.halt(1);
        failures.failed_over(1);
        failures.start();
        assert!(!failures.has_failed_start() && failures.is_halted());
        assert_eq!(failures.failovers(2, &patience(None)), 1);
    }

    #[test]
    fn failovers_count_for_as_long_as_the_window_and_not_a_moment_longer() {
        let mut failures = Failures::default();
        let patience = patience(None);
        failures.failed_over(100);
        failures.failed_over(900);
        for (now_ms, expected) in [
            (900, 2),
            (1_099, 2),
            (1_100, 1),
            (1_899, 1),
            (1_900, 0),
            (u64::MAX, 0),
        ] {
            assert_eq!(failures.failovers(now_ms, &patience), expected, "{now_ms}");
        }
        for _ in 0..2 * FAILOVERS_MAX {
            failures.failed_over(2_000);
        }
        let recent = failures.failovers(2_000, &patience);
        assert_eq!(recent as usize, FAILOVERS_MAX);
        failures.clear();
        assert_eq!(failures.failovers(2_000, &patience), 0);
    }
}
