//! The operations of the peer that are not complete here, and which of them overlap.

use rustc_hash::FxHashMap;

use crate::units::{ByteRange, LinkId, Sequence};
use crate::volume::by_extent::ByExtent;
use crate::volume::range_lock::Owner;
use crate::volume::requests::Change;

#[derive(Debug)]
pub(super) enum Work {
    Change(Change),
    /// Covers everything before it.
    Flush,
}

#[derive(Debug)]
pub(super) struct Op {
    pub link: LinkId,
    pub sequence: Sequence,
    pub depends_on: Sequence,
    pub range: ByteRange,
    pub work: Work,
    pub running: bool,
    /// Went through this side's log, because the sender has no disk.
    pub logged: bool,
}

/// One of them, in the list of its extent.
#[derive(Debug)]
struct Place {
    owner: Owner,
    sequence: Sequence,
    range: ByteRange,
}

/// In semisync and async there are as many as the peer's queue holds, so what is done for each of them looks only at
/// those of its extent.
#[derive(Debug, Default)]
pub(super) struct Ops {
    table: FxHashMap<Owner, Op>,
    /// Of those with a range.
    places: ByExtent<Place>,
}

impl Ops {
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub fn get(&self, owner: Owner) -> Option<&Op> {
        self.table.get(&owner)
    }

    pub fn get_mut(&mut self, owner: Owner) -> Option<&mut Op> {
        self.table.get_mut(&owner)
    }

    pub fn insert(&mut self, owner: Owner, op: Op) {
        if op.range.length > 0 {
            let place = Place {
                owner,
                sequence: op.sequence,
                range: op.range,
            };
            self.places.list(op.range.extent()).push_back(place);
        }
        self.table.insert(owner, op);
    }

    pub fn remove(&mut self, owner: Owner) -> Option<Op> {
        let op = self.table.remove(&owner)?;
        self.leave(owner, op.range);
        Some(op)
    }

    /// Drops those of which `stays` is false.
    pub fn retain(&mut self, mut stays: impl FnMut(&Op) -> bool) {
        let gone = self.table.extract_if(|_, op| !stays(op));
        let gone: Vec<(Owner, Op)> = gone.collect();
        for (owner, op) in gone {
            self.leave(owner, op.range);
        }
    }

    /// One that was sent before `op` changes what `op` changes, and is not complete.
    pub fn has_earlier_overlap(&self, op: &Op) -> bool {
        let places = self.places.get(op.range.extent());
        places.is_some_and(|places| {
            places
                .iter()
                .any(|other| other.sequence < op.sequence && other.range.overlaps(op.range))
        })
    }

    fn leave(&mut self, owner: Owner, range: ByteRange) {
        if range.length == 0 {
            return;
        }
        let extent = range.extent();
        let found = self.places.get_mut(extent).and_then(|places| {
            let at = places.iter().position(|place| place.owner == owner)?;
            places.swap_remove_back(at)
        });
        found.expect("an operation with a range has its place");
        self.places.tidy(extent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(sequence: u64, offset: u64, length: u32) -> Op {
        Op {
            link: LinkId(1),
            sequence: Sequence(sequence),
            depends_on: Sequence(0),
            range: ByteRange::new(offset, length),
            work: Work::Flush,
            running: false,
            logged: false,
        }
    }

    #[test]
    fn only_what_came_before_and_is_not_complete_is_in_the_way() {
        let mut ops = Ops::default();
        ops.insert(Owner(1), op(1, 4096, 8192));
        ops.insert(Owner(2), op(2, 8192, 4096));
        ops.insert(Owner(3), op(3, 12288, 512));
        ops.insert(Owner(4), op(4, 0, 0));
        let blocked = |ops: &Ops, owner| ops.has_earlier_overlap(ops.get(Owner(owner)).unwrap());
        assert!(!blocked(&ops, 1), "the other one came later");
        assert!(blocked(&ops, 2));
        assert!(!blocked(&ops, 3), "beside, not over");
        assert!(!blocked(&ops, 4), "a flush has no range");
        assert_eq!(ops.remove(Owner(1)).unwrap().sequence, Sequence(1));
        assert!(!blocked(&ops, 2));
        assert!(ops.remove(Owner(1)).is_none());
        ops.retain(|op| op.sequence == Sequence(3));
        assert!(ops.get(Owner(2)).is_none() && ops.get(Owner(4)).is_none());
        ops.insert(Owner(5), op(5, 8192, 8192));
        assert!(blocked(&ops, 5), "by what was kept");
        ops.retain(|_| false);
        assert!(ops.is_empty() && ops.places.lists().next().is_none());
        ops.insert(Owner(6), op(6, 8192, 8192));
        assert!(!blocked(&ops, 6));
    }
}
