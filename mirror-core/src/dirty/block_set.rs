//! A sparse set of blocks: few of them, out of a mirror that may have many. Takes memory for what it
//! holds and not for the mirror, eight bytes and a little for each 64 blocks that have a member.

use std::collections::BTreeMap;

use crate::units::{ByteRange, EXTENT_BYTES};

#[derive(Debug, Clone)]
pub struct BlockSet {
    block_shift: u8,
    /// Bytes of the mirror: the last block may be short.
    size_bytes: u64,
    /// Never zero.
    words: BTreeMap<u64, u64>,
}

impl BlockSet {
    pub fn new(block_shift: u8, size_bytes: u64) -> Self {
        Self {
            block_shift,
            size_bytes,
            words: BTreeMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub fn blocks(&self) -> u64 {
        let counts = self.words.values().map(|word| u64::from(word.count_ones()));
        counts.sum()
    }

    /// Adds every block that the range touches.
    pub fn insert(&mut self, range: ByteRange) {
        for (index, mask) in self.masks(range) {
            *self.words.entry(index).or_default() |= mask;
        }
    }

    /// Takes out every block that the range touches.
    pub fn remove(&mut self, range: ByteRange) {
        for (index, mask) in self.masks(range) {
            if let Some(word) = self.words.get_mut(&index) {
                *word &= !mask;
                if *word == 0 {
                    self.words.remove(&index);
                }
            }
        }
    }

    /// True if the range touches a member.
    pub fn any_in(&self, range: ByteRange) -> bool {
        self.masks(range)
            .any(|(index, mask)| self.words.get(&index).is_some_and(|word| word & mask != 0))
    }

    /// The first run of members at or after `offset`, cut at `bytes_max`, at the end of its extent and
    /// at the end of the mirror.
    pub fn next_run(&self, offset: u64, bytes_max: u32) -> Option<ByteRange> {
        let from = offset >> self.block_shift;
        let rest = |index: u64, word: u64| match index == from / 64 {
            true => word & (u64::MAX << (from % 64)),
            false => word,
        };
        let (index, word) = self
            .words
            .range(from / 64..)
            .map(|(index, word)| (*index, rest(*index, *word)))
            .find(|(_, word)| *word != 0)?;
        let first = index * 64 + u64::from(word.trailing_zeros());
        let start = first << self.block_shift;
        let limit = (start + u64::from(bytes_max))
            .min((start / EXTENT_BYTES + 1) * EXTENT_BYTES)
            .min(self.size_bytes);
        let mut block = first;
        while block << self.block_shift < limit && self.contains(block) {
            block += 1;
        }
        let end = (block << self.block_shift).min(limit);
        (start < end).then(|| ByteRange::new(start, (end - start) as u32))
    }

    fn contains(&self, block: u64) -> bool {
        self.words
            .get(&(block / 64))
            .is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// The words that the range touches, with the bits of its blocks.
    fn masks(&self, range: ByteRange) -> impl Iterator<Item = (u64, u64)> + use<> {
        let first = range.offset >> self.block_shift;
        let last = (range.end() - 1) >> self.block_shift;
        (first / 64..=last / 64).map(move |index| {
            let low = first.saturating_sub(index * 64);
            let high = (last - index * 64).min(63);
            (index, (u64::MAX << low) & (u64::MAX >> (63 - high)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;

    const SHIFT: u8 = 12;
    const BLOCKS: u64 = 2_500;
    /// The last block is short.
    const SIZE: u64 = (BLOCKS - 1) * 4096 + 512;

    fn range(first: u64, blocks: u64) -> ByteRange {
        let (offset, end) = (first << SHIFT, ((first + blocks) << SHIFT).min(SIZE));
        ByteRange::new(offset, (end - offset) as u32)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(changes in prop::collection::vec((any::<bool>(), 0..BLOCKS, 1..300u64), 1..40)) {
            let mut set = BlockSet::new(SHIFT, SIZE);
            let mut plain = BTreeSet::new();
            for (add, first, blocks) in changes {
                let changed = first..(first + blocks).min(BLOCKS);
                let changed_range = range(changed.start, changed.end - changed.start);
                if add {
                    set.insert(changed_range);
                    plain.extend(changed);
                } else {
                    set.remove(changed_range);
                    plain.retain(|block| !changed.contains(block));
                }
            }
            prop_assert_eq!(set.blocks(), plain.len() as u64);
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            let mut walked = BTreeSet::new();
            let mut offset = 0;
            while let Some(run) = set.next_run(offset, 1 << 20) {
                prop_assert!(run.length <= 1 << 20 && run.within_one_extent() && run.end() <= SIZE);
                walked.extend(run.offset >> SHIFT..run.end().div_ceil(1 << SHIFT));
                offset = run.end().next_multiple_of(1 << SHIFT);
            }
            prop_assert_eq!(&walked, &plain);
            for block in 0..BLOCKS {
                prop_assert_eq!(set.any_in(range(block, 1)), plain.contains(&block));
            }
        }
    }
}
