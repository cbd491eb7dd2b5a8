//! The data partition: what `Effect::Read`, `Write`, `WriteZeroes` and `Flush` are carried out on.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::buffer::Buffer;
use crate::io::buffers::{BufferPool, Reserve};
use crate::io::claim::{self, Durability};
use crate::io::error::OpenError;
use crate::io::store::{Allocation, Store};
use crate::io::turns::Turns;
use crate::units::ByteRange;
use crate::volume::event::{DiskFault, Output};

/// A claimed data partition. Clones share it.
#[derive(Debug, Clone)]
pub struct DataDisk {
    store: Rc<Store>,
    pool: BufferPool,
    turns: Rc<Turns>,
}

impl DataDisk {
    /// Opens and claims `path`, waiting at most `claim_timeout` for a dying predecessor. Refused
    /// while it is mounted. To be called on the thread that runs the ring.
    pub fn open(path: &Path, claim_timeout: Duration, pool: BufferPool) -> Result<Self, OpenError> {
        let claimed = claim::claim(path, Durability::OnFlush, claim_timeout)?;
        let store = Rc::new(Store::new(claimed)?);
        Ok(Self {
            store,
            pool,
            turns: Rc::default(),
        })
    }

    pub(super) fn store(&self) -> &Rc<Store> {
        &self.store
    }

    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// What people should be told of a fault, once.
    pub fn take_fault(&self) -> Option<String> {
        self.store.take_fault()
    }

    /// Bytes of the whole partition, internal metadata included.
    pub fn size_bytes(&self) -> Result<u64, OpenError> {
        self.store.size_bytes().map_err(|source| OpenError::Io {
            path: self.path().to_owned(),
            action: "read the size of",
            source,
        })
    }

    /// 512 or 4096: what offsets and lengths have to be multiples of.
    pub fn logical_block_bytes(&self) -> u32 {
        self.store.logical_block_bytes()
    }

    /// True if zeroing is cheap here.
    pub fn fast_zero(&self) -> bool {
        self.store.fast_zero()
    }

    /// `reserve`: whose memory the data is read into. A client that does not fetch its answers must
    /// not hold what link and resync live on.
    pub async fn read(&self, range: ByteRange, reserve: Reserve) -> Result<Output, DiskFault> {
        if reserve == Reserve::Internal {
            // For a comparison, but for few: hashed as soon as it is there.
            self.turns.take(range.length as usize).await;
        }
        self.read_data(range, reserve).await
    }

    async fn read_data(&self, range: ByteRange, reserve: Reserve) -> Result<Output, DiskFault> {
        let buffer = self.pool.take(range.length as usize, reserve).await;
        let buffer = self.store.read_into(buffer, range.offset).await?;
        Ok(Output::Data(buffer.freeze()))
    }

    /// Like [`Self::read`], but reports a range that is known to be unallocated as a hole.
    pub async fn read_sparse(&self, range: ByteRange) -> Result<Output, DiskFault> {
        match self.store.is_hole(range.offset, range.length as u64) {
            true => Ok(Output::Hole),
            false => self.read_data(range, Reserve::Internal).await,
        }
    }

    /// `fua`: complete only when this data is durable.
    pub async fn write(
        &self,
        range: ByteRange,
        data: Buffer,
        fua: bool,
    ) -> Result<Output, DiskFault> {
        check_length(range, &data);
        self.store.write(data, range.offset, &self.pool).await?;
        self.settle(fua).await
    }

    /// Its writes are not waited for: [`Self::write_in_memory`] does them.
    pub fn is_in_memory(&self) -> bool {
        self.store.is_in_memory()
    }

    /// As [`Self::write`] where the disk is in memory, and at once.
    pub fn write_in_memory(
        &self,
        range: ByteRange,
        data: &Buffer,
        fua: bool,
    ) -> Result<Output, DiskFault> {
        check_length(range, data);
        self.store.write_in_memory(data, range.offset)?;
        if fua {
            self.store.flush_in_memory()?;
        }
        Ok(Output::Nothing)
    }

    /// Makes the range read as zeroes, edges included.
    pub async fn write_zeroes(
        &self,
        range: ByteRange,
        no_hole: bool,
        fua: bool,
    ) -> Result<Output, DiskFault> {
        self.store
            .write_zeroes(range.offset, range.length as u64, no_hole)
            .await?;
        self.settle(fua).await
    }

    pub async fn flush(&self) -> Result<Output, DiskFault> {
        self.settle(true).await
    }

    /// What is allocated in a range; see [`Store::allocation`].
    pub fn allocation(&self, offset: u64, length: u64, entries_max: usize) -> Vec<Allocation> {
        self.store.allocation(offset, length, entries_max)
    }

    async fn settle(&self, durable: bool) -> Result<Output, DiskFault> {
        if durable {
            self.store.flush().await?;
        }
        Ok(Output::Nothing)
    }
}

fn check_length(range: ByteRange, data: &Buffer) {
    assert_eq!(
        data.len(),
        range.length as usize,
        "a write carries exactly the bytes of its range"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ring::Runtime;
    use std::future::Future;
    use std::process::Command;

    const BYTES: u64 = 8 << 20;

    fn on_disk<F: Future<Output = ()>>(path: &Path, test: impl FnOnce(DataDisk) -> F) {
        Runtime::new().unwrap().block_on(async {
            let pool = BufferPool::new(0).unwrap();
            test(DataDisk::open(path, Duration::ZERO, pool).unwrap()).await;
        });
    }

    /// A sparse file where O_DIRECT works, or on tmpfs.
    fn file_in(folder: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.as_file().set_len(BYTES).unwrap();
        file
    }

    fn data(output: Output) -> Buffer {
        match output {
            Output::Data(data) => data,
            other => panic!("expected data, not {other:?}"),
        }
    }

    async fn exercise(disk: DataDisk) {
        assert_eq!(disk.size_bytes().unwrap(), BYTES);
        let range = ByteRange::new(64 << 10, 128 << 10);
        let pattern: Vec<u8> = (0..range.length).map(|i| (i % 251) as u8).collect();
        disk.write(range, pattern.clone().into(), true)
            .await
            .unwrap();
        assert_eq!(
            data(disk.read(range, Reserve::Normal).await.unwrap())[..],
            pattern[..]
        );
        assert!(matches!(
            disk.read_sparse(range).await.unwrap(),
            Output::Data(_)
        ));

        let block = disk.logical_block_bytes();
        for no_hole in [false, true] {
            disk.write(range, pattern.clone().into(), false)
                .await
                .unwrap();
            let inner = ByteRange::new(range.offset + block as u64, range.length - 2 * block);
            disk.write_zeroes(inner, no_hole, true).await.unwrap();
            let read = data(disk.read(range, Reserve::Normal).await.unwrap());
            let (block, end) = (block as usize, range.length as usize - block as usize);
            assert_eq!(read[..block], pattern[..block]);
            assert!(read[block..end].iter().all(|&byte| byte == 0));
            assert_eq!(read[end..], pattern[end..]);
        }
        disk.flush().await.unwrap();
    }

    #[test]
    fn a_file_with_direct_io_keeps_what_is_written() {
        let file = file_in(env!("CARGO_MANIFEST_DIR"));
        on_disk(file.path(), exercise);
    }

    #[test]
    fn a_file_on_tmpfs_keeps_what_is_written() {
        let file = file_in("/dev/shm");
        on_disk(file.path(), exercise);
    }

    #[test]
    fn holes_of_a_file_are_known() {
        let file = file_in("/dev/shm");
        on_disk(file.path(), |disk| async move {
            let range = ByteRange::new(1 << 20, 64 << 10);
            let payload = vec![1; range.length as usize];
            disk.write(range, payload.into(), false).await.unwrap();
            let run = |length, hole| Allocation { length, hole };
            let expected = [
                run(1 << 20, true),
                run(64 << 10, false),
                run(BYTES - (1 << 20) - (64 << 10), true),
            ];
            assert_eq!(disk.allocation(0, BYTES, 16), expected);
            assert_eq!(disk.allocation(0, BYTES, 2), expected[..2]);
            let hole = ByteRange::new(4 << 20, 1 << 20);
            assert!(matches!(
                disk.read_sparse(hole).await.unwrap(),
                Output::Hole
            ));
            // Data at its end, or at its begin.
            for offset in [(1 << 20) - 4096, (1 << 20) + (60 << 10)] {
                let partly = ByteRange::new(offset, 8192);
                let read = disk.read_sparse(partly).await.unwrap();
                assert!(matches!(read, Output::Data(_)), "{partly:?}");
            }
            let last = ByteRange::new(BYTES - 4096, 4096);
            assert!(matches!(
                disk.read_sparse(last).await.unwrap(),
                Output::Hole
            ));
        });
    }

    #[test]
    fn probing_for_fast_zeroing_changes_nothing() {
        let file = file_in("/dev/shm");
        on_disk(file.path(), |disk| async move {
            assert!(disk.fast_zero());
            assert_eq!(disk.size_bytes().unwrap(), BYTES);
        });
    }

    #[test]
    fn reading_past_the_end_is_a_fault() {
        let file = file_in("/dev/shm");
        on_disk(file.path(), |disk| async move {
            let outside = ByteRange::new(BYTES, 4096);
            assert_eq!(
                disk.read(outside, Reserve::Normal).await.unwrap_err(),
                DiskFault::Io
            );
        });
    }

    struct LoopDevice(String);

    impl Drop for LoopDevice {
        fn drop(&mut self) {
            let _ = Command::new("/sbin/losetup").args(["-d", &self.0]).status();
        }
    }

    #[test]
    fn a_block_device_works_like_a_file_and_is_claimed() {
        if !nix::unistd::geteuid().is_root() {
            // Loop devices belong to root; the file tests above cover the rest.
            return;
        }
        let file = file_in(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new("/sbin/losetup")
            .args(["-f", "--show"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let device = LoopDevice(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        let path = Path::new(&device.0);

        let under = claim::claim(file.path(), Durability::OnFlush, Duration::ZERO).unwrap_err();
        assert!(under.to_string().contains(&device.0), "{under}");
        on_disk(path, |disk| async move {
            let second = DataDisk::open(disk.path(), Duration::ZERO, disk.pool.clone());
            assert!(matches!(second, Err(OpenError::InUse { .. })));
            exercise(disk.clone()).await;
            let all = Allocation {
                length: BYTES,
                hole: false,
            };
            assert_eq!(disk.allocation(0, BYTES, 4), [all]);
        });
    }
}
