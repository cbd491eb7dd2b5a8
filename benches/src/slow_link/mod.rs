//! The modes on links that are slow, and resyncs on one: where answering ahead of the peer, and comparing
//! before copying, is for. Both sides are in memory and the link is in the clear, so that it is the link that
//! everybody waits for.

mod delay;
mod servers;

use std::time::Duration;

use anyhow::{Context, Result};
use local_pair::{Pair, PairOptions, Placement, Side};

use crate::fio;
use crate::full::{median, resync};
use crate::table;
use crate::throughput::{ALONE, Case, DEEP, LARGE};
use servers::{Apart, Link, Servers};

const GIGABIT: Link = Link {
    title: "1 Gbit/s",
    mbit: Some(1000),
    each_way: Duration::ZERO,
};
const LINKS: [Link; 3] = [
    GIGABIT,
    Link {
        title: "100 Mbit/s",
        mbit: Some(100),
        ..GIGABIT
    },
    Link {
        title: "5 ms each way",
        mbit: None,
        each_way: Duration::from_millis(5),
    },
];
const CASES: [Case; 3] = [ALONE, DEEP, LARGE];
/// The first is what the others are compared with.
const MODES: [&str; 3] = ["sync", "semisync", "async"];
/// What async may be behind by, with the default of `queue_size`, takes six seconds at 100 Mbit/s.
const CATCH_UP_SECONDS_MAX: u64 = 120;

#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    seconds: f64,
    file_bytes: u64,
}

pub fn print(smoke: bool, seconds: Option<f64>) -> Result<()> {
    let plan = match smoke {
        true => Plan {
            rounds: 1,
            seconds: 0.3,
            file_bytes: 64 << 20,
        },
        false => Plan {
            rounds: 3,
            seconds: 3.0,
            file_bytes: 512 << 20,
        },
    };
    let plan = Plan {
        seconds: seconds.unwrap_or(plan.seconds),
        ..plan
    };
    // The resyncs show the rest of what there is to go wrong.
    let links = if smoke { &LINKS[2..] } else { &LINKS[..] };
    for link in links.iter().copied() {
        print_modes(link, plan).context(link.title)?;
    }
    print_resyncs(plan).context("resync")
}

fn options(plan: Plan, mode: &'static str) -> PairOptions {
    PairOptions {
        placement: Placement::Memory,
        mode,
        encryption: false,
        // Both files are known to be zero.
        initial_sync: "skip",
        ..PairOptions::sized(plan.file_bytes)
    }
}

/// What one run reached, and how far the peer was behind at its end.
#[derive(Debug, Clone, Copy)]
struct Sample {
    figure: f64,
    lag_bytes: f64,
    lag_ms: f64,
}

impl Sample {
    fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(samples.iter().map(figure));
        Self {
            figure: of(|sample| sample.figure),
            lag_bytes: of(|sample| sample.lag_bytes),
            lag_ms: of(|sample| sample.lag_ms),
        }
    }
}

/// A pair in each mode, all at the same time, of which one is asked for something at a time. Round by round, so that
/// whatever else the machine does weighs on all alike.
fn print_modes(link: Link, plan: Plan) -> Result<()> {
    eprintln!("{}", link.title);
    let mut servers = Servers::boot(link)?;
    let pairs = MODES.map(|mode| -> Result<Apart> {
        let apart = servers.pair(&options(plan, mode)).context(mode)?;
        resync::fill(&apart.pair, plan.file_bytes)?;
        wait_caught_up(&apart.pair)?;
        Ok(apart)
    });
    let pairs = pairs.into_iter().collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for case in &CASES {
        eprintln!("  {}", case.name);
        let mut samples = vec![Vec::new(); pairs.len()];
        for _ in 0..plan.rounds {
            for (apart, samples) in pairs.iter().zip(&mut samples) {
                samples.push(measure(case, &apart.pair, plan.seconds).context(case.name)?);
            }
        }
        let medians: Vec<Sample> = samples
            .iter()
            .map(|samples| Sample::median(samples))
            .collect();
        rows.push(row(case.name, &medians));
    }
    for apart in &pairs {
        apart.pair.wait_synced()?;
    }
    let title = format!(
        "{}, fio, both sides in /dev/shm, link in the clear, median of {} of {} s, {} MiB files",
        link.title,
        plan.rounds,
        plan.seconds,
        plan.file_bytes >> 20
    );
    let head = [
        "", "sync", "semisync", "x sync", "lag KiB", "lag ms", "async", "x sync", "lag KiB",
        "lag ms",
    ];
    table::print(&title, &head, &rows);
    Ok(())
}

/// The figure of sync, and of each other mode its figure, its ratio to that and its lag.
fn row(name: &str, medians: &[Sample]) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    for (index, sample) in medians.iter().enumerate() {
        cells.push(format!("{:.0}", sample.figure));
        if index > 0 {
            cells.push(format!("{:.2}", sample.figure / medians[0].figure));
            cells.push(format!("{:.0}", sample.lag_bytes / 1024.0));
            cells.push(format!("{:.0}", sample.lag_ms));
        }
    }
    cells
}

fn measure(case: &Case, pair: &Pair, seconds: f64) -> Result<Sample> {
    let limit = seconds as u64 + 60;
    let reached = fio::run(&pair.uri(Side::First), limit, &case.words(seconds))?;
    let status = pair.status(Side::First)?;
    wait_caught_up(pair)?;
    Ok(Sample {
        figure: case.figure(&reached),
        lag_bytes: status.lag_bytes as f64,
        lag_ms: status.lag_ms as f64,
    })
}

fn wait_caught_up(pair: &Pair) -> Result<()> {
    pair.wait_for(
        Side::First,
        "the end of the lag",
        CATCH_UP_SECONDS_MAX,
        |status| status.lag_bytes == 0,
    )?;
    Ok(())
}

/// On the link on which a copy is held up by it, and hashes are not.
fn print_resyncs(plan: Plan) -> Result<()> {
    eprintln!("Resync, {}", GIGABIT.title);
    let bytes = plan.file_bytes;
    let mut servers = Servers::boot(GIGABIT)?;
    let mut apart = servers.pair(&options(plan, "sync"))?;
    let pair = &mut apart.pair;
    resync::fill(pair, bytes)?;
    let mut rates = |name: &str, measured: fn(&mut Pair, u64) -> Result<f64>| -> Result<f64> {
        eprintln!("  {name}");
        let rates = (0..plan.rounds).map(|_| measured(pair, bytes));
        let rates = rates.collect::<Result<Vec<_>>>().context(name.to_owned())?;
        Ok(median(rates.into_iter()))
    };
    let full = rates("everything", resync::full)?;
    let identical = rates("equal sides, compared by hash", resync::identical)?;
    let row = |name: &str, rate: f64, goal: &str| {
        let times = format!("{:.1}", rate / full);
        vec![name.into(), format!("{rate:.0}"), times, goal.into()]
    };
    table::print(
        &format!(
            "Resync on {}, MB/s of the range, median of {}, {} MiB",
            GIGABIT.title,
            plan.rounds,
            bytes >> 20
        ),
        &["", "MB/s", "x full", "goal"],
        &[
            row("everything, by `resync --full`", full, ""),
            row("equal sides, compared by hash", identical, "at least 4"),
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_compared_with_sync() {
        let sample = |figure, lag_bytes, lag_ms| Sample {
            figure,
            lag_bytes,
            lag_ms,
        };
        let cells = row(
            "4k",
            &[
                sample(200.0, 0.0, 0.0),
                sample(300.0, 2048.0, 3.0),
                sample(1000.0, 10240.0, 25.0),
            ],
        );
        let expected = [
            "4k", "200", "300", "1.50", "2", "3", "1000", "5.00", "10", "25",
        ];
        assert_eq!(cells, expected);
    }
}
