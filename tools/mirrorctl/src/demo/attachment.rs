//! An NBD export as a mounted ext4 file system: `nbdfuse` shows the export as a file, a loop device makes a disk
//! of it. When the node behind it dies, nbdfuse dies or answers errors, so that taking it down never hangs.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use local_pair::{Deadline, run_bounded};

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Attachment {
    disk: PathBuf,
    mount_point: PathBuf,
    fuse: Option<Child>,
    device: Option<String>,
    is_mounted: bool,
}

impl Attachment {
    /// Shows an export as a disk. `format` makes a new file system first.
    pub fn open(folder: &Path, uri: &str, format: bool) -> Result<Self> {
        let own = tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(folder)?
            .keep();
        let mut attachment = Self {
            disk: own.join("disk"),
            mount_point: own.join("mnt"),
            fuse: None,
            device: None,
            is_mounted: false,
        };
        std::fs::write(&attachment.disk, [])?;
        std::fs::create_dir(&attachment.mount_point)?;

        let ready = own.join("nbdfuse.pid");
        let child = Command::new("nbdfuse")
            .arg("--pidfile")
            .arg(&ready)
            .arg(&attachment.disk)
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // It complains about the death that this story is about.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start nbdfuse")?;
        let child = attachment.fuse.insert(child);
        Deadline::after(LIMIT).until("nbdfuse", || {
            if let Some(status) = child.try_wait()? {
                bail!("nbdfuse cannot open {uri}: it ended with {status}");
            }
            Ok(ready.exists().then_some(()))
        })?;

        let device = run("losetup", &["--find", "--show", &text(&attachment.disk)])?;
        let device = attachment.device.insert(device.trim().to_owned()).clone();
        if format {
            run("mke2fs", &["-q", "-t", "ext4", "-F", &device])?;
        }
        run(
            "mount",
            &["-t", "ext4", &device, &text(&attachment.mount_point)],
        )?;
        attachment.is_mounted = true;
        Ok(attachment)
    }

    pub fn root(&self) -> &Path {
        &self.mount_point
    }

    /// A clean unmount; a file system that does not let go is an error.
    pub fn close(mut self) -> Result<()> {
        run("umount", &[&text(&self.mount_point)])?;
        self.is_mounted = false;
        Ok(())
    }

    /// Takes down whatever is still up. Errors are expected on top of a dead node; the kernel lets go of each
    /// part lazily when its last user is gone.
    fn take_down(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            let point = text(&self.mount_point);
            if run("umount", &[&point]).is_err() {
                let _ = run("umount", &["--lazy", &point]);
            }
        }
        if let Some(device) = self.device.take() {
            let _ = run("losetup", &["--detach", &device]);
        }
        if let Some(mut fuse) = self.fuse.take() {
            if run("fusermount3", &["-u", "-q", &text(&self.disk)]).is_err() {
                let _ = run("umount", &["--lazy", &text(&self.disk)]);
            }
            let ended = Deadline::after(Duration::from_secs(2))
                .until("the end of nbdfuse", || Ok(fuse.try_wait()?));
            if ended.is_err() {
                let _ = fuse.kill();
                let _ = fuse.wait();
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Whether this machine lets us make a loop device and mount it, found out by doing it.
pub fn why_not(folder: &Path) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root may mount".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse".into());
    }
    probe(folder).err().map(|error| format!("{error:#}"))
}

fn probe(folder: &Path) -> Result<()> {
    run("nbdfuse", &["--version"])?;
    let image = folder.join("probe");
    let point = folder.join("probe-mnt");
    std::fs::File::create(&image)?.set_len(8 << 20)?;
    std::fs::create_dir(&point)?;
    run("mke2fs", &["-q", "-t", "ext4", "-F", &text(&image)])?;
    let mounted = run("mount", &["-o", "loop", &text(&image), &text(&point)]);
    if mounted.is_ok() {
        run("umount", &[&text(&point)])?;
    }
    std::fs::remove_file(&image)?;
    std::fs::remove_dir(&point)?;
    mounted.map(|_| ())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a tool that must succeed, also from `/sbin` where a user's `PATH` lacks it.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = run_bounded(
        Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .process_group(0),
        LIMIT,
    )?;
    if !output.status.success() {
        bail!(
            "`{program} {}` ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
