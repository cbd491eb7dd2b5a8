//! Both sides wrote without the other: nothing is discarded by itself, and either side can be chosen.

use anyhow::{Result, ensure};
use local_pair::{MIRROR, Pair, Side};
use mirror_core::control::Connection;

use crate::client::qemu_io;
use crate::{assert_same_data, small, synced};

/// Both sides primary, each with a write of its own, and connected again.
fn split() -> Result<Pair> {
    let pair = synced(&small())?;
    pair.ctl(Side::First, &["disconnect", MIRROR]).done()?;
    pair.wait_alone(Side::Second)?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 1M 1M", "flush"])?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    qemu_io(&pair.uri(Side::Second), &["write -P 2 2M 1M", "flush"])?;
    pair.ctl(Side::First, &["connect", MIRROR]).done()?;
    for side in Side::BOTH {
        pair.wait_for(side, "the split brain", 30, |s| {
            s.connection == Connection::SplitBrain
        })?;
    }
    Ok(pair)
}

fn resolve(loser: Side) -> Result<()> {
    let mut pair = split()?;
    for side in Side::BOTH {
        let explanation = pair.explain(side)?;
        ensure!(explanation.rule.is_some(), "{explanation:?}");
        let told = explanation
            .choices
            .iter()
            .any(|c| c.command.contains("--discard-local"));
        ensure!(told, "no choice names the command: {explanation:?}");
    }
    // Both still serve what they have.
    qemu_io(
        &pair.uri(Side::First),
        &["read -P 1 1M 1M", "read -P 0 2M 1M"],
    )?;
    qemu_io(
        &pair.uri(Side::Second),
        &["read -P 0 1M 1M", "read -P 2 2M 1M"],
    )?;

    let demoted = pair.ctl(loser, &["demote", MIRROR]);
    demoted.done()?;
    pair.ctl(loser, &["resync", MIRROR, "--discard-local"])
        .done()?;
    pair.wait_synced()?;
    let winner = loser.other();
    let kept: [&str; 2] = match winner {
        Side::First => ["read -P 1 1M 1M", "read -P 0 2M 1M"],
        Side::Second => ["read -P 0 1M 1M", "read -P 2 2M 1M"],
    };
    qemu_io(&pair.uri(winner), &kept)?;
    ensure!(pair.verify(winner, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn a_split_brain_is_resolved_by_giving_up_the_second_side() -> Result<()> {
    resolve(Side::Second)
}

#[test]
fn a_split_brain_is_resolved_by_giving_up_the_first_side() -> Result<()> {
    resolve(Side::First)
}

#[test]
fn two_primaries_of_which_only_one_wrote_are_no_split_brain() -> Result<()> {
    let mut pair = synced(&small())?;
    pair.node_mut(Side::First).stop()?;
    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    qemu_io(&pair.uri(Side::Second), &["write -P 3 1M 1M", "flush"])?;
    pair.start(Side::First)?;
    pair.wait_synced()?;
    assert_same_data(&mut pair)
}
