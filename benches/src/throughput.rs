//! Replicated reads and writes through NBD on files in memory: QEMU's mirror, ours in the clear, ours encrypted.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use local_pair::{Pair, PairOptions, Placement, Programs, Side};
use nix::fcntl::{FallocateFlags, fallocate};

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

pub fn print(seconds: u64, file_bytes: u64) -> Result<()> {
    let qemu = measure_qemu(seconds, file_bytes)?;
    let plain = measure_ours(seconds, file_bytes, false)?;
    let encrypted = measure_ours(seconds, file_bytes, true)?;
    let mut rows = Vec::new();
    for (index, case) in CASES.iter().enumerate() {
        rows.push(vec![
            case.name.into(),
            format!("{:.0}", qemu[index]),
            format!("{:.0}", plain[index]),
            format!("{:.2}", plain[index] / qemu[index]),
            format!("{:.0}", encrypted[index]),
            format!("{:.2}", encrypted[index] / qemu[index]),
        ]);
    }
    let title = format!(
        "Replicated I/O through NBD, both sides in /dev/shm, fio, {seconds} s a row, {} MiB files",
        file_bytes >> 20
    );
    let head = ["", "QEMU mirror", "plain", "x QEMU", "TLS", "x QEMU"];
    table::print(&title, &head, &rows);
    Ok(())
}

fn measure(uri: &str, seconds: u64) -> Result<Vec<f64>> {
    CASES
        .iter()
        .map(|case| {
            eprintln!("  {}", case.name);
            let reached = fio::run(
                uri,
                seconds + 60,
                &[
                    format!("--rw={}", case.way),
                    format!("--bs={}", case.block),
                    format!("--iodepth={}", case.depth),
                    format!("--runtime={seconds}"),
                    "--time_based".into(),
                    "--randrepeat=1".into(),
                ],
            )
            .context(case.name)?;
            Ok(if case.in_megabytes {
                reached.bytes_per_s / 1e6
            } else {
                reached.operations_per_s
            })
        })
        .collect()
}

fn measure_qemu(seconds: u64, file_bytes: u64) -> Result<Vec<f64>> {
    eprintln!("QEMU blockdev-mirror, write-blocking");
    let folder = tempfile::Builder::new()
        .prefix("mirror-bench-")
        .tempdir_in("/dev/shm")?;
    let primary = preallocated(folder.path(), "primary", file_bytes)?;
    let secondary = preallocated(folder.path(), "secondary", file_bytes)?;
    let mirror = QemuMirror::start(folder.path(), &primary, &secondary)?;
    measure(&mirror.uri(), seconds)
}

fn measure_ours(seconds: u64, file_bytes: u64, encryption: bool) -> Result<Vec<f64>> {
    eprintln!("ours, encryption {}", if encryption { "on" } else { "off" });
    let options = PairOptions {
        placement: Placement::Memory,
        encryption,
        // Both files are known to be zero.
        initial_sync: "skip",
        ..PairOptions::sized(file_bytes)
    };
    let pair = Pair::synced(Programs::fresh()?, &options)?;
    let figures = measure(&pair.uri(Side::First), seconds)?;
    pair.wait_synced()?;
    Ok(figures)
}

fn preallocated(folder: &Path, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = folder.join(name);
    let file = File::create(&path)?;
    fallocate(
        file.as_fd(),
        FallocateFlags::empty(),
        0,
        i64::try_from(bytes)?,
    )
    .with_context(|| format!("cannot take {bytes} bytes in /dev/shm"))?;
    Ok(path)
}
