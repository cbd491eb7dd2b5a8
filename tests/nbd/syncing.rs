//! First syncs of every kind, verify and repair, pause and resume, growth.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use local_pair::{MIRROR, Pair, PairOptions, Programs, Side};

use crate::client::{qemu_io, random_file};
use crate::{MIB, assert_same_data, small, synced};

/// A pair whose first side already holds 8 MiB at its beginning when it is declared the truth.
fn first_sync(initial_sync: &'static str) -> Result<u64> {
    let options = PairOptions {
        initial_sync,
        ..small()
    };
    let mut pair = Pair::create(Programs::fresh()?, &options)?;
    let data = pair.node(Side::First).data.clone();
    random_file(&data, 8 * MIB)?;
    std::fs::File::options()
        .write(true)
        .open(&data)?
        .set_len(64 * MIB)?;
    let other = pair.node(Side::Second).data.clone();
    if initial_sync == "skip" {
        std::fs::copy(&data, &other)?;
    } else {
        // Old data of another kind must not shine through where the source is zero.
        random_file(&other, 64 * MIB)?;
    }
    pair.bring_up()?;
    pair.promote_first()?;
    let copied = pair.status(Side::Second)?.counters.bytes_received;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)?;
    Ok(copied)
}

#[test]
fn a_full_first_sync_makes_both_sides_the_same() -> Result<()> {
    let copied = first_sync("full")?;
    ensure!(copied >= 8 * MIB, "received {copied} bytes");
    Ok(())
}

#[test]
fn a_sparse_first_sync_copies_what_is_not_zero() -> Result<()> {
    let copied = first_sync("sparse")?;
    ensure!(
        (8 * MIB..12 * MIB).contains(&copied),
        "received {copied} bytes"
    );
    Ok(())
}

#[test]
fn a_skipped_first_sync_copies_nothing() -> Result<()> {
    let copied = first_sync("skip")?;
    ensure!(copied < MIB, "received {copied} bytes");
    Ok(())
}

#[test]
fn verify_finds_damage_made_behind_the_mirrors_back_and_repairs_it() -> Result<()> {
    let mut pair = synced(&small())?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 16M", "flush"])?;
    let damaged = std::fs::File::options()
        .write(true)
        .open(&pair.node(Side::Second).data)?;
    damaged.write_all_at(&[0xee; 4096], 5 * MIB)?;
    damaged.sync_all()?;
    let found = pair.verify(Side::First, &[])?;
    ensure!(
        (4096..=4 * MIB).contains(&found),
        "verify found {found} bytes"
    );
    pair.verify(Side::First, &["--repair"])?;
    // It returns when the repair is through.
    let repaired = pair.status(Side::First)?;
    ensure!(
        repaired.out_of_sync_bytes == 0 && repaired.sync.is_none(),
        "{repaired:?}"
    );
    ensure!(
        pair.verify(Side::First, &[])? == 0,
        "the repair did not mend it"
    );
    assert_same_data(&mut pair)
}

#[test]
fn a_paused_resync_stands_still_and_resumes() -> Result<()> {
    let options = PairOptions {
        initial_sync: "full",
        extra: vec!["resync_rate_max = \"8MiB\"".into()],
        ..small()
    };
    let pair = Pair::connected(Programs::fresh()?, &options)?;
    pair.ctl(Side::First, &["promote", MIRROR, "--force"])
        .done()?;
    pair.wait_for(Side::First, "the start of the sync", 20, |s| {
        s.sync.is_some()
    })?;
    pair.ctl(Side::First, &["pause", MIRROR]).done()?;
    let paused = pair.wait_for(Side::First, "the pause", 20, |s| {
        s.sync.as_ref().is_some_and(|sync| sync.paused)
    })?;
    ensure!(
        paused
            .sync
            .is_some_and(|sync| sync.done_bytes < sync.total_bytes)
    );
    pair.ctl(Side::First, &["resume", MIRROR]).done()?;
    pair.wait_synced()
}

#[test]
fn a_resync_goes_on_where_it_was_after_the_target_was_killed() -> Result<()> {
    let options = PairOptions {
        extra: vec!["resync_rate_max = \"16MiB\"".into()],
        ..PairOptions::sized(256 * MIB)
    };
    let mut pair = synced(&options)?;
    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    let fill: Vec<String> = (0..96)
        .map(|mib| format!("write -P {} {mib}M 1M", mib + 1))
        .collect();
    qemu_io(
        &pair.uri(Side::First),
        &fill.iter().map(String::as_str).collect::<Vec<_>>(),
    )?;
    pair.start(Side::Second)?;
    // The rest takes more than four seconds, in which it has to be seen.
    pair.wait_for(Side::First, "a quarter of the resync", 60, |s| {
        s.sync.is_some() && s.out_of_sync_bytes < 72 * MIB
    })?;
    pair.node_mut(Side::Second).kill()?;
    pair.wait_alone(Side::First)?;
    pair.start(Side::Second)?;
    pair.wait_connected()?;
    let left = pair.status(Side::First)?;
    ensure!(left.out_of_sync_bytes < 90 * MIB, "started over: {left:?}");
    pair.wait_synced()?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn grown_files_are_taken_up_online() -> Result<()> {
    let mut pair = synced(&small())?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 60M 4M"])?;
    for side in Side::BOTH {
        let file = std::fs::File::options()
            .write(true)
            .open(&pair.node(side).data)?;
        // Past the end of the first page of the bitmap.
        file.set_len(256 * MIB)?;
    }
    pair.ctl(Side::First, &["resize", MIRROR]).done()?;
    pair.wait_for(Side::First, "the new size", 20, |s| {
        s.size_bytes == 256 * MIB
    })
    .context("after resize")?;
    pair.wait_synced()?;
    qemu_io(
        &pair.uri(Side::First),
        &[
            "read -P 1 60M 4M",
            "write -P 2 250M 4M",
            "read -P 2 250M 4M",
        ],
    )?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn metadata_at_the_end_of_the_data_works_too() -> Result<()> {
    let mut pair = synced(&PairOptions {
        internal_metadata: true,
        ..small()
    })?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 8M", "flush"])?;
    pair.node_mut(Side::Second).kill()?;
    pair.wait_alone(Side::First)?;
    qemu_io(&pair.uri(Side::First), &["write -P 2 4M 1M", "flush"])?;
    pair.start(Side::Second)?;
    pair.wait_synced()?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    Ok(())
}

#[test]
fn metadata_at_the_end_of_the_data_moves_when_the_data_grows() -> Result<()> {
    let mut pair = synced(&PairOptions {
        internal_metadata: true,
        ..small()
    })?;
    let before = pair.status(Side::First)?.size_bytes;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 8M", "flush"])?;
    for side in [Side::Second, Side::First] {
        pair.node_mut(side).stop()?;
        std::fs::File::options()
            .write(true)
            .open(&pair.node(side).data)?
            .set_len(256 * MIB)?;
    }
    for side in Side::BOTH {
        pair.start(side)?;
    }
    pair.wait_connected()?;
    pair.ctl(Side::First, &["promote", MIRROR]).done()?;
    pair.wait_synced()?;
    pair.ctl(Side::First, &["resize", MIRROR]).done()?;
    pair.wait_for(Side::First, "the new size", 20, |s| {
        s.size_bytes > before + 180 * MIB
    })?;
    pair.wait_synced()?;
    qemu_io(
        &pair.uri(Side::First),
        &["read -P 1 0 8M", "write -P 2 200M 4M", "read -P 2 200M 4M"],
    )?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    Ok(())
}
