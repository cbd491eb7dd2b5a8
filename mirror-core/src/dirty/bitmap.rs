//! The dirty bitmap: one bit a block that may differ between the sides.
//!
//! The bitmap in memory is the truth; the pages on disk may lag behind it. Bits *added* since a
//! page was last written are `unsaved`: until the page is written, an extent of the activity log
//! must cover them (D1, D4). Bits *cleared* since then leave the page merely `stale`: too many
//! bits on disk cost a little resync, never data.

use crate::layout::geometry::{BLOCKS_PER_PAGE, WORDS_PER_PAGE};
use crate::units::{ByteRange, EXTENT_BYTES, ExtentIndex};

#[derive(Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    block_shift: u8,
    /// Bytes of the mirror; blocks past it do not exist.
    size_bytes: u64,
    dirty_blocks: u64,
    unsaved: Vec<bool>,
    stale: Vec<bool>,
}

impl Bitmap {
    /// `words` as read from disk, a whole number of pages.
    pub fn new(words: Vec<u64>, block_shift: u8, size_bytes: u64) -> Self {
        assert!(
            words.len().is_multiple_of(WORDS_PER_PAGE),
            "bitmap must be whole pages"
        );
        let pages = words.len() / WORDS_PER_PAGE;
        let mut bitmap = Self {
            words,
            block_shift,
            size_bytes: 0,
            dirty_blocks: 0,
            unsaved: vec![false; pages],
            stale: vec![false; pages],
        };
        bitmap.set_size(size_bytes);
        bitmap
    }

    /// Takes a new mirror size. Bits past the end are dropped: there is nothing there to differ.
    pub fn set_size(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        let blocks = self.blocks();
        assert!(
            blocks <= self.words.len() as u64 * 64,
            "bitmap too small for the mirror"
        );
        let first_word = blocks.div_ceil(64) as usize;
        self.words[first_word..].fill(0);
        if !blocks.is_multiple_of(64) {
            self.words[(blocks / 64) as usize] &= (1 << (blocks % 64)) - 1;
        }
        self.dirty_blocks = self
            .words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
    }

    /// Makes room for `pages` pages; the new ones are clean and must be written before use.
    pub fn grow_pages(&mut self, pages: usize) {
        if pages > self.pages() {
            self.words.resize(pages * WORDS_PER_PAGE, 0);
            self.unsaved.resize(pages, true);
            self.stale.resize(pages, false);
        }
    }

    pub fn pages(&self) -> usize {
        self.unsaved.len()
    }

    pub fn block_bytes(&self) -> u64 {
        1 << self.block_shift
    }

    pub fn block_shift(&self) -> u8 {
        self.block_shift
    }

    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes())
    }

    pub fn dirty_blocks(&self) -> u64 {
        self.dirty_blocks
    }

    pub fn dirty_bytes(&self) -> u64 {
        (self.dirty_blocks * self.block_bytes()).min(self.size_bytes)
    }

    pub fn is_clean(&self) -> bool {
        self.dirty_blocks == 0
    }

    pub fn is_dirty(&self, block: u64) -> bool {
        self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Sets the bit of every block that the range touches, in part or whole.
    pub fn set_range(&mut self, range: ByteRange) {
        let last = (range.end() - 1) >> self.block_shift;
        self.set_blocks(range.offset >> self.block_shift, last + 1);
    }

    /// Clears the bits of the blocks that lie wholly inside the range. The caller holds the proof
    /// that D2 asks for. The mirror's last block may be short.
    pub fn clear_range(&mut self, range: ByteRange) {
        let first = range.offset.div_ceil(self.block_bytes());
        let end = if range.end() >= self.size_bytes {
            self.blocks()
        } else {
            range.end() >> self.block_shift
        };
        for block in first..end {
            let word = &mut self.words[(block / 64) as usize];
            if *word >> (block % 64) & 1 == 1 {
                *word &= !(1 << (block % 64));
                self.dirty_blocks -= 1;
                self.stale[(block / BLOCKS_PER_PAGE) as usize] = true;
            }
        }
    }

    pub fn set_all(&mut self) {
        self.set_blocks(0, self.blocks());
    }

    pub fn clear_all(&mut self) {
        for (page, words) in self.words.chunks_mut(WORDS_PER_PAGE).enumerate() {
            if words.iter().any(|word| *word != 0) {
                words.fill(0);
                self.stale[page] = true;
            }
        }
        self.dirty_blocks = 0;
    }

    /// Adds the bits of a peer's page run. `block_shift` is the peer's granularity.
    pub fn merge(&mut self, first_block: u64, block_shift: u8, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let block = first_block + index as u64 * 64 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                let start = block << block_shift;
                let end = ((block + 1) << block_shift).min(self.size_bytes);
                if start < end {
                    self.set_blocks(
                        start >> self.block_shift,
                        ((end - 1) >> self.block_shift) + 1,
                    );
                }
            }
        }
    }

    /// True if any block that the range touches is dirty.
    pub fn any_in(&self, range: ByteRange) -> bool {
        let last = (range.end() - 1) >> self.block_shift;
        self.next_dirty(range.offset >> self.block_shift)
            .is_some_and(|block| block <= last)
    }

    /// First dirty block at or after `from`.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        if from >= self.blocks() {
            return None;
        }
        let mut index = (from / 64) as usize;
        let mut word = self.words[index] & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            index += 1;
            word = *self.words.get(index)?;
        }
    }

    /// The dirty run that starts at dirty block `first`, cut at `bytes_max`, at the end of its
    /// extent and at the end of the mirror.
    pub fn run_at(&self, first: u64, bytes_max: u32) -> ByteRange {
        let offset = first << self.block_shift;
        let extent_end = (offset / EXTENT_BYTES + 1) * EXTENT_BYTES;
        let limit = (offset + u64::from(bytes_max))
            .min(extent_end)
            .min(self.size_bytes);
        let mut end = offset;
        let mut block = first;
        while end < limit && self.is_dirty(block) {
            end = (end + self.block_bytes()).min(limit);
            block += 1;
        }
        ByteRange::new(offset, (end - offset) as u32)
    }

    /// The part of an extent that exists in the mirror.
    pub fn extent_range(&self, extent: ExtentIndex) -> Option<ByteRange> {
        let offset = extent.offset();
        let end = (offset + EXTENT_BYTES).min(self.size_bytes);
        (offset < end).then(|| ByteRange::new(offset, (end - offset) as u32))
    }

    /// The one page that holds an extent's bits.
    pub fn page_of(&self, extent: ExtentIndex) -> usize {
        ((extent.offset() >> self.block_shift) / BLOCKS_PER_PAGE) as usize
    }

    pub fn is_unsaved(&self, page: usize) -> bool {
        self.unsaved[page]
    }

    /// Pages whose copy on disk lacks bits.
    pub fn unsaved_pages(&self) -> Vec<usize> {
        (0..self.pages())
            .filter(|page| self.unsaved[*page])
            .collect()
    }

    /// Pages whose copy on disk has bits too many or lacks some.
    pub fn changed_pages(&self) -> Vec<usize> {
        (0..self.pages())
            .filter(|page| self.unsaved[*page] || self.stale[*page])
            .collect()
    }

    /// The content of a page that is about to be written. Later changes count as new ones; the
    /// caller treats the page as unsaved until the write is durable.
    pub fn begin_save(&mut self, page: usize) -> &[u64] {
        self.unsaved[page] = false;
        self.stale[page] = false;
        &self.words[page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE]
    }

    /// The first page with bits from `from` on, as (page, first block, words), for a peer.
    pub fn next_dirty_page(&self, from: usize) -> Option<(usize, u64, &[u64])> {
        self.words
            .chunks(WORDS_PER_PAGE)
            .enumerate()
            .skip(from)
            .find(|(_, words)| words.iter().any(|word| *word != 0))
            .map(|(page, words)| (page, page as u64 * BLOCKS_PER_PAGE, words))
    }

    pub fn check_invariants(&self) {
        let counted: u64 = self
            .words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        assert_eq!(
            counted, self.dirty_blocks,
            "dirty count out of step with the bits"
        );
    }

    fn set_blocks(&mut self, first: u64, end: u64) {
        assert!(end <= self.blocks(), "block {end} past the end");
        let mut block = first;
        while block < end {
            let index = (block / 64) as usize;
            let low = block % 64;
            let count = (64 - low).min(end - block);
            let mask = if count == 64 {
                u64::MAX
            } else {
                ((1 << count) - 1) << low
            };
            let added = mask & !self.words[index];
            if added != 0 {
                self.words[index] |= added;
                self.dirty_blocks += u64::from(added.count_ones());
                self.unsaved[index / WORDS_PER_PAGE] = true;
            }
            block += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(size_bytes: u64) -> Bitmap {
        let pages = size_bytes.div_ceil(4096).div_ceil(BLOCKS_PER_PAGE) as usize;
        Bitmap::new(vec![0; pages * WORDS_PER_PAGE], 12, size_bytes)
    }

    #[test]
    fn a_partial_write_sets_the_whole_block_and_a_partial_clear_clears_nothing() {
        let mut bitmap = bitmap(1 << 20);
        bitmap.set_range(ByteRange::new(4096 + 512, 512));
        assert!(bitmap.is_dirty(1));
        assert_eq!(bitmap.dirty_bytes(), 4096);
        bitmap.clear_range(ByteRange::new(4096 + 512, 3584));
        assert!(bitmap.is_dirty(1));
        bitmap.clear_range(ByteRange::new(4096, 4096));
        assert!(bitmap.is_clean());
        bitmap.check_invariants();
    }

    #[test]
    fn the_short_last_block_can_be_cleared() {
        let mut bitmap = bitmap(10_240);
        bitmap.set_all();
        assert_eq!(bitmap.dirty_blocks(), 3);
        bitmap.clear_range(ByteRange::new(8192, 2048));
        assert_eq!(bitmap.dirty_blocks(), 2);
    }

    #[test]
    fn runs_stop_at_extents_and_at_the_limit() {
        let mut bitmap = bitmap(16 << 20);
        bitmap.set_range(ByteRange::new((4 << 20) - 8192, 8192));
        bitmap.set_range(ByteRange::new(4 << 20, 2 << 20));
        assert_eq!(
            bitmap.run_at(1022, 1 << 20),
            ByteRange::new((4 << 20) - 8192, 8192)
        );
        assert_eq!(
            bitmap.run_at(1024, 1 << 20),
            ByteRange::new(4 << 20, 1 << 20)
        );
    }

    #[test]
    fn saving_a_page_counts_later_bits_as_unsaved_again() {
        let mut bitmap = bitmap(1 << 20);
        bitmap.set_range(ByteRange::new(0, 4096));
        assert_eq!(bitmap.begin_save(0)[0], 1);
        assert!(!bitmap.is_unsaved(0));
        bitmap.set_range(ByteRange::new(0, 4096));
        assert!(!bitmap.is_unsaved(0), "nothing was added");
        bitmap.set_range(ByteRange::new(8192, 4096));
        assert!(bitmap.is_unsaved(0));
    }

    #[test]
    fn merging_converts_between_granularities() {
        let mut bitmap = bitmap(1 << 20);
        bitmap.merge(1, 14, &[1]);
        assert_eq!((bitmap.next_dirty(0), bitmap.dirty_blocks()), (Some(4), 4));
    }
}
