//! Opens a mirror's disks and reads its metadata, with every check that can be made before the volume
//! starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::io::buffers::{BufferPool, POOL_BYTES_MIN};
use crate::io::disk::DataDisk;
use crate::io::error::OpenError;
use crate::io::metadata_disk::MetadataDisk;
use crate::io::relocate::relocate;
use crate::layout::geometry::Geometry;
use crate::layout::internal;
use crate::layout::metadata::{self, Loaded};
use crate::layout::superblock::ChooseFault;
use crate::link::preface::ClusterKey;
use crate::units::BLOCK_BYTES_MIN;
use crate::volume::config::VolumeConfig;

/// Where a mirror's metadata lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataPlace {
    /// A partition or file of its own.
    Path(PathBuf),
    /// The end of the data partition.
    Internal,
}

/// Everything a mirror needs on this node.
#[derive(Debug, Clone)]
pub struct MirrorSettings {
    /// `fast_zero`, `usable_bytes` and `logical_block_bytes` are measured and filled in here.
    pub volume: VolumeConfig,
    pub data: PathBuf,
    pub metadata: MetadataPlace,
    /// Where this node listens for its peer.
    pub listen: SocketAddr,
    /// Where the peer listens. Of the two nodes the first one connects, the other accepts.
    pub peer: SocketAddr,
    pub key: ClusterKey,
    /// TLS on the replication link.
    pub encrypted: bool,
    /// Bytes of payload memory, all taken at start.
    pub buffer_bytes: usize,
    /// How long its thread may look for the next event before it sleeps; zero never does.
    pub busy_poll: Duration,
    /// How long to wait for a dying predecessor to let go of the disks.
    pub claim_timeout: Duration,
}

/// The disks of a mirror, claimed, and what its metadata says.
pub(super) struct Opened {
    pub data: DataDisk,
    pub metadata: MetadataDisk,
    pub loaded: Loaded,
}

/// Opens both disks on the calling thread and fills in what `settings` leaves open.
pub(super) fn open(settings: &mut MirrorSettings, pool: &BufferPool) -> Result<Opened, OpenError> {
    let metadata_pool = BufferPool::new(POOL_BYTES_MIN).map_err(|source| OpenError::System {
        action: "take the memory for metadata",
        source,
    })?;
    let data = DataDisk::open(&settings.data, settings.claim_timeout, pool.clone())?;
    let metadata = match &settings.metadata {
        MetadataPlace::Path(path) => {
            MetadataDisk::open(path, &data, settings.claim_timeout, metadata_pool.clone())?
        }
        MetadataPlace::Internal => find_internal(&data, &metadata_pool)?,
    };
    let loaded = load(&metadata)?;
    check_identity(settings, metadata.path(), &loaded)?;
    // Opening for reading only would serve nothing: a mirror writes metadata from its first connection on,
    // and metadata that must move is written at once.
    if let Some(features) = loaded.superblock.read_only_features() {
        return Err(OpenError::ReadOnly {
            path: metadata.path().to_owned(),
            features,
        });
    }
    let (metadata, loaded) = match relocate(&data, &metadata, &loaded, &metadata_pool)? {
        Some(moved) => {
            let loaded = load(&moved)?;
            (moved, loaded)
        }
        None => (metadata, loaded),
    };
    let size_bytes = loaded.superblock.size_bytes;
    let usable_bytes = usable_bytes(&data, &metadata, loaded.geometry)?;
    if usable_bytes < size_bytes {
        return Err(OpenError::TooSmall {
            path: settings.data.clone(),
            actual_bytes: usable_bytes,
            needed_bytes: size_bytes,
        });
    }
    settings.volume.usable_bytes = usable_bytes;
    settings.volume.fast_zero = data.fast_zero();
    settings.volume.logical_block_bytes = data.logical_block_bytes();
    Ok(Opened {
        data,
        metadata,
        loaded,
    })
}

pub(super) fn load(metadata: &MetadataDisk) -> Result<Loaded, OpenError> {
    metadata::parse(metadata.length_bytes(), |offset, bytes| {
        metadata.read_now(offset, bytes)
    })
    .map_err(|source| OpenError::Metadata {
        path: metadata.path().to_owned(),
        source: Box::new(source),
    })
}

/// What the data partition can hold now: whole blocks, metadata taken off, and no more than the
/// metadata area has bits for.
pub(super) fn usable_bytes(
    data: &DataDisk,
    metadata: &MetadataDisk,
    geometry: Geometry,
) -> Result<u64, OpenError> {
    let Some(area_offset) = metadata.internal_offset() else {
        let bytes = data.size_bytes()? / BLOCK_BYTES_MIN * BLOCK_BYTES_MIN;
        return Ok(bytes.min(geometry.usable_bytes_max(metadata.length_bytes())));
    };
    Ok(area_offset)
}

/// Looks for the metadata area at the end of the data, also where the device has grown since.
pub(super) fn find_internal(data: &DataDisk, pool: &BufferPool) -> Result<MetadataDisk, OpenError> {
    let device_bytes = data.size_bytes()?;
    let mut newer = None;
    for offset in internal::candidates(device_bytes) {
        let area = MetadataDisk::internal(data, offset, device_bytes - offset, pool.clone());
        match metadata::find_superblock(|at, bytes| area.read_now(at, bytes)) {
            Ok(found) if internal::belongs(&found.superblock, offset) => return Ok(area),
            Err(fault @ ChooseFault::NewerFormat { .. }) => newer = newer.or(Some(fault)),
            _ => {}
        }
    }
    let path = data.path().to_owned();
    Err(match newer {
        // Where it belongs is not known to this version, but to call it "none" would invite `init`.
        Some(fault) => OpenError::Metadata {
            path,
            source: Box::new(fault.into()),
        },
        None => OpenError::NoMetadata { path },
    })
}

fn check_identity(
    settings: &MirrorSettings,
    path: &Path,
    loaded: &Loaded,
) -> Result<(), OpenError> {
    let config = &settings.volume;
    let found = &loaded.superblock;
    let what = if found.cluster != config.cluster {
        "cluster"
    } else if found.mirror != config.mirror {
        "mirror"
    } else if found.node != config.node {
        "node"
    } else {
        return Ok(());
    };
    Err(OpenError::Foreign {
        path: path.to_owned(),
        what,
        mirror: config.name.clone(),
        node: config.node_name.clone(),
    })
}
