use super::*;

pub(super) fn sample() -> Superblock {
    Superblock {
        update: 41,
        features_compatible: FEATURE_RUN,
        features_read_only: 0,
        features_incompatible: FEATURE_FORMAT_1,
        cluster: Uuid([1; 16]),
        mirror: Uuid([2; 16]),
        node: Uuid([3; 16]),
        consistency_set: Uuid([0; 16]),
        size_bytes: 1 << 30,
        usable_bytes: (1 << 30) + 512,
        logical_block_bytes: 512,
        block_shift: 12,
        log_slots: 6433,
        flags: Flags {
            primary: true,
            clean_stop: true,
            ..Flags::default()
        },
        generations: GenerationSet {
            current: Generation(10),
            base: Generation(9),
            history: [9, 8, 7, 6, 5, 4, 3, 2].map(Generation),
        },
        epoch: Epoch(12),
        log_epoch: 13,
        peer: PeerSlot {
            node: Uuid([4; 16]),
            incarnation: Uuid([5; 16]),
            full_sync: FullSyncId(18),
            outdated: true,
            detached: false,
            stopped_cleanly: false,
            confirmed_down: true,
            had_copy: true,
        },
        moved_from: 19,
        last_discard: Discard {
            generation: Generation(14),
            bytes: 15,
            ranges: 16,
            unix_s: 17,
        },
        run: Run {
            incarnation: Uuid([20; 16]),
            boot: Uuid([21; 16]),
        },
    }
}

/// `block` with one change and a checksum that matches again.
fn changed(mut block: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    put(&mut block, offset, bytes);
    let checksum = crc32fast::hash(&block[..at::CHECKSUM]);
    put(&mut block, at::CHECKSUM, &checksum.to_le_bytes());
    block
}

fn chosen(a: &[u8], b: &[u8]) -> Result<Found, ChooseFault> {
    choose([Some(a), Some(b)])
}

#[test]
fn a_superblock_round_trips() {
    let superblock = sample();
    assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
}

#[test]
fn every_flag_keeps_its_bit() {
    for bit in 0..FLAG_NAMES.len() {
        let flags = Flags::from_bits(1 << bit).expect("a known flag");
        assert_eq!(flags.bits(), 1 << bit);
    }
    assert_eq!(Flags::from_bits(1 << FLAG_NAMES.len()), None);
}

#[test]
fn any_changed_byte_is_noticed() {
    let block = sample().encode();
    for at in 0..block.len() {
        let mut bad = block.clone();
        bad[at] ^= 1;
        assert!(Superblock::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn a_newer_format_is_refused_by_name_of_its_features() {
    let block = changed(
        sample().encode(),
        at::FEATURES_INCOMPATIBLE,
        &0x11u64.to_le_bytes(),
    );
    assert_eq!(
        Superblock::decode(&block),
        Err(SuperblockFault::NewerFormat { features: 0x10 })
    );
    assert_eq!(
        chosen(&block, &sample().encode()),
        Err(ChooseFault::NewerFormat { features: 0x10 })
    );
}

#[test]
fn unknown_read_only_features_allow_reading_only() {
    let block = changed(
        sample().encode(),
        at::FEATURES_READ_ONLY,
        &0x4u64.to_le_bytes(),
    );
    let superblock = Superblock::decode(&block).expect("readable");
    assert_eq!(superblock.read_only_features(), Some(4));
    assert_eq!(sample().read_only_features(), None);
}

#[test]
fn senseless_fields_are_refused() {
    for (offset, bytes, field) in [
        (at::BLOCK_SHIFT, &[11][..], "geometry"),
        (at::BLOCK_SHIFT, &[21], "geometry"),
        (at::LOG_SLOTS, &[0; 4], "geometry"),
        (at::USABLE_BYTES, &[0xff; 8], "geometry"),
        (at::LOGICAL_BLOCK_BYTES, &[1, 0, 0, 0], "logical block size"),
        (at::SIZE_BYTES, &[0, 2, 0, 0x40, 1, 0, 0, 0], "size"),
        (at::SIZE_BYTES, &[1, 0, 0, 0, 0, 0, 0, 0], "size"),
        (at::FLAGS, &[0, 0, 1], "flags"),
        (at::PEERS, &[2], "peers in use"),
        (at::PEER_SLOTS + at::PEER_FLAGS, &[0x20], "peer flags"),
        (at::FEATURES_INCOMPATIBLE, &[0], "incompatible features"),
    ] {
        assert_eq!(
            Superblock::decode(&changed(sample().encode(), offset, bytes)),
            Err(SuperblockFault::Invalid { field })
        );
    }
}

#[test]
fn the_newer_of_two_valid_copies_counts() {
    let old = sample();
    let mut new = sample();
    new.update += 1;
    new.flags.outdated = true;
    for (a, b) in [(&old, &new), (&new, &old)] {
        let found = chosen(&a.encode(), &b.encode()).expect("both valid");
        assert_eq!(found.superblock, new);
        assert!(found.uneven && !found.fell_back());
        assert_eq!(found.copy_first, usize::from(a == &new), "the older one");
    }
    let found = chosen(&new.encode(), &new.encode()).expect("both valid");
    assert!(!found.uneven && !found.fell_back());
}

#[test]
fn one_bad_copy_means_falling_back() {
    let good = sample().encode();
    let mut bad = good.clone();
    bad[100] ^= 1;
    let found = chosen(&bad, &good).expect("copy B is valid");
    assert!(found.fell_back());
    assert_eq!(found.faults, [Some(SuperblockFault::Checksum), None]);
    assert_eq!(found.copy_first, 0);
    let found = choose([Some(&good), None]).expect("copy A is valid");
    assert_eq!(found.faults, [None, Some(SuperblockFault::Unreadable)]);
    assert_eq!(found.copy_first, 1);
}

#[test]
fn two_bad_copies_are_refused_and_explained() {
    let mut bad = sample().encode();
    bad[100] ^= 1;
    let fault = chosen(&bad, &[0; BLOCK]).expect_err("both bad");
    assert_eq!(
        fault,
        ChooseFault::BothBad {
            faults: [SuperblockFault::Checksum, SuperblockFault::NotFound]
        }
    );
    assert!(fault.to_string().contains("copy A: its checksum"));
    assert_eq!(chosen(&[0; BLOCK], &[0; BLOCK]), Err(ChooseFault::NotFound));
}

#[test]
fn copies_that_contradict_each_other_are_refused() {
    let a = sample();
    let mut other_mirror = sample();
    other_mirror.mirror = Uuid([9; 16]);
    let mut other_content = sample();
    other_content.epoch = Epoch(99);
    for (b, field) in [
        (other_mirror, "mirror"),
        (other_content, "content at one update"),
    ] {
        assert_eq!(
            chosen(&a.encode(), &b.encode()),
            Err(ChooseFault::Contradiction { field })
        );
    }
}

#[test]
fn a_compatible_feature_that_is_not_known_is_dropped_when_written() {
    let mut superblock = sample();
    superblock.features_compatible |= 1 << 63;
    let read = Superblock::decode(&superblock.encode()).expect("valid");
    assert_eq!(read.features_compatible, FEATURE_RUN);
}

#[test]
fn a_run_that_the_last_writer_did_not_know_of_is_nobodys() {
    // An older program clears the feature, whatever it leaves in the fields.
    let block = changed(sample().encode(), at::FEATURES_COMPATIBLE, &[0; 8]);
    let read = Superblock::decode(&block).expect("valid");
    assert_eq!(read.run, Run::default());
}
