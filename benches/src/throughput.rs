//! Replicated reads and writes through NBD on files in memory: QEMU's mirror, ours in the clear, ours encrypted.

use std::path::Path;

use anyhow::{Context, Result};
use local_pair::{Pair, PairOptions, Placement, Programs, Side};

use crate::files::preallocated;
use crate::fio::{self, Reached};
use crate::qemu_mirror::QemuMirror;
use crate::table;

pub struct Case {
    pub name: &'static str,
    way: &'static str,
    block: &'static str,
    depth: u32,
    in_megabytes: bool,
}

impl Case {
    /// For `fio`.
    pub fn words(&self, seconds: f64) -> [String; 5] {
        [
            format!("--rw={}", self.way),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            format!("--runtime={}ms", (seconds * 1e3) as u64),
            "--time_based".into(),
        ]
    }

    /// Operations or megabytes a second, as it counts.
    pub fn figure(&self, reached: &Reached) -> f64 {
        match self.in_megabytes {
            true => reached.bytes_per_s / 1e6,
            false => reached.operations_per_s,
        }
    }
}

/// The one that shows what a single operation takes.
pub const ALONE: Case = case("4k write QD1 IOPS", "randwrite", "4k", 1, false);

pub const LARGE: Case = case("128k write QD16 MB/s", "write", "128k", 16, true);
pub const DEEP: Case = case("4k write QD32 IOPS", "randwrite", "4k", 32, false);
pub const READ: Case = case("4k read QD32 IOPS", "randread", "4k", 32, false);
const LARGEST: Case = case("1M write QD8 MB/s", "write", "1M", 8, true);

const CASES: [Case; 5] = [ALONE, DEEP, LARGE, LARGEST, READ];

const fn case(
    name: &'static str,
    way: &'static str,
    block: &'static str,
    depth: u32,
    in_megabytes: bool,
) -> Case {
    Case {
        name,
        way,
        block,
        depth,
        in_megabytes,
    }
}

/// All three run at the same time, and each row is measured on one after the other, so that whatever else the
/// machine does meanwhile weighs on all of them alike.
pub fn print(seconds: f64, file_bytes: u64) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("mirror-bench-")
        .tempdir_in("/dev/shm")?;
    let qemu = start_qemu(folder.path(), file_bytes)?;
    let plain = start_ours(file_bytes, false)?;
    let encrypted = start_ours(file_bytes, true)?;
    let mut rows = Vec::new();
    for case in &CASES {
        eprintln!("  {}", case.name);
        let reached = |uri: &str| measure(case, uri, seconds).context(case.name);
        let qemu = reached(&qemu.uri())?;
        let plain = reached(&plain.uri(Side::First))?;
        let encrypted = reached(&encrypted.uri(Side::First))?;
        rows.push(vec![
            case.name.into(),
            format!("{qemu:.0}"),
            format!("{plain:.0}"),
            format!("{:.2}", plain / qemu),
            format!("{encrypted:.0}"),
            format!("{:.2}", encrypted / qemu),
        ]);
    }
    for pair in [&plain, &encrypted] {
        pair.wait_synced()?;
    }
    let title = format!(
        "Replicated I/O through NBD, both sides in /dev/shm, fio, {seconds} s a row, {} MiB files",
        file_bytes >> 20
    );
    let head = ["", "QEMU mirror", "plain", "x QEMU", "TLS", "x QEMU"];
    table::print(&title, &head, &rows);
    Ok(())
}

fn measure(case: &Case, uri: &str, seconds: f64) -> Result<f64> {
    let reached = fio::run(uri, seconds as u64 + 60, &case.words(seconds))?;
    Ok(case.figure(&reached))
}

fn start_qemu(folder: &Path, file_bytes: u64) -> Result<QemuMirror> {
    let primary = preallocated(folder, "primary", file_bytes)?;
    let secondary = preallocated(folder, "secondary", file_bytes)?;
    QemuMirror::start(folder, &primary, &secondary)
}

/// Both sides in memory.
pub fn start_ours(file_bytes: u64, encryption: bool) -> Result<Pair> {
    let options = PairOptions {
        placement: Placement::Memory,
        encryption,
        // Both files are known to be zero.
        initial_sync: "skip",
        ..PairOptions::sized(file_bytes)
    };
    Pair::synced(Programs::fresh()?, &options)
}
