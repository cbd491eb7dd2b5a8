//! Writes fresh metadata for a mirror on this node, after making sure that nothing of value is in
//! its way. Everything is checked before the first byte is written.
//!
//! What is refused: a store that is mounted or claimed, always; metadata or another known format on
//! either store, unless forced. With `adopt` the data stays as it is, so what is found on the data
//! partition is no obstacle; but internal metadata then needs a tail that no data reaches.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::io::buffers::{BUFFER_BYTES_MAX, BufferMut, BufferPool, Reserve};
use crate::io::claim::{Durability, claim};
use crate::io::error::OpenError;
use crate::io::link::handshake::random_bytes;
use crate::io::metadata_disk::same_store;
use crate::io::open::MetadataPlace;
use crate::io::relocate::write_image;
use crate::io::signature::{self, Kind, Signature};
use crate::io::store::Store;
use crate::layout::geometry::GeometryFault;
use crate::layout::internal::{self, PlacementFault};
use crate::layout::metadata::{self, FreshParams, Image};
use crate::layout::superblock::{ChooseFault, Superblock};
use crate::units::{BLOCK_BYTES_MIN, Generation, Uuid};

/// What to initialise, and how far the operator's word goes.
#[derive(Debug, Clone)]
pub struct InitSettings {
    pub cluster: Uuid,
    pub mirror: Uuid,
    pub node: Uuid,
    pub peer: Uuid,
    pub data: PathBuf,
    pub metadata: MetadataPlace,
    /// Keep the data that is there: only metadata is written.
    pub adopt: bool,
    /// Overwrite metadata and known formats. Never a mounted store.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    /// Bytes that the data partition offers.
    pub usable_bytes: u64,
    pub metadata_bytes: u64,
    pub logical_block_bytes: u32,
    /// Identity that adopted data was given.
    pub generation: Option<Generation>,
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(
        "{path} already has metadata of {}; use `--force` to give up what it says",
        whose(.ours)
    )]
    HasMetadata { path: PathBuf, ours: bool },
    #[error("{path} has metadata that cannot be read; use `--force` to overwrite it")]
    BadMetadata {
        path: PathBuf,
        source: Box<ChooseFault>,
    },
    #[error(
        "{path} holds {kind}; use another partition, `--adopt` to mirror the data that is there, or \
         `--force` to give it up"
    )]
    HasData { path: PathBuf, kind: Kind },
    #[error(
        "{path} holds {kind}, and metadata would overwrite it; use another partition, or `--force` \
         to give it up"
    )]
    MetadataOverData { path: PathBuf, kind: Kind },
    #[error(
        "data on {path} reaches beyond the {usable_bytes} bytes that internal metadata would leave; \
         shrink what is on it, enlarge it, or give the mirror a metadata partition of its own"
    )]
    DataReachesTail { path: PathBuf, usable_bytes: u64 },
    #[error("{path} cannot hold a mirror")]
    Placement {
        path: PathBuf,
        source: PlacementFault,
    },
    #[error("{path} cannot be mirrored")]
    Geometry {
        path: PathBuf,
        source: GeometryFault,
    },
    #[error("cannot {action} {path}")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
}

fn whose(ours: &bool) -> &'static str {
    if *ours {
        "this mirror"
    } else {
        "another mirror"
    }
}

/// Checks everything, then writes the metadata of one side of a new mirror.
pub fn init_mirror(settings: &InitSettings) -> Result<InitReport, InitError> {
    if let MetadataPlace::Path(path) = &settings.metadata
        && same_store(path, &settings.data)
    {
        return Err(OpenError::SameStore { path: path.clone() }.into());
    }
    let data = Side::open(&settings.data)?;
    let own = match &settings.metadata {
        MetadataPlace::Path(path) => Some(Side::open(path)?),
        MetadataPlace::Internal => None,
    };
    check_data(settings, &data)?;
    let (area, start, usable_bytes) = match &own {
        Some(own) => {
            check_metadata_store(settings, own)?;
            let usable_bytes = data.size_bytes / BLOCK_BYTES_MIN * BLOCK_BYTES_MIN;
            (own, 0, usable_bytes)
        }
        None => {
            let usable_bytes = check_tail(settings, &data)?;
            (&data, usable_bytes, usable_bytes)
        }
    };
    let generation = match settings.adopt {
        false => None,
        true => Some(fresh_generation(&data.path)?),
    };
    let logical_block_bytes = data.store.logical_block_bytes();
    let (_, image) = metadata::fresh(FreshParams {
        cluster: settings.cluster,
        mirror: settings.mirror,
        node: settings.node,
        peer: settings.peer,
        usable_bytes,
        logical_block_bytes,
        adopted: generation,
    })
    .map_err(|source| InitError::Geometry {
        path: settings.data.clone(),
        source,
    })?;
    let metadata_bytes = image.area_bytes();
    let room = area.size_bytes - start;
    if room < metadata_bytes {
        return Err(OpenError::TooSmall {
            path: area.path.clone(),
            actual_bytes: room,
            needed_bytes: metadata_bytes,
        }
        .into());
    }
    area.write(start, image)?;
    Ok(InitReport {
        usable_bytes,
        metadata_bytes,
        logical_block_bytes,
        generation,
    })
}

fn check_data(settings: &InitSettings, data: &Side) -> Result<(), InitError> {
    // A data partition with a superblock at its start is the metadata of some mirror.
    data.refuse_metadata(0, settings, |_| true)?;
    if settings.metadata == MetadataPlace::Internal {
        for offset in internal::candidates(data.size_bytes) {
            data.refuse_metadata(offset, settings, |found| internal::belongs(found, offset))?;
        }
    }
    if settings.adopt || settings.force {
        return Ok(());
    }
    match data.signature()? {
        None => Ok(()),
        Some(found) => Err(InitError::HasData {
            path: data.path.clone(),
            kind: found.kind,
        }),
    }
}

fn check_metadata_store(settings: &InitSettings, own: &Side) -> Result<(), InitError> {
    own.refuse_metadata(0, settings, |_| true)?;
    match own.signature()? {
        Some(found) if !settings.force => Err(InitError::MetadataOverData {
            path: own.path.clone(),
            kind: found.kind,
        }),
        _ => Ok(()),
    }
}

/// Where internal metadata goes; refused if adopted data is in its place.
fn check_tail(settings: &InitSettings, data: &Side) -> Result<u64, InitError> {
    let placement =
        internal::placement(data.size_bytes).map_err(|source| InitError::Placement {
            path: data.path.clone(),
            source,
        })?;
    let usable_bytes = placement.usable_bytes;
    let reaches = InitError::DataReachesTail {
        path: data.path.clone(),
        usable_bytes,
    };
    if !settings.adopt {
        return Ok(usable_bytes);
    }
    let end = data.signature()?.and_then(|found| found.end_bytes);
    if end.is_some_and(|end| end > usable_bytes) {
        return Err(reaches);
    }
    // Old metadata of ours, given up by force, is not data.
    let ours = data.superblock(usable_bytes).is_ok() && settings.force;
    let end = usable_bytes + placement.geometry.area_bytes();
    if !ours && data.has_bytes_between(usable_bytes, end)? {
        return Err(reaches);
    }
    Ok(usable_bytes)
}

fn fresh_generation(path: &Path) -> Result<Generation, InitError> {
    let bytes = random_bytes().map_err(|source| InitError::Io {
        path: path.to_owned(),
        action: "draw an identity for the data on",
        source,
    })?;
    // Zero means "no data".
    Ok(Generation(u64::from_le_bytes(bytes).max(1)))
}

/// One claimed store, used without the ring.
struct Side {
    store: Store,
    path: PathBuf,
    size_bytes: u64,
    pool: BufferPool,
}

impl Side {
    fn open(path: &Path) -> Result<Self, InitError> {
        let claimed = claim(path, Durability::OnFlush, Duration::ZERO)?;
        let store = Store::new(claimed)?;
        let fail = |action| {
            let path = path.to_owned();
            move |source| InitError::Io {
                path,
                action,
                source,
            }
        };
        let size_bytes = store.size_bytes().map_err(fail("read the size of"))?;
        let pool = BufferPool::new(0).map_err(fail("take memory to read"))?;
        Ok(Self {
            store,
            path: path.to_owned(),
            size_bytes,
            pool,
        })
    }

    fn fail(&self, action: &'static str) -> impl FnOnce(io::Error) -> InitError {
        let path = self.path.clone();
        move |source| InitError::Io {
            path,
            action,
            source,
        }
    }

    fn signature(&self) -> Result<Option<Signature>, InitError> {
        signature::signature(&self.path).map_err(self.fail("look for known formats on"))
    }

    fn superblock(&self, start: u64) -> Result<Superblock, ChooseFault> {
        metadata::find_superblock(|offset, bytes| {
            let end = start + offset + bytes.len() as u64;
            if end > self.size_bytes {
                // Past the end there is nothing, which is not the same as damage.
                bytes.fill(0);
                return Ok(());
            }
            let mut buffer = self.buffer(bytes.len())?;
            self.store.read_now(&mut buffer, start + offset)?;
            bytes.copy_from_slice(&buffer);
            Ok(())
        })
        .map(|found| found.superblock)
    }

    fn refuse_metadata(
        &self,
        start: u64,
        settings: &InitSettings,
        counts: impl FnOnce(&Superblock) -> bool,
    ) -> Result<(), InitError> {
        if settings.force {
            return Ok(());
        }
        let path = self.path.clone();
        match self.superblock(start) {
            Ok(found) if counts(&found) => Err(InitError::HasMetadata {
                path,
                ours: found.mirror == settings.mirror,
            }),
            Ok(_) | Err(ChooseFault::NotFound) => Ok(()),
            Err(fault) => Err(InitError::BadMetadata {
                path,
                source: Box::new(fault),
            }),
        }
    }

    fn has_bytes_between(&self, start: u64, end: u64) -> Result<bool, InitError> {
        let mut at = start;
        for run in self.store.allocation(start, end - start, usize::MAX) {
            let run_end = at + run.length;
            while !run.hole && at < run_end {
                let piece = (run_end - at).min(BUFFER_BYTES_MAX as u64) as usize;
                let mut buffer = self.buffer(piece).map_err(self.fail("read"))?;
                self.store
                    .read_now(&mut buffer, at)
                    .map_err(self.fail("read the end of"))?;
                if buffer.iter().any(|&byte| byte != 0) {
                    return Ok(true);
                }
                at += piece as u64;
            }
            at = run_end;
        }
        Ok(false)
    }

    fn write(&self, start: u64, image: Image) -> Result<(), InitError> {
        write_image(&self.store, &self.pool, start, image).map_err(self.fail("write metadata to"))
    }

    fn buffer(&self, length: usize) -> io::Result<BufferMut> {
        self.pool
            .try_take(length, Reserve::Internal)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use tempfile::NamedTempFile;

    const BYTES: u64 = 64 << 20;

    fn file(bytes: u64) -> NamedTempFile {
        let file = NamedTempFile::new_in("/dev/shm").unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn settings(data: &NamedTempFile, metadata: Option<&NamedTempFile>) -> InitSettings {
        let id = |name| Uuid::from_name("test", name);
        InitSettings {
            cluster: id("cluster"),
            mirror: id("mirror"),
            node: id("one"),
            peer: id("two"),
            data: data.path().to_owned(),
            metadata: metadata.map_or(MetadataPlace::Internal, |file| {
                MetadataPlace::Path(file.path().to_owned())
            }),
            adopt: false,
            force: false,
        }
    }

    fn refused(settings: &InitSettings, words: &str) {
        let message = init_mirror(settings).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }

    #[test]
    fn what_was_written_is_read_back_as_a_new_mirror() {
        let (data, own) = (file(BYTES), file(2 << 20));
        let settings = settings(&data, Some(&own));
        let report = init_mirror(&settings).unwrap();
        assert_eq!((report.usable_bytes, report.generation), (BYTES, None));
        let loaded = metadata::parse(2 << 20, |offset, bytes| {
            own.as_file().read_exact_at(bytes, offset)
        })
        .unwrap();
        assert_eq!(loaded.superblock.mirror, settings.mirror);
        assert!(loaded.superblock.flags.inconsistent && !loaded.fell_back);
    }

    #[test]
    fn metadata_is_overwritten_only_by_force() {
        for internal in [false, true] {
            let (data, own) = (file(BYTES), file(2 << 20));
            let mut settings = settings(&data, (!internal).then_some(&own));
            init_mirror(&settings).unwrap();
            refused(&settings, "already has metadata of this mirror");
            settings.mirror = Uuid::from_name("test", "another");
            refused(&settings, "already has metadata of another mirror");
            settings.force = true;
            init_mirror(&settings).unwrap();
        }
    }

    #[test]
    fn known_formats_are_respected() {
        let (data, own) = (file(BYTES), file(2 << 20));
        data.as_file().write_at(b"XFSB", 0).unwrap();
        let mut settings = settings(&data, Some(&own));
        refused(&settings, "an xfs file system");
        settings.adopt = true;
        let report = init_mirror(&settings).unwrap();
        assert!(report.generation.is_some());
        let mut start = [0; 4];
        data.as_file().read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"XFSB");

        own.as_file().set_len(0).unwrap();
        own.as_file().set_len(2 << 20).unwrap();
        own.as_file().write_at(b"LUKS\xba\xbe", 0).unwrap();
        refused(&settings, "a LUKS container");
    }

    #[test]
    fn adopted_data_must_leave_the_tail_free_for_internal_metadata() {
        let data = file(BYTES);
        let mut settings = settings(&data, None);
        settings.adopt = true;
        data.as_file().write_at(&[1], BYTES - (1 << 20)).unwrap();
        refused(&settings, "reaches beyond");
        settings.adopt = false;
        init_mirror(&settings).unwrap();
    }

    #[test]
    fn a_file_system_that_extends_into_the_tail_is_seen_even_where_it_is_empty() {
        let data = file(BYTES);
        let mut settings = settings(&data, None);
        settings.adopt = true;
        let mut xfs = *b"XFSB\0\0\x10\0\0\0\0\0\0\0\0\0";
        xfs[8..16].copy_from_slice(&(BYTES / 4096).to_be_bytes());
        data.as_file().write_at(&xfs, 0).unwrap();
        refused(&settings, "reaches beyond");
        xfs[8..16].copy_from_slice(&(BYTES / 8192).to_be_bytes());
        data.as_file().write_at(&xfs, 0).unwrap();
        init_mirror(&settings).unwrap();
    }

    #[test]
    fn too_small_or_doubled_stores_are_named() {
        let (data, own) = (file(BYTES), file(64 << 10));
        refused(&settings(&data, Some(&own)), "needs at least");
        refused(&settings(&data, Some(&data)), "named both");
        let tiny = file(1 << 20);
        refused(&settings(&tiny, None), "cannot hold a mirror");
    }

    #[test]
    fn a_store_in_use_is_refused_even_by_force() {
        let (data, own) = (file(BYTES), file(2 << 20));
        let _held = claim(data.path(), Durability::OnFlush, Duration::ZERO).unwrap();
        let mut settings = settings(&data, Some(&own));
        settings.force = true;
        refused(&settings, "is claimed by");
    }
}
