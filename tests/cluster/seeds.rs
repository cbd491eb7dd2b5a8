//! Random clusters: a fixed set over all kinds, and a few nobody has seen.

use std::time::{SystemTime, UNIX_EPOCH};

use mirror_tests::cluster::run::run_seed;

const FIXED: std::ops::Range<u64> = 0..250;
const FRESH: u64 = 40;
/// Each of them broke a rule once.
const MENDED: [u64; 13] = [
    326_399_022_487,
    326_399_022_661,
    326_399_022_916,
    680_471_793_800,
    700_000_000_240,
    700_000_003_912,
    848_294_212_773,
    862_535_556_114,
    862_535_556_628,
    862_535_557_400,
    862_535_557_736,
    900_000_002_242,
    900_000_003_946,
];

fn check(seeds: impl Iterator<Item = u64>) {
    let broken: Vec<String> = seeds
        .map(|seed| run_seed(seed, false))
        .filter(|report| report.violation.is_some())
        .map(|report| report.describe())
        .take(3)
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_cluster_of_the_fixed_set_breaks_a_rule() {
    check(FIXED);
}

#[test]
fn no_cluster_that_was_mended_breaks_a_rule() {
    check(MENDED.into_iter());
}

#[test]
fn no_fresh_cluster_breaks_a_rule() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let first = 1_000_000 + now.as_secs() % 1_000_000_000 * 1_000;
    check(first..first + FRESH);
}

#[test]
fn a_seed_replays_the_same_cluster() {
    for seed in [5, 10, 19] {
        let traces = [0, 1].map(|_| run_seed(seed, true).trace);
        let differs = traces[0].iter().zip(&traces[1]).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed} does not replay");
    }
}
