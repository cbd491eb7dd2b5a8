//! A node dies, stops or hangs under load: no answered write is lost, and what was missed comes back alone.

use anyhow::{Result, ensure};
use local_pair::{Deadline, MIRROR, Pair, PairOptions, Side, WhenLost, Writers};
use mirror_core::control::{DiskState, Role};
use nix::sys::signal::Signal;

use crate::client::qemu_io;
use crate::{MIB, assert_same_data, small, synced};

/// Four clients of one export.
fn writers(pair: &Pair, name: &str, export: &str) -> Result<Writers> {
    let exports: [String; 4] = std::array::from_fn(|_| export.to_owned());
    Writers::start(pair.folder(), name, &exports, WhenLost::End)
}

#[test]
fn no_answered_write_is_lost_when_the_primary_is_killed() -> Result<()> {
    let mut pair = synced(&small())?;
    let mut before = writers(&pair, "before", &pair.uri(Side::First))?;
    before.wait_progress(400)?;
    pair.node_mut(Side::First).kill()?;
    before.wait_lost()?;

    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    before.check(&pair.uri(Side::Second))?;
    let mut after = writers(&pair, "after", &pair.uri(Side::Second))?;
    after.wait_progress(200)?;

    pair.start(Side::First)?;
    pair.wait_synced()?;
    after.wait_progress(100)?;
    after.stop()?;
    let old_primary = pair.status(Side::First)?;
    ensure!(old_primary.role == Role::Secondary, "{old_primary:?}");
    after.check(&pair.uri(Side::Second))?;
    ensure!(pair.verify(Side::Second, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_killed_primary_serves_again_before_what_it_had_under_way_is_compared() -> Result<()> {
    let mut pair = synced(&PairOptions::sized(256 * MIB))?;
    // All of it is hot, and takes a while to compare. Zeroes are what the writers expect where none of their writes was
    // answered, and the last may be one that nobody has.
    qemu_io(&pair.uri(Side::First), &["write -P 0 0 256M"])?;
    let mut before = writers(&pair, "before", &pair.uri(Side::First))?;
    before.wait_progress(200)?;
    pair.node_mut(Side::First).kill()?;
    before.wait_lost()?;

    pair.start(Side::First)?;
    Deadline::after_seconds(30).until("a primary", || {
        let promoted = pair.ctl(Side::First, &["promote", MIRROR]);
        Ok(promoted.is_done().then_some(()))
    })?;
    before.check(&pair.uri(Side::First))?;
    let mut after = writers(&pair, "after", &pair.uri(Side::First))?;
    after.wait_progress(100)?;
    pair.wait_synced()?;
    after.stop()?;
    after.check(&pair.uri(Side::First))?;
    let events = pair.ctl(Side::First, &["events"]).done()?;
    ensure!(
        events.contains("recheck-finished") && !events.contains("resync-started"),
        "{events}"
    );
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_killed_secondary_copies_only_what_it_missed() -> Result<()> {
    let mut pair = synced(&PairOptions::sized(256 * MIB))?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 64M", "flush"])?;
    pair.node_mut(Side::Second).kill()?;
    pair.wait_alone(Side::First)?;
    qemu_io(&pair.uri(Side::First), &["write -P 2 100M 2M", "flush"])?;
    let alone = pair.status(Side::First)?;
    ensure!(alone.peer.disk != DiskState::UpToDate, "{alone:?}");
    ensure!(alone.out_of_sync_bytes >= 2 * MIB, "{alone:?}");

    pair.start(Side::Second)?;
    pair.wait_synced()?;
    let copied = pair.status(Side::First)?.last_sync_copied_bytes;
    ensure!(
        (2 * MIB..8 * MIB).contains(&copied),
        "copied {copied} bytes for 2 MiB written"
    );
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_killed_secondary_under_load_comes_back_by_itself() -> Result<()> {
    let mut pair = synced(&small())?;
    let mut writers = writers(&pair, "load", &pair.uri(Side::First))?;
    writers.wait_progress(200)?;
    pair.node_mut(Side::Second).kill()?;
    writers.wait_progress(200)?;
    pair.start(Side::Second)?;
    pair.wait_synced()?;
    writers.wait_progress(50)?;
    writers.stop()?;
    writers.check(&pair.uri(Side::First))?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_frozen_secondary_is_given_up_and_taken_back() -> Result<()> {
    let mut pair = synced(&PairOptions {
        extra: vec!["peer_timeout = \"1s\"".into()],
        ..small()
    })?;
    let mut writers = writers(&pair, "load", &pair.uri(Side::First))?;
    writers.wait_progress(100)?;
    pair.node(Side::Second).signal(Signal::SIGSTOP)?;
    pair.wait_alone(Side::First)?;
    writers.wait_progress(100)?;
    pair.node(Side::Second).signal(Signal::SIGCONT)?;
    pair.wait_synced()?;
    writers.stop()?;
    writers.check(&pair.uri(Side::First))?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn both_nodes_may_be_killed_and_the_primary_promoted_again() -> Result<()> {
    let mut pair = synced(&small())?;
    let mut writers = writers(&pair, "load", &pair.uri(Side::First))?;
    writers.wait_progress(200)?;
    for side in Side::BOTH {
        pair.node_mut(side).kill()?;
    }
    writers.wait_lost()?;
    for side in Side::BOTH {
        pair.start(side)?;
    }
    pair.wait_connected()?;
    pair.ctl(Side::First, &["promote", MIRROR]).done()?;
    pair.wait_synced()?;
    writers.check(&pair.uri(Side::First))?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}
