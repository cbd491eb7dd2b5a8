//! One claimed backing store on the ring: reads, writes, zeroing and flushes at byte offsets, with
//! the kernel's differences between files and block devices evened out.
//!
//! Invariants: every operation goes through the one open file that holds the claim; a write that
//! reports success has written all of its bytes; a fault is logged once, here, with its place, and
//! leaves as a [`DiskFault`]; what is to be told of it is kept for whoever asks.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{major, minor};
use tracing::{debug, error};

use crate::buffer::Buffer;
use crate::io::buffers::{BUFFER_BYTES_MAX, BufferMut, BufferPool, Reserve};
use crate::io::claim::Claimed;
use crate::io::error::OpenError;
use crate::io::fault::FaultReports;
use crate::io::ring;
use crate::volume::event::DiskFault;

const SECTOR_BYTES: u32 = 512;
const PAGE_BYTES: u32 = 4096;
const ZEROES_BYTES: usize = 1 << 20;

#[repr(C, align(4096))]
struct Zeroes([u8; ZEROES_BYTES]);
static ZEROES: Zeroes = Zeroes([0; ZEROES_BYTES]);

nix::ioctl_read_bad!(block_logical_bytes, libc::BLKSSZGET, libc::c_int);
nix::ioctl_read!(block_size_bytes, 0x12, 114, u64);

/// A claimed file or block device.
pub struct Store {
    /// The one that is claimed.
    file: Rc<File>,
    path: PathBuf,
    block_device: bool,
    direct: bool,
    /// Alignment that offsets and lengths need: 512 or 4096.
    logical_block_bytes: u32,
    memory_alignment: usize,
    /// On tmpfs: data is copied to and from memory and never waited for. The ring would hand each
    /// such operation to another thread, which costs more than the copy.
    in_memory: bool,
    punches: Cell<bool>,
    zeroes: Cell<bool>,
    faults: FaultReports,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// A run of a store: `length` bytes that are data or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    pub length: u64,
    /// Known to be unallocated; reads as zeroes.
    pub hole: bool,
}

impl Store {
    /// Takes over a claim.
    pub fn new(claimed: Claimed) -> Result<Self, OpenError> {
        let fail = |action| {
            let path = claimed.path.clone();
            move |source| OpenError::Io {
                path,
                action,
                source,
            }
        };
        let (logical_block_bytes, memory_alignment) = if claimed.block_device {
            let bytes = device_logical_bytes(&claimed.file)
                .map_err(fail("read the logical block size of"))?;
            (bytes, bytes as usize)
        } else if claimed.direct {
            file_alignment(&claimed.file).map_err(fail("read the alignment of"))?
        } else {
            (SECTOR_BYTES, 1)
        };
        if logical_block_bytes > PAGE_BYTES {
            return Err(OpenError::BlockTooLarge {
                path: claimed.path,
                logical_block_bytes,
            });
        }
        let in_memory = !claimed.block_device && on_tmpfs(&claimed.file);
        Ok(Self {
            in_memory,
            file: Rc::new(claimed.file),
            path: claimed.path,
            block_device: claimed.block_device,
            direct: claimed.direct,
            logical_block_bytes,
            memory_alignment,
            punches: Cell::new(true),
            zeroes: Cell::new(true),
            faults: FaultReports::default(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn direct(&self) -> bool {
        self.direct
    }

    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Nothing on it has to be waited for but zeroing.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Bytes it has now.
    pub fn size_bytes(&self) -> io::Result<u64> {
        if !self.block_device {
            return Ok(self.file.metadata()?.len());
        }
        let mut bytes = 0;
        // SAFETY: BLKGETSIZE64 writes one u64 to the pointer, which is valid for that; the handle
        // is open for the length of the call.
        unsafe { block_size_bytes(self.file.as_raw_fd(), &mut bytes)? };
        Ok(bytes)
    }

    /// Fills `bytes`, which are aligned as a pooled buffer is, without the ring.
    pub fn read_now(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Writes all of `bytes`, which are aligned as a pooled buffer is, without the ring.
    pub fn write_now(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Makes durable what was written, without the ring.
    pub fn flush_now(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Fills `buffer` from `offset`.
    pub async fn read_into(&self, buffer: BufferMut, offset: u64) -> Result<BufferMut, DiskFault> {
        let length = buffer.len();
        let (result, buffer) = if self.in_memory {
            let mut buffer = buffer;
            (self.read_now(&mut buffer, offset), buffer)
        } else {
            ring::read_exact(&self.file, buffer, offset).await
        };
        match result {
            Ok(()) => Ok(buffer),
            Err(error) => Err(self.fault("read", offset, length as u64, &error)),
        }
    }

    /// Writes all of `data` at `offset`. Payload that the device cannot take from where it lies is
    /// copied once.
    pub async fn write(
        &self,
        data: Buffer,
        offset: u64,
        pool: &BufferPool,
    ) -> Result<(), DiskFault> {
        if self.in_memory {
            return self.write_in_memory(&data, offset);
        }
        let length = data.len();
        let aligned = (data.as_ptr() as usize).is_multiple_of(self.memory_alignment);
        let result = if !self.direct || aligned {
            ring::write_all(&self.file, data, offset).await
        } else {
            self.write_copied(&data, offset, pool).await
        };
        result.map_err(|error| self.fault("write", offset, length as u64, &error))
    }

    /// Makes the range read as zeroes. `no_hole`: keeps it allocated.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        no_hole: bool,
    ) -> Result<(), DiskFault> {
        if !no_hole && self.punches.get() {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            match ring::fallocate(&self.file, offset, length, mode).await {
                Ok(()) => return Ok(()),
                Err(error) => self.give_up(&self.punches, "punch a hole", offset, length, error)?,
            }
        }
        if self.zeroes.get() {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            match ring::fallocate(&self.file, offset, length, mode).await {
                Ok(()) => return Ok(()),
                Err(error) => self.give_up(&self.zeroes, "zero a range", offset, length, error)?,
            }
        }
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROES_BYTES as u64) as usize;
            let zeroes: &'static [u8] = &ZEROES.0[..piece];
            let result = ring::write_all(&self.file, zeroes, offset + done).await;
            result.map_err(|error| self.fault("write zeroes", offset, length, &error))?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Makes everything that completed before durable.
    pub async fn flush(&self) -> Result<(), DiskFault> {
        if self.in_memory {
            return self.flush_in_memory();
        }
        self.flushed(ring::sync_data(&self.file).await)
    }

    /// As [`Self::write`] for a store that is in memory, and at once.
    pub fn write_in_memory(&self, data: &[u8], offset: u64) -> Result<(), DiskFault> {
        self.write_now(data, offset)
            .map_err(|error| self.fault("write", offset, data.len() as u64, &error))
    }

    /// As [`Self::flush`] for a store that is in memory, and at once.
    pub fn flush_in_memory(&self) -> Result<(), DiskFault> {
        self.flushed(self.flush_now())
    }

    fn flushed(&self, result: io::Result<()>) -> Result<(), DiskFault> {
        // What did not get to the medium is lost, for whatever reason: never "no space, try again".
        result.map_err(|error| {
            self.fault("flush", 0, 0, &error);
            DiskFault::Io
        })
    }

    /// True if large ranges can be zeroed without writing each block. Changes nothing on the store.
    pub fn fast_zero(&self) -> bool {
        if self.block_device {
            return self.device_zeroes_fast();
        }
        // Past the end of the file there is nothing to punch, yet the file system answers whether
        // it could.
        let Ok(size) = self.size_bytes() else {
            return false;
        };
        let start = size.next_multiple_of(PAGE_BYTES as u64);
        let mode = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&self.file, mode, start as i64, PAGE_BYTES as i64).is_ok()
    }

    /// What is allocated in the range: at most `entries_max` runs from its start, neighbours of
    /// different kind. A block device, and a file system that cannot tell, count as all data.
    pub fn allocation(&self, offset: u64, length: u64, entries_max: usize) -> Vec<Allocation> {
        let end = offset + length;
        let mut runs = Vec::new();
        let mut at = offset;
        while at < end && runs.len() < entries_max {
            let (hole, next) = self.run_at(at, end);
            let length = next - at;
            runs.push(Allocation { length, hole });
            at = next;
        }
        runs
    }

    /// Nothing of the range is allocated, as far as that can be known. Of a range with data it does not ask where that
    /// ends: in memory the kernel goes through all pages up to there, which takes longer than a copy of the range.
    pub fn is_hole(&self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        self.data_from(offset, end) == end
    }

    /// Kind and end of the run at `at`.
    fn run_at(&self, at: u64, end: u64) -> (bool, u64) {
        let data = self.data_from(at, end);
        if data > at {
            return (true, data);
        }
        if self.block_device {
            return (false, end);
        }
        match nix::unistd::lseek(&self.file, at as i64, nix::unistd::Whence::SeekHole) {
            Ok(hole) if hole as u64 > at => (false, (hole as u64).min(end)),
            _ => (false, end),
        }
    }

    /// Where the first data is between the two, or `end`. At once, where that is not known.
    fn data_from(&self, at: u64, end: u64) -> u64 {
        if self.block_device {
            return at;
        }
        match nix::unistd::lseek(&self.file, at as i64, nix::unistd::Whence::SeekData) {
            Ok(data) => (data as u64).clamp(at, end),
            Err(nix::errno::Errno::ENXIO) if self.size_bytes().is_ok_and(|size| size >= end) => end,
            Err(_) => at,
        }
    }

    fn device_zeroes_fast(&self) -> bool {
        let Ok(metadata) = self.file.metadata() else {
            return false;
        };
        let device = metadata.rdev();
        let folder = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        ["queue", "../queue"].iter().any(|queue| {
            std::fs::read_to_string(format!("{folder}/{queue}/write_zeroes_max_bytes"))
                .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
        })
    }

    async fn write_copied(&self, data: &[u8], offset: u64, pool: &BufferPool) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let piece = (data.len() - done).min(BUFFER_BYTES_MAX);
            let mut copy = pool.take(piece, Reserve::Internal).await;
            copy.copy_from_slice(&data[done..done + piece]);
            ring::write_all(&self.file, copy, offset + done as u64).await?;
            done += piece;
        }
        Ok(())
    }

    /// What people should be told of a fault, once.
    pub fn take_fault(&self) -> Option<String> {
        self.faults.take()
    }

    /// Falls through to the next way of zeroing where the store lacks this one.
    fn give_up(
        &self,
        able: &Cell<bool>,
        action: &'static str,
        offset: u64,
        length: u64,
        error: io::Error,
    ) -> Result<(), DiskFault> {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) => {
                debug!(path = %self.path.display(), action, "not supported here");
                able.set(false);
                Ok(())
            }
            // Not aligned to what the device erases in.
            Some(libc::EINVAL) => Ok(()),
            _ => Err(self.fault(action, offset, length, &error)),
        }
    }

    fn fault(
        &self,
        action: &'static str,
        offset: u64,
        length: u64,
        error: &io::Error,
    ) -> DiskFault {
        error!(path = %self.path.display(), action, offset, length, %error, "disk fault");
        self.faults.note(&self.path, action, offset, error);
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => DiskFault::NoSpace,
            _ => DiskFault::Io,
        }
    }
}

fn device_logical_bytes(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: BLKSSZGET writes one int to the pointer, which is valid for that; the handle is open
    // for the length of the call.
    unsafe { block_logical_bytes(file.as_raw_fd(), &mut bytes)? };
    u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn on_tmpfs(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|store| store.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Alignment of offsets (at least a sector) and of memory that a file opened with O_DIRECT needs.
fn file_alignment(file: &File) -> io::Result<(u32, usize)> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, so the call is about the open handle; `answer` has room
    // for one statx.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid statx, and the call filled in what it knew.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        // tmpfs takes anything, also with O_DIRECT. A kernel before 6.1 cannot say; a page suits
        // every file system.
        if on_tmpfs(file) {
            return Ok((SECTOR_BYTES, 1));
        }
        return Ok((PAGE_BYTES, PAGE_BYTES as usize));
    }
    Ok((
        answer.stx_dio_offset_align.max(SECTOR_BYTES),
        answer.stx_dio_mem_align.max(1) as usize,
    ))
}
