//! How fast a resync may go. Three rules; where two of them differ, the upper one counts:
//!
//! 1. It never moves more than the maximum.
//! 2. While it is behind the minimum, it takes all its places in flight, whatever clients do. It cannot go faster
//!    than that, so a resync that stays behind is held up by the disks or the link and not by this.
//! 3. While clients are active, it takes one step at a time and then rests for three times as long as that took. So
//!    a step is in their way for a quarter of the time at most, whatever it is that steps wait for: a processor, a disk or
//!    the link. A rest has an end, so that it comes to its own also without a minimum.
//!
//! Both rates are kept as signed accounts in thousandths of a byte, which is bytes a second times milliseconds: exact
//! however short or long a tick was. Everything added to them saturates, and each has an end at the side to
//! which it would grow while nothing can be done about it. So a debt neither wraps round nor is paid off for
//! hours.
//!
//! It knows no clock and no clients: the volume brings the time, and says when it saw some.

use super::meter::Meter;

/// Longest stretch of the maximum that may be saved up.
const BURST_MS: u64 = 200;
/// What the minimum looks back on. It is behind, or ahead, by no more than such a stretch of it.
const LOOK_BACK_MS: u64 = 1_000;
/// A lead of one step counts in full also where the minimum is less than that in the time looked back on.
const LEAD_BYTES_MIN: u64 = 1 << 20;
/// Clients that were seen within this time are active. Those that wait for an answer before they ask again have
/// nothing under way at many a moment, and a step that is begun in such a gap is in the way of their next request.
const ACTIVE_MS: u64 = 100;

/// Of what a step took, how long clients are left alone after it.
const REST_TIMES: u64 = 3;
/// Longest rest: after a step that hung, nothing is better than another try.
const REST_MS_MAX: u64 = 1_000;

/// In bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// 0 for none: it yields to clients for as long as they are active.
    pub min: u64,
    /// 0 for no limit.
    pub max: u64,
}

/// What decides at the moment how many steps may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stride {
    /// No client is active.
    Free,
    /// Clients are active and go first.
    Yielding,
    /// Clients are active, and it is behind its minimum.
    AtMinimum,
}

#[derive(Debug)]
pub struct Pace {
    rates: Rates,
    in_flight_max: u32,
    in_flight: u32,
    /// Since when some step was in flight, of those that are.
    busy_since_ms: u64,
    /// Clients are left alone until then. Nothing once that was noticed.
    rest_until_ms: Option<u64>,
    /// What may be started under the maximum. A step may overdraw it, and that is waited off.
    allowance_milli: i64,
    /// How far it is behind its minimum; below zero it is ahead.
    arrears_milli: i64,
    last_ms: u64,
    clients_ms: Option<u64>,
    meter: Meter,
}

impl Pace {
    pub fn new(rates: Rates, in_flight_max: u32, now_ms: u64) -> Self {
        let min = match rates.max {
            0 => rates.min,
            max => rates.min.min(max),
        };
        let rates = Rates { min, ..rates };
        Self {
            rates,
            in_flight_max: in_flight_max.max(1),
            in_flight: 0,
            busy_since_ms: 0,
            rest_until_ms: None,
            allowance_milli: 0,
            arrears_milli: -lead_max_milli(rates),
            last_ms: now_ms,
            clients_ms: None,
            meter: Meter::new(now_ms),
        }
    }

    /// Time passed. A pace without work, of a walk that is paused for instance, is not behind.
    pub fn tick(&mut self, now_ms: u64, has_work: bool) {
        self.meter.tick(now_ms);
        let elapsed_ms = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        let Rates { min, max } = self.rates;
        self.allowance_milli = self
            .allowance_milli
            .saturating_add(milli(max, elapsed_ms))
            .min(milli(max, BURST_MS));
        self.arrears_milli = if has_work {
            self.arrears_milli
                .saturating_add(milli(min, elapsed_ms))
                .min(milli(min, LOOK_BACK_MS))
        } else {
            -lead_max_milli(self.rates)
        };
    }

    /// A client waits for something; or will by then, if that time is to come.
    pub fn note_clients(&mut self, at_ms: u64) {
        self.clients_ms = self.clients_ms.max(Some(at_ms));
    }

    pub fn stride(&self, now_ms: u64) -> Stride {
        let active = self
            .clients_ms
            .is_some_and(|seen_ms| now_ms.saturating_sub(seen_ms) < ACTIVE_MS);
        match active {
            false => Stride::Free,
            true if self.arrears_milli > 0 => Stride::AtMinimum,
            true => Stride::Yielding,
        }
    }

    /// Another step may start.
    pub fn may_start(&self, now_ms: u64) -> bool {
        let has_place = match self.stride(now_ms) {
            Stride::Free | Stride::AtMinimum => self.in_flight < self.in_flight_max,
            Stride::Yielding => {
                let rests = self.rest_until_ms.is_some_and(|until_ms| now_ms < until_ms);
                self.in_flight == 0 && !rests
            }
        };
        has_place && (self.rates.max == 0 || self.allowance_milli > 0)
    }

    /// True once after each rest: it is worth to ask whether a step may start.
    pub fn has_rested(&mut self, now_ms: u64) -> bool {
        self.rest_until_ms
            .take_if(|until_ms| now_ms >= *until_ms)
            .is_some()
    }

    pub fn started(&mut self, bytes: u64, now_ms: u64) {
        if self.in_flight == 0 {
            self.busy_since_ms = now_ms;
            self.rest_until_ms = None;
        }
        self.in_flight += 1;
        self.allowance_milli = self.allowance_milli.saturating_sub(milli(bytes, 1000));
    }

    pub fn done(&mut self, bytes: u64, now_ms: u64) {
        self.meter.done(bytes);
        self.arrears_milli = self
            .arrears_milli
            .saturating_sub(milli(bytes, 1000))
            .max(-lead_max_milli(self.rates));
        assert!(self.in_flight > 0, "a step ends once");
        self.in_flight -= 1;
        if self.in_flight == 0 {
            let took_ms = now_ms.saturating_sub(self.busy_since_ms);
            let rest_ms = took_ms.saturating_mul(REST_TIMES).min(REST_MS_MAX);
            self.rest_until_ms = Some(now_ms.saturating_add(rest_ms));
        }
    }

    /// The minimum that it keeps.
    pub fn rate_min(&self) -> u64 {
        self.rates.min
    }

    pub fn rate_bytes_per_s(&self) -> u64 {
        self.meter.rate_bytes_per_s()
    }
}

/// What it may be ahead of its minimum. It begins with that, since the first steps take a while to end.
fn lead_max_milli(rates: Rates) -> i64 {
    milli(rates.min, LOOK_BACK_MS).max(milli(LEAD_BYTES_MIN, 1000))
}

fn milli(bytes_per_s: u64, ms: u64) -> i64 {
    i64::try_from(bytes_per_s.saturating_mul(ms)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TICK_MS: u64 = 100;

    /// A resync with endless work, whose steps take as long as they do.
    struct Course {
        pace: Pace,
        now_ms: u64,
        tick_ms: u64,
        step_bytes: u64,
        step_ms: u64,
        /// When each of those in flight ends.
        in_flight: Vec<u64>,
        most_in_flight: usize,
        moved: u64,
        busy_ms: u64,
    }

    impl Course {
        fn new(rates: Rates) -> Self {
            Self {
                pace: Pace::new(rates, 16, 0),
                now_ms: 0,
                tick_ms: TICK_MS,
                step_bytes: MIB,
                step_ms: 100,
                in_flight: Vec::new(),
                most_in_flight: 0,
                moved: 0,
                busy_ms: 0,
            }
        }

        /// Bytes a second of a stretch in which clients are active all the time, or none is.
        fn run(&mut self, span_ms: u64, clients: bool) -> u64 {
            let before = self.moved;
            (self.most_in_flight, self.busy_ms) = (0, 0);
            for _ in 0..span_ms {
                self.now_ms += 1;
                let ended = self.in_flight.len();
                self.in_flight.retain(|end_ms| *end_ms > self.now_ms);
                for _ in self.in_flight.len()..ended {
                    self.pace.done(self.step_bytes, self.now_ms);
                    self.moved += self.step_bytes;
                }
                if clients {
                    self.pace.note_clients(self.now_ms);
                }
                if self.now_ms.is_multiple_of(self.tick_ms) {
                    self.pace.tick(self.now_ms, true);
                }
                while self.pace.may_start(self.now_ms) {
                    self.pace.started(self.step_bytes, self.now_ms);
                    self.in_flight.push(self.now_ms + self.step_ms);
                }
                self.most_in_flight = self.most_in_flight.max(self.in_flight.len());
                self.busy_ms += u64::from(!self.in_flight.is_empty());
            }
            (self.moved - before) * 1000 / span_ms
        }
    }

    fn rates(min: u64, max: u64) -> Rates {
        Rates { min, max }
    }

    #[track_caller]
    fn check_near(rate: u64, expected: u64) {
        let (low, high) = (expected * 9 / 10, expected * 11 / 10);
        assert!(
            (low..=high).contains(&rate),
            "{rate} bytes a second instead of {expected}"
        );
    }

    #[test]
    fn without_clients_it_has_all_places_and_the_maximum() {
        check_near(Course::new(rates(0, 0)).run(10_000, false), 160 * MIB);
        check_near(Course::new(rates(0, 10 * MIB)).run(10_000, false), 10 * MIB);
        check_near(
            Course::new(rates(4 * MIB, 10 * MIB)).run(10_000, false),
            10 * MIB,
        );
    }

    #[test]
    fn it_yields_to_clients_as_long_as_it_keeps_the_minimum() {
        for min in [0, MIB, 2 * MIB] {
            for step_ms in [1, 10, 100] {
                let mut course = Course::new(rates(min, 0));
                course.step_ms = step_ms;
                course.step_bytes = MIB * step_ms / 100;
                check_near(course.run(12_000, true), 10 * MIB / 4);
                assert_eq!(course.most_in_flight, 1, "with a minimum of {min}");
                check_near(course.busy_ms, 12_000 / 4);
            }
        }
    }

    #[test]
    fn it_yields_from_the_moment_that_clients_come_and_to_the_moment_that_they_are_gone() {
        let mut course = Course::new(rates(0, 0));
        check_near(course.run(10_000, false), 160 * MIB);
        // Those that are in flight come to their end.
        course.run(100, true);
        check_near(course.run(12_000, true), 10 * MIB / 4);
        course.run(100, false);
        check_near(course.run(10_000, false), 160 * MIB);
    }

    #[test]
    fn a_resync_that_clients_would_starve_gets_its_minimum_and_little_more() {
        // One after the other comes to less than a MiB a second, all places together to 40.
        let mut course = Course::new(rates(20 * MIB, 0));
        course.step_ms = 400;
        check_near(course.run(60_000, true), 21 * MIB);
    }

    #[test]
    fn a_minimum_that_no_places_reach_gets_all_of_them() {
        let mut course = Course::new(rates(100 * MIB, 0));
        course.step_ms = 2_000;
        check_near(course.run(60_000, true), 8 * MIB);
    }

    #[test]
    fn the_maximum_counts_more_than_the_minimum() {
        let mut course = Course::new(rates(20 * MIB, 5 * MIB));
        check_near(course.run(20_000, true), 5 * MIB);
        assert_eq!(course.pace.rate_min(), 5 * MIB);
        // Steps that somebody waits for are begun whatever it says. Those are waited off also by who is behind.
        let mut pace = Pace::new(rates(5 * MIB, 5 * MIB), 16, 0);
        pace.started(100 * MIB, 0);
        pace.tick(2_000, true);
        assert_eq!(stride_among_clients(&mut pace), Stride::AtMinimum);
        assert!(!pace.may_start(2_000));
    }

    #[test]
    fn what_was_not_used_of_the_maximum_is_not_saved_up() {
        let mut course = Course::new(rates(0, 10 * MIB));
        course.pace.tick(3_600_000, false);
        (course.now_ms, course.step_ms) = (3_600_000, 1);
        assert!(course.run(1_000, false) <= 13 * MIB);
    }

    #[test]
    fn a_small_minimum_is_no_leave_to_ignore_clients() {
        // One step in ten seconds is all it asks for, and one in five is what yielding comes to.
        let mut course = Course::new(rates(100 << 10, 0));
        course.step_ms = 4_000;
        course.run(60_000, true);
        assert_eq!(course.most_in_flight, 1);
    }

    #[test]
    fn without_a_minimum_it_yields_for_good_and_is_never_starved() {
        // An hour each.
        let mut course = Course::new(rates(0, 0));
        course.step_ms = 3_600_000;
        course.run(5 * (3_600_000 + REST_MS_MAX), true);
        assert_eq!((course.moved, course.most_in_flight), (5 * MIB, 1));
    }

    #[test]
    fn the_end_of_a_rest_is_told_once() {
        let mut pace = Pace::new(rates(0, 0), 16, 0);
        assert!(!pace.has_rested(0));
        pace.started(MIB, 10);
        pace.done(MIB, 17);
        pace.note_clients(17);
        assert!(!pace.has_rested(37) && !pace.may_start(37));
        assert!(pace.may_start(38) && pace.has_rested(38) && !pace.has_rested(39));
        assert!(pace.may_start(39));
        pace.started(MIB, 39);
        assert!(!pace.may_start(39) && !pace.has_rested(1_000));
    }

    #[test]
    fn clients_count_as_active_from_one_request_to_the_next() {
        let mut pace = Pace::new(rates(0, 0), 16, 0);
        pace.started(MIB, 0);
        assert!(pace.may_start(0));
        pace.note_clients(10);
        assert!(!pace.may_start(10) && !pace.may_start(10 + ACTIVE_MS - 1));
        assert!(pace.may_start(10 + ACTIVE_MS));
        for _ in 1..16 {
            pace.started(MIB, 10 + ACTIVE_MS);
        }
        assert!(!pace.may_start(10 + ACTIVE_MS), "all places are taken");
    }

    #[test]
    fn clients_that_are_expected_count_as_active_until_they_should_be_there() {
        let mut pace = Pace::new(rates(0, 0), 4, 0);
        pace.note_clients(2_000);
        assert_eq!(pace.stride(0), Stride::Yielding);
        // One of them comes, and the others do not.
        pace.note_clients(500);
        assert_eq!(pace.stride(2_000 + ACTIVE_MS - 1), Stride::Yielding);
        assert_eq!(pace.stride(2_000 + ACTIVE_MS), Stride::Free);
    }

    #[test]
    fn a_pause_is_no_arrears() {
        let mut pace = Pace::new(rates(8 * MIB, 0), 16, 0);
        let mut is_behind = |now_ms, has_work| {
            pace.note_clients(now_ms);
            pace.tick(now_ms, has_work);
            pace.stride(now_ms) == Stride::AtMinimum
        };
        assert!(!is_behind(1_000, true) && is_behind(1_100, true));
        assert!(!is_behind(2_000, false));
        assert!(!is_behind(600_000, false));
        assert!(!is_behind(601_000, true) && is_behind(601_100, true));
    }

    #[test]
    fn clients_wait_off_no_more_arrears_than_it_looks_back_on() {
        let mut pace = Pace::new(rates(8 * MIB, 0), 16, 0);
        // An hour in which nothing came to an end, or in which this process did not run.
        for now_ms in [TICK_MS, 3_600_000] {
            pace.tick(now_ms, true);
        }
        for _ in 0..8 {
            assert_eq!(stride_among_clients(&mut pace), Stride::AtMinimum);
            pace.started(MIB, pace.last_ms);
            pace.done(MIB, pace.last_ms);
        }
        assert_eq!(stride_among_clients(&mut pace), Stride::Yielding);
    }

    fn stride_among_clients(pace: &mut Pace) -> Stride {
        pace.note_clients(pace.last_ms);
        pace.stride(pace.last_ms)
    }

    #[test]
    fn no_amount_and_no_time_wraps_round() {
        for rate in [1 << 32, i64::MAX as u64, u64::MAX] {
            for elapsed_ms in [1 << 32, 1 << 61] {
                // Behind the minimum by more than an account holds, it is behind.
                let mut pace = Pace::new(rates(rate, 0), 16, 0);
                for _ in 0..3 {
                    pace.tick(pace.last_ms.saturating_add(elapsed_ms), true);
                }
                assert_eq!(stride_among_clients(&mut pace), Stride::AtMinimum);
                // What may be started is never a debt, and a debt never leave to start.
                let mut pace = Pace::new(rates(0, rate), 16, 0);
                for _ in 0..2 {
                    pace.tick(pace.last_ms + elapsed_ms, true);
                    assert!(pace.may_start(pace.last_ms));
                }
                for _ in 0..3 {
                    pace.started(u64::MAX, 0);
                }
                assert!(!pace.may_start(pace.last_ms));
            }
        }
        // A lead that no account holds is a lead, and one that is soon used up.
        let mut pace = Pace::new(rates(MIB, 0), 16, 0);
        for _ in 0..3 {
            pace.started(0, 0);
            pace.done(u64::MAX, 0);
            pace.tick(pace.last_ms + 1, true);
        }
        assert_eq!(stride_among_clients(&mut pace), Stride::Yielding);
        pace.tick(pace.last_ms + LOOK_BACK_MS + TICK_MS, true);
        assert_eq!(stride_among_clients(&mut pace), Stride::AtMinimum);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_changes_nothing() {
        let mut pace = Pace::new(rates(MIB, MIB), 16, 5_000);
        pace.tick(5_000, true);
        pace.tick(1_000, true);
        pace.tick(5_000, true);
        assert!(!pace.may_start(5_000));
        assert_eq!(stride_among_clients(&mut pace), Stride::Yielding);
    }

    #[test]
    fn the_length_of_ticks_does_not_matter() {
        for tick_ms in [1, 7, 100] {
            let mut course = Course::new(rates(0, 700));
            (course.tick_ms, course.step_bytes) = (tick_ms, 64);
            check_near(course.run(20_000, false), 700);
            let mut pace = Pace::new(rates(MIB + 700, 0), 16, 0);
            let behind_ms = (0..10_000).step_by(tick_ms as usize).find(|now_ms| {
                pace.note_clients(*now_ms);
                pace.tick(*now_ms, true);
                pace.stride(*now_ms) == Stride::AtMinimum
            });
            let expected_ms = LOOK_BACK_MS / tick_ms * tick_ms + tick_ms;
            assert_eq!(behind_ms, Some(expected_ms));
        }
    }
}
