//! Superblock, log transaction, bitmap page and a whole fresh area.

use std::collections::BTreeSet;

use mirror_core::generation::GenerationSet;
use mirror_core::layout::bitmap_page;
use mirror_core::layout::geometry::WORDS_PER_PAGE;
use mirror_core::layout::internal::placement;
use mirror_core::layout::log_record::LogRecord;
use mirror_core::layout::metadata::{FreshParams, Image, fresh};
use mirror_core::layout::superblock::{
    Discard, FEATURE_FORMAT_1, FEATURE_RUN, Flags, PeerSlot, Run, Superblock,
};
use mirror_core::units::{Epoch, ExtentIndex, FullSyncId, Generation, Uuid};

use crate::{check, check_complete};

/// Every field has a value of its own, so that no two can trade places unnoticed.
fn superblock() -> Superblock {
    Superblock {
        update: 0x0101,
        features_compatible: FEATURE_RUN,
        features_read_only: 0,
        features_incompatible: FEATURE_FORMAT_1,
        cluster: Uuid([0x11; 16]),
        mirror: Uuid([0x22; 16]),
        node: Uuid([0x33; 16]),
        consistency_set: Uuid([0x44; 16]),
        size_bytes: 0x4000_0000,
        usable_bytes: 0x4000_1000,
        logical_block_bytes: 4096,
        block_shift: 12,
        log_slots: 6433,
        flags: Flags::default(),
        generations: GenerationSet {
            current: Generation(0xc0),
            base: Generation(0xb0),
            history: [0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8].map(Generation),
        },
        epoch: Epoch(0xe0),
        log_epoch: 0xe1,
        peer: PeerSlot {
            node: Uuid([0x55; 16]),
            incarnation: Uuid([0x66; 16]),
            full_sync: FullSyncId(0xf0),
            outdated: true,
            detached: false,
            stopped_cleanly: true,
            confirmed_down: false,
            had_copy: true,
        },
        moved_from: 0x10_0000,
        last_discard: Discard {
            generation: Generation(0xd1),
            bytes: 0xd2,
            ranges: 0xd3,
            unix_s: 0xd4,
        },
        run: Run {
            incarnation: Uuid([0x77; 16]),
            boot: Uuid([0x88; 16]),
        },
    }
}

#[test]
fn the_metadata_blocks_keep_their_bytes() {
    let mut names = BTreeSet::new();
    let mut case = |name: &str, bytes: &[u8]| {
        names.insert(name.to_owned());
        check("metadata", name, bytes)
    };

    let block = superblock();
    let pinned = case("superblock.bin", &block.encode());
    assert_eq!(Superblock::decode(&pinned), Ok(block));

    let block = Superblock {
        features_compatible: 0,
        run: Run::default(),
        ..superblock()
    };
    let pinned = case("superblock-without-run.bin", &block.encode());
    assert_eq!(Superblock::decode(&pinned), Ok(block));

    for bit in 0..10 {
        let flags = Flags::from_bits(1 << bit).expect("a flag");
        let block = Superblock {
            flags,
            ..superblock()
        };
        assert_eq!(block.encode()[136..144], (1u64 << bit).to_le_bytes());
    }

    let record = LogRecord {
        log_epoch: 0xe1,
        number: 0x1234,
        updates: (0..64u16)
            .map(|slot| (slot * 100, Some(ExtentIndex(u32::from(slot) + 7))))
            .collect(),
        context_first: 6000,
        context: (0..800u32)
            .map(|slot| (!slot.is_multiple_of(3)).then_some(ExtentIndex(slot)))
            .collect(),
    };
    let pinned = case("log-record.bin", &record.encode());
    assert_eq!(LogRecord::decode(&pinned), Ok(record));

    let words: Vec<u64> = (0..WORDS_PER_PAGE as u64)
        .map(|word| word.wrapping_mul(0x0101_0101_0101_0101))
        .collect();
    let pinned = case("bitmap-page.bin", &bitmap_page::encode(0x0203, &words));
    let mut read = vec![0; WORDS_PER_PAGE];
    assert_eq!(bitmap_page::decode(0x0203, &pinned, &mut read), Ok(()));
    assert_eq!(read, words);

    let (fresh, _) = fresh(FreshParams {
        cluster: Uuid::from_name("cluster", "east"),
        mirror: Uuid::from_name("mirror", "md1"),
        node: Uuid::from_name("node", "a"),
        peer: Uuid::from_name("node", "b"),
        usable_bytes: 1 << 40,
        logical_block_bytes: 512,
        adopted: None,
    })
    .expect("a size in range");
    case("superblock-fresh.bin", &fresh.encode());

    check_complete("metadata", &names);
}

#[test]
fn the_pieces_of_an_area_keep_their_places() {
    let (superblock, image) = fresh(FreshParams {
        cluster: Uuid([1; 16]),
        mirror: Uuid([2; 16]),
        node: Uuid([3; 16]),
        peer: Uuid([4; 16]),
        usable_bytes: 40 << 30,
        logical_block_bytes: 512,
        adopted: None,
    })
    .expect("a size in range");
    assert_eq!(image.area_bytes(), (66 + 331) * 4096);
    let places: Vec<_> = Image::new(&superblock, None)
        .expect("a size in range")
        .map(|piece| (piece.offset, piece.bytes.len()))
        .collect();
    assert_eq!(
        places,
        [
            (0, 4096),
            (65 * 4096, 4096),
            (4096, 64 * 4096),
            (66 * 4096, 256 * 4096),
            ((66 + 256) * 4096, 75 * 4096),
            (0, 4096),
            (65 * 4096, 4096),
        ]
    );
}

#[test]
fn internal_metadata_keeps_its_place() {
    for (device_bytes, area_offset) in [
        (2 << 20, 1 << 20),
        (1 << 30, 1023 << 20),
        ((1 << 30) + 12_288, 1023 << 20),
        (1 << 40, (1 << 40) - (512 << 20)),
        (16 << 40, (16 << 40) - (8 << 30)),
    ] {
        let place = placement(device_bytes).expect("large enough");
        assert_eq!(place.area_offset(), area_offset, "{device_bytes}");
    }
}
