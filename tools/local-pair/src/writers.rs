//! Python clients that write numbered blocks all the time and remember which writes were answered, and when. They have
//! one clock, so that their answers can be put in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::tool::run_tool;
use crate::wait::Deadline;

/// The interpreter that Debian's python3-libnbd belongs to.
pub const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = include_str!("writers.py");
/// The first 16 MiB, shared out among the writers.
const BLOCKS: u64 = 4096;
const CHECK_LIMIT: Duration = Duration::from_secs(90);

/// One answered write, by the clock of all writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub sent_ns: u64,
    pub done_ns: u64,
}

/// Now, by the clock of all writers.
pub fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_nanos().try_into()?)
}

/// What a writer does whose export goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenLost {
    End,
    /// It writes again whenever the export is served.
    GoOn,
}

#[derive(Debug)]
pub struct Writers {
    script: PathBuf,
    journals: Vec<PathBuf>,
    running: Vec<Child>,
}

impl Writers {
    /// One writer for each export, with blocks of its own. `name` tells their journals from those of others in the
    /// folder.
    pub fn start(folder: &Path, name: &str, exports: &[String], when: WhenLost) -> Result<Self> {
        let script = folder.join("writers.py");
        fs::write(&script, SCRIPT)?;
        let mut writers = Self {
            script,
            journals: Vec::new(),
            running: Vec::new(),
        };
        let word = match when {
            WhenLost::End => "write",
            WhenLost::GoOn => "write-again",
        };
        let count = exports.len().to_string();
        for (index, uri) in exports.iter().enumerate() {
            let journal = folder.join(format!("{name}-{index}.journal"));
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", PYTHON])
                .arg(&writers.script)
                .args([word, uri])
                .arg(&journal)
                .args([&index.to_string(), &count, &BLOCKS.to_string()])
                .stdin(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {PYTHON}"))?;
            writers.journals.push(journal);
            writers.running.push(child);
        }
        Ok(writers)
    }

    /// What one writer was answered so far, in order.
    pub fn answers(&self, writer: usize) -> Vec<Answer> {
        let text = fs::read_to_string(&self.journals[writer]).unwrap_or_default();
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

    fn answered(&self) -> usize {
        let writers = 0..self.journals.len();
        writers.map(|writer| self.answers(writer).len()).sum()
    }

    /// Waits until this many more writes were answered.
    pub fn wait_progress(&self, writes: usize) -> Result<()> {
        let goal = self.answered() + writes;
        Deadline::after_seconds(30).until(&format!("{writes} more answered writes"), || {
            Ok((self.answered() >= goal).then_some(()))
        })
    }

    /// Waits for writers whose export went away.
    pub fn wait_lost(&mut self) -> Result<()> {
        for child in &mut self.running {
            Deadline::after_seconds(30)
                .until("the end of a writer", || Ok(child.try_wait()?.map(|_| ())))?;
        }
        self.running.clear();
        Ok(())
    }

    /// Tells the writers to stop after the write they are in.
    pub fn stop(&mut self) -> Result<()> {
        for child in &self.running {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        }
        self.wait_lost()
    }

    /// Ends the writers where they are; a write may be under way that is never answered.
    pub fn kill(&mut self) -> Result<()> {
        for child in &mut self.running {
            child.kill()?;
            child.wait()?;
        }
        self.running.clear();
        Ok(())
    }

    /// Every answered write of all writers is on an export.
    pub fn check(&self, export: &str) -> Result<()> {
        let all: Vec<usize> = (0..self.journals.len()).collect();
        ensure!(
            self.answered() > 0,
            "nothing was answered, so nothing is checked"
        );
        self.check_those_of(&all, export)
    }

    /// Every answered write of these writers is on an export.
    pub fn check_those_of(&self, writers: &[usize], export: &str) -> Result<()> {
        let mut arguments = vec![
            self.script.display().to_string(),
            "check".into(),
            export.into(),
        ];
        for writer in writers {
            arguments.push(self.journals[*writer].display().to_string());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run_tool(PYTHON, &arguments, CHECK_LIMIT).map(drop)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
