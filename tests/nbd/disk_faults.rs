//! A full or failing disk under one side: the event says what and what to do, and the other side keeps every answered
//! write.

use anyhow::{Result, ensure};
use local_disks::{FailingDisk, SmallDisk};
use local_pair::{Deadline, MIRROR, Pair, PairOptions, Side};
use mirror_core::control::DiskState;

use crate::client::{qemu_io, run_failing};
use crate::{assert_same_data, small, synced};

/// Waits until an event of this kind says all these words.
fn wait_event(pair: &Pair, side: Side, kind: &str, words: &[&str]) -> Result<()> {
    Deadline::after_seconds(20).until(&format!("the event {kind} with {words:?}"), || {
        let events = pair.ctl(side, &["events"]).done()?;
        let found = events
            .lines()
            .filter(|line| line.contains(&format!(" {kind}: ")))
            .any(|line| words.iter().all(|word| line.contains(word)));
        Ok(found.then_some(()))
    })
}

const NO_SPACE: [&str; 2] = ["No space left on device (os error 28)", "make room"];
const IO_ERROR: [&str; 2] = ["Input/output error (os error 5)", "replace-a-disk.md"];

#[test]
fn a_secondary_whose_disk_is_full_is_left_behind_and_nothing_is_lost() -> Result<()> {
    let disk = SmallDisk::mount(16)?;
    let options = PairOptions {
        preallocate: false,
        data_path: [None, Some(disk.data())],
        ..small()
    };
    let mut pair = synced(&options)?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 32M", "flush"])?;
    let status = pair.wait_for(Side::First, "the failed disk of the peer", 30, |s| {
        s.peer.disk == DiskState::Failed
    })?;
    ensure!(status.out_of_sync_bytes > 0, "{status:?}");
    wait_event(&pair, Side::Second, "disk-fault", &NO_SPACE)?;
    wait_event(&pair, Side::Second, "disk-failed", &["server2"])?;
    wait_event(&pair, Side::First, "peer-disk-failed", &["server2"])?;
    qemu_io(&pair.uri(Side::First), &["read -P 1 0 32M"])?;
    // Before the disk below it goes.
    pair.node_mut(Side::Second).kill()
}

#[test]
fn a_primary_whose_disk_is_full_says_so_and_keeps_the_sides_the_same() -> Result<()> {
    let disk = SmallDisk::mount(16)?;
    let options = PairOptions {
        preallocate: false,
        data_path: [Some(disk.data()), None],
        ..small()
    };
    let mut pair = synced(&options)?;
    let uri = pair.uri(Side::First);
    let said = run_failing("qemu-io", &["-f", "raw", "-c", "write -P 1 0 32M", &uri])?;
    ensure!(said.contains("No space left on device"), "{said}");
    wait_event(&pair, Side::First, "disk-fault", &NO_SPACE)?;
    // Giving space back makes the mirror whole again, without a command.
    qemu_io(
        &uri,
        &[
            "write -z -u 0 32M",
            "write -P 2 0 4M",
            "flush",
            "read -P 2 0 4M",
        ],
    )?;
    pair.wait_synced()?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

/// A pair with one disk that will fail, and 4 MiB on both sides.
fn with_failing_disk(side: Side) -> Result<(FailingDisk, Pair)> {
    let disk = FailingDisk::new(64)?;
    let mut data_path = [None, None];
    data_path[usize::from(side == Side::Second)] = Some(disk.data());
    let pair = synced(&PairOptions {
        data_path,
        ..small()
    })?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 4M", "flush"])?;
    Ok((disk, pair))
}

#[test]
fn a_secondary_whose_disk_fails_is_left_behind_and_nothing_is_lost() -> Result<()> {
    let (disk, mut pair) = with_failing_disk(Side::Second)?;
    let named = disk.data().display().to_string();
    disk.fail()?;
    let uri = pair.uri(Side::First);
    qemu_io(&uri, &["write -P 2 4M 4M", "flush"])?;
    pair.wait_for(Side::First, "the failed disk of the peer", 30, |s| {
        s.peer.disk == DiskState::Failed && s.out_of_sync_bytes >= 4 << 20
    })?;
    wait_event(
        &pair,
        Side::Second,
        "disk-fault",
        &[&[named.as_str()], &IO_ERROR[..]].concat(),
    )?;
    wait_event(&pair, Side::Second, "disk-failed", &["server2"])?;
    wait_event(&pair, Side::First, "peer-disk-failed", &["server2"])?;
    qemu_io(&uri, &["read -P 1 0 4M", "read -P 2 4M 4M"])?;
    pair.ctl(Side::Second, &["promote", MIRROR])
        .refused(&["rule disk-failed", "replace it"])?;
    pair.node_mut(Side::Second).kill()
}

#[test]
fn a_primary_whose_disk_fails_serves_from_its_peer_which_has_everything() -> Result<()> {
    let (disk, mut pair) = with_failing_disk(Side::First)?;
    let named = disk.data().display().to_string();
    disk.fail()?;
    let uri = pair.uri(Side::First);
    qemu_io(
        &uri,
        &[
            "write -P 2 4M 4M",
            "flush",
            "read -P 1 0 4M",
            "read -P 2 4M 4M",
        ],
    )?;
    wait_event(
        &pair,
        Side::First,
        "disk-fault",
        &[&[named.as_str()], &IO_ERROR[..]].concat(),
    )?;
    wait_event(&pair, Side::First, "disk-failed", &["server1"])?;
    wait_event(&pair, Side::First, "detached", &["server2"])?;
    let status = pair.status(Side::First)?;
    ensure!(status.disk == DiskState::Failed, "{status:?}");

    pair.node_mut(Side::First).kill()?;
    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    qemu_io(
        &pair.uri(Side::Second),
        &["read -P 1 0 4M", "read -P 2 4M 4M"],
    )
}
