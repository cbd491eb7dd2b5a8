//! The fault campaign: `soak --minutes N [--seed S] [--only KIND] [--report FILE] [--logs FOLDER]`. A real cluster under
//! load; ends with exit code 1 at the first promise that is broken. Needs root.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mirror_tests::soak::{Plan, Report, run};

const USAGE: &str = "usage: soak --minutes N [--seed S] [--only KIND] [--report FILE] [--logs FOLDER]
Real servers in namespaces, clients that know what they were answered, and one fault after the other.
FILE gets the report, as Markdown; FOLDER the logs of all daemons, when a promise is broken.";

fn main() -> Result<ExitCode> {
    let (mut minutes, mut seed) = (None, None);
    let (mut file, mut logs) = (None::<PathBuf>, None::<PathBuf>);
    let mut only = String::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value\n{USAGE}"))
        };
        match word.as_str() {
            "--minutes" => minutes = Some(value()?.parse::<f64>().context("--minutes")?),
            "--seed" => seed = Some(value()?.parse().context("--seed")?),
            "--only" => only = value()?,
            "--report" => file = Some(value()?.into()),
            "--logs" => logs = Some(value()?.into()),
            "--help" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => bail!("unknown argument `{word}`\n{USAGE}"),
        }
    }
    let minutes = minutes.with_context(|| format!("for how long?\n{USAGE}"))?;
    let seed = seed.unwrap_or_else(fresh_seed);
    println!("soak: faults from seed {seed}, for {minutes} minutes");
    let mut report = Report::new(seed);
    let span = Duration::from_secs_f64(minutes * 60.0);
    let plan = Plan {
        span,
        seed,
        only,
        logs,
    };
    let outcome = run(&plan, &mut report);
    report.broken = outcome
        .as_ref()
        .err()
        .map(|error| error.root_cause().to_string());
    println!("\n{report}");
    if let Some(file) = file {
        std::fs::write(&file, report.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Err(error) = outcome {
        eprintln!("soak: {error:?}\nreplay: cargo xtask soak --minutes {minutes} --seed {seed}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_000
}
