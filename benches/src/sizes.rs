//! Figures that are counts and sizes: metadata writes, the share a resync moves, memory, the time to open.

use std::time::Instant;

use anyhow::{Context, Result};
use local_pair::{MIRROR, Pair, PairOptions, Placement, Programs, Side};
use mirror_core::control::Counters;

use crate::fio;
use crate::process;
use crate::table;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const FIO_SECONDS_MAX: u64 = 120;

pub fn print(smoke: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut row = |name: &str, found: String, goal: &str| {
        eprintln!("  {name}: {found}");
        rows.push(vec![name.to_string(), found, goal.to_string()]);
    };
    let writes = if smoke { 4096 } else { 32768 };
    let (cold, hot) = metadata_writes(writes)?;
    row(
        "metadata writes, random burst over cold extents, QD32",
        ratio(cold),
        "at most 1 in 16",
    );
    row(
        "metadata writes, random burst into hot extents, QD32",
        ratio(hot),
        "none",
    );
    let mirror_bytes = if smoke { GIB / 4 } else { GIB };
    let share = resync_share(mirror_bytes)?;
    row(
        "resync after 1 % was written while disconnected",
        format!("{:.2} % of the disk", share * 100.0),
        "at most 1.1 %",
    );
    let (memory_kib, _) = open(TIB)?;
    row(
        "memory of mirrord, 1 TiB mirror",
        format!("{:.1} MiB", memory_kib as f64 / 1024.0),
        "under 128 MiB",
    );
    let (_, seconds) = open(16 * TIB)?;
    row(
        "opening a 16 TiB mirror",
        format!("{seconds:.2} s"),
        "under 1 s",
    );
    table::print("Sizes and counts", &["", "found", "goal"], &rows);
    Ok(())
}

fn sparse(bytes: u64) -> PairOptions {
    PairOptions {
        placement: Placement::Memory,
        preallocate: false,
        initial_sync: "skip",
        ..PairOptions::sized(bytes)
    }
}

fn ratio((metadata, data): (u64, u64)) -> String {
    match metadata {
        0 => format!("none for {data} writes"),
        _ => format!(
            "{metadata} for {data} writes, 1 in {:.1}",
            data as f64 / metadata as f64
        ),
    }
}

/// Metadata writes and data writes of a burst over a disk far larger than the activity log, then of one that stays
/// within a few extents.
fn metadata_writes(writes: u64) -> Result<((u64, u64), (u64, u64))> {
    let pair = Pair::synced(Programs::fresh()?, &sparse(64 * GIB))?;
    let burst = |region: &[&str]| -> Result<(u64, u64)> {
        let before = counters(&pair)?;
        let mut arguments: Vec<String> = ["--rw=randwrite", "--bs=4k", "--iodepth=32"]
            .map(String::from)
            .to_vec();
        arguments.push(format!("--number_ios={writes}"));
        arguments.push("--norandommap".into());
        arguments.extend(region.iter().map(ToString::to_string));
        fio::run(&pair.uri(Side::First), FIO_SECONDS_MAX, &arguments)?;
        let after = counters(&pair)?;
        Ok((
            after.metadata_writes - before.metadata_writes,
            after.writes - before.writes,
        ))
    };
    let cold = burst(&["--size=64g", "--randseed=1"])?;
    let within = ["--size=64m", "--randseed=2"];
    burst(&within)?;
    let hot = burst(&within)?;
    Ok((cold, hot))
}

fn counters(pair: &Pair) -> Result<Counters> {
    Ok(pair.status(Side::First)?.counters)
}

/// The share of the disk that a resync moves after 1 % of its blocks were written while disconnected.
fn resync_share(bytes: u64) -> Result<f64> {
    let pair = Pair::synced(Programs::fresh()?, &sparse(bytes))?;
    pair.ctl(Side::First, &["disconnect", MIRROR]).done()?;
    pair.wait_alone(Side::First)?;
    fio::run(
        &pair.uri(Side::First),
        FIO_SECONDS_MAX,
        &[
            "--rw=randwrite".into(),
            "--bs=4k".into(),
            "--iodepth=32".into(),
            format!("--size={bytes}"),
            format!("--io_size={}", bytes / 100 / 4096 * 4096),
        ],
    )?;
    pair.ctl(Side::First, &["connect", MIRROR]).done()?;
    pair.wait_synced()?;
    let copied = pair.status(Side::First)?.last_sync_copied_bytes;
    Ok(copied as f64 / bytes as f64)
}

/// Resident memory in KiB of a connected primary, and the seconds from the start of a node to its answer.
fn open(bytes: u64) -> Result<(u64, f64)> {
    let mut pair = Pair::synced(Programs::fresh()?, &sparse(bytes))?;
    fio::run(
        &pair.uri(Side::First),
        FIO_SECONDS_MAX,
        &[
            "--rw=randwrite".into(),
            "--bs=4k".into(),
            "--iodepth=32".into(),
            format!("--size={bytes}"),
            "--number_ios=4096".into(),
            "--norandommap".into(),
        ],
    )?;
    let id = pair
        .node(Side::First)
        .process_id()
        .context("the node runs")?;
    let resident = process::resident_kib(id)?;
    pair.node_mut(Side::Second).stop()?;
    let start = Instant::now();
    pair.start(Side::Second)?;
    Ok((resident, start.elapsed().as_secs_f64()))
}
