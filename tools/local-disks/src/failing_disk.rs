//! A disk whose operations fail or hang on demand: nbdkit's error filter, shown as a file by nbdfuse.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use local_pair::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{Cleaner, ensure_root, is_mounted, text};

/// Longest wait for a program to come up.
const START_SECONDS_MAX: u64 = 20;

#[derive(Debug)]
pub struct FailingDisk {
    cleaner: Cleaner,
    folder: TempDir,
    name: String,
    /// The server first.
    programs: Vec<Child>,
}

impl FailingDisk {
    pub fn new(megabytes: u32) -> Result<Self> {
        Self::named("data", megabytes)
    }

    /// Shown under this name in [`Self::folder`].
    pub fn named(name: &str, megabytes: u32) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let cleaner = Cleaner::start(folder.path())?;
        let mut disk = Self {
            cleaner,
            folder,
            name: name.into(),
            programs: Vec::new(),
        };
        let [socket, trigger] = ["socket", "trigger"].map(|name| disk.folder.path().join(name));
        let data = disk.data();
        disk.spawn(
            "nbdkit",
            &[
                "--foreground",
                "--unix",
                &text(&socket),
                "--filter=error",
                "memory",
                &format!("{megabytes}M"),
                "error=EIO",
                "error-rate=100%",
                &format!("error-file={}", text(&trigger)),
            ],
        )?;
        let up = |what: &str, is_up: &dyn Fn() -> bool| {
            Deadline::after_seconds(START_SECONDS_MAX).until(what, || Ok(is_up().then_some(())))
        };
        up("nbdkit", &|| socket.exists())?;
        fs::create_dir(disk.folder())?;
        File::create(&data)?;
        let uri = format!("nbd+unix:///?socket={}", text(&socket));
        disk.spawn("nbdfuse", &[&text(&data), &uri])?;
        up("nbdfuse", &|| is_mounted(&data))?;
        Ok(disk)
    }

    /// Holds nothing but the disk.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("shown")
    }

    pub fn data(&self) -> PathBuf {
        self.folder().join(&self.name)
    }

    /// From now on every operation fails.
    pub fn fail(&self) -> Result<()> {
        File::create(self.folder.path().join("trigger"))?;
        Ok(())
    }

    /// From now on no operation fails.
    pub fn mend(&self) -> Result<()> {
        fs::remove_file(self.folder.path().join("trigger"))?;
        Ok(())
    }

    /// From now on no operation comes to an end.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// What hangs goes on.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, which: Signal) -> Result<()> {
        let server = self.programs.first().context("the server runs")?;
        kill(Pid::from_raw(server.id().cast_signed()), which)?;
        Ok(())
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        self.programs.push(child);
        Ok(())
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // The server first: what hangs on it ends in errors.
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
        self.cleaner.conclude();
    }
}
