//! What a server was given that cannot work: nothing starts in doubt, `check`, `status` and the alert log say what is
//! wrong and what to do, and once it is mended, the group comes up.

use std::fs;

use agent::alert;
use agent::control::{Health, State};
use anyhow::{Context, Result, ensure};
use local_cluster::{Bed, Daemon, GROUP, Guard, Process, Setup};
use local_pair::{PYTHON, Side, run_tool};
use mirror_core::control::Role;

use crate::alerts::{ensure_order, find, wait_alert, wait_alert_after};

const FORCED_STOP: Setup = Setup {
    guard: Guard::ForcedStop,
    mounted: false,
};
const WITNESSED: Setup = Setup {
    guard: Guard::Witness,
    mounted: false,
};
/// The host that has the floating address.
const FLOATING: u8 = 100;
/// The start of the last resource, as the file has it.
const START: &str = "start = [\"/bin/touch\", ";

pub fn ensure_says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    Ok(())
}

/// What `check` finds wrong on a server.
fn found_by_check(bed: &Bed, side: Side) -> Result<String> {
    match bed.check(side) {
        Ok(said) => anyhow::bail!("it found nothing wrong: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Nothing of the group is on a server, and its mirror is secondary.
pub fn ensure_all_off(bed: &Bed, side: Side) -> Result<()> {
    let group = bed.group(side)?;
    ensure!(group.state == State::Offline, "{group:?}");
    ensure!(!bed.app_runs(side));
    let mirror = bed.pair().status(side)?;
    ensure!(mirror.role == Role::Secondary, "{mirror:?}");
    Ok(())
}

/// Each server tries once, says why its resource does not start, and leaves nothing behind.
fn ensure_refused_by_both(bed: &mut Bed, resource: &str, words: &[&str]) -> Result<()> {
    for side in Side::BOTH {
        wait_alert(bed, side, alert::RESOURCE_FAILED, words)?;
        wait_alert(bed, side, alert::GROUP_STOPPED, &[])?;
    }
    for side in Side::BOTH {
        ensure_all_off(bed, side)?;
        let group = bed.group(side)?;
        ensure!(group.current.is_empty(), "{group:?}");
        let found = group.resources.iter().find(|found| found.name == resource);
        let error = found.and_then(|found| found.error.as_deref());
        ensure_says(error.context("status shows no error")?, words)?;
        ensure_says(&bed.ctl(side, &["status"]).done()?, words)?;
        let alerts = bed.alerts(side);
        ensure!(
            find(&alerts, alert::GROUP_STARTED, 0).is_none(),
            "{alerts:?}"
        );
    }
    Ok(())
}

/// The word of an operator who mended it.
fn start_by_hand(bed: &mut Bed, side: Side) -> Result<()> {
    let said = bed.ctl(side, &["group", "start", GROUP]).done();
    said.with_context(|| bed.story())?;
    bed.wait_group(side, State::Online)?;
    ensure!(bed.app_runs(side) && !bed.app_runs(side.other()));
    bed.wait_in_step()
}

#[test]
fn a_missing_mount_point_is_named_on_both_servers() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::ForcedStop,
        mounted: true,
    })?;
    let point = bed.mount_point().display().to_string();
    for side in Side::BOTH {
        fs::remove_dir(bed.here(side).join("mnt"))?;
        let said = found_by_check(&bed, side)?;
        ensure_says(&said, &[&point, &format!("mkdir -p {point}")])?;
    }
    bed.start_agents()?;
    let words = [
        &point,
        "does not exist; make it on both nodes with `mkdir -p`",
    ];
    ensure_refused_by_both(&mut bed, "disk", &words)?;
    for side in Side::BOTH {
        fs::create_dir(bed.here(side).join("mnt"))?;
    }
    start_by_hand(&mut bed, Side::First)?;
    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    Ok(())
}

#[test]
fn a_missing_script_is_named_on_both_servers_and_has_nothing_to_stop() -> Result<()> {
    let mut bed = Bed::prepared(FORCED_STOP)?;
    let script = bed.folder().join("here/start");
    let script = script.display().to_string();
    bed.configure(START, &format!("start = [\"{script}\", "))?;
    for side in Side::BOTH {
        ensure_says(&found_by_check(&bed, side)?, &[&script, "put it there"])?;
    }
    bed.start_agents()?;
    let words = [&script, "look whether it is there and may be executed"];
    ensure_refused_by_both(&mut bed, "app", &words)?;
    for side in Side::BOTH {
        let to = bed.here(side).join("start").display().to_string();
        run_tool(
            "cp",
            &["/bin/touch", &to],
            std::time::Duration::from_secs(20),
        )?;
    }
    start_by_hand(&mut bed, Side::Second)
}

#[test]
fn a_resource_of_no_known_kind_starts_no_agent_and_leaves_what_runs_alone() -> Result<()> {
    let mut bed = Bed::running(FORCED_STOP)?;
    bed.configure("kind = \"floating-ip\"", "kind = \"floting-ip\"")?;
    let words = [
        "cluster.toml:",
        "floting-ip",
        "did you mean \"floating-ip\"",
    ];
    ensure_says(&found_by_check(&bed, Side::Second)?, &words)?;
    bed.stop(Side::Second, Daemon::Agent)?;
    let Err(error) = bed.start(Side::Second, Daemon::Agent) else {
        anyhow::bail!("the agent started with a file that is wrong");
    };
    ensure_says(&format!("{error:#}"), &words)?;
    // As an operator sees it who comes later.
    let status = bed.ctl(Side::Second, &["status"]);
    ensure!(status.code == Some(3), "{status:?}");
    let told = [
        "nothing fails over",
        "No agent starts with this configuration",
        words[1],
        words[2],
    ];
    ensure_says(&status.stdout, &told)?;
    let log = fs::read_to_string(bed.log_of(Side::Second, Daemon::Agent))?;
    ensure_says(&log, &words)?;
    ensure!(bed.app_runs(Side::First) && bed.stopped.is_empty());
    bed.configure("kind = \"floting-ip\"", "kind = \"floating-ip\"")?;
    bed.start(Side::Second, Daemon::Agent)?;
    bed.wait_in_step()
}

#[test]
fn an_address_that_somebody_else_has_is_taken_by_nobody() -> Result<()> {
    let mut bed = Bed::prepared(FORCED_STOP)?;
    let stranger = bed.stranger(FLOATING)?;
    let words = ["10.77.0.100", "is in use: the host", "02:77:00:00:00:64"];
    for side in Side::BOTH {
        ensure_says(&found_by_check(&bed, side)?, &words)?;
    }
    bed.start_agents()?;
    ensure_refused_by_both(&mut bed, "address", &words)?;
    drop(stranger);
    start_by_hand(&mut bed, Side::First)?;
    // The other server may well have it.
    for side in Side::BOTH {
        bed.check(side)?;
    }
    Ok(())
}

#[test]
fn a_forced_stop_that_would_not_work_is_told_before_it_is_needed_and_then_nothing_fails_over()
-> Result<()> {
    let mut bed = Bed::running(FORCED_STOP)?;
    let script = bed.folder().join("forced-stop.sh");
    let good = fs::read_to_string(&script)?;
    let expired = "echo 'the credentials have expired' >&2; exit 3";
    let told = ["ended with exit code 3", "the credentials have expired"];
    for (wrong, words) in [
        ("exec sleep 1000", &["did not end within"][..]),
        (expired, &told[..]),
    ] {
        let known = Side::BOTH.map(|side| bed.alerts(side).len());
        fs::write(&script, format!("#!/bin/sh\n{wrong}\n"))?;
        for side in Side::BOTH {
            let known = known[side.index()];
            wait_alert_after(&mut bed, side, known, alert::STOP_CHECK_FAILED, words)?;
            let said = found_by_check(&bed, side)?;
            ensure_says(&said, &["a forced stop of the other node would fail"])?;
            ensure_says(&said, words)?;
            ensure_says(&bed.ctl(side, &["status"]).done()?, words)?;
        }
        fs::write(&script, &good)?;
        for side in Side::BOTH {
            let known = known[side.index()];
            wait_alert_after(&mut bed, side, known, alert::STOP_CHECK_RECOVERED, &[])?;
        }
    }
    fs::write(&script, format!("#!/bin/sh\n{expired}\n"))?;
    bed.cut_power(Side::First)?;
    wait_alert(&mut bed, Side::Second, alert::STOP_FAILED, &told)?;
    wait_alert(&mut bed, Side::Second, alert::FAILOVER_CANCELLED, &[])?;
    let waits = bed.group(Side::Second)?.waits_for.unwrap_or_default();
    ensure_says(&waits, &["server1: its forced stop failed"])?;
    let screen = bed.ctl(Side::Second, &["status"]).done()?;
    ensure_says(&screen, &["nothing fails over", told[1]])?;
    ensure_all_off(&bed, Side::Second)?;
    let start = ["group", "start", GROUP];
    bed.ctl(Side::Second, &start).refused(&["--peer-down"])?;
    // The word of somebody who looked.
    let start = ["group", "start", GROUP, "--peer-down"];
    bed.ctl(Side::Second, &start).done()?;
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    Ok(())
}

/// A program on the first server that has this address for itself.
fn taken(bed: &mut Bed, address: &str) -> Result<Process> {
    let script = format!(
        "import signal, socket; taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
         taken.bind(('{address}', 29002)); print('taken', flush=True); signal.pause()"
    );
    let log = format!("taken-{address}");
    let other = bed.spawn_on(Side::First, &[PYTHON, "-c", &script], &log)?;
    bed.until("the other program", 20, |bed| {
        let said = fs::read_to_string(bed.folder().join(&log))?;
        Ok(said.contains("taken").then_some(()))
    })?;
    Ok(other)
}

#[test]
fn an_agent_starts_where_one_of_its_heartbeat_ports_is_taken_and_not_where_all_are() -> Result<()> {
    let mut bed = Bed::prepared(WITNESSED)?;
    let mut on_interconnect = taken(&mut bed, "10.77.1.1")?;
    let mut on_public = taken(&mut bed, "10.77.0.1")?;
    let words = ["10.77.1.1:29002", "10.77.0.1:29002", "ss -ulpn"];
    ensure_says(&found_by_check(&bed, Side::First)?, &words)?;
    let Err(error) = bed.start(Side::First, Daemon::Agent) else {
        anyhow::bail!("the agent started beside the other programs");
    };
    let words = [
        "cannot listen on 10.77.1.1:29002",
        "cannot listen on 10.77.0.1:29002",
        "ss -ulpn",
    ];
    ensure_says(&format!("{error:#}"), &words)?;
    wait_alert(&mut bed, Side::First, alert::AGENT_FAILED, &words[..1])?;
    ensure!(bed.pair().status(Side::First)?.role == Role::Secondary);

    on_public.kill()?;
    bed.bring_online()?;
    wait_alert(&mut bed, Side::First, alert::PATH_DOWN, &words[..1])?;
    let works = ["path interconnect works"];
    ensure!(
        !bed.alerts(Side::First)
            .iter()
            .any(|line| line.contains(works[0]))
    );
    on_interconnect.kill()?;
    wait_alert(&mut bed, Side::First, alert::PATH_UP, &works)?;
    Ok(())
}

#[test]
fn a_start_script_that_hangs_is_killed_before_the_other_server_starts() -> Result<()> {
    let mut bed = Bed::prepared(WITNESSED)?;
    let here = bed.folder().join("here").display().to_string();
    let lock = bed.folder().join("lock").display().to_string();
    // Whoever starts while anything of a start still runs is refused the lock.
    let scripts = [
        format!("exec flock {lock} sh -c 'echo held > {here}/held; sleep 1000'\n"),
        format!("exec flock --nonblock {lock} touch {here}/app\n"),
    ];
    for (side, script) in Side::BOTH.into_iter().zip(scripts) {
        fs::write(bed.here(side).join("start"), script)?;
    }
    let own = format!("start = [\"/bin/sh\", \"{here}/start\"]\nstart_timeout = \"5s\"\n");
    bed.configure(&format!("{START}\"{here}/app\"]\n"), &own)?;
    bed.start_agents()?;
    // By the limit of the script or by the one around it, whichever comes first on a busy machine.
    let words = ["did not end within", "`start_timeout`"];
    wait_alert(&mut bed, Side::First, alert::RESOURCE_FAILED, &words)?;
    ensure!(bed.here(Side::First).join("held").exists());
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(bed.app_runs(Side::Second));
    ensure_all_off(&bed, Side::First)?;
    ensure_says(&bed.ctl(Side::First, &["status"]).done()?, &words)?;
    wait_alert(&mut bed, Side::First, alert::GROUP_STOPPED, &[])?;
    let in_order = [
        alert::GROUP_STARTING,
        alert::RESOURCE_FAILED,
        alert::GROUP_START_FAILED,
        alert::GROUP_STOPPED,
    ];
    ensure_order(&bed.alerts(Side::First), &in_order)?;
    wait_alert(&mut bed, Side::Second, alert::GROUP_STARTED, &[])?;
    let in_order = [alert::FAILING_OVER, alert::GROUP_STARTED];
    ensure_order(&bed.alerts(Side::Second), &in_order)?;
    bed.wait_in_step()
}

#[test]
fn a_witness_that_does_not_have_this_cluster_grants_nothing_until_it_does() -> Result<()> {
    let mut bed = Bed::prepared(WITNESSED)?;
    let stranger = bed.folder().join("stranger.key").display().to_string();
    bed.ctl(Side::First, &["keygen", &stranger]).done()?;
    let known = bed.folder().join("cluster.key").display().to_string();

    bed.kill_witness()?;
    bed.configure_witness("name = \"local\"", "name = \"other\"")?;
    bed.start_witness()?;
    bed.start_agents()?;
    let words = ["does not know cluster local", "add it as [[cluster]]"];
    ensure_ungranted(&mut bed, &words)?;

    bed.kill_witness()?;
    bed.configure_witness("name = \"other\"", "name = \"local\"")?;
    bed.configure_witness(&known, &stranger)?;
    bed.start_witness()?;
    let words = [
        "was not made with the key of cluster local",
        "copy the cluster's key file to the witness",
    ];
    ensure_ungranted(&mut bed, &words)?;

    bed.kill_witness()?;
    bed.configure_witness(&stranger, &known)?;
    bed.start_witness()?;
    bed.wait_group(Side::First, State::Online)?;
    bed.wait_in_step()?;
    ensure!(!bed.app_runs(Side::Second));
    // It shows the last answer, and one may be late.
    bed.until("an arbiter with which nothing is wrong", 30, |bed| {
        let status = bed.status(Side::First)?;
        let arbiter = status.arbiter.context("there is an arbiter")?;
        let well = arbiter.health == Health::Normal && arbiter.detail.is_none();
        Ok(well.then_some(()))
    })
}

/// Both say why the arbiter is of no use now, and that the group waits for it.
fn ensure_ungranted(bed: &mut Bed, words: &[&str]) -> Result<()> {
    for side in Side::BOTH {
        wait_alert(bed, side, alert::ARBITER_DOWN, words)?;
        // Each tells what the last question came to, and one may have come to nothing in time.
        let told = |text: &str| words.iter().all(|word| text.contains(word));
        bed.until(&format!("{words:?} in the status of {side:?}"), 30, |bed| {
            let arbiter = bed.status(side)?.arbiter.context("there is an arbiter")?;
            let detail = arbiter.detail.unwrap_or_default();
            let screen = bed.ctl(side, &["status"]).done()?;
            let is_error = arbiter.health == Health::Error;
            Ok((is_error && told(&detail) && told(&screen)).then_some(()))
        })?;
        bed.until(&format!("{words:?} in the check of {side:?}"), 30, |bed| {
            Ok(told(&found_by_check(bed, side)?).then_some(()))
        })?;
    }
    bed.until("the end of the start-up delay", 30, |bed| {
        Ok(bed.status(Side::First)?.startup.is_none().then_some(()))
    })?;
    bed.until("a group that waits for the arbiter", 30, |bed| {
        let waits = bed.group(Side::First)?.waits_for.unwrap_or_default();
        Ok(waits.contains("the arbiter").then_some(()))
    })?;
    Side::BOTH
        .into_iter()
        .try_for_each(|side| ensure_all_off(bed, side))
}
