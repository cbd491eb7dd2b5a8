//! Writes a block to a file of its own, past the page cache, and reads it back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::io::blocking::Slot;

const BLOCK_BYTES: usize = 4096;

/// Aligned as `O_DIRECT` wants it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

#[derive(Debug)]
pub struct Disk {
    file: PathBuf,
    /// One try at a time, also where the last one still hangs in the kernel.
    slot: Slot,
    tries: AtomicU64,
}

impl Disk {
    pub fn new(folder: &Path, monitor: &str) -> Self {
        Self {
            file: folder.join(format!(".mirror-agent-{monitor}")),
            slot: Slot::default(),
            tries: AtomicU64::new(1),
        }
    }

    pub async fn probe(&self, timeout: Duration) -> Result<(), String> {
        let file = self.file.clone();
        let number = self.tries.fetch_add(1, Ordering::Relaxed);
        let tried = self
            .slot
            .run("the disk", timeout, move || write_and_read(&file, number))
            .await;
        match tried {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{}: {error}", self.file.display())),
            Err(stuck) => Err(format!("{}: {stuck}", self.file.display())),
        }
    }
}

fn write_and_read(path: &Path, number: u64) -> io::Result<()> {
    let file = open(path)?;
    let mut block = Block([0; BLOCK_BYTES]);
    for word in block.0.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    file.write_all_at(&block.0, 0)?;
    file.sync_data()?;
    let mut read = Block([0; BLOCK_BYTES]);
    file.read_exact_at(&mut read.0, 0)?;
    if read.0 == block.0 {
        Ok(())
    } else {
        Err(io::Error::other("what was read is not what was written"))
    }
}

/// Past the page cache where the file system can do that.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        opened => opened,
    }
}
