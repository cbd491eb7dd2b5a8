//! A disk that fails, is full or hangs on demand: nbdkit's error filter, shown as a file by nbdfuse.
//!
//! One filter has one errno for one kind of operation, so there are two servers: the disk, which fails, and in front of it
//! one that has no room for writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use local_pair::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{Cleaner, ensure_root, is_mounted, text};

/// Longest wait for a program to come up.
const START_SECONDS_MAX: u64 = 20;
/// Files that are there while the disk fails, or is full.
const FAILS: &str = "fails";
const FULL: &str = "full";

#[derive(Debug)]
pub struct FailingDisk {
    cleaner: Cleaner,
    folder: TempDir,
    name: String,
    /// The disk first.
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
        let [disk_socket, socket] = ["disk", "socket"].map(|name| disk.path(name));
        let uri = |socket: &Path| format!("nbd+unix:///?socket={}", text(socket));
        let serve = ["--foreground", "--filter=error", "--unix"];
        let up = |what: &str, is_up: &dyn Fn() -> bool| {
            Deadline::after_seconds(START_SECONDS_MAX).until(what, || Ok(is_up().then_some(())))
        };
        let failing = [
            text(&disk_socket),
            "memory".into(),
            format!("{megabytes}M"),
            "error=EIO".into(),
            "error-rate=100%".into(),
            format!("error-file={}", text(&disk.path(FAILS))),
        ];
        disk.spawn("nbdkit", &serve, &failing)?;
        up("nbdkit", &|| disk_socket.exists())?;
        let limited = [
            text(&socket),
            "nbd".into(),
            format!("uri={}", uri(&disk_socket)),
            "error-pwrite=ENOSPC".into(),
            "error-pwrite-rate=100%".into(),
            format!("error-pwrite-file={}", text(&disk.path(FULL))),
        ];
        disk.spawn("nbdkit", &serve, &limited)?;
        up("nbdkit", &|| socket.exists())?;
        fs::create_dir(disk.folder())?;
        let data = disk.data();
        File::create(&data)?;
        disk.spawn("nbdfuse", &[], &[text(&data), uri(&socket)])?;
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
        self.begin(FAILS)
    }

    /// From now on no write finds room.
    pub fn fill(&self) -> Result<()> {
        self.begin(FULL)
    }

    /// From now on no operation fails, and there is room.
    pub fn mend(&self) -> Result<()> {
        for trigger in [FAILS, FULL].map(|name| self.path(name)) {
            if trigger.exists() {
                fs::remove_file(trigger)?;
            }
        }
        Ok(())
    }

    fn begin(&self, trigger: &str) -> Result<()> {
        File::create(self.path(trigger))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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

    fn spawn(&mut self, program: &str, flags: &[&str], arguments: &[String]) -> Result<()> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(flags)
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
