//! A metadata area with arbitrary blocks in it.
//!
//! The input is a list of blocks: one byte that says where a block goes and whether its checksum is
//! made good, two bytes of length, and that many bytes of the block from its start. Everything else
//! of the area is as `init` writes it, so that the reader gets past the superblocks.

#![no_main]

use std::io;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mirror_core::layout::geometry::{LOG_BLOCKS, METADATA_BLOCK_BYTES, SUPERBLOCK_OFFSETS};
use mirror_core::layout::internal;
use mirror_core::layout::log_record::Trust;
use mirror_core::layout::metadata::{FreshParams, dirty_blocks, fresh, parse};
use mirror_core::units::Uuid;

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;
/// Two bitmap pages.
const USABLE_BYTES: u64 = 200 << 20;
/// A superblock may speak of more pages than the area has; reading past its end must be refused.
const AREA_BLOCKS: usize = 2 + LOG_BLOCKS as usize + 2;
const PAGES_FROM: usize = 2 + LOG_BLOCKS as usize;

static FRESH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_, image) = fresh(FreshParams {
        cluster: Uuid([1; 16]),
        mirror: Uuid([2; 16]),
        node: Uuid([3; 16]),
        peer: Uuid([4; 16]),
        usable_bytes: USABLE_BYTES,
        logical_block_bytes: 512,
        adopted: None,
    })
    .expect("a size in range");
    let mut area = vec![0; AREA_BLOCKS * BLOCK];
    for piece in image {
        let at = piece.offset as usize;
        area[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    area
});

fuzz_target!(|input: &[u8]| {
    let mut area = FRESH.clone();
    let mut rest = input;
    while let [place, low, high, bytes @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len().min(BLOCK));
        let (bytes, next) = bytes.split_at(length);
        rest = next;
        let index = usize::from(place & 0x7f) % AREA_BLOCKS;
        let block = &mut area[index * BLOCK..][..BLOCK];
        block[..length].copy_from_slice(bytes);
        if place & 0x80 != 0 {
            make_good(index, block);
        }
    }
    let loaded = parse(area.len() as u64, |offset, buffer| {
        let at = offset as usize;
        let bytes = area
            .get(at..at + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    });
    let Ok(loaded) = loaded else { return };
    let geometry = loaded.geometry;
    assert!(geometry.area_bytes() <= area.len() as u64);
    assert_eq!(loaded.words.len(), geometry.words());
    assert_eq!(loaded.log.slots.len(), geometry.log_slots() as usize);
    let dirty = dirty_blocks(&loaded.words);
    assert!(dirty <= geometry.blocks());
    assert!(loaded.bad_pages.is_empty() || dirty > 0, "bad is dirty");
    if loaded.log.trust != Trust::Doubtful {
        let in_range = |index: &mirror_core::units::ExtentIndex| index.0 < geometry.extents();
        assert!(loaded.log.slots.iter().flatten().all(in_range));
        assert!(loaded.log.next_number > 0);
    }
    let _ = loaded.superblock.read_only_features();
    let _ = internal::belongs(&loaded.superblock, loaded.superblock.usable_bytes);
});

/// Gives a block the magic and the checksum of what belongs there.
fn make_good(index: usize, block: &mut [u8]) {
    let is_superblock = SUPERBLOCK_OFFSETS.contains(&((index * BLOCK) as u64));
    let is_page = index >= PAGES_FROM;
    let magic = match (is_superblock, is_page) {
        (true, _) => b"MIRRORSB",
        (_, true) => b"MIRRORBM",
        _ => b"MIRRORAL",
    };
    block[..8].copy_from_slice(magic);
    let mut hasher = crc32fast::Hasher::new();
    let at = if is_page {
        hasher.update(&block[..124]);
        hasher.update(&block[128..]);
        124
    } else {
        hasher.update(&block[..BLOCK - 4]);
        BLOCK - 4
    };
    block[at..at + 4].copy_from_slice(&hasher.finalize().to_le_bytes());
}
