//! Lists of what lies in one extent, for whoever looks for overlaps: ranges never straddle extents.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::units::ExtentIndex;

/// Empty lists that are kept for the next extents, and what each may have room for. So a list is seldom new memory, and
/// one that was long once is given back.
const SPARE_LISTS_MAX: usize = 256;
const SPARE_ENTRIES_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct ByExtent<T> {
    /// Those that have entries.
    lists: FxHashMap<ExtentIndex, VecDeque<T>>,
    spare: Vec<VecDeque<T>>,
}

impl<T> Default for ByExtent<T> {
    fn default() -> Self {
        Self {
            lists: FxHashMap::default(),
            spare: Vec::new(),
        }
    }
}

impl<T> ByExtent<T> {
    pub fn get(&self, extent: ExtentIndex) -> Option<&VecDeque<T>> {
        self.lists.get(&extent)
    }

    pub fn get_mut(&mut self, extent: ExtentIndex) -> Option<&mut VecDeque<T>> {
        self.lists.get_mut(&extent)
    }

    /// To add to it.
    pub fn list(&mut self, extent: ExtentIndex) -> &mut VecDeque<T> {
        let spare = &mut self.spare;
        let list = self.lists.entry(extent);
        list.or_insert_with(|| spare.pop().unwrap_or_default())
    }

    /// To be called when something was taken from the list of `extent`.
    pub fn tidy(&mut self, extent: ExtentIndex) {
        if self.lists.get(&extent).is_some_and(VecDeque::is_empty)
            && let Some(list) = self.lists.remove(&extent)
            && list.capacity() <= SPARE_ENTRIES_MAX
            && self.spare.len() < SPARE_LISTS_MAX
        {
            self.spare.push(list);
        }
    }

    pub fn lists(&self) -> impl Iterator<Item = &VecDeque<T>> {
        self.lists.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_short_lists_are_kept() {
        let mut lists = ByExtent::default();
        let fill = |lists: &mut ByExtent<u64>, extent, entries: usize| {
            lists.list(extent).extend(0..entries as u64);
        };
        let empty = |lists: &mut ByExtent<u64>, extent| {
            lists.get_mut(extent).unwrap().clear();
            lists.tidy(extent);
        };
        fill(&mut lists, ExtentIndex(0), SPARE_ENTRIES_MAX + 1);
        lists.tidy(ExtentIndex(0));
        assert_eq!(lists.lists().count(), 1, "it has entries");
        empty(&mut lists, ExtentIndex(0));
        assert_eq!((lists.lists().count(), lists.spare.len()), (0, 0));
        let extents = || (0..2 * SPARE_LISTS_MAX as u32).map(ExtentIndex);
        for extent in extents() {
            fill(&mut lists, extent, 1);
        }
        for extent in extents() {
            empty(&mut lists, extent);
        }
        assert_eq!(lists.spare.len(), SPARE_LISTS_MAX);
        fill(&mut lists, ExtentIndex(0), 1);
        assert_eq!(lists.spare.len(), SPARE_LISTS_MAX - 1);
        assert_eq!(lists.get(ExtentIndex(0)).unwrap().len(), 1);
    }
}
