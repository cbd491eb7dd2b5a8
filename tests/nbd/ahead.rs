//! Semisync and async between real nodes: what is answered while the peer does not get its work done, what a
//! failover finds of it, and how the lag comes and goes.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use local_pair::{MIRROR, Pair, PairOptions, Side};
use mirror_core::control::{DiskState, Role};
use nix::sys::signal::Signal;

use crate::client::qemu_io;
use crate::{MIB, assert_same_data, small, synced};

const BLOCK_BYTES: u64 = 64 << 10;

fn options(mode: &'static str, lines: &[&str]) -> PairOptions {
    let mut extra: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    // A peer that stands still for a while is not lost yet.
    extra.push("peer_timeout = \"60s\"".into());
    PairOptions {
        mode,
        extra,
        ..small()
    }
}

/// Writes `count` blocks from block `first` on, one after the other: each is submitted when the one before is
/// answered.
fn write_blocks(pair: &Pair, first: u64, count: u64, pattern: u8) -> Result<()> {
    let commands: Vec<String> = (first..first + count)
        .map(|block| format!("write -P {pattern} {} {BLOCK_BYTES}", block * BLOCK_BYTES))
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    qemu_io(&pair.uri(Side::First), &commands)
}

/// How many of these blocks hold the pattern, up to the first that does not; an error if a later one does.
fn prefix_of(pair: &Pair, side: Side, count: u64, pattern: u8) -> Result<u64> {
    let data = std::fs::File::open(&pair.node(side).data)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut prefix = 0;
    for index in 0..count {
        data.read_exact_at(&mut block, index * BLOCK_BYTES)?;
        let holds = block.iter().all(|byte| *byte == pattern);
        if holds {
            ensure!(
                prefix == index,
                "block {index} is there and block {prefix} is not"
            );
            prefix += 1;
        }
    }
    Ok(prefix)
}

fn mdstat(pair: &Pair, side: Side) -> Result<String> {
    pair.ctl(side, &["mdstat"]).done()
}

#[test]
fn async_answers_while_the_peer_stands_still_and_its_lag_comes_and_goes() -> Result<()> {
    let mut pair = synced(&options("async", &[]))?;
    write_blocks(&pair, 0, 8, 1)?;
    pair.wait_for(Side::First, "the peer to have it all", 30, |s| {
        s.lag_bytes == 0
    })?;
    pair.node(Side::Second).signal(Signal::SIGSTOP)?;
    write_blocks(&pair, 0, 100, 2)?;
    let behind = pair.status(Side::First)?;
    ensure!(behind.lag_bytes == 100 * BLOCK_BYTES, "{behind:?}");
    ensure!(behind.lag_ms > 0 && !behind.io_suspended, "{behind:?}");
    let shown = mdstat(&pair, Side::First)?;
    ensure!(shown.contains("lag 6400 KiB"), "{shown}");
    let told = format!("{:?}", pair.explain(Side::First)?);
    ensure!(
        told.contains("a failover now would lose up to 6553600 bytes"),
        "{told}"
    );
    pair.node(Side::Second).signal(Signal::SIGCONT)?;
    pair.wait_for(Side::First, "the peer to catch up", 60, |s| {
        s.lag_bytes == 0 && s.lag_ms == 0
    })?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_failover_of_async_keeps_a_prefix_and_loses_no_more_than_the_lag() -> Result<()> {
    let mut pair = synced(&options("async", &[]))?;
    // More than the sockets between the two take in.
    let count = 500;
    pair.node(Side::Second).signal(Signal::SIGSTOP)?;
    write_blocks(&pair, 0, count, 7)?;
    let lag = pair.status(Side::First)?.lag_bytes;
    ensure!(lag == count * BLOCK_BYTES, "the lag is {lag} bytes");
    pair.node_mut(Side::First).kill()?;
    pair.node(Side::Second).signal(Signal::SIGCONT)?;
    pair.wait_alone(Side::Second)?;
    let promoted = pair
        .ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    ensure!(promoted.contains("primary"), "{promoted}");
    let kept = prefix_of(&pair, Side::Second, count, 7)?;
    ensure!(
        (count - kept) * BLOCK_BYTES <= lag,
        "{kept} blocks are left"
    );
    ensure!(kept < count, "nothing was lost: the case proves nothing");
    // The old primary gives its tail up, and says so.
    pair.start(Side::First)?;
    pair.wait_synced()?;
    let old = pair.status(Side::First)?;
    ensure!(old.role == Role::Secondary, "{old:?}");
    let events = pair.ctl(Side::First, &["events"]).done()?;
    ensure!(events.contains("discarded"), "{events}");
    ensure!(prefix_of(&pair, Side::First, count, 7)? == kept);
    ensure!(pair.verify(Side::Second, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_killed_async_primary_that_returns_has_all_it_answered() -> Result<()> {
    let mut pair = synced(&options("async", &[]))?;
    pair.node(Side::Second).signal(Signal::SIGSTOP)?;
    write_blocks(&pair, 0, 200, 9)?;
    pair.node_mut(Side::First).kill()?;
    pair.node(Side::Second).signal(Signal::SIGCONT)?;
    pair.wait_alone(Side::Second)?;
    pair.start(Side::First)?;
    pair.wait_connected()?;
    pair.ctl(Side::First, &["promote", MIRROR]).done()?;
    pair.wait_synced()?;
    for side in Side::BOTH {
        let there = prefix_of(&pair, side, 200, 9)?;
        ensure!(there == 200, "{there} blocks are left on {side:?}");
    }
    assert_same_data(&mut pair)
}

#[test]
fn a_semisync_failover_loses_nothing_that_was_answered() -> Result<()> {
    let mut pair = synced(&options("semisync", &[]))?;
    write_blocks(&pair, 0, 200, 5)?;
    pair.node_mut(Side::First).kill()?;
    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    let kept = prefix_of(&pair, Side::Second, 200, 5)?;
    ensure!(kept == 200, "{kept} blocks are left");
    pair.start(Side::First)?;
    pair.wait_synced()?;
    assert_same_data(&mut pair)
}

#[test]
fn a_full_queue_degrades_and_the_peer_comes_back_into_line() -> Result<()> {
    let lines = ["queue_size = \"1MiB\"", "queue_full = \"degrade\""];
    let mut pair = synced(&options("async", &lines))?;
    // Its process goes on, and its link is slower than the writes.
    write_fast(&pair)?;
    pair.wait_for(Side::First, "the peer to be in line again", 60, |s| {
        s.peer.disk == DiskState::UpToDate && s.lag_bytes == 0 && s.sync.is_none()
    })?;
    let status = pair.status(Side::First)?;
    ensure!(!status.peer_outdated, "{status:?}");
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

/// Writes all of the mirror in large pieces, many at once, until the queue overflows.
fn write_fast(pair: &Pair) -> Result<()> {
    let log = |pair: &Pair| pair.ctl(Side::First, &["events"]).done();
    for round in 1..50_u8 {
        let commands: Vec<String> = (0..60)
            .map(|piece| format!("aio_write -P {round} {piece}M 1M"))
            .chain(["aio_flush".to_owned()])
            .collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        qemu_io(&pair.uri(Side::First), &commands)?;
        if log(pair)?.contains("fell-behind") {
            return Ok(());
        }
    }
    None.context("the queue never ran full")
}

#[test]
fn a_full_queue_blocks_until_there_is_room() -> Result<()> {
    let mut pair = synced(&options("async", &["queue_size = \"1MiB\""]))?;
    pair.node(Side::Second).signal(Signal::SIGSTOP)?;
    write_blocks(&pair, 0, 16, 3)?;
    let mut blocked = std::thread::scope(|scope| -> Result<u64> {
        let writer = scope.spawn(|| write_blocks(&pair, 16, 4, 3));
        let full = pair.wait_for(Side::First, "writes that wait for room", 30, |s| {
            s.counters.writes > 16
        })?;
        pair.node(Side::Second).signal(Signal::SIGCONT)?;
        writer.join().expect("the writer ends")?;
        Ok(full.lag_bytes)
    })?;
    blocked /= MIB;
    ensure!(blocked == 1, "{blocked} MiB of lag with a queue of one");
    pair.wait_for(Side::First, "the peer to catch up", 30, |s| {
        s.lag_bytes == 0
    })?;
    assert_same_data(&mut pair)
}
