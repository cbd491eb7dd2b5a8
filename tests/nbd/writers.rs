//! Several Python clients that write all the time and remember which writes were answered.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use local_pair::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client;

/// The interpreter that Debian's python3-libnbd belongs to.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("writers.py");
const WRITERS: usize = 4;
const BLOCKS: u64 = 4096;

#[derive(Debug)]
pub struct Writers {
    script: PathBuf,
    journals: Vec<PathBuf>,
    running: Vec<Child>,
}

impl Writers {
    /// Starts writing into the first 16 MiB of an export.
    pub fn start(folder: &Path, name: &str, uri: &str) -> Result<Self> {
        let script = folder.join("writers.py");
        std::fs::write(&script, SCRIPT)?;
        let mut writers = Self {
            script,
            journals: Vec::new(),
            running: Vec::new(),
        };
        for index in 0..WRITERS {
            let journal = folder.join(format!("{name}-{index}.journal"));
            let child = Command::new(PYTHON)
                .arg(&writers.script)
                .args(["write", uri])
                .arg(&journal)
                .args([index.to_string(), WRITERS.to_string(), BLOCKS.to_string()])
                .stdin(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {PYTHON}"))?;
            writers.journals.push(journal);
            writers.running.push(child);
        }
        Ok(writers)
    }

    fn answered(&self) -> usize {
        self.journals
            .iter()
            .filter_map(|journal| std::fs::read_to_string(journal).ok())
            .map(|text| text.matches("done").count())
            .sum()
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

    /// Every answered write is on this export.
    pub fn check(&self, uri: &str) -> Result<()> {
        let mut arguments = vec![
            self.script.display().to_string(),
            "check".into(),
            uri.into(),
        ];
        arguments.extend(self.journals.iter().map(|j| j.display().to_string()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = client::run(PYTHON, &arguments)?;
        ensure!(
            self.answered() > 0,
            "nothing was answered, so nothing was checked: {said}"
        );
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
