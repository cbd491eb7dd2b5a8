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
//!
//! In semisync and async a write that the local disk has, and that is on its way to the peer, lets later
//! *writes* pass: both disks get them after it, this one because it is complete here, the peer's because
//! overlapping operations are done there in the order in which they were sent. Whatever reads, or sends past
//! that line, waits for the peer's acknowledgement still. So a lock is held for as long as before, and the
//! argument above stands.

use std::collections::VecDeque;

use super::by_extent::ByExtent;
use crate::units::ByteRange;

/// Who holds a lock: the number of the work item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// What a lock is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Changes both disks, in the line of the clients' writes.
    Write,
    /// Everything else.
    Exclusive,
}

#[derive(Debug)]
struct Claim {
    owner: Owner,
    range: ByteRange,
    what: Use,
    held: bool,
    /// Later writes need not wait for it.
    passable: bool,
}

impl Claim {
    fn blocks(&self, later: &Self) -> bool {
        self.range.overlaps(later.range) && !(self.passable && later.what == Use::Write)
    }
}

#[derive(Debug, Default)]
pub struct RangeLocks {
    /// In order of arrival.
    claims: ByExtent<Claim>,
}

impl RangeLocks {
    /// True if granted at once; otherwise `release` or `let_pass` of the claims before it will name the
    /// owner.
    pub fn acquire(&mut self, owner: Owner, range: ByteRange, what: Use) -> bool {
        assert!(range.within_one_extent(), "{range:?} straddles extents");
        let claims = self.claims.list(range.extent());
        let mut claim = Claim {
            owner,
            range,
            what,
            held: false,
            passable: false,
        };
        claim.held = !claims.iter().any(|earlier| earlier.blocks(&claim));
        let held = claim.held;
        claims.push_back(claim);
        held
    }

    /// Gives up a claim, held or waiting, and adds to `granted` those that now hold theirs.
    pub fn release(&mut self, owner: Owner, range: ByteRange, granted: &mut Vec<Owner>) {
        let claims = self
            .claims
            .get_mut(range.extent())
            .expect("released without a claim");
        let position = position(claims, owner);
        claims.remove(position);
        grant(claims, position, range, granted);
        self.claims.tidy(range.extent());
    }

    /// Lets later writes pass a claim that is held, and adds to `granted` those that now hold theirs.
    pub fn let_pass(&mut self, owner: Owner, range: ByteRange, granted: &mut Vec<Owner>) {
        let claims = self
            .claims
            .get_mut(range.extent())
            .expect("passed without a claim");
        let position = position(claims, owner);
        assert!(claims[position].held, "a claim that waits lets nobody pass");
        claims[position].passable = true;
        grant(claims, position + 1, range, granted);
    }

    pub fn check_invariants(&self) {
        for claims in self.claims.lists() {
            for (index, claim) in claims.iter().enumerate() {
                let blocked = claims
                    .iter()
                    .take(index)
                    .any(|earlier| earlier.blocks(claim));
                assert_eq!(
                    claim.held, !blocked,
                    "lock order broken at {:?}",
                    claim.range
                );
            }
        }
    }
}

fn position(claims: &VecDeque<Claim>, owner: Owner) -> usize {
    claims
        .iter()
        .position(|claim| claim.owner == owner)
        .expect("a lock without a claim")
}

/// Grants what waits from `first` on and waited for `range`.
fn grant(claims: &mut VecDeque<Claim>, first: usize, range: ByteRange, granted: &mut Vec<Owner>) {
    for index in first..claims.len() {
        let claim = &claims[index];
        let free = !claim.held
            && claim.range.overlaps(range)
            && !claims
                .iter()
                .take(index)
                .any(|earlier| earlier.blocks(claim));
        if free {
            claims[index].held = true;
            granted.push(claims[index].owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_claims_are_granted_in_order_of_arrival() {
        let mut locks = RangeLocks::default();
        assert!(locks.acquire(Owner(1), ByteRange::new(0, 4096), Use::Write));
        assert!(!locks.acquire(Owner(2), ByteRange::new(2048, 4096), Use::Write));
        assert!(
            !locks.acquire(Owner(3), ByteRange::new(4096, 4096), Use::Write),
            "waits behind the waiter"
        );
        assert!(locks.acquire(Owner(4), ByteRange::new(16384, 512), Use::Write));
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
        locks.acquire(Owner(1), ByteRange::new(0, 512), Use::Write);
        locks.acquire(Owner(2), ByteRange::new(0, 8192), Use::Write);
        locks.acquire(Owner(3), ByteRange::new(4096, 512), Use::Write);
        let mut granted = Vec::new();
        locks.release(Owner(2), ByteRange::new(0, 8192), &mut granted);
        assert_eq!(granted, [Owner(3)]);
    }

    #[test]
    fn writes_pass_one_that_only_the_peer_has_yet_to_do_and_nothing_else_does() {
        let range = ByteRange::new(0, 4096);
        let mut locks = RangeLocks::default();
        locks.acquire(Owner(1), range, Use::Write);
        assert!(!locks.acquire(Owner(2), range, Use::Write));
        assert!(!locks.acquire(Owner(3), range, Use::Exclusive));
        assert!(!locks.acquire(Owner(4), range, Use::Write));
        let mut granted = Vec::new();
        locks.let_pass(Owner(1), range, &mut granted);
        assert_eq!(granted, [Owner(2)], "a write behind what waits, waits too");
        locks.check_invariants();
        granted.clear();
        locks.let_pass(Owner(2), range, &mut granted);
        locks.release(Owner(1), range, &mut granted);
        assert!(granted.is_empty());
        locks.release(Owner(2), range, &mut granted);
        assert_eq!(granted, [Owner(3)]);
        granted.clear();
        locks.release(Owner(3), range, &mut granted);
        assert_eq!(granted, [Owner(4)]);
        locks.check_invariants();
    }
}
