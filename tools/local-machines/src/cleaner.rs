//! The end of a bed, also of one whose test is killed: a process beside it that removes its folder.
//!
//! There is nothing else to take away. The kernel kills each machine along with the test, and the disks are memory of
//! the test itself.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use local_pair::Deadline;

use super::PATIENCE;

/// Its standard input ends with the test.
const SCRIPT: &str = "cat >/dev/null; exec rm -rf -- \"$1\"";

#[derive(Debug)]
pub struct Cleaner {
    process: Child,
}

impl Cleaner {
    pub fn start(folder: &Path) -> Result<Self> {
        let process = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What interrupts the test must not interrupt it.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        Ok(Self { process })
    }

    /// Lets it do its work. All machines are off.
    pub fn finish(&mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let ended = Deadline::after(PATIENCE)
            .until("the end of the cleaner", || Ok(self.process.try_wait()?))?;
        ensure!(ended.success(), "the cleaner ended with {ended}");
        Ok(())
    }
}
