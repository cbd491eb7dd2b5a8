//! Random worlds: a fixed set, so that a regression shows at once, and a few nobody has seen.

use std::time::{SystemTime, UNIX_EPOCH};

use mirror_core::wire::message::Mode;
use mirror_tests::sim::run::{Kind, run_seed};

const FIXED: std::ops::Range<u64> = 0..300;
const FIXED_AHEAD: std::ops::Range<u64> = 0..150;
const FRESH: u64 = 100;

fn check(seeds: impl Iterator<Item = u64>, mode: Mode) {
    let broken: Vec<String> = seeds
        .map(|seed| run_seed(seed, Kind::of(mode), None, false))
        .filter(|report| report.violation.is_some())
        .map(|report| report.describe())
        .take(3)
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_world_of_the_fixed_set_breaks_a_rule() {
    check(FIXED, Mode::Sync);
}

#[test]
fn no_semisync_world_breaks_a_rule() {
    check(FIXED_AHEAD, Mode::Semisync);
}

#[test]
fn no_async_world_breaks_a_rule() {
    check(FIXED_AHEAD, Mode::Async);
}

#[test]
fn no_fresh_world_breaks_a_rule() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let first = 1_000_000 + now.as_secs() % 1_000_000_000 * 1_000;
    check(first..first + FRESH, Mode::Sync);
    check(first..first + FRESH / 2, Mode::Semisync);
    check(first..first + FRESH / 2, Mode::Async);
}

#[test]
fn a_seed_replays_the_same_world() {
    for seed in [3, 41, 77] {
        let traces = [0, 1].map(|_| run_seed(seed, Kind::PLAIN, None, true).trace);
        let differs = traces[0].iter().zip(&traces[1]).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed} does not replay");
    }
}
