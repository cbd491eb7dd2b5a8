//! Where a mirror's metadata lives: a partition or file of its own, written with O_DSYNC, or the
//! tail of the data partition, written and then flushed. Offsets count from the start of the area.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tracing::error;

use crate::buffer::Buffer;
use crate::io::buffers::{BUFFER_BYTES_MAX, BufferPool, Reserve};
use crate::io::claim::{self, Durability};
use crate::io::disk::DataDisk;
use crate::io::error::OpenError;
use crate::io::store::Store;
use crate::volume::event::DiskFault;

/// The claimed metadata area. Clones share it.
#[derive(Debug, Clone)]
pub struct MetadataDisk {
    store: Rc<Store>,
    /// Of its own: metadata must be written whatever holds the mirror's payload memory.
    pool: BufferPool,
    start: u64,
    length: u64,
    /// Writes complete durably by themselves.
    durable: bool,
}

impl MetadataDisk {
    /// Opens and claims a store of its own. `data` is the partition that it is for.
    pub fn open(
        path: &Path,
        data: &DataDisk,
        claim_timeout: Duration,
        pool: BufferPool,
    ) -> Result<Self, OpenError> {
        let same = same_store(path, data.path());
        if same {
            return Err(OpenError::SameStore {
                path: path.to_owned(),
            });
        }
        let claimed = claim::claim(path, Durability::EachWrite, claim_timeout)?;
        let store = Rc::new(Store::new(claimed)?);
        let length = store.size_bytes().map_err(|source| OpenError::Io {
            path: path.to_owned(),
            action: "read the size of",
            source,
        })?;
        Ok(Self {
            store,
            pool,
            start: 0,
            length,
            durable: true,
        })
    }

    /// The `length` bytes from `start` of the data partition, on the data partition's own handle.
    pub fn internal(data: &DataDisk, start: u64, length: u64, pool: BufferPool) -> Self {
        Self {
            store: Rc::clone(data.store()),
            pool,
            start,
            length,
            durable: false,
        }
    }

    /// What people should be told of a fault, once.
    pub fn take_fault(&self) -> Option<String> {
        self.store.take_fault()
    }

    pub fn path(&self) -> &Path {
        self.store.path()
    }

    pub fn length_bytes(&self) -> u64 {
        self.length
    }

    /// Where the area begins on the data partition, if it is there.
    pub fn internal_offset(&self) -> Option<u64> {
        (!self.durable).then_some(self.start)
    }

    /// Fills `bytes` from `offset` without the ring: for the time before a volume runs. Offset and
    /// length are whole blocks, the length at most 1 MiB.
    pub fn read_now(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buffer = self
            .pool
            .try_take(bytes.len(), Reserve::Internal)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        self.store.read_now(&mut buffer, self.start + offset)?;
        bytes.copy_from_slice(&buffer);
        Ok(())
    }

    /// Appends to `bytes` what lies in the range, which must be whole blocks inside the area.
    pub async fn read(
        &self,
        offset: u64,
        length: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), DiskFault> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(BUFFER_BYTES_MAX);
            let buffer = self.pool.take(piece, Reserve::Internal).await;
            let at = self.start + offset + done as u64;
            bytes.extend_from_slice(&self.store.read_into(buffer, at).await?);
            done += piece;
        }
        Ok(())
    }

    /// Writes whole blocks; durable when it returns.
    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        if offset + bytes.len() as u64 > self.length {
            error!(
                path = %self.path().display(),
                offset,
                length = bytes.len(),
                area_bytes = self.length,
                "metadata write outside the area"
            );
            return Err(DiskFault::NoSpace);
        }
        let mut done = 0;
        while done < bytes.len() {
            let piece = (bytes.len() - done).min(BUFFER_BYTES_MAX);
            let mut buffer = self.pool.take(piece, Reserve::Internal).await;
            buffer.copy_from_slice(&bytes[done..done + piece]);
            let buffer: Buffer = buffer.freeze();
            let at = self.start + offset + done as u64;
            self.store.write(buffer, at, &self.pool).await?;
            done += piece;
        }
        if !self.durable {
            self.store.flush().await?;
        }
        Ok(())
    }
}

/// True if both paths name one device or file.
pub fn same_store(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let identity = |path: &Path| {
        let metadata = path.metadata().ok()?;
        Some(if metadata.file_type().is_block_device() {
            (u64::MAX, metadata.rdev())
        } else {
            (metadata.dev(), metadata.ino())
        })
    };
    match (identity(one), identity(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ring::Runtime;

    fn check(internal: bool) {
        let data = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let own = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        data.as_file().set_len(4 << 20).unwrap();
        own.as_file().set_len(3 << 20).unwrap();
        Runtime::new().unwrap().block_on(async {
            let pool = BufferPool::new(0).unwrap();
            let disk = DataDisk::open(data.path(), Duration::ZERO, pool.clone()).unwrap();
            let area = if internal {
                MetadataDisk::internal(&disk, 1 << 20, 3 << 20, pool)
            } else {
                MetadataDisk::open(own.path(), &disk, Duration::ZERO, pool).unwrap()
            };
            assert_eq!(area.length_bytes(), 3 << 20);
            let block: Vec<u8> = (0..8192u32).map(|i| i as u8).collect();
            area.write(4096, &block).await.unwrap();
            let mut whole = Vec::new();
            area.read(0, 3 << 20, &mut whole).await.unwrap();
            assert_eq!(whole.len(), 3 << 20);
            assert_eq!(whole[4096..4096 + 8192], block[..]);
        });
    }

    #[test]
    fn a_metadata_file_of_its_own_is_read_whole_and_written_in_blocks() {
        check(false);
    }

    #[test]
    fn internal_metadata_lives_at_the_tail_of_the_data() {
        check(true);
    }

    #[test]
    fn data_and_metadata_on_one_store_are_refused() {
        let data = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        data.as_file().set_len(4 << 20).unwrap();
        Runtime::new().unwrap().block_on(async {
            let pool = BufferPool::new(0).unwrap();
            let disk = DataDisk::open(data.path(), Duration::ZERO, pool.clone()).unwrap();
            let refused = MetadataDisk::open(data.path(), &disk, Duration::ZERO, pool);
            assert!(matches!(refused, Err(OpenError::SameStore { .. })));
        });
    }
}
