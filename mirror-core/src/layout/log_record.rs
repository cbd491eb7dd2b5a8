//! One transaction of the activity log, and what the ring of them tells after a stop.
//!
//! A transaction takes one block. It holds up to 64 changed slots and, as context, the state after it
//! of a window of the other slots. Each window begins where the one before it ended and goes on at
//! slot 0 after the last, so the newest `ceil(slots / 800)` transactions hold every slot and older
//! ones may be overwritten.
//!
//! Rules for the writer, on which [`recover`] depends:
//! - Numbers start at 1 in a ring of zeroes and never skip, also across log epochs; transaction `n`
//!   is written at block `n % 64`.
//! - Transaction `n + 1` is written only after `n` is durable.
//! - The windows of a log epoch follow each other without a gap.
//! - A slot's extent is written to only after the transaction that put it there is durable.
//! - After [`Trust::Doubtful`] the ring is voided ([`void_ring`]) before the next transaction.

use crate::layout::field::{put, u16_at, u32_at, u64_at};
use crate::layout::geometry::{LOG_BLOCKS, LOG_SLOTS_MAX, METADATA_BLOCK_BYTES};
use crate::units::ExtentIndex;

pub const LOG_MAGIC: [u8; 8] = *b"MIRRORAL";
/// Slot changes in one transaction.
pub const LOG_UPDATES_MAX: usize = 64;
/// Slots of context in one transaction.
pub const LOG_CONTEXT: usize = 800;

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;
const LOG_EPOCH: usize = 8;
const NUMBER: usize = 16;
const UPDATE_COUNT: usize = 24;
const CONTEXT_FIRST: usize = 26;
const CONTEXT_COUNT: usize = 28;
const UPDATES: usize = 64;
const UPDATE_BYTES: usize = 8;
const CONTEXT: usize = UPDATES + LOG_UPDATES_MAX * UPDATE_BYTES;
const CHECKSUM: usize = BLOCK - 4;
const NO_EXTENT: u32 = u32::MAX;

const _: () = {
    assert!(CONTEXT + LOG_CONTEXT * 4 <= CHECKSUM);
    assert!(
        (LOG_SLOTS_MAX as usize).div_ceil(LOG_CONTEXT) + 2 <= LOG_BLOCKS as usize,
        "the contexts cover every slot though the newest transaction is torn"
    );
    assert!(LOG_SLOTS_MAX <= u16::MAX as u32);
};

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Counts only while the superblock's `log_epoch` is the same.
    pub log_epoch: u64,
    /// Grows by one with each transaction.
    pub number: u64,
    /// Changed slots, at most [`LOG_UPDATES_MAX`]; `None` empties a slot.
    pub updates: Vec<(u16, Option<ExtentIndex>)>,
    /// First slot of `context`.
    pub context_first: u16,
    /// State after this transaction of the slots from `context_first`, going on at slot 0 after the
    /// last one. At most [`LOG_CONTEXT`], and no slot twice. It may already name an extent that only
    /// the next transaction activates: that adds doubt, and takes none away, since the extent whose
    /// slot it takes was clean.
    pub context: Vec<Option<ExtentIndex>>,
}

/// A ring that holds no transaction.
pub fn void_ring() -> Vec<u8> {
    vec![0; LOG_BLOCKS as usize * BLOCK]
}

/// Why a block of the ring holds no transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    #[error("nothing was written there")]
    Void,
    #[error("its checksum does not match")]
    Checksum,
    #[error("its {field} makes no sense")]
    Invalid { field: &'static str },
}

impl LogRecord {
    pub fn encode(&self) -> Vec<u8> {
        assert!(
            self.updates.len() <= LOG_UPDATES_MAX && self.context.len() <= LOG_CONTEXT,
            "a transaction fits one block"
        );
        let mut block = vec![0; BLOCK];
        put(&mut block, 0, &LOG_MAGIC);
        put(&mut block, LOG_EPOCH, &self.log_epoch.to_le_bytes());
        put(&mut block, NUMBER, &self.number.to_le_bytes());
        let count = self.updates.len() as u16;
        put(&mut block, UPDATE_COUNT, &count.to_le_bytes());
        put(&mut block, CONTEXT_FIRST, &self.context_first.to_le_bytes());
        let count = self.context.len() as u16;
        put(&mut block, CONTEXT_COUNT, &count.to_le_bytes());
        for (index, (slot, extent)) in self.updates.iter().enumerate() {
            let at = UPDATES + index * UPDATE_BYTES;
            put(&mut block, at, &slot.to_le_bytes());
            put(&mut block, at + 4, &extent_bytes(*extent));
        }
        for (index, extent) in self.context.iter().enumerate() {
            put(&mut block, CONTEXT + index * 4, &extent_bytes(*extent));
        }
        let checksum = crc32fast::hash(&block[..CHECKSUM]);
        put(&mut block, CHECKSUM, &checksum.to_le_bytes());
        block
    }

    pub fn decode(block: &[u8]) -> Result<Self, LogFault> {
        if block.iter().all(|byte| *byte == 0) {
            return Err(LogFault::Void);
        }
        if block.len() != BLOCK
            || block[..LOG_MAGIC.len()] != LOG_MAGIC
            || u32_at(block, CHECKSUM) != crc32fast::hash(&block[..CHECKSUM])
        {
            return Err(LogFault::Checksum);
        }
        let invalid = |field| Err(LogFault::Invalid { field });
        let updates = usize::from(u16_at(block, UPDATE_COUNT));
        if updates > LOG_UPDATES_MAX {
            return invalid("number of updates");
        }
        let context_first = u16_at(block, CONTEXT_FIRST);
        let context = usize::from(u16_at(block, CONTEXT_COUNT));
        if context > LOG_CONTEXT || u32::from(context_first) >= LOG_SLOTS_MAX {
            return invalid("context");
        }
        if u64_at(block, NUMBER) == 0 {
            return invalid("number");
        }
        let updates: Vec<_> = (0..updates)
            .map(|index| UPDATES + index * UPDATE_BYTES)
            .map(|at| (u16_at(block, at), extent_at(block, at + 4)))
            .collect();
        if updates
            .iter()
            .any(|(slot, _)| u32::from(*slot) >= LOG_SLOTS_MAX)
        {
            return invalid("slot");
        }
        Ok(Self {
            log_epoch: u64_at(block, LOG_EPOCH),
            number: u64_at(block, NUMBER),
            updates,
            context_first,
            context: (0..context)
                .map(|index| extent_at(block, CONTEXT + index * 4))
                .collect(),
        })
    }

    /// True if every slot it speaks of exists.
    fn fits(&self, slots: u32) -> bool {
        u32::from(self.context_first) < slots
            && self.context.len() <= slots as usize
            && self
                .updates
                .iter()
                .all(|(slot, _)| u32::from(*slot) < slots)
    }

    fn apply(&self, slots: &mut [Option<ExtentIndex>]) {
        let (before, from_first) = slots.split_at_mut(usize::from(self.context_first));
        let window = from_first.iter_mut().chain(before);
        for (slot, extent) in window.zip(&self.context) {
            *slot = *extent;
        }
        for (slot, extent) in &self.updates {
            slots[usize::from(*slot)] = *extent;
        }
    }
}

fn extent_bytes(extent: Option<ExtentIndex>) -> [u8; 4] {
    extent.map_or(NO_EXTENT, |extent| extent.0).to_le_bytes()
}

fn extent_at(block: &[u8], offset: usize) -> Option<ExtentIndex> {
    Some(u32_at(block, offset))
        .filter(|extent| *extent != NO_EXTENT)
        .map(ExtentIndex)
}

/// How far the recovered log can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Every transaction is whole.
    Intact,
    /// The newest transaction was being written at the stop. Nobody wrote into its extents, because
    /// it was not durable, so nothing is missing.
    TornTail,
    /// A transaction that was durable once is lost: any extent may have been hot.
    Doubtful,
}

/// What the ring says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecovery {
    /// Every slot after the newest whole transaction. A guess if `trust` is doubtful.
    pub slots: Vec<Option<ExtentIndex>>,
    /// Number of the next transaction. If `trust` is doubtful: after the ring was voided.
    pub next_number: u64,
    pub trust: Trust,
}

/// Rebuilds the log from the whole ring. `slots` and `log_epoch` come from the superblock.
///
/// Let `m` be the highest number found. Numbers never skip, so each block has one number it must
/// hold: the one in `m - 63 ..= m` that falls on it, or nothing where that is below 1. The only block
/// that a stop can have torn is the one of `m + 1`, since `m + 2` is not begun before that is durable.
/// That block, and no other, may therefore be bad. Its loss is harmless: it held `m - 63`, which the
/// contexts of younger transactions replace, and `m + 1`, which nobody acted on yet.
///
/// Numbers go on across log epochs so that a torn block is the first to be overwritten, and can never
/// be mistaken later for the loss of a transaction in the middle.
pub fn recover(ring: &[u8], log_epoch: u64, slots: u32) -> LogRecovery {
    let mut log = LogRecovery {
        slots: vec![None; slots as usize],
        next_number: 1,
        trust: Trust::Doubtful,
    };
    if ring.len() != LOG_BLOCKS as usize * BLOCK {
        return log;
    }
    let blocks: Vec<_> = ring.chunks_exact(BLOCK).map(LogRecord::decode).collect();
    let newest = blocks
        .iter()
        .flatten()
        .map(|record| record.number)
        .max()
        .unwrap_or(0);
    let mut records: Vec<&LogRecord> = blocks
        .iter()
        .flatten()
        .filter(|record| record.log_epoch == log_epoch && record.fits(slots))
        .collect();
    records.sort_unstable_by_key(|record| record.number);
    for record in &records {
        record.apply(&mut log.slots);
    }
    log.trust = judge(&blocks, newest, log_epoch, slots);
    if log.trust != Trust::Doubtful {
        log.next_number = newest + 1;
    }
    log
}

fn judge(blocks: &[Result<LogRecord, LogFault>], newest: u64, log_epoch: u64, slots: u32) -> Trust {
    let Some(tail) = newest.checked_add(1).map(|number| number % LOG_BLOCKS) else {
        return Trust::Doubtful;
    };
    let mut trust = Trust::Intact;
    for (position, block) in (0..LOG_BLOCKS).zip(blocks) {
        // The number this block must hold, if the ring has gone that far.
        let age = (newest % LOG_BLOCKS + LOG_BLOCKS - position) % LOG_BLOCKS;
        let expected = newest.checked_sub(age).filter(|number| *number > 0);
        let as_expected = match (block, expected) {
            (Ok(record), Some(number)) => {
                record.number == number
                    && record.log_epoch <= log_epoch
                    && (record.log_epoch < log_epoch || record.fits(slots))
            }
            (Err(LogFault::Void), None) => true,
            _ => false,
        };
        if as_expected {
            continue;
        }
        let torn = position == tail && block.is_err();
        if !torn {
            return Trust::Doubtful;
        }
        trust = Trust::TornTail;
    }
    if epochs_fall(blocks) {
        return Trust::Doubtful;
    }
    trust
}

/// True if a younger transaction belongs to an older log epoch.
fn epochs_fall(blocks: &[Result<LogRecord, LogFault>]) -> bool {
    let mut epochs: Vec<_> = blocks
        .iter()
        .flatten()
        .map(|record| (record.number, record.log_epoch))
        .collect();
    epochs.sort_unstable();
    epochs.windows(2).any(|pair| pair[0].1 > pair[1].1)
}

#[cfg(test)]
mod tests;
