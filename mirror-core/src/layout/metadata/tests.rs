use super::*;
use crate::layout::log_record::LogRecord;
use crate::units::ExtentIndex;

const MIB: u64 = 1 << 20;

fn params(usable_bytes: u64) -> FreshParams {
    FreshParams {
        cluster: Uuid([1; 16]),
        mirror: Uuid([2; 16]),
        node: Uuid([3; 16]),
        peer: Uuid([4; 16]),
        usable_bytes,
        logical_block_bytes: 512,
        adopted: None,
    }
}

fn write(area: &mut Vec<u8>, piece: &Piece) {
    let at = piece.offset as usize;
    let end = at + piece.bytes.len();
    if area.len() < end {
        area.resize(end, 0);
    }
    area[at..end].copy_from_slice(&piece.bytes);
}

fn area(usable_bytes: u64) -> (Superblock, Vec<u8>) {
    let (superblock, image) = fresh(params(usable_bytes)).expect("a size in range");
    let mut area = Vec::new();
    for piece in image {
        assert!(piece.bytes.len() as u64 <= MIB);
        write(&mut area, &piece);
    }
    (superblock, area)
}

fn read(area: &[u8]) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> {
    move |offset, buffer| {
        let at = offset as usize;
        let bytes = area
            .get(at..at + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

fn load(area: &[u8]) -> Loaded {
    parse(area.len() as u64, read(area)).expect("loads")
}

#[test]
fn a_fresh_area_is_clean_inconsistent_and_of_no_generation() {
    let (superblock, area) = area(40_000 * MIB + 512);
    let loaded = load(&area);
    assert_eq!(loaded.superblock, superblock);
    assert!(loaded.superblock.flags.inconsistent);
    assert!(loaded.superblock.generations.current.is_none());
    assert!(!loaded.fell_back && !loaded.uneven);
    assert_eq!(loaded.log.trust, Trust::Intact);
    assert_eq!(loaded.log.slots, vec![None; 6433]);
    assert_eq!(dirty_blocks(&loaded.words), 0);
    assert!(loaded.bad_pages.is_empty());
    assert_eq!(loaded.geometry.area_bytes(), area.len() as u64);
}

#[test]
fn adopted_data_has_a_generation_and_is_consistent() {
    let (superblock, _) = fresh(FreshParams {
        adopted: Some(Generation(77)),
        ..params(MIB)
    })
    .expect("a size in range");
    assert!(!superblock.flags.inconsistent);
    assert_eq!(superblock.generations.current, Generation(77));
    assert_eq!(superblock.size_bytes, superblock.usable_bytes);
}

#[test]
fn a_bitmap_comes_back_as_written() {
    let (superblock, image) = fresh(params(1000 * MIB)).expect("a size in range");
    let words: Vec<u64> = (0..image.geometry.words() as u64)
        .map(|word| if word < 3000 { word } else { 0 })
        .collect();
    let mut area = Vec::new();
    for piece in Image::new(&superblock, Some(words.clone())).expect("a size in range") {
        write(&mut area, &piece);
    }
    assert_eq!(load(&area).words, words);
}

#[test]
fn a_bad_page_is_all_dirty_and_no_other_is() {
    let (superblock, mut area) = area(1000 * MIB);
    let geometry = Geometry::of(&superblock).expect("valid");
    let last = geometry.pages() - 1;
    for page in [1, last] {
        area[geometry.page_offset(page) as usize + 2000] ^= 1;
    }
    let loaded = load(&area);
    assert_eq!(loaded.bad_pages, [1, last]);
    let in_last = geometry.blocks() - u64::from(last) * BLOCKS_PER_PAGE;
    assert_eq!(dirty_blocks(&loaded.words), BLOCKS_PER_PAGE + in_last);
}

#[test]
fn an_unreadable_page_costs_only_itself() {
    let (superblock, area) = area(1000 * MIB);
    let bad = Geometry::of(&superblock).expect("valid").page_offset(3);
    let loaded = parse(area.len() as u64, |offset, buffer| {
        if (offset..offset + buffer.len() as u64).contains(&bad) {
            return Err(io::Error::from_raw_os_error(5));
        }
        read(&area)(offset, buffer)
    })
    .expect("loads");
    assert_eq!(loaded.bad_pages, [3]);
}

#[test]
fn an_unreadable_log_is_doubtful() {
    let (_, area) = area(64 * MIB);
    let loaded = parse(area.len() as u64, |offset, buffer| {
        if offset == 4096 {
            return Err(io::Error::from_raw_os_error(5));
        }
        read(&area)(offset, buffer)
    })
    .expect("loads");
    assert_eq!(loaded.log.trust, Trust::Doubtful);
}

#[test]
fn a_logged_extent_outside_the_data_is_doubt() {
    for (extent, trust) in [(15, Trust::Intact), (16, Trust::Doubtful)] {
        let (superblock, mut area) = area(64 * MIB);
        let record = LogRecord {
            log_epoch: superblock.log_epoch,
            number: 1,
            updates: vec![(0, Some(ExtentIndex(extent)))],
            context_first: 0,
            context: Vec::new(),
        };
        let at = Geometry::of(&superblock)
            .expect("valid")
            .log_record_offset(1) as usize;
        area[at..at + BLOCK].copy_from_slice(&record.encode());
        assert_eq!(load(&area).log.trust, trust);
    }
}

#[test]
fn a_lost_superblock_copy_is_reported() {
    for copy in SUPERBLOCK_OFFSETS {
        let (superblock, mut area) = area(64 * MIB);
        area[copy as usize + 9] ^= 1;
        let loaded = load(&area);
        assert!(loaded.fell_back);
        assert_eq!(loaded.superblock, superblock);
    }
}

#[test]
fn an_area_that_was_cut_off_is_refused() {
    let (_, mut area) = area(1000 * MIB);
    area.truncate(area.len() - BLOCK);
    assert!(matches!(
        parse(area.len() as u64, read(&area)),
        Err(LoadFault::CutOff { .. })
    ));
    assert!(matches!(
        parse(0, read(&[])),
        Err(LoadFault::Superblock(ChooseFault::BothBad { .. }))
    ));
}

#[test]
fn init_stopped_anywhere_never_leaves_the_old_mirror_readable_over_new_pages() {
    let (mut old, image) = fresh(params(1000 * MIB)).expect("a size in range");
    old.update = 900;
    let dirty = vec![u64::MAX; image.geometry.words()];
    let mut before = Vec::new();
    for piece in Image::new(&old, Some(dirty)).expect("a size in range") {
        write(&mut before, &piece);
    }
    let (new, image) = fresh(params(1000 * MIB)).expect("a size in range");
    let pieces: Vec<_> = image.collect();
    for stop in 1..=pieces.len() {
        let mut area = before.clone();
        for piece in &pieces[..stop] {
            write(&mut area, piece);
        }
        match parse(area.len() as u64, read(&area)) {
            // Both wiped.
            Err(LoadFault::Superblock(ChooseFault::NotFound)) => assert!(stop >= 2),
            Err(fault) => panic!("stopped after {stop}: {fault}"),
            Ok(loaded) if stop == 1 => {
                assert_eq!(loaded.superblock, old);
                assert_eq!(dirty_blocks(&loaded.words), loaded.geometry.blocks());
            }
            Ok(loaded) => assert_eq!(loaded.superblock, new),
        }
    }
}

#[test]
fn every_change_of_kind_is_preceded_by_a_flush() {
    let (_, image) = fresh(params(40_000 * MIB)).expect("a size in range");
    let flushes: Vec<_> = image
        .map(|piece| (piece.offset, piece.flush_before))
        .collect();
    let count = flushes.len();
    assert_eq!(flushes[0], (0, false));
    assert_eq!(flushes[1], (65 * 4096, false));
    assert_eq!(flushes[2], (4096, true));
    assert_eq!(flushes[count - 2], (0, true));
    assert_eq!(flushes[count - 1], (65 * 4096, true));
}

#[test]
fn a_largest_bitmap_is_read_well_under_a_second() {
    let (superblock, image) = fresh(params(16 << 40)).expect("a size in range");
    assert_eq!(superblock.block_shift, 15);
    let mut area = vec![0; image.area_bytes() as usize];
    for piece in image {
        write(&mut area, &piece);
    }
    let loaded = load(&area);
    assert_eq!(loaded.words.len(), 16_913 * WORDS_PER_PAGE);
}
