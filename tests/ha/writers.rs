//! A client on each side that writes numbered blocks whenever its server answers, and remembers when it
//! did. The two have one clock, so that their answers can be put in order.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use local_cluster::PYTHON;
use local_pair::{Pair, Side, run_tool};
use nix::time::{ClockId, clock_gettime};

const SCRIPT: &str = include_str!("writers.py");
/// The first 16 MiB, of which each side writes every other block.
const BLOCKS: u64 = 4096;
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// One answered write, by the clock of both clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub sent_ns: u64,
    pub done_ns: u64,
}

/// Now, by the clock of both clients.
pub fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_nanos().try_into()?)
}

#[derive(Debug)]
pub struct Writers {
    script: PathBuf,
    journals: [PathBuf; 2],
    running: Vec<Child>,
}

impl Writers {
    pub fn start(pair: &Pair) -> Result<Self> {
        let script = pair.folder().join("writers.py");
        fs::write(&script, SCRIPT)?;
        let journals = Side::BOTH.map(|side| pair.node(side).folder.join("journal"));
        let mut writers = Self {
            script,
            journals,
            running: Vec::new(),
        };
        for side in Side::BOTH {
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", PYTHON])
                .arg(&writers.script)
                .args(["write", &pair.uri(side)])
                .arg(&writers.journals[side.index()])
                .args([side.index().to_string(), "2".into(), BLOCKS.to_string()])
                .stdin(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {PYTHON}"))?;
            writers.running.push(child);
        }
        Ok(writers)
    }

    /// What a side answered so far, in order.
    pub fn answers(&self, side: Side) -> Vec<Answer> {
        let text = fs::read_to_string(&self.journals[side.index()]).unwrap_or_default();
        let mut answers = Vec::new();
        let mut sent_ns = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            // The last line may be on its way.
            let Some(Ok(ns)) = words.get(3).map(|word| word.parse::<u64>()) else {
                break;
            };
            if words[0] == "sent" {
                sent_ns = ns;
            } else {
                answers.push(Answer {
                    sent_ns,
                    done_ns: ns,
                });
            }
        }
        answers
    }

    /// A write was sent after this moment, and answered.
    pub fn answered_since(&self, side: Side, ns: u64) -> bool {
        let last = self.answers(side).pop();
        last.is_some_and(|answer| answer.sent_ns > ns)
    }

    pub fn count(&self, side: Side) -> usize {
        self.answers(side).len()
    }

    pub fn stop(&mut self) -> Result<()> {
        for child in &mut self.running {
            child.kill()?;
            child.wait()?;
        }
        self.running.clear();
        Ok(())
    }

    /// Every answered write of these sides is on the export of `from`.
    pub fn check(&self, pair: &Pair, of: &[Side], from: Side) -> Result<()> {
        let mut arguments = vec![
            self.script.display().to_string(),
            "check".into(),
            pair.uri(from),
        ];
        for side in of {
            ensure!(self.count(*side) > 0, "{side:?} answered nothing to check");
            arguments.push(self.journals[side.index()].display().to_string());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run_tool(PYTHON, &arguments, CHECK_LIMIT)?;
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The service never was in two places: after the first answer of `new`, `old` gave none.
pub fn ensure_handed_over(old: &[Answer], new: &[Answer]) -> Result<()> {
    let first = new.first().context("the new side answered nothing")?;
    let late: Vec<_> = old
        .iter()
        .filter(|answer| answer.done_ns > first.done_ns)
        .collect();
    ensure!(
        late.is_empty(),
        "{} writes were answered by the old side after the new one began at {}: the first was sent at {} \
         and answered at {}",
        late.len(),
        first.done_ns,
        late[0].sent_ns,
        late[0].done_ns
    );
    Ok(())
}
