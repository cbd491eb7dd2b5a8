//! The activity log: the extents that may be written without touching metadata.
//!
//! An extent is *hot* once a durable transaction says so; after a crash the blocks of all hot
//! extents are in doubt, and of no others. Activations are group-committed: one 4 KiB transaction
//! carries up to `LOG_UPDATES_MAX` of them. An extent leaves by being overwritten in its slot, and
//! only while it is clean: nothing in flight, nothing written here or at the peer that a flush has
//! not covered, and its dirty bits on disk (D4).
//!
//! Each slot also knows which of its blocks the peer has acknowledged but not flushed: what a peer
//! that comes back as another incarnation has lost.

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::layout::log_record::{LOG_CONTEXT, LOG_UPDATES_MAX, LogRecord};
use crate::units::{BLOCK_BYTES_MIN, ByteRange, EXTENT_BYTES, ExtentIndex};

const MASK_WORDS: usize = (EXTENT_BYTES / BLOCK_BYTES_MIN / 64) as usize;
const NO_SLOT: u16 = u16::MAX;

/// One bit for each 4 KiB of an extent.
type Mask = [u64; MASK_WORDS];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heat {
    /// Durable in the log; the caller may write, and has pinned the extent until `unpin`.
    Hot,
    /// In the next transaction, or in one that is being written. Ask again after `commit_done`.
    Warming,
    /// Every slot is taken by an extent that is not clean. Clean some, then ask again.
    Full,
}

#[derive(Debug, Clone)]
struct Slot {
    extent: Option<ExtentIndex>,
    /// The transaction that names `extent` is durable.
    durable: bool,
    /// Writes in flight.
    pins: u32,
    local_unflushed: bool,
    local_flushing: bool,
    peer_unflushed: Mask,
    peer_flushing: Mask,
    peer_in_doubt: bool,
    /// In the list of slots that the next flush covers.
    listed: bool,
    newer: u16,
    older: u16,
}

#[derive(Debug)]
pub struct ActivityLog {
    slots: Vec<Slot>,
    index: FxHashMap<ExtentIndex, u16>,
    newest: u16,
    oldest: u16,
    free: Vec<u16>,
    pending: Vec<u16>,
    committing: Vec<u16>,
    next_number: u64,
    /// Slot that the next transaction's context starts at.
    next_context: u16,
    log_epoch: u64,
    /// Slots with something that no flush covers yet, and those that the running flush covers.
    unflushed: Vec<u16>,
    flushing: Vec<u16>,
}

impl ActivityLog {
    /// An empty log whose next transaction has `next_number` and `log_epoch`.
    pub fn new(slots: u16, next_number: u64, log_epoch: u64) -> Self {
        assert!(slots > 0 && slots < NO_SLOT, "log slots out of range");
        let slot = Slot {
            extent: None,
            durable: false,
            pins: 0,
            local_unflushed: false,
            local_flushing: false,
            peer_unflushed: [0; MASK_WORDS],
            peer_flushing: [0; MASK_WORDS],
            peer_in_doubt: false,
            listed: false,
            newer: NO_SLOT,
            older: NO_SLOT,
        };
        Self {
            slots: vec![slot; usize::from(slots)],
            index: FxHashMap::with_capacity_and_hasher(usize::from(slots), FxBuildHasher),
            newest: NO_SLOT,
            oldest: NO_SLOT,
            free: (0..slots).rev().collect(),
            pending: Vec::with_capacity(LOG_UPDATES_MAX),
            committing: Vec::with_capacity(LOG_UPDATES_MAX),
            next_number,
            next_context: 0,
            log_epoch,
            unflushed: Vec::new(),
            flushing: Vec::new(),
        }
    }

    /// Asks for an extent. `saved` tells whether an extent's dirty bits are all on disk.
    pub fn acquire(&mut self, extent: ExtentIndex, saved: impl Fn(ExtentIndex) -> bool) -> Heat {
        if let Some(&slot) = self.index.get(&extent) {
            self.touch(slot);
            if !self.slots[usize::from(slot)].durable {
                return Heat::Warming;
            }
            self.slots[usize::from(slot)].pins += 1;
            return Heat::Hot;
        }
        let Some(slot) = self.free.pop().or_else(|| self.evict(saved)) else {
            return Heat::Full;
        };
        let entry = &mut self.slots[usize::from(slot)];
        entry.extent = Some(extent);
        entry.durable = false;
        self.index.insert(extent, slot);
        self.link_newest(slot);
        self.pending.push(slot);
        Heat::Warming
    }

    pub fn unpin(&mut self, extent: ExtentIndex) {
        let entry = self.slot_of(extent);
        assert!(entry.pins > 0, "extent {extent:?} was not pinned");
        entry.pins -= 1;
    }

    pub fn is_hot(&self, extent: ExtentIndex) -> bool {
        self.index
            .get(&extent)
            .is_some_and(|slot| self.slots[usize::from(*slot)].durable)
    }

    /// Extents that wait for a transaction which has not begun.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn is_committing(&self) -> bool {
        !self.committing.is_empty()
    }

    /// The next transaction, if there is something to commit and none is being written.
    pub fn begin_commit(&mut self) -> Option<LogRecord> {
        if self.is_committing() || self.pending.is_empty() {
            return None;
        }
        let count = self.pending.len().min(LOG_UPDATES_MAX);
        self.committing.extend(self.pending.drain(..count));
        let updates = self
            .committing
            .iter()
            .map(|slot| (*slot, self.slots[usize::from(*slot)].extent))
            .collect();
        // The context may name extents that only a later transaction activates. That is harmless:
        // it adds doubt about them and takes none from the slot's old extent, which was clean.
        let total = self.slots.len();
        let context_first = self.next_context;
        let context: Vec<_> = (0..total.min(LOG_CONTEXT))
            .map(|step| self.slots[(usize::from(context_first) + step) % total].extent)
            .collect();
        self.next_context = ((usize::from(context_first) + context.len()) % total) as u16;
        let record = LogRecord {
            log_epoch: self.log_epoch,
            number: self.next_number,
            updates,
            context_first,
            context,
        };
        self.next_number += 1;
        Some(record)
    }

    /// The transaction is durable: its extents are hot.
    pub fn commit_done(&mut self) {
        for slot in self.committing.drain(..) {
            self.slots[usize::from(slot)].durable = true;
        }
    }

    /// A write into a hot extent was applied here.
    pub fn note_local_write(&mut self, extent: ExtentIndex) {
        self.slot_of(extent).local_unflushed = true;
        self.list(self.index[&extent]);
    }

    /// The peer acknowledged a write into a hot extent.
    pub fn note_peer_write(&mut self, range: ByteRange) {
        let extent = range.extent();
        let first = (range.offset - extent.offset()) / BLOCK_BYTES_MIN;
        let last = (range.end() - 1 - extent.offset()) / BLOCK_BYTES_MIN;
        let entry = self.slot_of(extent);
        for block in first..=last {
            entry.peer_unflushed[(block / 64) as usize] |= 1 << (block % 64);
        }
        entry.peer_in_doubt = true;
        self.list(self.index[&extent]);
    }

    /// Extents that a flush would make clean.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    pub fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// A flush starts: what was noted so far is what it covers. One flush runs at a time.
    pub fn begin_flush(&mut self) {
        assert!(self.flushing.is_empty(), "one flush at a time");
        std::mem::swap(&mut self.unflushed, &mut self.flushing);
        for &slot in &self.flushing {
            let entry = &mut self.slots[usize::from(slot)];
            entry.listed = false;
            entry.local_flushing |= std::mem::take(&mut entry.local_unflushed);
            let masks = entry
                .peer_flushing
                .iter_mut()
                .zip(&mut entry.peer_unflushed);
            for (flushing, unflushed) in masks {
                *flushing |= std::mem::take(unflushed);
            }
        }
    }

    /// The flush ended: here with `local_durable`, and at the peer with `peer_durable`. What it did
    /// not cover stays in doubt.
    pub fn end_flush(&mut self, local_durable: bool, peer_durable: bool) {
        for slot in std::mem::take(&mut self.flushing) {
            let entry = &mut self.slots[usize::from(slot)];
            entry.local_unflushed |= std::mem::take(&mut entry.local_flushing) && !local_durable;
            let mut in_doubt = false;
            let masks = entry
                .peer_flushing
                .iter_mut()
                .zip(&mut entry.peer_unflushed);
            for (flushing, unflushed) in masks {
                let covered = std::mem::take(flushing);
                if !peer_durable {
                    *unflushed |= covered;
                }
                in_doubt |= *unflushed != 0;
            }
            entry.peer_in_doubt = in_doubt;
            if in_doubt || entry.local_unflushed {
                self.list(slot);
            }
        }
    }

    /// What the peer acknowledged and no flush has covered: lost if it comes back as another
    /// incarnation. Empties the record; the caller makes it dirty bits.
    pub fn take_peer_doubt(&mut self) -> Vec<ByteRange> {
        let mut ranges = Vec::new();
        for entry in self.slots.iter_mut().filter(|slot| slot.peer_in_doubt) {
            entry.peer_in_doubt = false;
            let extent = entry.extent.expect("a slot in doubt holds an extent");
            for word in 0..MASK_WORDS {
                let mut rest = entry.peer_unflushed[word] | entry.peer_flushing[word];
                entry.peer_unflushed[word] = 0;
                entry.peer_flushing[word] = 0;
                while rest != 0 {
                    let block = word as u64 * 64 + u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    let offset = extent.offset() + block * BLOCK_BYTES_MIN;
                    ranges.push(ByteRange::new(offset, BLOCK_BYTES_MIN as u32));
                }
            }
        }
        ranges
    }

    /// Extents whose last writes here no flush has covered: lost if this disk fails now.
    pub fn locally_unflushed(&self) -> Vec<ExtentIndex> {
        self.slots
            .iter()
            .filter(|slot| slot.local_unflushed || slot.local_flushing || slot.pins > 0)
            .filter_map(|slot| slot.extent)
            .collect()
    }

    /// The least recently used extents that nobody is writing, oldest first: what to clean when
    /// slots run out.
    pub fn oldest_extents(&self, count: usize) -> Vec<ExtentIndex> {
        let mut extents = Vec::with_capacity(count);
        let mut slot = self.oldest;
        while slot != NO_SLOT && extents.len() < count {
            let entry = &self.slots[usize::from(slot)];
            extents.extend(entry.extent.filter(|_| entry.durable && entry.pins == 0));
            slot = entry.newer;
        }
        extents
    }

    /// Every extent that is hot or warming.
    pub fn extents(&self) -> impl Iterator<Item = ExtentIndex> + '_ {
        self.index.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Empties the log: the caller has made `log_epoch` durable and nothing is in doubt any more.
    pub fn reset(&mut self, log_epoch: u64) {
        assert!(
            self.slots.iter().all(|slot| slot.pins == 0),
            "log reset under writes"
        );
        assert!(!self.is_committing(), "log reset under a transaction");
        *self = Self::new(self.slots.len() as u16, self.next_number, log_epoch);
    }

    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub fn check_invariants(&self) {
        assert_eq!(
            self.index.len() + self.free.len(),
            self.slots.len(),
            "slots lost"
        );
        for (extent, slot) in &self.index {
            let held = self.slots[usize::from(*slot)].extent;
            assert_eq!(held, Some(*extent), "index out of step");
        }
    }

    fn slot_of(&mut self, extent: ExtentIndex) -> &mut Slot {
        let slot = *self.index.get(&extent).expect("the extent is in the log");
        &mut self.slots[usize::from(slot)]
    }

    fn list(&mut self, slot: u16) {
        let entry = &mut self.slots[usize::from(slot)];
        if !std::mem::replace(&mut entry.listed, true) {
            self.unflushed.push(slot);
        }
    }

    fn evict(&mut self, saved: impl Fn(ExtentIndex) -> bool) -> Option<u16> {
        let mut slot = self.oldest;
        while slot != NO_SLOT {
            let entry = &self.slots[usize::from(slot)];
            let extent = entry.extent.expect("a linked slot holds an extent");
            let settled = entry.durable
                && entry.pins == 0
                && !entry.local_unflushed
                && !entry.local_flushing
                && !entry.peer_in_doubt;
            if settled && saved(extent) {
                self.unlink(slot);
                self.index.remove(&extent);
                return Some(slot);
            }
            slot = entry.newer;
        }
        None
    }

    fn touch(&mut self, slot: u16) {
        if self.newest != slot {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    fn link_newest(&mut self, slot: u16) {
        let older = self.newest;
        self.slots[usize::from(slot)].older = older;
        self.slots[usize::from(slot)].newer = NO_SLOT;
        if older == NO_SLOT {
            self.oldest = slot;
        } else {
            self.slots[usize::from(older)].newer = slot;
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: u16) {
        let (newer, older) = {
            let entry = &self.slots[usize::from(slot)];
            (entry.newer, entry.older)
        };
        if newer == NO_SLOT {
            self.newest = older;
        } else {
            self.slots[usize::from(newer)].older = older;
        }
        if older == NO_SLOT {
            self.oldest = newer;
        } else {
            self.slots[usize::from(older)].newer = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heat(log: &mut ActivityLog, extent: u32) -> Heat {
        log.acquire(ExtentIndex(extent), |_| true)
    }

    fn commit(log: &mut ActivityLog) -> usize {
        let updates = log.begin_commit().map_or(0, |record| record.updates.len());
        log.commit_done();
        updates
    }

    #[test]
    fn one_transaction_warms_many_extents() {
        let mut log = ActivityLog::new(8, 1, 1);
        for extent in 0..5 {
            assert_eq!(heat(&mut log, extent), Heat::Warming);
        }
        assert_eq!(commit(&mut log), 5);
        assert_eq!(heat(&mut log, 3), Heat::Hot);
        log.check_invariants();
    }

    #[test]
    fn the_least_recently_used_clean_extent_is_evicted() {
        let mut log = ActivityLog::new(2, 1, 1);
        heat(&mut log, 0);
        heat(&mut log, 1);
        commit(&mut log);
        assert_eq!(heat(&mut log, 0), Heat::Hot);
        log.unpin(ExtentIndex(0));
        assert_eq!(heat(&mut log, 2), Heat::Warming);
        assert!(log.is_hot(ExtentIndex(0)) && !log.is_hot(ExtentIndex(1)));
    }

    #[test]
    fn an_extent_stays_until_flushes_cover_both_sides() {
        let mut log = ActivityLog::new(1, 1, 1);
        heat(&mut log, 0);
        commit(&mut log);
        assert_eq!(heat(&mut log, 0), Heat::Hot);
        log.note_local_write(ExtentIndex(0));
        log.note_peer_write(ByteRange::new(8192, 4096));
        log.unpin(ExtentIndex(0));
        assert_eq!(heat(&mut log, 1), Heat::Full);
        log.begin_flush();
        log.end_flush(true, false);
        assert_eq!(heat(&mut log, 1), Heat::Full);
        log.begin_flush();
        assert_eq!(heat(&mut log, 1), Heat::Full);
        log.end_flush(true, true);
        assert_eq!(heat(&mut log, 1), Heat::Warming);
    }

    #[test]
    fn an_extent_with_unsaved_bits_stays() {
        let mut log = ActivityLog::new(1, 1, 1);
        heat(&mut log, 0);
        commit(&mut log);
        assert_eq!(log.acquire(ExtentIndex(1), |_| false), Heat::Full);
    }

    #[test]
    fn peer_doubt_names_the_blocks_that_no_flush_covered() {
        let mut log = ActivityLog::new(2, 1, 1);
        heat(&mut log, 1);
        commit(&mut log);
        heat(&mut log, 1);
        log.note_peer_write(ByteRange::new(EXTENT_BYTES + 4096, 8192));
        log.begin_flush();
        log.end_flush(true, true);
        log.note_peer_write(ByteRange::new(EXTENT_BYTES + 512, 512));
        assert_eq!(
            log.take_peer_doubt(),
            vec![ByteRange::new(EXTENT_BYTES, 4096)]
        );
        assert!(log.take_peer_doubt().is_empty());
    }
}
