//! Replicated reads and writes through NBD on files in memory: QEMU's mirror, ours in the clear, ours encrypted.

use std::path::Path;

use anyhow::{Context, Result};
use local_pair::{Pair, PairOptions, Placement, Programs, Side};

use crate::files::preallocated;
use crate::fio;
use crate::qemu_mirror::QemuMirror;
use crate::table;

struct Case {
    name: &'static str,
    way: &'static str,
    block: &'static str,
    depth: u32,
    in_megabytes: bool,
}

const CASES: [Case; 5] = [
    case("4k write QD1 IOPS", "randwrite", "4k", 1, false),
    case("4k write QD32 IOPS", "randwrite", "4k", 32, false),
    case("128k write QD16 MB/s", "write", "128k", 16, true),
    case("1M write QD8 MB/s", "write", "1M", 8, true),
    case("4k read QD32 IOPS", "randread", "4k", 32, false),
];

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

/// Operations or megabytes a second, as the case counts.
fn measure(case: &Case, uri: &str, seconds: f64) -> Result<f64> {
    let reached = fio::run(
        uri,
        seconds as u64 + 60,
        &[
            format!("--rw={}", case.way),
            format!("--bs={}", case.block),
            format!("--iodepth={}", case.depth),
            format!("--runtime={}ms", (seconds * 1e3) as u64),
            "--time_based".into(),
        ],
    )?;
    Ok(if case.in_megabytes {
        reached.bytes_per_s / 1e6
    } else {
        reached.operations_per_s
    })
}

fn start_qemu(folder: &Path, file_bytes: u64) -> Result<QemuMirror> {
    let primary = preallocated(folder, "primary", file_bytes)?;
    let secondary = preallocated(folder, "secondary", file_bytes)?;
    QemuMirror::start(folder, &primary, &secondary)
}

fn start_ours(file_bytes: u64, encryption: bool) -> Result<Pair> {
    let options = PairOptions {
        placement: Placement::Memory,
        encryption,
        // Both files are known to be zero.
        initial_sync: "skip",
        ..PairOptions::sized(file_bytes)
    };
    Pair::synced(Programs::fresh()?, &options)
}
