//! An NBD export as a mounted ext4 file system.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::disk::{Disk, DiskKind, Export};
use super::tool::{run, text};

#[derive(Debug)]
pub struct Attachment {
    mount_point: PathBuf,
    is_mounted: bool,
    /// Let go of after the unmount.
    _disk: Disk,
}

impl Attachment {
    /// Mounts an export. `format` makes a new file system first.
    pub fn open(folder: &Path, kind: DiskKind, export: &Export<'_>, format: bool) -> Result<Self> {
        let own = tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(folder)?
            .keep();
        let mount_point = own.join("mnt");
        std::fs::create_dir(&mount_point)?;
        let disk = kind.open(&own, export)?;
        let device = disk.device().to_owned();
        let mut attachment = Self {
            mount_point,
            is_mounted: false,
            _disk: disk,
        };
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
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            let point = text(&self.mount_point);
            // On top of a dead node the file system cannot be written out; it goes with its last user.
            if run("umount", &[&point]).is_err() {
                let _ = run("umount", &["--lazy", &point]);
            }
        }
    }
}

/// Fails with what this machine lacks to mount a disk of this kind; found out by doing it with a file.
pub fn probe(folder: &Path, kind: DiskKind) -> Result<()> {
    kind.probe()?;
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
