//! Resident memory of both nodes under a random load: what is taken at the start is all there ever is.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use local_pair::{Pair, PairOptions, Placement, Side};

use super::contender::plain_pair;
use crate::fio;
use crate::process;

pub const ID: &str = "memory";

/// Before the first look: every page that the load uses is touched.
const WARM: Duration = Duration::from_secs(5);

/// KiB of the first and the second node.
#[derive(Debug)]
pub struct Growth {
    length: Duration,
    before: [u64; 2],
    after: [u64; 2],
}

pub fn measure(bytes: u64, length: Duration) -> Result<Growth> {
    eprintln!("memory under a random load, {} s", length.as_secs());
    let pair = plain_pair(PairOptions {
        placement: Placement::Memory,
        initial_sync: "skip",
        ..PairOptions::sized(bytes)
    })?;
    load(&pair, WARM)?;
    let before = resident(&pair)?;
    load(&pair, length)?;
    let after = resident(&pair)?;
    Ok(Growth {
        length,
        before,
        after,
    })
}

fn load(pair: &Pair, length: Duration) -> Result<()> {
    let runtime = format!("--runtime={}", length.as_secs());
    let words = [
        "--rw=randrw",
        // From one sector to what a server splits.
        "--bsrange=4k-2M",
        "--iodepth=64",
        "--time_based",
        &runtime,
    ];
    let words: Vec<String> = words.map(String::from).to_vec();
    fio::run(&pair.uri(Side::First), length.as_secs() + 60, &words).map(drop)
}

fn resident(pair: &Pair) -> Result<[u64; 2]> {
    let of = |side| {
        let id = pair.node(side).process_id().context("the node runs")?;
        process::resident_kib(id)
    };
    Ok([of(Side::First)?, of(Side::Second)?])
}

impl Growth {
    pub fn write(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "## Memory (`{ID}`)\n\nResident memory of `mirrord` under {} s of random reads and writes of 4 KiB to 2 MiB, \
             depth 64, after {} s of the same.\n\n| | before | after | growth |\n|---|---:|---:|---:|",
            self.length.as_secs(),
            WARM.as_secs()
        );
        for (name, index) in [("primary", 0), ("secondary", 1)] {
            let (before, after) = (self.before[index] as f64, self.after[index] as f64);
            let _ = writeln!(
                text,
                "| {name} | {:.1} MiB | {:.1} MiB | {:+.1} % |",
                before / 1024.0,
                after / 1024.0,
                100.0 * (after - before) / before
            );
        }
        text.push('\n');
    }
}
