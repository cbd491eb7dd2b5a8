//! What an operator does with a cluster that is in order.

use agent::alert;
use agent::control::{CommandReply, Health, NodeState, State};
use anyhow::{Context, Result, ensure};
use local_cluster::{Bed, Daemon, Files, GROUP, Guard, Setup};
use local_pair::{PYTHON, Side};
use mirror_core::control::Role;

use crate::alerts::{ensure_order, find};

#[test]
fn a_planned_switchover_loses_nothing_and_stops_no_server() -> Result<()> {
    there_and_back(Guard::ForcedStop)
}

#[test]
fn a_planned_switchover_takes_the_lease_along() -> Result<()> {
    there_and_back(Guard::Witness)
}

fn there_and_back(guard: Guard) -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard,
        mounted: true,
    })?;
    let mut files = Files::start(&bed)?;
    wait_records(&mut bed, &files, Side::First)?;

    let said = bed.ctl(Side::First, &["switchover", GROUP]).done();
    let said = said.with_context(|| bed.story())?;
    let seconds = said
        .lines()
        .find_map(|line| line.strip_suffix(" s without service"));
    let seconds = seconds.and_then(|number| number.parse::<f64>().ok());
    ensure!(
        seconds.is_some_and(|seconds| seconds > 0.0),
        "it said {said}"
    );
    moved(&mut bed, &files, Side::Second)?;

    let said = bed
        .ctl(Side::Second, &["--json", "switchover", GROUP])
        .done();
    let said = said.with_context(|| bed.story())?;
    let reply: CommandReply =
        serde_json::from_str(&said).with_context(|| format!("it said {said}"))?;
    ensure!(
        reply.without_service_ms.is_some_and(|ms| ms > 0),
        "it said {said}"
    );
    moved(&mut bed, &files, Side::First)?;

    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    bed.wait_in_step()?;
    files.conclude(&mut bed)
}

fn wait_records(bed: &mut Bed, files: &Files, side: Side) -> Result<()> {
    let goal = files.confirmed(side).len() + 20;
    bed.until(&format!("records of {side:?}"), 60, |_| {
        Ok((files.confirmed(side).len() >= goal).then_some(()))
    })
}

fn moved(bed: &mut Bed, files: &Files, to: Side) -> Result<()> {
    bed.wait_group(to, State::Online)?;
    ensure!(bed.app_runs(to) && !bed.app_runs(to.other()));
    wait_records(bed, files, to)
}

const UNMOUNTED: Setup = Setup {
    guard: Guard::ForcedStop,
    mounted: false,
};

fn is_standby(bed: &Bed, asked: Side, which: Side) -> Result<bool> {
    Ok(bed.status(asked)?.nodes[which.index()].standby)
}

#[test]
fn a_node_on_standby_gives_its_group_away_and_takes_none_until_it_is_active_again() -> Result<()> {
    let mut bed = Bed::running(UNMOUNTED)?;
    let first = bed.name(Side::First);
    bed.ctl(Side::First, &["node", "standby", first]).done()?;
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(bed.app_runs(Side::Second) && !bed.app_runs(Side::First));
    for asked in Side::BOTH {
        bed.until("the standby in the status", 20, |bed| {
            Ok(is_standby(bed, asked, Side::First)?.then_some(()))
        })?;
        let screen = bed.ctl(asked, &["status"]).done()?;
        ensure!(screen.contains("Standby"), "{screen}");
    }
    bed.wait_in_step()?;
    let refused = bed.ctl(Side::Second, &["switchover", GROUP]);
    refused.refused(&["server1 cannot take failover1", "standby"])?;
    ensure!(bed.group(Side::Second)?.state == State::Online);

    // By the other node, which passes it on.
    bed.ctl(Side::Second, &["node", "active", first]).done()?;
    bed.until("the end of the standby", 20, |bed| {
        let still = [
            is_standby(bed, Side::First, Side::First)?,
            is_standby(bed, Side::Second, Side::First)?,
        ];
        Ok((still == [false; 2]).then_some(()))
    })?;
    ensure!(bed.app_runs(Side::Second), "it does not go back by itself");
    bed.ctl(Side::Second, &["switchover", GROUP]).done()?;
    bed.wait_group(Side::First, State::Online)?;
    ensure!(bed.app_runs(Side::First) && !bed.app_runs(Side::Second));
    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    Ok(())
}

#[test]
fn a_stopped_group_stays_stopped_until_it_is_started_by_hand() -> Result<()> {
    let mut bed = Bed::running(UNMOUNTED)?;
    // On the node that does not run it.
    let said = bed.ctl(Side::Second, &["group", "stop", GROUP]).done()?;
    ensure!(said.contains("is stopped on server1"), "{said}");
    for side in Side::BOTH {
        bed.wait_group(side, State::Offline)?;
        ensure!(!bed.app_runs(side));
        ensure!(bed.pair().status(side)?.role == Role::Secondary);
    }
    // An agent that forgot it learns it from the other one.
    bed.kill(Side::First, Daemon::Agent)?;
    bed.start(Side::First, Daemon::Agent)?;
    bed.until("two agents past their start", 60, |bed| {
        let nodes = bed.status(Side::First)?.nodes;
        let online = nodes.iter().all(|node| node.state == NodeState::Online);
        Ok(online.then_some(()))
    })?;
    ensure!(bed.group(Side::First)?.state == State::Offline);
    ensure!(bed.group(Side::Second)?.state == State::Offline);
    bed.ctl(Side::First, &["switchover", GROUP])
        .refused(&["online on neither node", "mirrorctl group start"])?;

    bed.ctl(Side::Second, &["group", "start", GROUP]).done()?;
    bed.wait_group(Side::Second, State::Online)?;
    ensure!(bed.app_runs(Side::Second) && !bed.app_runs(Side::First));
    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    bed.wait_in_step()
}

/// What balancers are told by a server: the status of an answer, and whether the other port accepts.
fn readiness(bed: &Bed, side: Side) -> Result<(String, bool)> {
    let ask = "import http.client, socket\n\
               server = http.client.HTTPConnection('127.0.0.1', 29010, timeout=5)\n\
               server.request('GET', '/')\n\
               print(server.getresponse().status)\n\
               print(socket.socket().connect_ex(('127.0.0.1', 29011)) == 0)\n";
    let said = bed.run_on(side, &[PYTHON, "-c", ask])?;
    let (status, accepts) = said.trim().split_once('\n').context("two answers")?;
    Ok((status.to_owned(), accepts == "True"))
}

#[test]
fn balancers_are_sent_to_where_the_group_is_online_and_nowhere_else() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let monitor = "[[monitor]]\nkind = \"mirror-disk\"";
    let probe = "[[group.resource]]\nkind = \"probe-port\"\nname = \"probe\"\n\
                 http = \"0.0.0.0:29010\"\ntcp = \"0.0.0.0:29011\"\n\n";
    bed.configure(monitor, &format!("{probe}{monitor}"))?;
    bed.bring_online()?;
    let ready = ("200".to_owned(), true);
    let unready = ("503".to_owned(), false);
    ensure!(readiness(&bed, Side::First)? == ready);
    ensure!(readiness(&bed, Side::Second)? == unready);

    let moved = bed.ctl(Side::First, &["switchover", GROUP]).done();
    moved.with_context(|| bed.story())?;
    ensure!(readiness(&bed, Side::First)? == unready);
    ensure!(readiness(&bed, Side::Second)? == ready);

    // An agent that is started anew finds the group as it was.
    bed.kill(Side::Second, Daemon::Agent)?;
    bed.start(Side::Second, Daemon::Agent)?;
    bed.until("a ready server", 30, |bed| {
        Ok((readiness(bed, Side::Second)? == ready).then_some(()))
    })?;
    bed.ctl(Side::Second, &["group", "stop", GROUP]).done()?;
    for side in Side::BOTH {
        ensure!(readiness(&bed, side)? == unready, "{side:?}");
    }
    Ok(())
}

#[test]
fn suspended_monitors_look_at_nothing_and_resumed_ones_mend_what_they_find() -> Result<()> {
    let mut bed = Bed::prepared(UNMOUNTED)?;
    let here = bed.folder().join("here").display().to_string();
    let probe =
        format!("echo x >> {here}/probes\ntest -e {here}/app || {{ echo it is gone; exit 1; }}\n");
    for side in Side::BOTH {
        std::fs::write(bed.here(side).join("probe"), &probe)?;
    }
    let monitor = format!(
        "[[monitor]]\nkind = \"exec\"\nname = \"app-runs\"\n\
         command = [\"/bin/sh\", \"{here}/probe\"]\ngroup = \"{GROUP}\"\nresource = \"app\"\n\
         interval = \"100ms\"\ntimeout = \"10s\"\nretries = 1\n\n"
    );
    let first = "[[monitor]]\nkind = \"mirror-disk\"";
    bed.configure(first, &(monitor + first))?;
    bed.bring_online()?;
    let probes = |bed: &Bed| {
        let text = std::fs::read_to_string(bed.here(Side::First).join("probes"));
        text.unwrap_or_default().len()
    };
    bed.until("a few probes", 30, |bed| {
        Ok((probes(bed) > 10).then_some(()))
    })?;

    // On the other node, which passes it on.
    let said = bed.ctl(Side::Second, &["monitor", "suspend"]).done()?;
    ensure!(said.contains("on both nodes"), "{said}");
    for side in Side::BOTH {
        let status = bed.status(side)?;
        ensure!(status.monitors_suspended);
        let all = status.monitors.iter();
        let rest = all.filter(|monitor| monitor.health != Health::Suspend);
        ensure!(rest.count() == 0, "{:?}", status.monitors);
        let screen = bed.ctl(side, &["status"]).done()?;
        ensure!(screen.contains("mirrorctl monitor resume"), "{screen}");
    }
    std::fs::remove_file(bed.here(Side::First).join("app"))?;
    let before = probes(&bed);
    // Time for many probes, which an unsuspended monitor would not let pass.
    bed.kill(Side::Second, Daemon::Mirrord)?;
    bed.pair().wait_alone(Side::First)?;
    bed.start(Side::Second, Daemon::Mirrord)?;
    bed.wait_in_step()?;
    // The probe that was open may have gone on.
    ensure!(probes(&bed) <= before + "x\n".len(), "it was looked at");
    ensure!(!bed.app_runs(Side::First));
    let alerts = bed.alerts(Side::First);
    ensure!(find(&alerts, alert::MONITOR_WARNING, 0).is_none());

    bed.ctl(Side::First, &["monitor", "resume"]).done()?;
    bed.until("the application again", 30, |bed| {
        Ok(bed.app_runs(Side::First).then_some(()))
    })?;
    bed.until("a monitor in order", 30, |bed| {
        Ok(find(&bed.alerts(Side::First), alert::MONITOR_RECOVERED, 0))
    })?;
    let in_order = [
        alert::MONITORS_SUSPENDED,
        alert::MONITORS_SUSPENDED,
        alert::MONITOR_WARNING,
        alert::MONITOR_ACTION,
        alert::GROUP_STARTED,
        alert::MONITOR_RECOVERED,
    ];
    ensure_order(&bed.alerts(Side::First), &in_order)?;
    for side in Side::BOTH {
        ensure!(!bed.status(side)?.monitors_suspended);
    }
    ensure!(bed.group(Side::Second)?.state == State::Offline);
    Ok(())
}
