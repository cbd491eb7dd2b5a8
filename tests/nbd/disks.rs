//! Disks that are too small, mounted, or failing; each takes itself down when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use local_pair::Deadline;
use tempfile::TempDir;

use crate::client::run;

/// Longest wait for a helper to come up or to go away.
const SECONDS_MAX: u64 = 20;

pub fn ensure_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a disk; run it as root"
    );
    Ok(())
}

/// A file system in memory with little room.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    pub fn mount(megabytes: u32) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let (size, point) = (format!("size={megabytes}m"), text(folder.path()));
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &point])?;
        Ok(Self { folder })
    }

    /// Where a data file may be made.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &text(self.folder.path())]);
    }
}

/// A block device with an ext4 file system, mounted or not.
pub struct LoopDisk {
    folder: TempDir,
    device: String,
}

impl LoopDisk {
    pub fn with_ext4(bytes: u64) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(bytes)?;
        fs::create_dir(folder.path().join("mnt"))?;
        run("/sbin/mke2fs", &["-q", "-t", "ext4", "-F", &text(&image)])?;
        let device = run("/sbin/losetup", &["--find", "--show", &text(&image)])?;
        Ok(Self {
            folder,
            device: device.trim().to_owned(),
        })
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub fn mount(&self) -> Result<()> {
        run("mount", &[&self.device, &text(&self.mount_point())]).map(drop)
    }

    pub fn unmount(&self) -> Result<()> {
        run("umount", &[&text(&self.mount_point())]).map(drop)
    }

    /// Fails if anything of the file system was damaged; it must not be mounted.
    pub fn check_ext4(&self) -> Result<()> {
        run("/sbin/e2fsck", &["-f", "-n", &self.device]).map(drop)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if is_mounted(&self.mount_point()) {
            let _ = run("umount", &["--lazy", &text(&self.mount_point())]);
        }
        let _ = run("/sbin/losetup", &["--detach", &self.device]);
    }
}

/// A disk whose operations fail with EIO on demand: nbdkit's error filter, shown as a file by nbdfuse.
pub struct FailingDisk {
    folder: TempDir,
    programs: Vec<Child>,
}

impl FailingDisk {
    pub fn new(megabytes: u32) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let mut disk = Self {
            programs: Vec::new(),
            folder,
        };
        let path = |name: &str| disk.folder.path().join(name);
        let [socket, trigger, data] = ["socket", "trigger", "data"].map(path);
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
        disk.wait("nbdkit", || socket.exists())?;
        File::create(&data)?;
        let uri = format!("nbd+unix:///?socket={}", text(&socket));
        disk.spawn("nbdfuse", &[&text(&data), &uri])?;
        disk.wait("nbdfuse", || is_mounted(&data))?;
        Ok(disk)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// From now on every operation fails.
    pub fn fail(&self) -> Result<()> {
        File::create(self.folder.path().join("trigger"))?;
        Ok(())
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        self.programs.push(child);
        Ok(())
    }

    fn wait(&self, what: &str, is_ready: impl Fn() -> bool) -> Result<()> {
        Deadline::after_seconds(SECONDS_MAX).until(what, || Ok(is_ready().then_some(())))
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &text(&self.data())]);
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn is_mounted(point: &Path) -> bool {
    let point = text(point);
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&point))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
