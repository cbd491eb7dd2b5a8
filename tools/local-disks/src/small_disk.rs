//! A file system in memory with little room.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use tempfile::TempDir;

use crate::{Cleaner, ensure_root, run, text};

#[derive(Debug)]
pub struct SmallDisk {
    cleaner: Cleaner,
    folder: TempDir,
}

impl SmallDisk {
    pub fn mount(megabytes: u32) -> Result<Self> {
        ensure_root()?;
        let folder = tempfile::tempdir()?;
        let cleaner = Cleaner::start(folder.path())?;
        let disk = Self { cleaner, folder };
        fs::create_dir(disk.point())?;
        let (size, point) = (format!("size={megabytes}m"), text(&disk.point()));
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &point])?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Where a data file may be made.
    pub fn data(&self) -> PathBuf {
        self.point().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.cleaner.conclude();
    }
}
