//! Opens a backing store and claims it for this process alone (D11).
//!
//! The claim is on the very open file that does the I/O: O_EXCL for a block device, a lock for a
//! regular file. The kernel lets it go only when the last operation of its holder is over, so
//! whoever gets it next knows that nothing of its predecessor can still reach the disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};

use crate::io::error::OpenError;

/// How often a claim that somebody else holds is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How a store is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Writes become durable with the next flush.
    OnFlush,
    /// Each write is durable when it completes.
    EachWrite,
}

/// An open store that nobody else can open in the same way.
#[derive(Debug)]
pub struct Claimed {
    pub file: File,
    pub path: PathBuf,
    pub block_device: bool,
    /// The page cache is bypassed.
    pub direct: bool,
}

/// Opens `path` for reading and writing and claims it, waiting for a holder for at most `wait`.
pub fn claim(path: &Path, durability: Durability, wait: Duration) -> Result<Claimed, OpenError> {
    let deadline = Instant::now() + wait;
    loop {
        match try_claim(path, durability) {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                thread::sleep(RETRY_INTERVAL);
            }
            other => return other,
        }
    }
}

/// Refuses a store that is mounted, swapped on or part of another device, without opening it for
/// writing.
pub fn refuse_if_mounted(path: &Path) -> Result<(), OpenError> {
    let metadata = path
        .metadata()
        .map_err(|error| OpenError::opening(path, error))?;
    let user = if metadata.file_type().is_block_device() {
        user_of_device(metadata.rdev())
    } else {
        loop_device_of(path)
            .map(|device| format!("it is attached to {device}; detach it with `losetup -d`"))
    };
    match user {
        None => Ok(()),
        Some(user) => Err(OpenError::Mounted {
            path: path.to_owned(),
            user,
        }),
    }
}

fn try_claim(path: &Path, durability: Durability) -> Result<Claimed, OpenError> {
    let kind = path
        .metadata()
        .map_err(|error| OpenError::opening(path, error))?
        .file_type();
    let block_device = kind.is_block_device();
    if !block_device && !kind.is_file() {
        return Err(OpenError::NotAStore {
            path: path.to_owned(),
        });
    }
    refuse_if_mounted(path)?;
    let exclusive = if block_device { libc::O_EXCL } else { 0 };
    let durable = match durability {
        Durability::OnFlush => 0,
        Durability::EachWrite => libc::O_DSYNC,
    };
    let open = |direct| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(exclusive | durable | direct)
            .open(path)
    };
    let (file, direct) = match open(libc::O_DIRECT) {
        Ok(file) => (file, true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = open(0).map_err(|error| OpenError::opening(path, error))?;
            (file, false)
        }
        Err(error) => return Err(OpenError::opening(path, error)),
    };
    if !block_device {
        lock(path, &file)?;
    }
    Ok(Claimed {
        file,
        path: path.to_owned(),
        block_device,
        direct,
    })
}

fn lock(path: &Path, file: &File) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
            holder: file
                .metadata()
                .ok()
                .and_then(|metadata| lock_holder(metadata.ino())),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io {
            path: path.to_owned(),
            action: "lock",
            source,
        }),
    }
}

/// "name (pid)" of the process that has a lock on the inode, as far as the kernel tells.
fn lock_holder(inode: u64) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let process = words.nth(2)?;
        let file = words.next()?;
        let matches = kind == "FLOCK" && file.rsplit(':').next()?.parse() == Ok(inode);
        matches.then(|| {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
            format!(
                "{} (process {process})",
                name.as_deref().unwrap_or("?").trim()
            )
        })
    })
}

/// What uses a block device or a partition of it, in words.
fn user_of_device(device: u64) -> Option<String> {
    let numbers = with_partitions(device);
    // Users may mount things of their own under names that are no text. That must not hide the rest.
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(2);
        let (Some(number), Some(point)) = (words.next(), words.nth(1)) else {
            continue;
        };
        if numbers.iter().any(|ours| ours == number) {
            return Some(format!(
                "it is mounted on {point}; unmount it with `umount {point}`"
            ));
        }
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    for name in swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
    {
        let number = Path::new(name)
            .metadata()
            .map(|metadata| number_of(metadata.rdev()));
        if number.is_ok_and(|number| numbers.contains(&number)) {
            return Some(format!(
                "it is used as swap; release it with `swapoff {name}`"
            ));
        }
    }
    numbers.iter().find_map(|number| {
        let mut holders = std::fs::read_dir(format!("/sys/dev/block/{number}/holders")).ok()?;
        let holder = holders.next()?.ok()?.file_name();
        Some(format!(
            "it is part of /dev/{}; take it out of that device first",
            holder.display()
        ))
    })
}

fn number_of(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// The device and, where it is a whole disk, its partitions.
fn with_partitions(device: u64) -> Vec<String> {
    let mut numbers = vec![number_of(device)];
    let entries = std::fs::read_dir(format!("/sys/dev/block/{}", numbers[0]));
    for entry in entries.into_iter().flatten().flatten() {
        if entry.path().join("partition").exists()
            && let Ok(number) = std::fs::read_to_string(entry.path().join("dev"))
        {
            numbers.push(number.trim().to_owned());
        }
    }
    numbers
}

/// The loop device over a regular file, if there is one.
fn loop_device_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let devices = std::fs::read_dir("/sys/block").ok()?;
    devices.flatten().find_map(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == path)
            .then(|| format!("/dev/{}", device.file_name().display()))
    })
}

impl OpenError {
    fn opening(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound { path },
            Some(libc::EBUSY) => Self::InUse { path, holder: None },
            _ => Self::Io {
                path,
                action: "open",
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn a_second_claim_names_the_path_and_the_holder() {
        let file = file();
        let _held = claim(file.path(), Durability::OnFlush, Duration::ZERO).unwrap();
        let error = claim(file.path(), Durability::OnFlush, Duration::ZERO).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&file.path().display().to_string()),
            "{message}"
        );
        let own = std::process::id().to_string();
        assert!(message.contains(&own), "{message}");
    }

    #[test]
    fn a_claim_waits_for_its_predecessor() {
        let file = file();
        let held = claim(file.path(), Durability::OnFlush, Duration::ZERO).unwrap();
        let path = file.path().to_owned();
        let successor =
            thread::spawn(move || claim(&path, Durability::OnFlush, Duration::from_secs(30)));
        drop(held);
        successor.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_no_store_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| claim(path, Durability::OnFlush, Duration::ZERO).unwrap_err();
        assert!(matches!(
            refused(folder.path()),
            OpenError::NotAStore { .. }
        ));
        assert!(matches!(
            refused(&folder.path().join("missing")),
            OpenError::NotFound { .. }
        ));
    }

    #[test]
    fn the_root_file_system_is_known_to_be_mounted() {
        let root = Path::new("/").metadata().unwrap().dev();
        if major(root) != 0 {
            let user = user_of_device(root).unwrap();
            assert!(user.contains("mounted on"), "{user}");
        }
    }
}
