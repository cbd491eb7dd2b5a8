//! Agents that are not who they say: with another key, under the name of the other server, or a clone of one.

use std::fs;
use std::path::Path;

use agent::alert;
use agent::control::{NodeState, State};
use anyhow::{Result, ensure};
use local_cluster::{Bed, Daemon, GROUP, Guard, Setup};
use local_pair::Side;

use crate::alerts::wait_alert;
use crate::misconfigured::{ensure_all_off, ensure_says};
use crate::writers::Writers;

const WITNESSED: Setup = Setup {
    guard: Guard::Witness,
    mounted: false,
};

#[test]
fn an_agent_with_another_key_is_heard_by_nobody_and_starts_nothing() -> Result<()> {
    let mut bed = Bed::running(WITNESSED)?;
    let stranger = bed.folder().join("stranger.key").display().to_string();
    let known = bed.folder().join("cluster.key").display().to_string();
    bed.ctl(Side::First, &["keygen", &stranger]).done()?;
    bed.stop(Side::Second, Daemon::Agent)?;
    bed.configure_alone(Side::Second, &known, &stranger)?;
    bed.start(Side::Second, Daemon::Agent)?;
    for side in Side::BOTH {
        let words = ["was not made with this cluster's key"];
        wait_alert(&mut bed, side, alert::BEAT_REFUSED, &words)?;
    }
    let words = ["copy the cluster's key file to the witness"];
    wait_alert(&mut bed, Side::Second, alert::ARBITER_DOWN, &words)?;
    bed.until("the end of the start-up delay", 30, |bed| {
        Ok(bed.status(Side::Second)?.startup.is_none().then_some(()))
    })?;
    bed.until("a group that waits", 30, |bed| {
        Ok(bed.group(Side::Second)?.waits_for)
    })?;
    ensure_all_off(&bed, Side::Second)?;
    bed.ctl(Side::First, &["switchover", GROUP])
        .refused(&["server2 is not heard"])?;
    ensure!(bed.app_runs(Side::First));
    // With the right file it is heard again.
    bed.stop(Side::Second, Daemon::Agent)?;
    bed.configure_alone(Side::Second, &stranger, &known)?;
    bed.start(Side::Second, Daemon::Agent)?;
    wait_alert(&mut bed, Side::Second, alert::PEER_UP, &[])?;
    bed.until("server2 ready, as server1 sees it", 30, |bed| {
        let status = bed.status(Side::First)?;
        Ok((status.nodes[1].state == NodeState::Online).then_some(()))
    })?;
    bed.ctl(Side::First, &["switchover", GROUP]).done()?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.wait_in_step()
}

#[test]
fn an_agent_under_the_name_of_the_other_server_does_not_start() -> Result<()> {
    let mut bed = Bed::prepared(WITNESSED)?;
    bed.start(Side::First, Daemon::Agent)?;
    let run_dir = bed.pair().node(Side::Second).run_dir();
    let config = bed.pair().node(Side::Second).config.clone();
    let words = agent_words(&bed, &run_dir, &config);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = match bed.spawn_on(Side::Second, &words, "namesake.log") {
        Ok(mut namesake) => {
            namesake.wait_end()?;
            fs::read_to_string(bed.folder().join("namesake.log"))?
        }
        Err(error) => format!("{error:#}"),
    };
    let words = ["runs as server2, and this agent as server1", "--node"];
    ensure_says(&said, &words)?;
    bed.start(Side::Second, Daemon::Agent)?;
    bed.wait_group(Side::First, State::Online)?;
    ensure!(!bed.app_runs(Side::Second));
    bed.wait_in_step()
}

/// An agent that calls itself server1.
fn agent_words(bed: &Bed, run_dir: &Path, config: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let record = bed.folder().join("actions-of-the-namesake");
    [
        &text(&bed.pair().programs().mirror_agent),
        "--config",
        &text(config),
        "--node",
        "server1",
        "--run-dir",
        &text(run_dir),
        "--record-actions",
        &text(&record),
    ]
    .map(String::from)
    .to_vec()
}

#[test]
fn a_clone_of_a_server_is_named_and_changes_nothing() -> Result<()> {
    let mut bed = Bed::running(WITNESSED)?;
    let mut writers = Writers::start(bed.pair())?;
    let wait = |bed: &mut Bed, writers: &Writers| {
        let goal = writers.count(Side::First) + 50;
        bed.until("answers", 60, |_| {
            Ok((writers.count(Side::First) >= goal).then_some(()))
        })
    };
    wait(&mut bed, &writers)?;
    // The same name and key at another address, and a file that leads it to the true one.
    let machine = bed.stranger(77)?;
    let folder = bed.folder().join("clone");
    fs::create_dir(&folder)?;
    let config = folder.join("cluster.toml");
    let text = fs::read_to_string(&bed.pair().node(Side::First).config)?;
    let text = text
        .replace(
            "server1 = \"10.77.0.1:29002\"",
            "server1 = \"10.77.0.77:29002\"",
        )
        .replace(
            "server2 = \"10.77.0.2:29002\"",
            "server2 = \"10.77.0.1:29002\"",
        )
        .replace("here/alert.log", "clone/alert.log");
    fs::write(&config, text)?;
    let words = agent_words(&bed, &folder.join("run"), &config);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut clone = machine.spawn(&words, &folder.join("log"))?;

    let words = ["Another machine calls itself server1 too", "path public"];
    wait_alert(&mut bed, Side::First, alert::SAME_NAME, &words)?;
    let screen = bed.ctl(Side::First, &["status"]).done()?;
    ensure_says(&screen, &["!!! another machine calls itself server1 too"])?;
    wait(&mut bed, &writers)?;
    ensure!(clone.is_running()?);
    clone.kill()?;
    bed.until("the end of the warning", 30, |bed| {
        let warnings = bed.status(Side::First)?.warnings;
        let told = |line: &String| line.contains("calls itself");
        Ok((!warnings.iter().any(told)).then_some(()))
    })?;
    wait(&mut bed, &writers)?;
    let told = bed.alerts(Side::First);
    let told = told.iter().filter(|line| line.contains(" 1009 "));
    ensure!(told.count() == 1, "it is told once");
    ensure!(bed.group(Side::First)?.state == State::Online);
    ensure!(writers.count(Side::Second) == 0);
    writers.stop()?;
    bed.wait_in_step()?;
    writers.check(bed.pair(), &[Side::First], Side::First)
}
