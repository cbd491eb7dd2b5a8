//! Clean stops, restarts and a change of roles need no repair and copy nothing that both have.

use anyhow::{Result, ensure};
use local_pair::{MIRROR, Side};
use mirror_core::control::Role;

use crate::client::qemu_io;
use crate::{MIB, assert_same_data, small, synced};

#[test]
fn a_secondary_that_stopped_cleanly_comes_back_without_a_command() -> Result<()> {
    let mut pair = synced(&small())?;
    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    qemu_io(&pair.uri(Side::First), &["write -P 5 3M 1M", "flush"])?;
    pair.start(Side::Second)?;
    pair.wait_synced()?;
    let copied = pair.status(Side::First)?.last_sync_copied_bytes;
    ensure!(copied <= 2 * MIB, "copied {copied} bytes for 1 MiB written");
    assert_same_data(&mut pair)
}

#[test]
fn a_primary_that_stopped_cleanly_comes_back_as_secondary_and_can_be_promoted() -> Result<()> {
    let mut pair = synced(&small())?;
    qemu_io(&pair.uri(Side::First), &["write -P 6 0 8M"])?;
    pair.node_mut(Side::First).stop()?;
    pair.start(Side::First)?;
    pair.wait_connected()?;
    ensure!(pair.status(Side::First)?.role == Role::Secondary);
    pair.ctl(Side::First, &["promote", MIRROR]).done()?;
    pair.wait_synced()?;
    qemu_io(&pair.uri(Side::First), &["read -P 6 0 8M"])?;
    assert_same_data(&mut pair)
}

#[test]
fn the_nodes_change_places() -> Result<()> {
    let mut pair = synced(&small())?;
    for (round, side) in [Side::First, Side::Second, Side::First]
        .into_iter()
        .enumerate()
    {
        if round > 0 {
            pair.ctl(side.other(), &["demote", MIRROR]).done()?;
            pair.wait_for(side, "word of the demotion", 20, |s| {
                s.peer.role == Role::Secondary
            })?;
            pair.ctl(side, &["promote", MIRROR]).done()?;
            let before = format!("read -P {round} {}M 1M", round - 1);
            qemu_io(&pair.uri(side), &[&before])?;
        }
        let write = format!("write -P {} {round}M 1M", round + 1);
        qemu_io(&pair.uri(side), &[&write, "flush"])?;
    }
    pair.wait_synced()?;
    let log = pair.node(Side::First).log() + &pair.node(Side::Second).log();
    let syncs = log.matches("kind=\"resync-finished\"").count();
    ensure!(syncs == 2, "only the first sync, seen by both sides: {log}");
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_disconnected_pair_connects_again_on_command() -> Result<()> {
    let mut pair = synced(&small())?;
    pair.ctl(Side::First, &["disconnect", MIRROR]).done()?;
    pair.wait_alone(Side::First)?;
    pair.wait_alone(Side::Second)?;
    qemu_io(&pair.uri(Side::First), &["write -P 9 1M 1M", "flush"])?;
    pair.ctl(Side::First, &["connect", MIRROR]).done()?;
    pair.wait_synced()?;
    assert_same_data(&mut pair)
}

#[test]
fn the_commands_that_wait_end_with_the_state_or_with_exit_code_4() -> Result<()> {
    let mut pair = synced(&small())?;
    for state in ["connected", "synced", "primary"] {
        pair.ctl(Side::First, &["wait", MIRROR, "--for", state])
            .done()?;
    }
    let late = pair.ctl(
        Side::First,
        &["--timeout", "300ms", "wait", MIRROR, "--for", "secondary"],
    );
    ensure!(late.code == Some(4), "{late:?}");
    pair.node_mut(Side::First).stop()?;
    let unreachable = pair.ctl(Side::First, &["mdstat"]);
    ensure!(unreachable.code == Some(3), "{unreachable:?}");
    let usage = pair.ctl(Side::First, &["no-such-command"]);
    ensure!(usage.code == Some(2), "{usage:?}");
    Ok(())
}
