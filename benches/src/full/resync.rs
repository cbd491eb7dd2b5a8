//! How fast a resync goes, beside one stream of loopback TCP and one file, and what it leaves to clients. Both sides in
//! memory, link in the clear, pace at its default.

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use local_pair::{Deadline, MIRROR, Pair, PairOptions, Placement, Programs, Side};
use mirror_core::control::{Connection, DiskState, MirrorStatus};

use super::contender::{Medium, Target, plain_pair};
use super::load::median;
use crate::files::preallocated;
use crate::fio;

const FULL: &str = "resync-full";
const DIFFERENCE: &str = "resync-difference";
const IDENTICAL: &str = "resync-identical";
const SPARSE: &str = "resync-sparse";
const LOAD: &str = "resync-load";
pub const IDS: [&str; 5] = [FULL, DIFFERENCE, IDENTICAL, SPARSE, LOAD];

/// Of the mirror's size, what is written while the peer is away.
const DIFFERENCE_PART: u64 = 4;
/// How much larger the sparse file is, and which part of it holds data.
const SPARSE_TIMES: u64 = 4;
const SPARSE_PART: u64 = 32;
const ROUNDS: usize = 3;
const SECONDS_MAX: u64 = 120;
const STREAM_TIME: Duration = Duration::from_secs(1);
const STREAM_CHUNK: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Resyncs {
    /// Megabytes a second of one stream of loopback TCP, and of sequential writes to one file.
    limits: Option<[f64; 2]>,
    rows: Vec<(&'static str, &'static str, f64)>,
    load: Option<Kept>,
}

/// What clients get, without and during a full resync.
#[derive(Debug)]
struct Kept {
    alone_iops: f64,
    during_iops: f64,
    /// Runs at whose end the resync was still going.
    covered: usize,
}

/// Those that are wanted, with a mirror of `bytes`.
pub fn measure(bytes: u64, wants: impl Fn(&str) -> bool) -> Result<Resyncs> {
    let mut found = Resyncs::default();
    if !IDS.iter().any(|id| wants(id)) {
        return Ok(found);
    }
    eprintln!("Resync");
    found.limits = Some([loopback_stream()? / 1e6, file_write(bytes)? / 1e6]);
    let options = PairOptions {
        placement: Placement::Memory,
        initial_sync: "skip",
        ..PairOptions::sized(bytes)
    };
    let mut pair = plain_pair(options)?;
    fill(&pair, bytes)?;
    for (id, title, measured) in [
        (
            FULL,
            "everything, by `resync --full`",
            full as fn(&mut Pair, u64) -> Result<f64>,
        ),
        (
            DIFFERENCE,
            "a quarter, written while the peer was away",
            difference,
        ),
        (
            IDENTICAL,
            "equal sides, compared by hash after a crash",
            identical,
        ),
        (
            SPARSE,
            "first sync of a file of which 1/32 holds data",
            sparse,
        ),
    ] {
        if !wants(id) {
            continue;
        }
        eprintln!("  {title}");
        let rates = (0..ROUNDS).map(|_| measured(&mut pair, bytes));
        let rates = rates.collect::<Result<Vec<_>>>().context(title)?;
        found.rows.push((id, title, median(rates.into_iter())));
    }
    if wants(LOAD) {
        eprintln!("  what clients keep meanwhile");
        found.load = Some(under_load(&pair)?);
    }
    Ok(found)
}

/// Writes the first `bytes` of the mirror.
pub fn fill(pair: &Pair, bytes: u64) -> Result<()> {
    let words = ["--rw=write", "--bs=1M", "--iodepth=8"];
    let mut words: Vec<String> = words.map(String::from).to_vec();
    words.push(format!("--size={bytes}"));
    fio::run(&pair.uri(Side::First), SECONDS_MAX, &words).map(drop)
}

/// Megabytes a second of a copy of everything.
pub fn full(pair: &mut Pair, bytes: u64) -> Result<f64> {
    let began = Instant::now();
    pair.ctl(Side::First, &["resync", MIRROR, "--full"])
        .done()?;
    rate(pair, began, bytes)
}

fn difference(pair: &mut Pair, bytes: u64) -> Result<f64> {
    pair.ctl(Side::First, &["disconnect", MIRROR]).done()?;
    pair.wait_alone(Side::First)?;
    let bytes = bytes / DIFFERENCE_PART;
    fill(pair, bytes)?;
    let began = Instant::now();
    pair.ctl(Side::First, &["connect", MIRROR]).done()?;
    rate(pair, began, bytes)
}

/// The same of a comparison of equal sides. Every extent was written lately, so that all of the disk is in doubt after
/// the crash.
pub fn identical(pair: &mut Pair, bytes: u64) -> Result<f64> {
    pair.node_mut(Side::First).kill()?;
    let began = Instant::now();
    pair.start(Side::First)?;
    let rate = rate(pair, began, bytes)?;
    pair.ctl(Side::First, &["promote", MIRROR]).done()?;
    fill(pair, bytes)?;
    Ok(rate)
}

/// On a pair of its own.
fn sparse(_: &mut Pair, bytes: u64) -> Result<f64> {
    let bytes = SPARSE_TIMES * bytes;
    let options = PairOptions {
        placement: Placement::Memory,
        encryption: false,
        preallocate: false,
        initial_sync: "sparse",
        ..PairOptions::sized(bytes)
    };
    let mut pair = Pair::create(Programs::fresh()?, &options)?;
    for side in Side::BOTH {
        pair.init(side, &[]).done()?;
    }
    pair.start(Side::First)?;
    pair.ctl(Side::First, &["promote", MIRROR, "--force"])
        .done()?;
    fill(&pair, bytes / SPARSE_PART)?;
    let began = Instant::now();
    pair.start(Side::Second)?;
    rate(&pair, began, bytes)
}

/// Megabytes a second of a resync that is about to begin: from the first sight of it to its end. `began` counts
/// where it was over before anybody looked.
fn rate(pair: &Pair, began: Instant, bytes: u64) -> Result<f64> {
    let mut seen = None;
    let took = Deadline::after_seconds(SECONDS_MAX).until("the end of the resync", || {
        let status = pair.status(Side::First)?;
        if status.sync.is_some() {
            seen.get_or_insert_with(Instant::now);
        }
        Ok(is_equal(&status).then(|| seen.unwrap_or(began).elapsed()))
    })?;
    Ok(bytes as f64 / 1e6 / took.as_secs_f64())
}

fn is_equal(status: &MirrorStatus) -> bool {
    status.connection == Connection::Connected
        && status.disk == DiskState::UpToDate
        && status.peer.disk == DiskState::UpToDate
        && status.sync.is_none()
        && status.out_of_sync_bytes == 0
}

fn under_load(pair: &Pair) -> Result<Kept> {
    let load = || -> Result<f64> {
        let words = [
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=32",
            "--time_based",
            "--runtime=1",
        ];
        let words = words.map(String::from);
        Ok(fio::run(&pair.uri(Side::First), SECONDS_MAX, &words)?.operations_per_s)
    };
    let (mut alone, mut during) = (Vec::new(), Vec::new());
    let mut covered = 0;
    for _ in 0..ROUNDS {
        alone.push(load()?);
        pair.ctl(Side::First, &["resync", MIRROR, "--full"])
            .done()?;
        pair.wait_for(
            Side::First,
            "the begin of the resync",
            SECONDS_MAX,
            |status| status.sync.is_some(),
        )?;
        during.push(load()?);
        covered += usize::from(pair.status(Side::First)?.sync.is_some());
        pair.wait_synced()?;
    }
    Ok(Kept {
        alone_iops: median(alone.into_iter()),
        during_iops: median(during.into_iter()),
        covered,
    })
}

/// Bytes a second.
fn loopback_stream() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut from, _) = listener.accept()?;
    let reader = std::thread::spawn(move || -> std::io::Result<u64> {
        let mut chunk = vec![0; STREAM_CHUNK];
        let mut bytes = 0;
        loop {
            match from.read(&mut chunk)? {
                0 => return Ok(bytes),
                read => bytes += read as u64,
            }
        }
    });
    let chunk = vec![7; STREAM_CHUNK];
    let began = Instant::now();
    while began.elapsed() < STREAM_TIME {
        to.write_all(&chunk)?;
    }
    drop(to);
    let bytes = reader.join().ok().context("the reader panicked")??;
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// Bytes a second.
fn file_write(bytes: u64) -> Result<f64> {
    let folder = tempfile::Builder::new()
        .prefix("mirror-bench-")
        .tempdir_in(Medium::Memory.folder())?;
    let target = Target::File(preallocated(folder.path(), "file", bytes)?);
    let words = [
        "--rw=write",
        "--bs=1M",
        "--iodepth=8",
        "--time_based",
        "--runtime=1",
    ];
    let limit = Duration::from_secs(SECONDS_MAX);
    Ok(fio::on(&target.fio_words(), limit, &words)?.bytes_per_s)
}

impl Resyncs {
    pub fn write(&self, text: &mut String) {
        let Some([stream, file]) = self.limits else {
            return;
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "## Resync\n\nBoth sides in memory, link in the clear, median of {ROUNDS}. One stream of loopback TCP moves \
             {stream:.0} MB/s here, sequential writes to one file {file:.0} MB/s.\n"
        );
        if !self.rows.is_empty() {
            let _ = writeln!(
                text,
                "| | MB/s of the range | × loopback | × file |\n|---|---:|---:|---:|"
            );
        }
        for (id, title, rate) in &self.rows {
            let _ = writeln!(
                text,
                "| {title} (`{id}`) | {rate:.0} | {:.2} | {:.2} |",
                rate / stream,
                rate / file
            );
        }
        text.push('\n');
        if let Some(kept) = &self.load {
            let _ = writeln!(
                text,
                "Clients (`{LOAD}`): {:.0} IOPS of 4k random writes at depth 32 without, {:.0} during a full resync: \
                 {:.0} % are kept. The resync outlasted {} of {ROUNDS} runs.\n",
                kept.alone_iops,
                kept.during_iops,
                100.0 * kept.during_iops / kept.alone_iops,
                kept.covered
            );
        }
    }
}
