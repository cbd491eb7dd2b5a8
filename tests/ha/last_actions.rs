//! The actions of last resort, as the agents record them: only after everything else, and never beside a second start.

use std::fs;

use agent::alert;
use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, Daemon, GROUP, Guard, Setup};
use local_pair::Side;

use crate::alerts::{ensure_order, find, wait_alert};

const ISOLATION: &str = "isolation_timeout = \"500ms\"\naction = \"none\"";

/// A cluster whose servers do this when they stay cut off. No agent yet.
fn ending_in(action: &str, setup: Setup) -> Result<Bed> {
    let bed = Bed::prepared(setup)?;
    let own = ISOLATION.replace("\"none\"", &format!("{action:?}"));
    bed.configure(ISOLATION, &own)?;
    Ok(bed)
}

#[test]
fn a_server_that_stays_cut_off_reboots_after_its_group_has_stopped() -> Result<()> {
    let mut bed = ending_in(
        "reboot",
        Setup {
            guard: Guard::ForcedStop,
            mounted: true,
        },
    )?;
    // The other one's forced stop takes longer than all that.
    bed.configure("timeout = \"10s\"", "timeout = \"60s\"")?;
    bed.bring_online()?;
    bed.power_held = true;
    bed.set_links(Side::First, false)?;
    bed.until("a final action", 60, |bed| {
        Ok((!bed.actions(Side::First).is_empty()).then_some(()))
    })?;
    ensure!(bed.actions(Side::First) == ["Reboot"]);
    let in_order = [
        alert::ISOLATED,
        alert::ISOLATION_FINAL,
        alert::GROUP_STOPPED,
        alert::FINAL_ACTION,
    ];
    ensure_order(&bed.alerts(Side::First), &in_order)?;
    let words = ["this node is cut off", "the machine reboots"];
    wait_alert(&mut bed, Side::First, alert::FINAL_ACTION, &words)?;
    ensure!(bed.group(Side::First)?.state == State::Offline);
    ensure!(!bed.app_runs(Side::First));
    let mounts = bed.mounts(Side::First)?;
    let point = format!(" {} ", bed.mount_point().display());
    ensure!(!mounts.contains(&point), "it is still mounted: {mounts}");
    ensure!(bed.group(Side::Second)?.state == State::Offline);

    bed.power_held = false;
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(
        bed.stopped == [Side::First],
        "{:?} were stopped",
        bed.stopped
    );
    ensure!(bed.actions(Side::Second).is_empty());
    // It comes back in order, and asks for nothing again.
    bed.boot(Side::First)?;
    bed.start_server(Side::First)?;
    bed.wait_in_step()?;
    ensure!(bed.group(Side::Second)?.state == State::Online);
    ensure!(bed.actions(Side::First) == ["Reboot"]);
    Ok(())
}

#[test]
fn an_agent_that_stays_cut_off_ends_where_the_service_is_to_stop() -> Result<()> {
    let mut bed = ending_in(
        "stop-service",
        Setup {
            guard: Guard::Witness,
            mounted: false,
        },
    )?;
    bed.bring_online()?;
    bed.set_links(Side::First, false)?;
    bed.until("the end of the agent", 60, |bed| {
        Ok((!bed.runs(Side::First, Daemon::Agent)?).then_some(()))
    })?;
    ensure!(!bed.app_runs(Side::First));
    ensure!(bed.actions(Side::First).is_empty(), "the machine goes on");
    let in_order = [alert::GROUP_STOPPED, alert::FINAL_ACTION];
    ensure_order(&bed.alerts(Side::First), &in_order)?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.set_links(Side::First, true)?;
    bed.start(Side::First, Daemon::Agent)?;
    bed.wait_in_step()?;
    bed.wait_group(Side::First, State::Offline)?;
    ensure!(bed.app_runs(Side::Second));
    Ok(())
}

#[test]
fn a_server_that_runs_nothing_waits_when_it_is_cut_off_and_takes_no_action() -> Result<()> {
    let mut bed = ending_in(
        "reboot",
        Setup {
            guard: Guard::Witness,
            mounted: false,
        },
    )?;
    // A witness that is slow for a moment must not end the one that has its lease.
    let (short, long) = ("= \"500ms\"\naction", "= \"20s\"\naction");
    bed.configure_alone(Side::First, short, long)?;
    bed.bring_online()?;
    bed.set_links(Side::Second, false)?;
    wait_alert(&mut bed, Side::Second, alert::ISOLATED, &[])?;
    bed.set_links(Side::Second, true)?;
    wait_alert(&mut bed, Side::Second, alert::ISOLATION_ENDED, &[])?;
    bed.wait_in_step()?;
    ensure!(bed.actions(Side::Second).is_empty());
    ensure!(find(&bed.alerts(Side::Second), alert::ISOLATION_FINAL, 0).is_none());
    ensure!(bed.app_runs(Side::First));
    Ok(())
}

#[test]
fn a_resource_that_does_not_stop_ends_in_the_last_action_and_starts_nowhere_else() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let here = bed.folder().join("here").display().to_string();
    for side in Side::BOTH {
        fs::write(bed.here(side).join("stop"), "exec sleep 1000\n")?;
    }
    bed.configure(
        &format!("stop = [\"/bin/rm\", \"-f\", \"{here}/app\"]\n"),
        &format!("stop = [\"/bin/sh\", \"{here}/stop\"]\nstop_timeout = \"1s\"\n"),
    )?;
    bed.configure("final_action = \"none\"", "final_action = \"sysrq-panic\"")?;
    bed.bring_online()?;

    let words = ["does not stop", "did not end within"];
    bed.ctl(Side::First, &["switchover", GROUP])
        .refused(&words)?;
    bed.until("a final action", 30, |bed| {
        Ok((!bed.actions(Side::First).is_empty()).then_some(()))
    })?;
    ensure!(bed.actions(Side::First) == ["SysrqPanic"]);
    let in_order = [
        alert::GROUP_STOPPING,
        alert::GROUP_STOP_FAILED,
        alert::FINAL_ACTION,
    ];
    ensure_order(&bed.alerts(Side::First), &in_order)?;
    let words = ["does not stop", "counts as running here"];
    wait_alert(&mut bed, Side::First, alert::GROUP_STOP_FAILED, &words)?;
    ensure!(bed.group(Side::First)?.state == State::Failed);
    let status = bed.ctl(Side::First, &["status"]).done()?;
    ensure!(status.contains("did not end within"), "{status}");
    let there = bed.group(Side::Second)?;
    ensure!(there.state == State::Offline, "{there:?}");
    bed.ctl(Side::Second, &["group", "start", GROUP])
        .refused(&["is active on server1"])?;

    // The action takes effect: only then does the other one start.
    ensure!(find(&bed.alerts(Side::Second), alert::GROUP_STARTING, 0).is_none());
    bed.cut_power(Side::First)?;
    bed.wait_group(Side::Second, State::Online)?;
    let in_order = [alert::PEER_DOWN, alert::GRANTED, alert::GROUP_STARTING];
    ensure_order(&bed.alerts(Side::Second), &in_order)?;
    ensure!(bed.actions(Side::Second).is_empty());
    Ok(())
}

#[test]
fn a_watchdog_that_a_monitor_feeds_is_fed_no_more_and_not_let_go_of() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let own = ISOLATION.replace("\"none\"", "\"watchdog-reset\"");
    bed.configure(ISOLATION, &own)?;
    let watchdog = bed.folder().join("here/watchdog").display().to_string();
    for side in Side::BOTH {
        fs::write(bed.here(side).join("watchdog"), "")?;
    }
    let first_monitor = "[[monitor]]\nkind = \"mirror-disk\"";
    let stall = format!(
        "[[monitor]]\nkind = \"stall\"\nname = \"stall\"\nwatchdog = \"{watchdog}\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\n"
    );
    bed.configure(first_monitor, &format!("{stall}\n{first_monitor}"))?;
    bed.bring_online()?;
    let fed = |bed: &Bed, side| fs::read(bed.here(side).join("watchdog"));
    ensure!(!fed(&bed, Side::First)?.is_empty(), "nobody feeds it");

    bed.set_links(Side::First, false)?;
    bed.until("a final action", 60, |bed| {
        Ok((!bed.actions(Side::First).is_empty()).then_some(()))
    })?;
    ensure!(bed.actions(Side::First) == ["WatchdogReset"]);
    let starving = fed(&bed, Side::First)?;
    // The agent goes on, and so do its monitors.
    bed.set_links(Side::First, true)?;
    wait_alert(&mut bed, Side::First, alert::ISOLATION_ENDED, &[])?;
    bed.wait_in_step()?;
    bed.stop(Side::First, Daemon::Agent)?;
    ensure!(
        fed(&bed, Side::First)? == starving,
        "it was fed, or disarmed"
    );
    bed.stop(Side::Second, Daemon::Agent)?;
    ensure!(
        fed(&bed, Side::Second)?.ends_with(b"V"),
        "an agent that ends on purpose disarms it"
    );
    Ok(())
}
