//! Both sides wrote without the other: nothing is discarded by itself, and either side can be chosen.

use anyhow::{Result, ensure};
use local_pair::{Deadline, MIRROR, Pair, Side};
use mirror_core::control::{Connection, Role};

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
fn a_primary_that_left_cleanly_follows_the_one_that_wrote() -> Result<()> {
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

/// Both primary at once, the second promoted last, and connected again; only `writer` wrote.
fn two_primaries(writer: Side) -> Result<Pair> {
    let pair = synced(&small())?;
    pair.ctl(Side::First, &["disconnect", MIRROR]).done()?;
    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    qemu_io(&pair.uri(writer), &["write -P 3 1M 1M", "flush"])?;
    pair.ctl(Side::First, &["connect", MIRROR]).done()?;
    Ok(pair)
}

#[test]
fn of_two_primaries_the_one_promoted_first_steps_down_if_it_did_not_write() -> Result<()> {
    let mut pair = two_primaries(Side::Second)?;
    pair.wait_synced()?;
    ensure!(pair.status(Side::First)?.role == Role::Secondary);
    let events = pair.ctl(Side::First, &["events"]).done()?;
    ensure!(events.contains("stepped-down"), "{events}");
    assert_same_data(&mut pair)
}

#[test]
fn of_two_primaries_the_one_promoted_last_follows_after_a_demotion() -> Result<()> {
    let mut pair = two_primaries(Side::First)?;
    Deadline::after_seconds(30).until("the refusal", || {
        let rule = pair.explain(Side::Second)?.rule;
        Ok((rule.as_deref() == Some("target-is-primary")).then_some(()))
    })?;
    for side in Side::BOTH {
        ensure!(pair.status(side)?.role == Role::Primary);
    }
    pair.ctl(Side::Second, &["demote", MIRROR]).done()?;
    pair.wait_synced()?;
    qemu_io(&pair.uri(Side::First), &["read -P 3 1M 1M"])?;
    assert_same_data(&mut pair)
}
