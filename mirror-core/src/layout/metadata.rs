//! A whole metadata area: read and judged once at the start, or written fresh.
//!
//! Reading never fails for what rule D9 lets stand: a bad bitmap page comes back as all dirty, a bad
//! log as doubtful. It fails where nothing may be concluded at all.

use std::io;

use crate::generation::GenerationSet;
use crate::layout::bitmap_page;
use crate::layout::geometry::{
    BLOCKS_PER_PAGE, Geometry, GeometryFault, LOG_BLOCKS, METADATA_BLOCK_BYTES, SUPERBLOCK_OFFSETS,
    WORDS_PER_PAGE,
};
use crate::layout::log_record::{self, LogRecovery, Trust};
use crate::layout::superblock::{
    ChooseFault, Discard, FEATURE_FORMAT_1, Flags, Found, PeerSlot, Run, Superblock, choose,
};
use crate::units::{Epoch, Generation, Uuid};

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;
/// Pages read or written at once: 1 MiB.
const PAGES_PER_CHUNK: u32 = 256;

/// Everything a volume starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub superblock: Superblock,
    /// Only one copy of the superblock was good: the data may be old (rule D9).
    pub fell_back: bool,
    /// The copies of the superblock differ: write both anew before anything depends on them.
    pub uneven: bool,
    /// Copy of the superblock to write first, 0 or 1: the bad or older one, so that a stop in the
    /// middle of that write never leaves both bad.
    pub copy_first: usize,
    pub geometry: Geometry,
    pub log: LogRecovery,
    /// The whole bitmap in whole pages; bits of bad pages are set, bits past the end are clear.
    pub words: Vec<u64>,
    /// Pages that failed their check, ascending.
    pub bad_pages: Vec<u32>,
}

/// Why an area cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    #[error(transparent)]
    Superblock(#[from] ChooseFault),
    #[error(transparent)]
    Geometry(#[from] GeometryFault),
    #[error(
        "the metadata area has {present_bytes} bytes, but its superblock speaks of {needed_bytes}; \
         it was cut off or belongs elsewhere"
    )]
    CutOff {
        present_bytes: u64,
        needed_bytes: u64,
    },
}

/// Chooses the superblock of an area. `read` fills a buffer from an offset of the area.
pub fn find_superblock(
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Found, ChooseFault> {
    let copies = SUPERBLOCK_OFFSETS.map(|offset| {
        let mut block = vec![0; BLOCK];
        read(offset, &mut block).ok().map(|()| block)
    });
    choose([copies[0].as_deref(), copies[1].as_deref()])
}

/// Reads a whole area of `area_bytes`. `read` fills a buffer from an offset of the area; offsets and
/// lengths are multiples of 4096, lengths at most 1 MiB.
pub fn parse(
    area_bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Loaded, LoadFault> {
    let found = find_superblock(&mut read)?;
    let geometry = Geometry::of(&found.superblock)?;
    if geometry.area_bytes() > area_bytes {
        return Err(LoadFault::CutOff {
            present_bytes: area_bytes,
            needed_bytes: geometry.area_bytes(),
        });
    }
    let log = read_log(&found.superblock, geometry, &mut read);
    let (words, bad_pages) = read_bitmap(geometry, &mut read);
    Ok(Loaded {
        fell_back: found.fell_back(),
        uneven: found.uneven,
        copy_first: found.copy_first,
        superblock: found.superblock,
        geometry,
        log,
        words,
        bad_pages,
    })
}

fn read_log(
    superblock: &Superblock,
    geometry: Geometry,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> LogRecovery {
    let mut ring = log_record::void_ring();
    let readable = read(geometry.log_offset(), &mut ring).is_ok();
    // An unreadable ring is judged as one of no length: doubtful.
    let ring: &[u8] = if readable { &ring } else { &[] };
    let mut log = log_record::recover(ring, superblock.log_epoch, superblock.log_slots);
    let extents = geometry.extents();
    if log.slots.iter().flatten().any(|extent| extent.0 >= extents) {
        log.trust = Trust::Doubtful;
        log.next_number = 1;
    }
    log
}

fn read_bitmap(
    geometry: Geometry,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> (Vec<u64>, Vec<u32>) {
    let mut words = vec![0; geometry.words()];
    let mut bad_pages = Vec::new();
    let mut chunk = vec![0; PAGES_PER_CHUNK as usize * BLOCK];
    let chunk_words = PAGES_PER_CHUNK as usize * WORDS_PER_PAGE;
    for (first, words) in (0u32..)
        .step_by(PAGES_PER_CHUNK as usize)
        .zip(words.chunks_mut(chunk_words))
    {
        let pages = words.len() / WORDS_PER_PAGE;
        let chunk = &mut chunk[..pages * BLOCK];
        let whole = read(geometry.page_offset(first), chunk).is_ok();
        for ((page, block), words) in (first..)
            .zip(chunk.chunks_exact_mut(BLOCK))
            .zip(words.chunks_exact_mut(WORDS_PER_PAGE))
        {
            // One bad sector must not cost the pages beside it.
            let readable = whole || read(geometry.page_offset(page), block).is_ok();
            if !readable || bitmap_page::decode(page, block, words).is_err() {
                words.fill(u64::MAX);
                bad_pages.push(page);
            }
        }
    }
    clear_past_end(geometry, &mut words);
    (words, bad_pages)
}

fn clear_past_end(geometry: Geometry, words: &mut [u64]) {
    let blocks = geometry.blocks();
    let last = (blocks / 64) as usize;
    if let Some(word) = words.get_mut(last) {
        *word &= (1 << (blocks % 64)) - 1;
    }
    for word in words.iter_mut().skip(last + 1) {
        *word = 0;
    }
}

/// What a new mirror's metadata is made of.
#[derive(Debug, Clone, Copy)]
pub struct FreshParams {
    pub cluster: Uuid,
    pub mirror: Uuid,
    pub node: Uuid,
    pub peer: Uuid,
    pub usable_bytes: u64,
    pub logical_block_bytes: u32,
    /// Generation of data that is there already and is to be kept; `None` if there is none.
    pub adopted: Option<Generation>,
}

/// The superblock of a new mirror, and everything to write for it. Without adopted data the mirror is
/// inconsistent and of no generation until it was promoted by force or copied from its peer.
pub fn fresh(params: FreshParams) -> Result<(Superblock, Image), GeometryFault> {
    let geometry = Geometry::for_usable(params.usable_bytes)?;
    let usable_bytes = geometry.usable_bytes();
    let superblock = Superblock {
        update: 1,
        features_compatible: 0,
        features_read_only: 0,
        features_incompatible: FEATURE_FORMAT_1,
        cluster: params.cluster,
        mirror: params.mirror,
        node: params.node,
        consistency_set: Uuid::default(),
        // Data that is kept has its size; a smaller peer must not cut it off.
        size_bytes: match params.adopted {
            Some(_) => usable_bytes - usable_bytes % u64::from(params.logical_block_bytes),
            None => 0,
        },
        usable_bytes,
        logical_block_bytes: params.logical_block_bytes,
        block_shift: geometry.block_shift(),
        log_slots: geometry.log_slots(),
        flags: Flags {
            inconsistent: params.adopted.is_none(),
            ..Flags::default()
        },
        generations: GenerationSet {
            current: params.adopted.unwrap_or(Generation::NONE),
            ..GenerationSet::default()
        },
        epoch: Epoch(0),
        log_epoch: 1,
        peer: PeerSlot {
            node: params.peer,
            ..PeerSlot::default()
        },
        moved_from: 0,
        last_discard: Discard::default(),
        run: Run::default(),
    };
    let image = Image::new(&superblock, None)?;
    Ok((superblock, image))
}

/// Every block of a metadata area, as pieces of at most 1 MiB in the order in which to write them.
///
/// First both superblocks are wiped, so that a stop half-way never leaves an old superblock over new
/// pages; then the ring and the bitmap; then the superblocks. The writer flushes where
/// [`Piece::flush_before`] says so, and once at the end.
#[derive(Debug, Clone)]
pub struct Image {
    geometry: Geometry,
    superblock: Vec<u8>,
    words: Option<Vec<u64>>,
    next: usize,
}

/// One write of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// In the metadata area.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Everything before must be durable before this is written.
    pub flush_before: bool,
}

impl Image {
    /// The area of a superblock with an empty log; `words` is the whole bitmap, clean if `None`.
    /// The superblock's log epoch must not be below one that was used on this area before.
    pub fn new(superblock: &Superblock, words: Option<Vec<u64>>) -> Result<Self, GeometryFault> {
        let geometry = Geometry::of(superblock)?;
        if let Some(words) = &words {
            assert_eq!(words.len(), geometry.words(), "the whole bitmap");
        }
        Ok(Self {
            geometry,
            superblock: superblock.encode(),
            words,
            next: 0,
        })
    }

    pub const fn area_bytes(&self) -> u64 {
        self.geometry.area_bytes()
    }

    fn pages(&self, chunk: usize) -> Option<Piece> {
        let first = u32::try_from(chunk).ok()?.checked_mul(PAGES_PER_CHUNK)?;
        let end = self
            .geometry
            .pages()
            .min(first.checked_add(PAGES_PER_CHUNK)?);
        if first >= end {
            return None;
        }
        let mut bytes = vec![0; (end - first) as usize * BLOCK];
        for (page, block) in (first..end).zip(bytes.chunks_exact_mut(BLOCK)) {
            let at = page as usize * WORDS_PER_PAGE;
            match &self.words {
                Some(words) => {
                    bitmap_page::encode_into(page, &words[at..at + WORDS_PER_PAGE], block);
                }
                None => bitmap_page::encode_into(page, &[0; WORDS_PER_PAGE], block),
            }
        }
        Some(Piece {
            offset: self.geometry.page_offset(first),
            bytes,
            flush_before: first == 0,
        })
    }
}

impl Iterator for Image {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let [a, b] = self.geometry.superblock_offsets();
        let chunks = self.geometry.pages().div_ceil(PAGES_PER_CHUNK) as usize;
        let step = self.next;
        self.next += 1;
        match step {
            0 | 1 => Some(Piece {
                offset: [a, b][step],
                bytes: vec![0; BLOCK],
                flush_before: false,
            }),
            2 => Some(Piece {
                offset: self.geometry.log_offset(),
                bytes: log_record::void_ring(),
                flush_before: true,
            }),
            _ if step - 3 < chunks => self.pages(step - 3),
            _ if step - 3 - chunks < 2 => Some(Piece {
                offset: [a, b][step - 3 - chunks],
                bytes: self.superblock.clone(),
                flush_before: true,
            }),
            _ => None,
        }
    }
}

/// Dirty bits of a bitmap that are set.
pub fn dirty_blocks(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

const _: () = assert!(LOG_BLOCKS * METADATA_BLOCK_BYTES <= 1 << 20);
const _: () = assert!(BLOCKS_PER_PAGE as usize == WORDS_PER_PAGE * 64);

#[cfg(test)]
mod tests;
