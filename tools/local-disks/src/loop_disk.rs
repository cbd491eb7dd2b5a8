//! A file as a block device with a file system on it, mounted or not.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Result;
use tempfile::TempDir;

use crate::{Cleaner, ensure_root, run, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ext4,
    /// Takes 300 MiB at least, of which the file holds little.
    Xfs,
}

#[derive(Debug)]
pub struct LoopDisk {
    cleaner: Cleaner,
    folder: TempDir,
    device: String,
}

impl LoopDisk {
    pub fn with(format: Format, bytes: u64) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let cleaner = Cleaner::start(folder.path())?;
        let mut disk = Self {
            cleaner,
            folder,
            device: String::new(),
        };
        let image = disk.image();
        File::create(&image)?.set_len(bytes)?;
        fs::create_dir(disk.point())?;
        let image = text(&image);
        match format {
            Format::Ext4 => run("mke2fs", &["-q", "-t", "ext4", "-F", &image])?,
            Format::Xfs => run("mkfs.xfs", &["-q", &image])?,
        };
        let device = run("losetup", &["--find", "--show", &image])?;
        disk.device = device.trim().to_owned();
        Ok(disk)
    }

    pub fn with_ext4(bytes: u64) -> Result<Self> {
        Self::with(Format::Ext4, bytes)
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// The file below it.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// A folder to mount it on.
    pub fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub fn mount(&self) -> Result<()> {
        run("mount", &[&self.device, &text(&self.point())]).map(drop)
    }

    pub fn unmount(&self) -> Result<()> {
        run("umount", &[&text(&self.point())]).map(drop)
    }

    /// Fails if anything of the file system was damaged; it must not be mounted.
    pub fn check_ext4(&self) -> Result<()> {
        run("e2fsck", &["-f", "-n", &self.device]).map(drop)
    }

    /// Overwrites part of the device, past what has it mounted.
    pub fn overwrite(&self, from: u64, bytes: usize) -> Result<()> {
        let device = OpenOptions::new().write(true).open(&self.device)?;
        device.write_all_at(&vec![0x5a; bytes], from)?;
        device.sync_all()?;
        Ok(())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        self.cleaner.conclude();
    }
}
