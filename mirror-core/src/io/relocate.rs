//! Internal metadata moves to the new end of a device that grew, when the mirror is opened and nothing
//! uses it yet. Until then the mirror cannot grow: its metadata is in the way.
//!
//! The new area is whole and durable before the old superblocks are wiped, and names the old place, so
//! that a stop between the two is made good by the next start. A mirror that did not stop cleanly
//! stays where it is until it has: its activity log is not carried along.

use std::io;

use tracing::{info, warn};

use crate::io::buffers::{BUFFER_BYTES_MAX, BufferPool, Reserve};
use crate::io::disk::DataDisk;
use crate::io::error::OpenError;
use crate::io::metadata_disk::MetadataDisk;
use crate::io::store::Store;
use crate::layout::geometry::METADATA_BLOCK_BYTES;
use crate::layout::internal;
use crate::layout::metadata::{Image, Loaded, Piece};
use crate::layout::superblock::Superblock;

/// Writes the pieces of an image at `start` of a store, in their order, durable at the end.
pub(super) fn write_image(
    store: &Store,
    pool: &BufferPool,
    start: u64,
    image: impl Iterator<Item = Piece>,
) -> io::Result<()> {
    for piece in image {
        if piece.flush_before {
            store.flush_now()?;
        }
        for (index, part) in piece.bytes.chunks(BUFFER_BYTES_MAX).enumerate() {
            let mut buffer = pool
                .try_take(part.len(), Reserve::Internal)
                .ok_or(io::ErrorKind::OutOfMemory)?;
            buffer.copy_from_slice(part);
            let at = start + piece.offset + (index * BUFFER_BYTES_MAX) as u64;
            store.write_now(&buffer, at)?;
        }
    }
    store.flush_now()
}

/// The area after the move, to be read anew; `None` if it stays where it is.
pub(super) fn relocate(
    data: &DataDisk,
    area: &MetadataDisk,
    loaded: &Loaded,
    pool: &BufferPool,
) -> Result<Option<MetadataDisk>, OpenError> {
    let Some(offset) = area.internal_offset() else {
        return Ok(None);
    };
    let fail = |action| {
        let path = data.path().to_owned();
        move |source| OpenError::Io {
            path,
            action,
            source,
        }
    };
    let from = loaded.superblock.moved_from;
    // Data of the mirror lies there once it has grown over it.
    if from > 0 && loaded.superblock.size_bytes <= from {
        wipe(data, pool, from).map_err(fail("wipe the old metadata of"))?;
    }
    let device_bytes = data.size_bytes()?;
    let Some(image) = moved(offset, device_bytes, loaded) else {
        return Ok(None);
    };
    let (superblock, image) = image;
    let to = superblock.usable_bytes;
    write_image(data.store(), pool, to, image).map_err(fail("move the metadata of"))?;
    wipe(data, pool, offset).map_err(fail("wipe the old metadata of"))?;
    info!(
        path = %data.path().display(),
        from = offset,
        to,
        "the data partition has grown: its internal metadata was moved"
    );
    let length = device_bytes - to;
    Ok(Some(MetadataDisk::internal(data, to, length, pool.clone())))
}

/// What to write at the new end, if the area can and should move there.
fn moved(offset: u64, device_bytes: u64, loaded: &Loaded) -> Option<(Superblock, Image)> {
    let to = internal::placement(device_bytes).ok()?.area_offset();
    if to <= offset {
        return None;
    }
    let why = if to < offset + loaded.geometry.area_bytes() {
        "the new place overlaps the old one: grow it further"
    } else if loaded.superblock.flags.log_active {
        "the mirror did not stop cleanly: it moves at the first start after a clean stop"
    } else if loaded.fell_back || !loaded.bad_pages.is_empty() {
        "the metadata is damaged: it moves when it is whole again"
    } else {
        let mut superblock = loaded.superblock.clone();
        superblock.usable_bytes = to;
        superblock.moved_from = offset;
        superblock.update += 1;
        let geometry = loaded.geometry.resized(to).ok()?;
        let mut words = loaded.words.clone();
        words.resize(geometry.words(), 0);
        if to + geometry.area_bytes() <= device_bytes
            && let Ok(image) = Image::new(&superblock, Some(words))
        {
            return Some((superblock, image));
        }
        "the bitmap of this mirror is too fine for it: initialise it anew"
    };
    warn!(
        why,
        "internal metadata stays where it was on a data partition that has grown"
    );
    None
}

/// Takes an old area out of the search.
fn wipe(data: &DataDisk, pool: &BufferPool, offset: u64) -> io::Result<()> {
    let pieces = crate::layout::geometry::SUPERBLOCK_OFFSETS.map(|at| Piece {
        offset: at,
        bytes: vec![0; METADATA_BLOCK_BYTES as usize],
        flush_before: false,
    });
    write_image(data.store(), pool, offset, pieces.into_iter())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::buffers::POOL_BYTES_MIN;
    use crate::io::init::{InitSettings, init_mirror};

    use crate::io::open::{MetadataPlace, find_internal, load};
    use crate::layout::metadata::find_superblock;
    use crate::units::Uuid;

    const MIB: u64 = 1 << 20;

    struct Grown {
        file: tempfile::NamedTempFile,
        data: DataDisk,
        pool: BufferPool,
    }

    /// A new mirror with its metadata inside, on a file that has grown since.
    fn grown(to_bytes: u64) -> Grown {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        file.as_file().set_len(64 * MIB).unwrap();
        let id = |name| Uuid::from_name("test", name);
        init_mirror(&InitSettings {
            cluster: id("cluster"),
            mirror: id("mirror"),
            node: id("one"),
            peer: id("two"),
            data: file.path().to_owned(),
            metadata: MetadataPlace::Internal,
            adopt: false,
            force: false,
        })
        .unwrap();
        file.as_file().set_len(to_bytes).unwrap();
        let pool = BufferPool::new(POOL_BYTES_MIN).unwrap();
        let data = DataDisk::open(file.path(), Duration::ZERO, pool.clone()).unwrap();
        Grown { file, data, pool }
    }

    fn has_superblock(grown: &Grown, offset: u64) -> bool {
        let length = grown.data.size_bytes().unwrap() - offset;
        let area = MetadataDisk::internal(&grown.data, offset, length, grown.pool.clone());
        find_superblock(|at, bytes| area.read_now(at, bytes)).is_ok()
    }

    #[test]
    fn an_area_moves_once_and_leaves_nothing_behind() {
        let grown = grown(256 * MIB);
        let old = find_internal(&grown.data, &grown.pool).unwrap();
        let from = old.internal_offset().unwrap();
        let loaded = load(&old).unwrap();
        let area = relocate(&grown.data, &old, &loaded, &grown.pool)
            .unwrap()
            .expect("it moved");
        let found = find_internal(&grown.data, &grown.pool).unwrap();
        assert_eq!(found.internal_offset(), area.internal_offset());
        assert!(!has_superblock(&grown, from));
        let moved = load(&area).unwrap();
        assert_eq!(Some(moved.superblock.usable_bytes), area.internal_offset());
        assert_eq!(moved.superblock.size_bytes, loaded.superblock.size_bytes);
        assert!(moved.superblock.usable_bytes > 200 * MIB);
        assert!(moved.bad_pages.is_empty());
        let again = relocate(&grown.data, &area, &moved, &grown.pool).unwrap();
        assert!(again.is_none(), "nothing has grown since");
        drop(grown.file);
    }

    #[test]
    fn a_stop_before_the_old_area_is_wiped_is_made_good() {
        let grown = grown(256 * MIB);
        let old = find_internal(&grown.data, &grown.pool).unwrap();
        let from = old.internal_offset().unwrap();
        let loaded = load(&old).unwrap();
        let (superblock, image) = moved(from, 256 * MIB, &loaded).expect("it can move");
        write_image(
            grown.data.store(),
            &grown.pool,
            superblock.usable_bytes,
            image,
        )
        .unwrap();
        assert!(has_superblock(&grown, from));
        let found = find_internal(&grown.data, &grown.pool).unwrap();
        assert_eq!(found.internal_offset(), Some(superblock.usable_bytes));
        let loaded = load(&found).unwrap();
        assert!(
            relocate(&grown.data, &found, &loaded, &grown.pool)
                .unwrap()
                .is_none()
        );
        assert!(!has_superblock(&grown, from));
    }

    #[test]
    fn an_area_stays_where_the_new_place_overlaps_or_the_log_counts() {
        let grown = grown(256 * MIB);
        let old = find_internal(&grown.data, &grown.pool).unwrap();
        let from = old.internal_offset().unwrap();
        let mut loaded = load(&old).unwrap();
        loaded.superblock.flags.log_active = true;
        assert!(moved(from, 256 * MIB, &loaded).is_none());
        loaded.superblock.flags.log_active = false;
        assert!(moved(from, 256 * MIB, &loaded).is_some());
        assert!(moved(from, 64 * MIB, &loaded).is_none(), "it has not grown");
    }
}
