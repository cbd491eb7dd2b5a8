//! An NBD export as a disk of this machine: through `nbdfuse` and a loop device, or through the kernel's own NBD
//! client. When the node behind it dies, either answers errors, so that taking it down never hangs.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use local_pair::{Deadline, MIRROR};

use super::tool::{LIMIT, run, text};

/// How long `nbdfuse` may take to end after its file was unmounted.
const FUSE_END_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub enum Disk {
    Fuse(FuseDisk),
    Kernel(KernelDisk),
}

/// The ways to a disk, the preferred one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    Fuse,
    Kernel,
}

impl DiskKind {
    pub fn open(self, folder: &Path, export: &Export<'_>) -> Result<Disk> {
        match self {
            Self::Fuse => FuseDisk::open(folder, export).map(Disk::Fuse),
            Self::Kernel => KernelDisk::open(export).map(Disk::Kernel),
        }
    }

    /// Fails with what this machine lacks for it.
    pub fn probe(self) -> Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "only root may mount");
        match self {
            Self::Fuse => {
                ensure!(Path::new("/dev/fuse").exists(), "there is no /dev/fuse");
                run("nbdfuse", &["--version"]).map(drop)
            }
            Self::Kernel => {
                free_nbd_device(Path::new("/sys/block"))?;
                run("nbd-client", &["--version"]).map(drop)
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Fuse => "ext4, mounted through nbdfuse and a loop device",
            Self::Kernel => "ext4, mounted through nbd-client and the kernel's /dev/nbdN",
        }
    }
}

/// Where a node serves the mirror.
#[derive(Debug)]
pub struct Export<'e> {
    pub uri: &'e str,
    pub socket: &'e Path,
}

impl Disk {
    /// The block device.
    pub fn device(&self) -> &str {
        match self {
            Self::Fuse(disk) => disk.device.as_deref().unwrap_or_default(),
            Self::Kernel(disk) => &disk.device,
        }
    }
}

#[derive(Debug)]
pub struct FuseDisk {
    file: PathBuf,
    process: Child,
    device: Option<String>,
}

impl FuseDisk {
    fn open(folder: &Path, export: &Export<'_>) -> Result<Self> {
        let file = folder.join("disk");
        std::fs::write(&file, [])?;
        let ready = folder.join("nbdfuse.pid");
        let process = Command::new("nbdfuse")
            .arg("--pidfile")
            .arg(&ready)
            .arg(&file)
            .arg(export.uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // It complains about the death that this story is about.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start nbdfuse")?;
        let mut disk = Self {
            file,
            process,
            device: None,
        };
        Deadline::after(LIMIT).until("nbdfuse", || {
            if let Some(status) = disk.process.try_wait()? {
                bail!("nbdfuse cannot open {}: it ended with {status}", export.uri);
            }
            Ok(ready.exists().then_some(()))
        })?;
        let device = run("losetup", &["--find", "--show", &text(&disk.file)])?;
        disk.device = Some(device.trim().to_owned());
        Ok(disk)
    }
}

impl Drop for FuseDisk {
    /// Errors are expected on top of a dead node; the kernel lets go of each part when its last user is gone.
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            let _ = run("losetup", &["--detach", &device]);
        }
        if run("fusermount3", &["-u", "-q", &text(&self.file)]).is_err() {
            let _ = run("umount", &["--lazy", &text(&self.file)]);
        }
        let ended = Deadline::after(FUSE_END_LIMIT)
            .until("the end of nbdfuse", || Ok(self.process.try_wait()?));
        if ended.is_err() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

#[derive(Debug)]
pub struct KernelDisk {
    device: String,
}

impl KernelDisk {
    fn open(export: &Export<'_>) -> Result<Self> {
        let device = free_nbd_device(Path::new("/sys/block"))?;
        run(
            "nbd-client",
            &["-unix", &text(export.socket), &device, "-N", MIRROR],
        )?;
        Ok(Self { device })
    }
}

impl Drop for KernelDisk {
    fn drop(&mut self) {
        let _ = run("nbd-client", &["-d", &self.device]);
    }
}

/// The first `/dev/nbdN` that nobody uses; the kernel names the user in `pid`.
fn free_nbd_device(block_devices: &Path) -> Result<String> {
    let is_free = |name: &str| {
        let folder = block_devices.join(name);
        folder.is_dir() && !folder.join("pid").exists()
    };
    (0..)
        .map(|number| format!("nbd{number}"))
        .take_while(|name| block_devices.join(name).is_dir())
        .find(|name| is_free(name))
        .map(|name| format!("/dev/{name}"))
        .context("this kernel has no free /dev/nbdN (`modprobe nbd` loads them)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nbd_device_without_a_user_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let missing = free_nbd_device(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("modprobe nbd"), "{missing}");
        for name in ["nbd0", "nbd1", "nbd2", "sda"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("nbd0/pid"), "17").unwrap();
        assert_eq!(free_nbd_device(folder.path()).unwrap(), "/dev/nbd1");
        for name in ["nbd1", "nbd2"] {
            std::fs::write(folder.path().join(name).join("pid"), "17").unwrap();
        }
        assert!(free_nbd_device(folder.path()).is_err());
    }
}
