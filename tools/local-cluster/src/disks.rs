//! The disks of one server, which fail on demand.

use std::path::PathBuf;

use anyhow::Result;
use local_disks::FailingDisk;
use local_pair::{PairOptions, Side};

/// The server that has them; the disks of the other one are plain files.
pub const FAILING: Side = Side::Second;

#[derive(Debug)]
pub struct Disks {
    pub data: FailingDisk,
    pub metadata: FailingDisk,
}

impl Disks {
    /// Large enough for a pair of this size, and put into its options.
    pub fn for_pair(options: &mut PairOptions) -> Result<Self> {
        let megabytes = |bytes: u64| u32::try_from(bytes.div_ceil(1 << 20));
        let data = megabytes(options.data_bytes[FAILING.index()])?;
        let metadata = megabytes(options.metadata_bytes())?;
        let disks = Self {
            data: FailingDisk::named("data", data)?,
            metadata: FailingDisk::named("metadata", metadata)?,
        };
        options.data_path[FAILING.index()] = Some(disks.data.data());
        options.metadata_path[FAILING.index()] = Some(disks.metadata.data());
        Ok(disks)
    }

    /// What of the host's is mounted for them.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        vec![self.data.data(), self.metadata.data()]
    }
}
