//! The end of a test, also of one that is killed: a process beside it takes away what it leaves.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use local_pair::{Deadline, PYTHON};

const SCRIPT: &str = include_str!("cleaner.py");
/// A little over what it gives itself.
const END_SECONDS_MAX: u64 = 70;

#[derive(Debug)]
pub struct Cleaner {
    process: Child,
}

impl Cleaner {
    /// Of a folder with all that is in it, of what is mounted there, and of loop devices on its files.
    pub fn start(folder: &Path) -> Result<Self> {
        let script = folder.join("cleaner.py");
        fs::write(&script, SCRIPT)?;
        let process = Command::new(PYTHON)
            .arg(&script)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What interrupts the test must not interrupt it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {PYTHON}"))?;
        Ok(Self { process })
    }

    /// Lets it do its work, at the end of a test in which nothing runs any more. Panics if something is left,
    /// unless a panic is under way already.
    pub fn conclude(&mut self) {
        if let Err(error) = self.finish() {
            assert!(std::thread::panicking(), "something is left: {error:#}");
            eprintln!("something is left: {error:#}");
        }
    }

    fn finish(&mut self) -> Result<()> {
        let mut word = self.process.stdin.take().context("it is at work already")?;
        word.write_all(b"off\n")?;
        drop(word);
        let ended = Deadline::after_seconds(END_SECONDS_MAX)
            .until("the end of the cleaner", || Ok(self.process.try_wait()?))?;
        ensure!(ended.success(), "the cleaner ended with {ended}");
        Ok(())
    }
}
