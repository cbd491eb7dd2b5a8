//! Where the metadata is, and read access to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mirror_core::layout::internal;
use mirror_core::layout::metadata::find_superblock;
use mirror_core::layout::superblock::{SUPERBLOCK_MAGIC, Superblock};

/// A metadata area, open for reading.
pub struct Area {
    pub path: PathBuf,
    file: File,
    /// Bytes of the whole file or device.
    pub device_bytes: u64,
    /// Where the area begins on it; `None` if the area has the device for itself.
    pub internal_offset: Option<u64>,
}

impl Area {
    pub fn open(path: &Path, internal: bool) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .open(path)
            .with_context(|| format!("cannot open {} for reading", path.display()))?;
        let kind = file
            .metadata()
            .with_context(|| format!("cannot examine {}", path.display()))?
            .file_type();
        if kind.is_dir() {
            bail!(
                "{} is a directory; name the cluster partition or its file",
                path.display()
            );
        }
        // Also tells the size of a block device.
        let device_bytes = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("cannot tell the size of {}", path.display()))?;
        let mut area = Self {
            path: path.to_owned(),
            file,
            device_bytes,
            internal_offset: None,
        };
        if internal {
            area.internal_offset = Some(area.find_internal()?);
        }
        Ok(area)
    }

    pub fn offset(&self) -> u64 {
        self.internal_offset.unwrap_or(0)
    }

    /// Bytes that the area may take.
    pub fn bytes(&self) -> u64 {
        self.device_bytes - self.offset()
    }

    /// Fills `buffer` from `offset` of the area.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.offset() + offset)
    }

    /// Looks at every place where internal metadata may begin, nearest the end first.
    fn find_internal(&self) -> Result<u64> {
        let mut damaged = None;
        for offset in internal::candidates(self.device_bytes) {
            let read = |at: u64, buffer: &mut [u8]| self.file.read_exact_at(buffer, offset + at);
            match find_superblock(read) {
                Ok(found) if internal::belongs(&found.superblock, offset) => return Ok(offset),
                Ok(_) => {}
                Err(_) if damaged.is_none() && self.looks_like_metadata(offset) => {
                    damaged = Some(offset);
                }
                Err(_) => {}
            }
        }
        damaged.with_context(|| {
            format!(
                "no internal metadata was found on {}; leave out --internal if it is the cluster partition",
                self.path.display()
            )
        })
    }

    /// A superblock that cannot be used, and is worth showing all the same.
    fn looks_like_metadata(&self, offset: u64) -> bool {
        let mut magic = [0; SUPERBLOCK_MAGIC.len()];
        self.file.read_exact_at(&mut magic, offset).is_ok() && magic == SUPERBLOCK_MAGIC
    }

    /// The decoded block at `offset` of the area.
    pub fn superblock(
        &self,
        offset: u64,
    ) -> Result<Superblock, mirror_core::layout::superblock::SuperblockFault> {
        let mut block = vec![0; mirror_core::layout::geometry::METADATA_BLOCK_BYTES as usize];
        match self.read(offset, &mut block) {
            Ok(()) => Superblock::decode(&block),
            Err(_) => Err(mirror_core::layout::superblock::SuperblockFault::Unreadable),
        }
    }
}
