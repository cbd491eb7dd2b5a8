//! Puts a [`Replay`] before this system's own kernel: whether the file system on it mounts, which replays its journal,
//! what its ledger holds, and whether anything is wrong with it afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use local_disks::Cleaner;
use local_pair::run_tool;
use tempfile::TempDir;

use crate::bed::PATIENCE;
use crate::replay::Replay;

/// Its words are the image, the mount point, options of the mount and a command that finds faults.
const LOOK: &str = "set -e
    mount -o \"loop,$3\" \"$1\" \"$2\"
    cp \"$2/ledger\" \"$1.ledger\" || { umount \"$2\"; exit 1; }
    umount \"$2\"
    $4 \"$1\"";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "noatime",
            // Both sides of a mirror have the same, and may be looked at at the same time.
            Self::Xfs => "noatime,nouuid",
        }
    }

    /// Changes nothing, and fails if it would.
    fn check(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsck -f -n",
            Self::Xfs => "xfs_repair -n -f",
        }
    }
}

/// A place for images, in memory.
#[derive(Debug)]
pub struct ReplayedDisk {
    file_system: FileSystem,
    cleaner: Cleaner,
    folder: TempDir,
}

impl ReplayedDisk {
    pub fn new(file_system: FileSystem) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test mounts what it replayed; run it as root"
        );
        let folder = tempfile::Builder::new()
            .prefix("mirror-replay-")
            .tempdir_in("/dev/shm")?;
        std::fs::create_dir(folder.path().join("mnt"))?;
        Ok(Self {
            file_system,
            cleaner: Cleaner::start(folder.path())?,
            folder,
        })
    }

    /// Mounts a disk and checks it. Gives the ledger on it.
    pub fn look(&self, replay: &Replay) -> Result<String> {
        let [image, point] = ["image", "mnt"].map(|name| self.folder.path().join(name));
        let file = File::create(&image)?;
        file.set_len(replay.size_bytes() as u64)?;
        for (offset, bytes) in replay.parts() {
            file.write_all_at(bytes, offset as u64)?;
        }
        let words = [
            "-c",
            LOOK,
            "sh",
            &image.display().to_string(),
            &point.display().to_string(),
            self.file_system.mount_options(),
            self.file_system.check(),
        ];
        run_tool("sh", &words, PATIENCE).context("the file system is not in order")?;
        let ledger = std::fs::read(image.with_extension("ledger"))?;
        Ok(String::from_utf8_lossy(&ledger).into_owned())
    }
}

impl Drop for ReplayedDisk {
    fn drop(&mut self) {
        self.cleaner.conclude();
    }
}
