//! How fast a resync may go: a budget of bytes a second, fewer steps in flight while clients are
//! active, and a measured rate for progress reports.

/// Longest stretch of budget that may be saved up.
const BURST_MS: u64 = 200;
/// Weight of the newest tick in the measured rate, as 1 / 2^n.
const RATE_SHIFT: u32 = 3;

#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; 0 for no limit.
    rate_max: u64,
    /// Bytes that may be started now. Signed: a step may overdraw it, and the debt is waited off.
    budget_bytes: i64,
    in_flight_max: u32,
    last_ms: u64,
    done_since_tick: u64,
    rate_bytes_per_s: u64,
}

impl Pace {
    pub fn new(rate_max: u64, in_flight_max: u32, now_ms: u64) -> Self {
        Self {
            rate_max,
            budget_bytes: 0,
            in_flight_max: in_flight_max.max(1),
            last_ms: now_ms,
            done_since_tick: 0,
            rate_bytes_per_s: 0,
        }
    }

    /// Time passed: the budget grows, the rate is measured.
    pub fn tick(&mut self, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.last_ms);
        if elapsed == 0 {
            return;
        }
        self.last_ms = now_ms;
        let limit =
            i64::try_from(self.rate_max.saturating_mul(BURST_MS) / 1000).unwrap_or(i64::MAX);
        let grown = i64::try_from(self.rate_max.saturating_mul(elapsed) / 1000).unwrap_or(i64::MAX);
        self.budget_bytes = self.budget_bytes.saturating_add(grown).min(limit);
        let sample = self.done_since_tick.saturating_mul(1000) / elapsed;
        self.done_since_tick = 0;
        self.rate_bytes_per_s = if self.rate_bytes_per_s == 0 {
            sample
        } else {
            self.rate_bytes_per_s - (self.rate_bytes_per_s >> RATE_SHIFT) + (sample >> RATE_SHIFT)
        };
    }

    /// Another step may start. Clients that wait get three quarters of the places; the last step is
    /// never taken away, so a resync always ends.
    pub fn may_start(&self, in_flight: usize, clients_active: bool) -> bool {
        let places = if clients_active {
            (self.in_flight_max / 4).max(1)
        } else {
            self.in_flight_max
        };
        (self.rate_max == 0 || self.budget_bytes > 0) && in_flight < places as usize
    }

    pub fn started(&mut self, bytes: u64) {
        if self.rate_max > 0 {
            self.budget_bytes = self
                .budget_bytes
                .saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    pub fn done(&mut self, bytes: u64) {
        self.done_since_tick += bytes;
    }

    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate_bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_time_and_debt_is_waited_off() {
        let mut pace = Pace::new(10_000_000, 16, 0);
        let mut moved = 0;
        for tick in 1..=100 {
            pace.tick(tick * 100);
            while pace.may_start(0, false) {
                pace.started(1 << 20);
                moved += 1 << 20;
            }
        }
        let limit = 10_000_000 * 10;
        assert!(
            moved > limit * 9 / 10 && moved < limit + (3 << 20),
            "moved {moved}"
        );
    }

    #[test]
    fn clients_take_most_places_but_never_the_last() {
        let pace = Pace::new(0, 16, 0);
        assert!(pace.may_start(15, false) && !pace.may_start(4, true) && pace.may_start(3, true));
        assert!(Pace::new(0, 1, 0).may_start(0, true));
    }
}
