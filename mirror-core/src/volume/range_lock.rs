//! Range locks: overlapping work happens one after the other, in the order it came (D6).
//!
//! Every write, trim, zeroing, resync step, verify step and repair holds the lock of its range from
//! before it reads or writes until both disks have acknowledged what it changes. Two rules keep it
//! free of dead-lock and starvation:
//!
//! * each holder takes exactly one lock, in one step, and asks for no other while it holds it;
//!   what it waits for (a disk, the peer, a log transaction) never waits for a range lock, and ends
//!   by completion or by the loss of the link;
//! * a newcomer waits behind every earlier overlapping waiter, not only behind holders.

use std::collections::{HashMap, VecDeque};

use crate::units::{ByteRange, ExtentIndex};

/// Who holds a lock: the number of the work item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

#[derive(Debug)]
struct Claim {
    owner: Owner,
    range: ByteRange,
    held: bool,
}

#[derive(Debug, Default)]
pub struct RangeLocks {
    /// Claims of each extent in order of arrival. Ranges never straddle extents.
    extents: HashMap<ExtentIndex, VecDeque<Claim>>,
}

impl RangeLocks {
    /// True if granted at once; otherwise `release` of the claims before it will name the owner.
    pub fn acquire(&mut self, owner: Owner, range: ByteRange) -> bool {
        assert!(range.within_one_extent(), "{range:?} straddles extents");
        let claims = self.extents.entry(range.extent()).or_default();
        let held = !claims.iter().any(|claim| claim.range.overlaps(range));
        claims.push_back(Claim { owner, range, held });
        held
    }

    /// Gives up a claim, held or waiting, and adds to `granted` those that now hold theirs.
    pub fn release(&mut self, owner: Owner, range: ByteRange, granted: &mut Vec<Owner>) {
        let claims = self
            .extents
            .get_mut(&range.extent())
            .expect("released without a claim");
        let position = claims
            .iter()
            .position(|claim| claim.owner == owner)
            .expect("released without a claim");
        claims.remove(position);
        for index in position..claims.len() {
            let claim = &claims[index];
            let free = !claim.held
                && claim.range.overlaps(range)
                && !claims
                    .iter()
                    .take(index)
                    .any(|earlier| earlier.range.overlaps(claim.range));
            if free {
                claims[index].held = true;
                granted.push(claims[index].owner);
            }
        }
        if claims.is_empty() {
            self.extents.remove(&range.extent());
        }
    }

    pub fn check_invariants(&self) {
        for claims in self.extents.values() {
            for (index, claim) in claims.iter().enumerate() {
                let blocked = claims
                    .iter()
                    .take(index)
                    .any(|earlier| earlier.range.overlaps(claim.range));
                assert_eq!(
                    claim.held, !blocked,
                    "lock order broken at {:?}",
                    claim.range
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_claims_are_granted_in_order_of_arrival() {
        let mut locks = RangeLocks::default();
        assert!(locks.acquire(Owner(1), ByteRange::new(0, 4096)));
        assert!(!locks.acquire(Owner(2), ByteRange::new(2048, 4096)));
        assert!(
            !locks.acquire(Owner(3), ByteRange::new(4096, 4096)),
            "waits behind the waiter"
        );
        assert!(locks.acquire(Owner(4), ByteRange::new(16384, 512)));
        locks.check_invariants();
        let mut granted = Vec::new();
        locks.release(Owner(1), ByteRange::new(0, 4096), &mut granted);
        assert_eq!(granted, [Owner(2)]);
        granted.clear();
        locks.release(Owner(2), ByteRange::new(2048, 4096), &mut granted);
        assert_eq!(granted, [Owner(3)]);
        locks.check_invariants();
    }

    #[test]
    fn a_waiter_that_gives_up_lets_those_behind_it_pass() {
        let mut locks = RangeLocks::default();
        locks.acquire(Owner(1), ByteRange::new(0, 512));
        locks.acquire(Owner(2), ByteRange::new(0, 8192));
        locks.acquire(Owner(3), ByteRange::new(4096, 512));
        let mut granted = Vec::new();
        locks.release(Owner(2), ByteRange::new(0, 8192), &mut granted);
        assert_eq!(granted, [Owner(3)]);
    }
}
