//! Heartbeats that were recorded where they pass are sent again, altered, forged and turned round, all the time: they
//! count for nothing. Nobody who is dead is taken for alive, nobody who lives is lost, and who looks is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use agent::alert;
use agent::control::{NodeState, State};
use anyhow::{Result, ensure};
use local_cluster::{Bed, Daemon, Guard, Machine, Process, Setup};
use local_pair::{PYTHON, Side};

use crate::alerts::{find, wait_alert};

const SCRIPT: &str = include_str!("recordings.py");
/// Of the tape, while something is looked at.
const ROUNDS: usize = 2;

struct Tape {
    script: PathBuf,
    tape: PathBuf,
    log: String,
    recorder: Option<Process>,
    sender: Option<Process>,
}

impl Tape {
    /// Records what passes a server.
    fn record(bed: &mut Bed, at: Side) -> Result<Self> {
        let script = bed.folder().join("recordings.py");
        fs::write(&script, SCRIPT)?;
        let mut tape = Self {
            script,
            tape: bed.folder().join("tape"),
            log: "recorder.log".into(),
            recorder: None,
            sender: None,
        };
        let words = tape.words("record", &[]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tape.recorder = Some(bed.spawn_on(at, &words, &tape.log)?);
        let log = bed.folder().join(&tape.log);
        bed.until("a recording", 60, |_| {
            // Some for each path and direction.
            let said = fs::read_to_string(&log)?;
            Ok(said.contains("recorded 200").then_some(()))
        })?;
        Ok(tape)
    }

    fn words(&self, what: &str, more: &[&str]) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let mut words = vec![PYTHON.into(), path(&self.script), what.into()];
        words.push(path(&self.tape));
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Sends it at a server, from this machine.
    fn send(
        &mut self,
        bed: &Bed,
        victim: Side,
        spawn: impl FnOnce(&[&str], &str) -> Result<Process>,
    ) -> Result<()> {
        let host = match victim {
            Side::First => "1",
            Side::Second => "2",
        };
        let words = self.words("send", &[host]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let log = bed.folder().join("sender.log");
        self.sender = Some(spawn(&words, &log.display().to_string())?);
        Ok(())
    }

    fn rounds(bed: &Bed) -> usize {
        let said = fs::read_to_string(bed.folder().join("sender.log")).unwrap_or_default();
        said.lines().count()
    }

    /// Looks again and again while the tape is sent a few times.
    fn while_sent(bed: &mut Bed, mut look: impl FnMut(&mut Bed) -> Result<()>) -> Result<()> {
        let goal = Self::rounds(bed) + ROUNDS;
        bed.until("the tape, sent again", 120, |bed| {
            look(bed)?;
            Ok((Self::rounds(bed) >= goal).then_some(()))
        })
    }
}

fn ensure_other(bed: &Bed, at: Side, state: NodeState) -> Result<()> {
    let status = bed.status(at)?;
    let other = &status.nodes[at.other().index()];
    ensure!(other.state == state, "{other:?}");
    let namesake = |line: &String| line.contains("themselves") || line.contains("calls itself");
    ensure!(
        !status.warnings.iter().any(namesake),
        "{:?}",
        status.warnings
    );
    Ok(())
}

fn wait_other(bed: &mut Bed, at: Side, state: NodeState) -> Result<()> {
    bed.until(&format!("{state:?} of the other server"), 60, |bed| {
        let status = bed.status(at)?;
        Ok((status.nodes[at.other().index()].state == state).then_some(()))
    })
}

/// What was refused since the agent of a server last started, and how often that was told.
fn told(bed: &Bed, at: Side) -> BTreeMap<String, usize> {
    let alerts = bed.alerts(at);
    let mut from = 0;
    while let Some(start) = find(&alerts, alert::NODE_STARTED, from) {
        from = start + 1;
    }
    let mut told = BTreeMap::new();
    while let Some(at) = find(&alerts, alert::BEAT_REFUSED, from) {
        from = at + 1;
        let (_, said) = alerts[at].split_once(" 1008 ").unwrap_or_default();
        *told.entry(said.to_owned()).or_insert(0) += 1;
    }
    told
}

/// Each path and reason once, although it comes all the time.
fn wait_told_once(bed: &mut Bed, at: Side, reasons: &[&str]) -> Result<()> {
    for reason in reasons {
        bed.until(&format!("that it says {reason:?}"), 60, |bed| {
            let mut said = told(bed, at).into_keys();
            Ok(said.find(|said| said.contains(reason)))
        })?;
    }
    let told = told(bed, at);
    ensure!(told.values().all(|times| *times == 1), "{told:#?}");
    Ok(())
}

#[test]
fn a_server_is_as_alive_as_it_is_whatever_was_recorded_of_it() -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let (here, there) = (Side::First, Side::Second);
    let mut tape = Tape::record(&mut bed, there)?;
    tape.send(&bed, here, |words, log| bed.spawn_on(there, words, log))?;

    // While both live, nothing comes of it.
    Tape::while_sent(&mut bed, |bed| ensure_other(bed, here, NodeState::Online))?;
    ensure!(find(&bed.alerts(here), alert::PEER_DOWN, 0).is_none());
    ensure!(bed.group(here)?.state == State::Online);
    let screen = bed.ctl(here, &["status"]).done()?;
    ensure!(screen.contains("refused a datagram: "), "{screen}");
    wait_told_once(
        &mut bed,
        here,
        &[
            "was taken in before",
            "this node sent it itself",
            "meant for path 1",
            "meant for path 2",
            "not made with this cluster's key",
            "not a heartbeat of this version",
        ],
    )?;

    // Dead, it is lost, and stays so.
    let fallen = |bed: &mut Bed| -> Result<()> {
        Daemon::BOTH
            .into_iter()
            .try_for_each(|daemon| bed.kill(there, daemon))?;
        wait_other(bed, here, NodeState::Lost)?;
        Tape::while_sent(bed, |bed| ensure_other(bed, here, NodeState::Lost))?;
        let alerts = bed.alerts(here);
        let lost = alerts.iter().rposition(|line| line.contains(" 1004 "));
        let heard = alerts.iter().rposition(|line| line.contains(" 1003 "));
        ensure!(heard < lost, "{alerts:#?}");
        ensure!(bed.group(here)?.state == State::Online);
        Ok(())
    };
    fallen(&mut bed)?;

    // Started again it is another run, and what was recorded of the former one is of no more use than before.
    bed.start_server(there)?;
    wait_other(&mut bed, here, NodeState::Online)?;
    Tape::while_sent(&mut bed, |bed| ensure_other(bed, here, NodeState::Online))?;
    wait_told_once(
        &mut bed,
        here,
        &["of a run of the other agent that has ended"],
    )?;
    bed.wait_in_step()?;
    fallen(&mut bed)?;

    // Nor does it make a server believe anything that is started where nobody else is: neither that the other one is
    // there, nor that there is another one like itself.
    bed.cut_power(here)?;
    bed.boot(here)?;
    bed.start_server(here)?;
    bed.wait_group(here, State::Online)?;
    Tape::while_sent(&mut bed, |bed| ensure_other(bed, here, NodeState::Unknown))?;
    wait_told_once(
        &mut bed,
        here,
        &[
            "bears this node's own name",
            "answers what this node said long ago",
        ],
    )?;
    let same_name = find(&bed.alerts(here), alert::SAME_NAME, 0);
    ensure!(same_name.is_none(), "{:#?}", bed.alerts(here));

    // The true one is heard at once.
    drop(tape);
    bed.start_server(there)?;
    wait_other(&mut bed, here, NodeState::Online)?;
    bed.wait_in_step()
}

#[test]
fn a_failover_is_held_up_by_nothing_that_was_recorded_of_the_owner() -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::ForcedStop,
        mounted: false,
    })?;
    let (owner, other) = (Side::First, Side::Second);
    let mut tape = Tape::record(&mut bed, owner)?;
    let stranger: Machine = bed.stranger(66)?;
    tape.send(&bed, other, |words, log| {
        stranger.spawn(words, log.as_ref())
    })?;
    Tape::while_sent(&mut bed, |bed| ensure_other(bed, other, NodeState::Online))?;
    bed.cut_power(owner)?;
    bed.wait_group(other, State::Online)?;
    Tape::while_sent(&mut bed, |bed| ensure_other(bed, other, NodeState::Lost))?;
    ensure!(bed.app_runs(other));
    let words = ["path public", "was taken in before"];
    wait_alert(&mut bed, other, alert::BEAT_REFUSED, &words)?;
    wait_told_once(&mut bed, other, &words[1..])
}
