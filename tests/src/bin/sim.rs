//! Explores simulated worlds: `sim --minutes N [--seed S]`, `sim --seed S [--verbose]`,
//! `sim --seeds A..B`. Prints seed and replay command of every world that breaks a rule, and ends with
//! exit code 1 if there was one.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mirror_core::wire::message::Mode;
use mirror_tests::sim::run::{Kind, Report, run_seed};

const USAGE: &str = "usage: sim --minutes N [--seed FIRST] | --seed S [--verbose] | --seeds A..B
With --arbiter: worlds in which an arbiter decides who is primary. Without, --minutes runs both kinds.
With --mode sync, semisync or async: worlds in that mode. Without, every seed makes one in each.
Runs seeded two-node worlds in virtual time and checks every rule after every step.";

/// Broken seeds printed before a run gives up.
const FAILURES_MAX: usize = 10;

/// What each seed is run in.
const MODES: [Mode; 3] = [Mode::Sync, Mode::Semisync, Mode::Async];

/// Last lines of a broken world's trace, unless all are asked for.
const LINES_OF_FAILURE: usize = 200;

#[derive(Debug, Default)]
struct Arguments {
    minutes: Option<f64>,
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    verbose: bool,
    arbiter: bool,
    mode: Option<Mode>,
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
            "--arbiter" => arguments.arbiter = true,
            "--mode" => {
                let name = value()?;
                let mode = MODES.into_iter().find(|mode| mode.name() == name);
                arguments.mode = Some(mode.with_context(|| format!("no mode {name}\n{USAGE}"))?);
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
    let modes = arguments.mode.map_or(MODES.to_vec(), |mode| vec![mode]);
    let kinds = |arbiters: &[bool]| {
        let mut kinds = Vec::new();
        for arbitrated in arbiters.iter().copied() {
            kinds.extend(modes.iter().map(|mode| Kind {
                arbitrated,
                mode: *mode,
            }));
        }
        kinds
    };
    match arguments {
        Arguments {
            minutes: Some(minutes),
            seed,
            ..
        } => {
            let first = seed.unwrap_or_else(fresh_seed);
            let limit = Duration::from_secs_f64(minutes * 60.0);
            println!("sim: worlds from seed {first} on, for {minutes} minutes");
            let arbiters: &[bool] = if arguments.arbiter {
                &[true]
            } else {
                &[false, true]
            };
            Ok(explore(first.., &kinds(arbiters), Some(limit)))
        }
        Arguments {
            seeds: Some((from, to)),
            ..
        } => Ok(explore(from..to, &kinds(&[arguments.arbiter]), None)),
        Arguments {
            seed: Some(seed),
            verbose,
            ..
        } => Ok(replay(seed, kinds(&[arguments.arbiter])[0], verbose)),
        _ => bail!("nothing to do\n{USAGE}"),
    }
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_000_000
}

fn replay(seed: u64, kind: Kind, verbose: bool) -> ExitCode {
    let report: Report = run_seed(seed, kind, None, true);
    let shown = match (verbose, &report.violation) {
        (true, _) => report.trace.len(),
        (false, Some(_)) => report.trace.len().min(LINES_OF_FAILURE),
        (false, None) => 0,
    };
    for line in &report.trace[report.trace.len() - shown..] {
        println!("{line}");
    }
    println!("{:?}", report.tally);
    println!("{}", report.describe());
    code(report.violation.is_some())
}

/// `kinds`: the worlds that each seed makes.
fn explore(seeds: impl Iterator<Item = u64>, kinds: &[Kind], limit: Option<Duration>) -> ExitCode {
    let start = Instant::now();
    let (mut worlds, mut failures) = (0u64, 0);
    let mut totals = [0u64; 7];
    let worlds_wanted = seeds.flat_map(|seed| kinds.iter().map(move |kind| (seed, *kind)));
    for (seed, kind) in worlds_wanted {
        if limit.is_some_and(|limit| start.elapsed() >= limit) || failures >= FAILURES_MAX {
            break;
        }
        let report = run_seed(seed, kind, None, false);
        worlds += 1;
        let tally = report.tally;
        let add = [
            tally.steps,
            tally.writes_answered,
            tally.reads_answered,
            tally.crashes,
            tally.cuts,
            tally.rechecks,
            tally.compared,
        ];
        totals
            .iter_mut()
            .zip(add)
            .for_each(|(total, more)| *total += more);
        if report.violation.is_some() {
            failures += 1;
            println!("{}", report.describe());
        }
    }
    let [steps, writes, reads, crashes, cuts, rechecks, compared] = totals;
    println!(
        "sim: {worlds} worlds in {:.1} s: {steps} steps, {writes} writes and {reads} reads answered, {crashes} crashes, {cuts} cuts, {rechecks} rechecks, compared whole {compared} times; {failures} broke a rule",
        start.elapsed().as_secs_f64()
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
