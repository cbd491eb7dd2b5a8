//! A set of extents, one bit each, of a size that is fixed when it is made.

use crate::units::ExtentIndex;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentSet {
    words: Vec<u64>,
    extents: u32,
}

impl ExtentSet {
    /// An empty set over extents 0 to `extents - 1`.
    pub fn new(extents: u32) -> Self {
        Self {
            words: vec![0; extents.div_ceil(64) as usize],
            extents,
        }
    }

    /// Adds an extent. One past the end is no part of any mirror and is left out.
    pub fn insert(&mut self, extent: ExtentIndex) {
        if extent.0 < self.extents {
            self.words[extent.0 as usize / 64] |= 1 << (extent.0 % 64);
        }
    }

    pub fn insert_all(&mut self) {
        for extent in 0..self.extents {
            self.insert(ExtentIndex(extent));
        }
    }

    pub fn contains(&self, extent: ExtentIndex) -> bool {
        extent.0 < self.extents && self.words[extent.0 as usize / 64] >> (extent.0 % 64) & 1 == 1
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Makes room for more extents.
    pub fn grow(&mut self, extents: u32) {
        assert!(extents >= self.extents, "mirrors do not shrink");
        self.words.resize(extents.div_ceil(64) as usize, 0);
        self.extents = extents;
    }

    /// The members from `first` on, ascending.
    pub fn iter_from(&self, first: ExtentIndex) -> impl Iterator<Item = ExtentIndex> + '_ {
        let start = first.0 as usize / 64;
        self.words
            .iter()
            .enumerate()
            .skip(start)
            .filter(|(_, word)| **word != 0)
            .flat_map(|(index, word)| {
                (0..64u32)
                    .filter(move |bit| word >> bit & 1 == 1)
                    .map(move |bit| ExtentIndex(index as u32 * 64 + bit))
            })
            .skip_while(move |extent| extent.0 < first.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_in_order_and_strangers_stay_out() {
        let mut set = ExtentSet::new(130);
        for extent in [129, 0, 64, 63, 130, u32::MAX] {
            set.insert(ExtentIndex(extent));
        }
        let from = |first| -> Vec<u32> {
            set.iter_from(ExtentIndex(first))
                .map(|extent| extent.0)
                .collect()
        };
        assert_eq!(from(0), [0, 63, 64, 129]);
        assert_eq!(from(64), [64, 129]);
        assert!(from(130).is_empty());
        assert!(!set.contains(ExtentIndex(130)));
        set.grow(200);
        assert!(!set.contains(ExtentIndex(130)), "growing adds no member");
        set.insert_all();
        assert_eq!(set.iter_from(ExtentIndex(0)).count(), 200);
        set.clear();
        assert_eq!(set.iter_from(ExtentIndex(0)).next(), None);
    }
}
