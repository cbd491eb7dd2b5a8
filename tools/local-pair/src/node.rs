//! One node of a pair: its folder and its process.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::Deadline;

/// Longest wait for a node that was told to stop.
const STOP_SECONDS_MAX: u64 = 30;
/// Lines of a log that an error carries.
const LOG_LINES_SHOWN: usize = 25;

#[derive(Debug)]
pub struct Node {
    pub name: &'static str,
    pub folder: PathBuf,
    pub data: PathBuf,
    /// Nothing for metadata at the end of the data.
    pub metadata: Option<PathBuf>,
    /// The configuration that this node reads; both nodes share one unless a test changes it.
    pub config: PathBuf,
    /// `ADDRESS:PORT` where it listens for its peer.
    pub replication: String,
    /// `ADDRESS:PORT` of its NBD export over TCP.
    pub nbd_tcp: String,
    process: Option<Child>,
}

impl Node {
    pub(crate) fn new(
        name: &'static str,
        folder: PathBuf,
        data: PathBuf,
        metadata: Option<PathBuf>,
        config: PathBuf,
        replication: String,
        nbd_tcp: String,
    ) -> Self {
        Self {
            name,
            folder,
            data,
            metadata,
            config,
            replication,
            nbd_tcp,
            process: None,
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The end of the log, for an error.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    pub fn nbd_socket(&self, mirror: &str) -> PathBuf {
        self.run_dir().join(format!("{mirror}.nbd"))
    }

    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Starts `mirrord` without waiting for anything. The log is appended to.
    pub(crate) fn spawn(&mut self, mirrord: &Path, wrapper: &[String]) -> Result<()> {
        if self.process.is_some() {
            bail!("{} runs already", self.name);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("cannot open {}", self.log_path().display()))?;
        // `setpriv` arranges that the kernel kills the node when the thread that started it ends.
        let mut words = wrapper.iter().map(String::as_str);
        let mut command = match words.next() {
            None => Command::new("setpriv"),
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg("setpriv");
                command
            }
        };
        let child = command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(mirrord)
            .arg("--config")
            .arg(&self.config)
            .args(["--node", self.name, "--run-dir"])
            .arg(self.run_dir())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {} for {}", mirrord.display(), self.name))?;
        self.process = Some(child);
        Ok(())
    }

    /// How the process ended, if it did by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = self.process.as_mut() else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Waits for the process to end by itself and gives its exit code.
    pub fn wait_end(&mut self, deadline: Deadline) -> Result<Option<i32>> {
        let status = deadline.until(&format!("the end of {}", self.name), || self.ended())?;
        Ok(status.code())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.process else {
            bail!("{} does not run", self.name);
        };
        kill(Pid::from_raw(child.id().cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// `kill -9`, and the process is gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// A clean stop by SIGTERM; anything but exit code 0 is an error.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Deadline::after_seconds(STOP_SECONDS_MAX);
        let status =
            deadline.until(&format!("the clean stop of {}", self.name), || self.ended())?;
        if !status.success() {
            bail!(
                "{} was told to stop and ended with {:?} (signal {:?}); its log ends:\n{}",
                self.name,
                status.code(),
                status.signal(),
                self.log_tail()
            );
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing can be done about a failure here: the process is gone already or the kernel keeps it.
        let _ = self.kill();
    }
}
