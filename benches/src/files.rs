//! Files that the measured programs work on.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};

/// A file whose space is taken already.
pub fn preallocated(folder: &Path, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = folder.join(name);
    let file = File::create(&path)?;
    let length = i64::try_from(bytes)?;
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)
        .with_context(|| format!("cannot take {bytes} bytes in {}", folder.display()))?;
    Ok(path)
}
