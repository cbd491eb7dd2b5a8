//! What a machine has behind `/dev/vdb` and on. It outlives the machine it is in, as a disk outlives the power.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::{Value, json};

pub trait Disk: Debug {
    /// A block node in the words of QEMU, without its name.
    fn node(&self) -> Value;

    /// Whether a power cut could take anything now.
    fn is_at_risk(&self) -> bool;

    /// All that a machine would read.
    fn contents(&self) -> Result<Vec<u8>>;

    /// The power of its machine, which is gone, was cut: what was not durable may go, drawn from the seed.
    fn cut_power(&self, seed: u64) -> Result<Loss>;
}

/// What a power cut did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Sectors written since the last flush.
    pub sectors_at_risk: usize,
    /// Of those, the ones that are not as the last write to them left them.
    pub sectors_lost: usize,
}

/// A file of this host, whose page cache keeps all that was ever written, so that a power cut loses nothing: as fast as
/// a disk gets, and no good for trying what survives.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
}

impl FileDisk {
    /// With all its blocks.
    pub fn new(path: &Path, bytes: usize) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let length = i64::try_from(bytes)?;
        fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)
            .with_context(|| format!("cannot take {bytes} bytes for {}", path.display()))?;
        Ok(Self { path: path.into() })
    }
}

impl Disk for FileDisk {
    fn node(&self) -> Value {
        json!({"driver": "file", "filename": self.path, "discard": "unmap"})
    }

    fn is_at_risk(&self) -> bool {
        false
    }

    fn contents(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).with_context(|| format!("cannot read {}", self.path.display()))
    }

    fn cut_power(&self, _seed: u64) -> Result<Loss> {
        Ok(Loss::default())
    }
}
