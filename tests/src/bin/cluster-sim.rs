//! Explores simulated clusters: `sim --cluster --minutes N [--seed S]`, `--seed S [--verbose]`,
//! `--seeds A..B`. Prints seed and replay command of every cluster that breaks a rule, and ends with exit
//! code 1 if there was one.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mirror_tests::cluster::run::run_seed;

const USAGE: &str =
    "usage: cluster-sim --minutes N [--seed FIRST] | --seed S [--verbose] | --seeds A..B
Runs seeded clusters (agents, mirrors, witness) in virtual time and checks every rule.";

/// Broken seeds printed before a run gives up.
const FAILURES_MAX: usize = 10;
/// Last lines of a broken cluster's trace, unless all are asked for.
const LINES_OF_FAILURE: usize = 120;

#[derive(Debug, Default)]
struct Arguments {
    minutes: Option<f64>,
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value\n{USAGE}"))
        };
        match word.as_str() {
            "--minutes" => arguments.minutes = Some(value()?.parse().context("--minutes")?),
            "--seed" => arguments.seed = Some(value()?.parse().context("--seed")?),
            "--seeds" => {
                let range = value()?;
                let (from, to) = range.split_once("..").context("--seeds needs A..B")?;
                arguments.seeds = Some((from.parse()?, to.parse()?));
            }
            "--verbose" => arguments.verbose = true,
            "--help" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => bail!("unknown argument `{word}`\n{USAGE}"),
        }
    }
    // Broken assertions are reported with their seed; the default print would only repeat them.
    std::panic::set_hook(Box::new(|_| {}));
    match (arguments.minutes, arguments.seeds, arguments.seed) {
        (Some(minutes), _, seed) => {
            let first = seed.unwrap_or_else(fresh_seed);
            println!("cluster-sim: clusters from seed {first} on, for {minutes} minutes");
            let limit = Duration::from_secs_f64(minutes * 60.0);
            Ok(explore(first.., Some(limit)))
        }
        (None, Some((from, to)), _) => Ok(explore(from..to, None)),
        (None, None, Some(seed)) => Ok(replay(seed, arguments.verbose)),
        _ => bail!("nothing to do\n{USAGE}"),
    }
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_000_000
}

fn replay(seed: u64, verbose: bool) -> ExitCode {
    let report = run_seed(seed, true);
    let shown = match (verbose, &report.violation) {
        (true, _) => report.trace.len(),
        (false, Some(_)) => report.trace.len().min(LINES_OF_FAILURE),
        (false, None) => 0,
    };
    for line in &report.trace[report.trace.len() - shown..] {
        println!("{line}");
    }
    println!("{}", report.describe());
    code(report.violation.is_some())
}

fn explore(seeds: impl Iterator<Item = u64>, limit: Option<Duration>) -> ExitCode {
    let start = Instant::now();
    let (mut clusters, mut failures) = (0u64, 0);
    let (mut answers, mut failovers, mut stops, mut virtual_ms) = (0u64, 0u64, 0u64, 0u64);
    for seed in seeds {
        if limit.is_some_and(|limit| start.elapsed() >= limit) || failures >= FAILURES_MAX {
            break;
        }
        let report = run_seed(seed, false);
        clusters += 1;
        answers += report.answers;
        failovers += report.failovers;
        stops += report.forced_stops;
        virtual_ms += report.virtual_ms;
        if report.violation.is_some() {
            failures += 1;
            println!("{}", report.describe());
        }
    }
    println!(
        "cluster-sim: {clusters} clusters in {:.1} s, {:.1} hours of theirs: {answers} answers, {failovers} failovers, {stops} forced stops; {failures} broke a rule",
        start.elapsed().as_secs_f64(),
        virtual_ms as f64 / 3_600_000.0,
    );
    code(failures > 0)
}

fn code(failed: bool) -> ExitCode {
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
