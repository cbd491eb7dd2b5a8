//! The two published scenarios: the servers lose each other while both still reach the ping target.

use agent::alert;
use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, GROUP, Guard, Setup};
use local_pair::Side;
use mirror_core::control::{Connection, Role};

use crate::alerts::{ensure_order, find, wait_alert};
use crate::writers::Writers;

#[test]
fn with_nobody_to_prevent_it_both_activate_and_everybody_says_so_and_one_command_ends_it()
-> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::Nobody,
        mounted: false,
    })?;
    let text = bed.check(Side::First)?;
    ensure!(text.contains("both nodes can become active"), "{text}");
    let mut writers = Writers::start(bed.pair())?;
    bed.until("an answer", 30, |_| {
        Ok((writers.count(Side::First) > 0).then_some(()))
    })?;

    bed.cut()?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.wait_group(Side::First, State::Online)?;
    ensure!(bed.app_runs(Side::First) && bed.app_runs(Side::Second));
    let so_far = Side::BOTH.map(|side| writers.count(side));
    bed.until("answers of both", 30, |_| {
        let more = |side: Side| writers.count(side) > so_far[side.index()] + 20;
        Ok((more(Side::First) && more(Side::Second)).then_some(()))
    })?;
    for side in Side::BOTH {
        let warnings = bed.status(side)?.warnings;
        let told = |line: &String| line.contains("may be active on both nodes");
        ensure!(warnings.iter().any(told), "{side:?} shows {warnings:?}");
    }
    let told = [alert::PEER_DOWN, alert::MAY_BE_ACTIVE_TWICE];
    ensure_order(&bed.alerts(Side::First), &told)?;
    let told_and_started = [told[0], told[1], alert::GROUP_STARTED];
    ensure_order(&bed.alerts(Side::Second), &told_and_started)?;
    writers.stop()?;

    bed.heal()?;
    for side in Side::BOTH {
        bed.until("a split brain, told", 60, |bed| {
            let alerts = bed.alerts(side);
            let told = find(&alerts, alert::BOTH_ACTIVE, 0).is_some()
                && find(&alerts, alert::MIRROR_SPLIT_BRAIN, 0).is_some();
            let status = bed.status(side)?;
            let shown = status
                .warnings
                .iter()
                .any(|line| line.contains("is active on both nodes"));
            let group = bed.group(side)?;
            Ok((told && shown && group.current.len() == 2).then_some(()))
        })?;
        let mirror = bed.pair().status(side)?;
        ensure!(mirror.connection == Connection::SplitBrain, "{mirror:?}");
        ensure!(!bed.pair().explain(side)?.choices.is_empty());
    }

    let keep = bed.name(Side::Second);
    bed.ctl(Side::First, &["group", "resolve", GROUP, "--keep", keep])
        .done()?;
    bed.wait_group(Side::First, State::Offline)?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.wait_in_step()?;
    ensure!(!bed.app_runs(Side::First) && bed.app_runs(Side::Second));
    ensure!(bed.pair().status(Side::First)?.role == Role::Secondary);
    writers.check(bed.pair(), &[Side::Second], Side::Second)
}

#[test]
fn with_a_forced_stop_a_cut_leaves_the_server_that_runs_the_group_and_the_other_is_down()
-> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::ForcedStop,
        mounted: false,
    })?;
    // As `check` wants it: a heartbeat and the time-out of the script. With less, either may be the first to shoot.
    bed.configure("fence_delay = \"200ms\"", "fence_delay = \"10100ms\"")?;
    bed.bring_online()?;
    let mut writers = Writers::start(bed.pair())?;
    bed.until("an answer", 30, |_| {
        Ok((writers.count(Side::First) > 0).then_some(()))
    })?;
    bed.cut()?;
    bed.until("a forced stop", 60, |bed| {
        let alerts = bed.alerts(Side::First);
        Ok(find(&alerts, alert::STOP_COMPLETED, 0))
    })?;
    ensure!(
        bed.stopped == [Side::Second],
        "{:?} were stopped",
        bed.stopped
    );
    ensure!(bed.app_runs(Side::First));
    ensure_order(
        &bed.alerts(Side::First),
        &[
            alert::PEER_DOWN,
            alert::STOP_REQUESTED,
            alert::STOP_COMPLETED,
        ],
    )?;
    // Its connection is found to be gone when its own time is over, whatever the heartbeats have come to by then.
    wait_alert(&mut bed, Side::First, alert::MIRROR_DISCONNECTED, &[])?;
    let before = writers.count(Side::First);
    bed.until("answers after the stop", 30, |_| {
        Ok((writers.count(Side::First) > before + 20).then_some(()))
    })?;

    // It comes back with the link mended, and takes up what it missed.
    bed.heal()?;
    bed.boot(Side::Second)?;
    bed.start_server(Side::Second)?;
    bed.wait_in_step()?;
    ensure!(bed.group(Side::First)?.state == State::Online);
    ensure!(
        bed.stopped == [Side::Second],
        "{:?} were stopped",
        bed.stopped
    );
    writers.stop()?;
    writers.check(bed.pair(), &[Side::First], Side::First)
}

#[test]
fn with_a_forced_stop_the_survivor_tells_the_failover_in_the_published_order() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::ForcedStop,
        mounted: false,
    })?;
    // The stop is held up below, and may take as long as that takes.
    bed.configure("timeout = \"10s\"", "timeout = \"60s\"")?;
    bed.bring_online()?;
    let mut writers = Writers::start(bed.pair())?;
    bed.until("an answer", 30, |_| {
        Ok((writers.count(Side::First) > 0).then_some(()))
    })?;
    // The server that runs the group hangs and is cut off. Its stop takes a while, as a provider's does.
    bed.power_held = true;
    bed.freeze(Side::First)?;
    bed.cut()?;
    bed.until("a mirror that lost its peer", 60, |bed| {
        let alerts = bed.alerts(Side::Second);
        let requested = find(&alerts, alert::STOP_REQUESTED, 0);
        let doubt = find(&alerts, alert::MIRROR_AGE_UNKNOWN, 0);
        Ok(requested.zip(doubt))
    })?;
    ensure!(
        !bed.app_runs(Side::Second),
        "nothing starts before the stop"
    );
    ensure!(bed.group(Side::Second)?.state == State::Offline);
    ensure!(writers.count(Side::Second) == 0);
    bed.power_held = false;
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(bed.stopped == [Side::First] && !bed.is_on(Side::First));
    bed.until("the last alert", 30, |bed| {
        Ok(find(&bed.alerts(Side::Second), alert::FAILED_OVER, 0))
    })?;
    let alerts = bed.alerts(Side::Second);
    ensure_order(
        &alerts,
        &[
            alert::PEER_DOWN,
            alert::STOP_REQUESTED,
            alert::STOP_COMPLETED,
            alert::FAILING_OVER,
            alert::GROUP_STARTING,
            alert::GROUP_STARTED,
            alert::FAILED_OVER,
        ],
    )?;
    // The mirror has a clock of its own, and is asked now and then.
    ensure_order(
        &alerts,
        &[
            alert::MIRROR_DISCONNECTED,
            alert::MIRROR_AGE_UNKNOWN,
            alert::STOP_COMPLETED,
        ],
    )?;
    bed.until("answers of the survivor", 30, |_| {
        Ok((writers.count(Side::Second) > 20).then_some(()))
    })?;
    writers.stop()?;
    writers.check(bed.pair(), &[Side::First, Side::Second], Side::Second)
}
