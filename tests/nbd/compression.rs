//! Data that crosses the link compressed is on both disks as it was written, whether it shrinks or not.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use local_pair::{Pair, PairOptions, Side};
use mirror_core::control::Counters;

use crate::client::{qemu_io, random_file, run};
use crate::{MIB, assert_same_data, small, synced};

fn compressing() -> PairOptions {
    PairOptions {
        initial_sync: "full",
        extra: vec!["compression = \"both\"".into()],
        ..small()
    }
}

/// 8 MiB of records as a log has them: no two alike, and much in common.
fn write_records(path: &Path) -> Result<()> {
    let mut text = String::new();
    for number in 0.. {
        text += &format!("{number:016x} server1 mirror[4711]: write of 4096 bytes done\n");
        if text.len() as u64 >= 8 * MIB {
            break;
        }
    }
    std::fs::write(path, &text.as_bytes()[..8 * MIB as usize])?;
    Ok(())
}

/// What was covered since `before`, and what it became.
fn saved(pair: &Pair, before: Counters) -> Result<(u64, u64)> {
    let now = pair.status(Side::First)?.counters;
    Ok((
        now.bytes_before_compression - before.bytes_before_compression,
        now.bytes_after_compression - before.bytes_after_compression,
    ))
}

#[test]
fn writes_and_a_resync_bring_what_shrinks_and_what_does_not() -> Result<()> {
    let mut pair = synced(&compressing())?;
    let folder = pair.folder().to_owned();
    let [records, noise] = ["records", "noise"].map(|name| folder.join(name));
    write_records(&records)?;
    random_file(&noise, 8 * MIB)?;
    let write = |from: &Path, mib: u64| format!("write -s {} {mib}M 8M", from.display());
    let uri = pair.uri(Side::First);

    let start = pair.status(Side::First)?.counters;
    let writes = [write(&records, 0), write(&noise, 8), write(&records, 20)];
    qemu_io(&uri, &writes.each_ref().map(String::as_str))?;
    qemu_io(&uri, &["write -P 9 30M 512", "write -P 8 31M 64k", "flush"])?;
    let (before, after) = saved(&pair, start)?;
    ensure!(
        before == 24 * MIB + 512 + (64 << 10),
        "covered {before} bytes"
    );
    // The noise went as it is, and the records at less than half.
    ensure!((9 * MIB..16 * MIB).contains(&after), "sent {after} bytes");
    let sent = pair.status(Side::First)?.counters.bytes_sent - start.bytes_sent;
    ensure!((after..after + MIB).contains(&sent), "{sent} on the wire");

    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    let alone = pair.status(Side::First)?.counters;
    let writes = [write(&noise, 2), write(&records, 40)];
    qemu_io(&uri, &writes.each_ref().map(String::as_str))?;
    pair.start(Side::Second)?;
    pair.wait_synced()?;
    let (before, after) = saved(&pair, alone)?;
    ensure!(before >= 16 * MIB, "copied {before} bytes");
    ensure!(
        (8 * MIB..before - 3 * MIB).contains(&after),
        "sent {after} of {before} bytes"
    );

    let status = pair.status(Side::First)?;
    let ratio = status.compression_ratio.context("a ratio")?;
    ensure!(ratio > 1.3, "{ratio}");
    let shown = pair.ctl(Side::First, &["mdstat", "--stats"]).done()?;
    ensure!(shown.contains(&format!("{ratio:.2} to 1")), "{shown}");
    let metrics = pair.ctl(Side::First, &["metrics"]).done()?;
    let counters = status.counters;
    for (moment, bytes) in [
        ("before", counters.bytes_before_compression),
        ("after", counters.bytes_after_compression),
    ] {
        let sample =
            format!("mirror_compression_bytes_total{{mirror=\"md1\",moment=\"{moment}\"}} {bytes}");
        ensure!(metrics.contains(&sample), "no {sample} in:\n{metrics}");
    }

    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    for (from, at) in [(&noise, 2), (&records, 20), (&records, 40)] {
        for side in Side::BOTH {
            let [from, data] = [from, &pair.node(side).data].map(|path| path.display().to_string());
            let skip = format!("0:{}", at * MIB);
            run(
                "cmp",
                &["-i", &skip, "-n", &(8 * MIB).to_string(), &from, &data],
            )?;
        }
    }
    assert_same_data(&mut pair)
}

#[test]
fn writes_alone_leave_a_resync_as_it_is() -> Result<()> {
    let mut pair = synced(&PairOptions {
        extra: vec!["compression = \"data\"".into()],
        ..small()
    })?;
    let start = pair.status(Side::First)?.counters;
    qemu_io(&pair.uri(Side::First), &["write -P 5 0 4M"])?;
    let (before, after) = saved(&pair, start)?;
    ensure!(
        before == 4 * MIB && after < MIB,
        "{after} of {before} bytes"
    );

    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    let alone = pair.status(Side::First)?.counters;
    qemu_io(&pair.uri(Side::First), &["write -P 6 0 4M"])?;
    pair.start(Side::Second)?;
    pair.wait_synced()?;
    ensure!(saved(&pair, alone)? == (0, 0));
    let sent = pair.status(Side::First)?.counters.bytes_sent - alone.bytes_sent;
    ensure!(sent > 4 * MIB, "{sent} on the wire");
    Ok(())
}
