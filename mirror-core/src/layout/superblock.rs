//! The superblock: who this side of the mirror is, what data it has, and how far it can be trusted.
//! Bytes and copies are described in `docs/metadata-format.md`.

use crate::generation::GenerationSet;
use crate::units::{Epoch, Generation, Uuid};

/// Everything the superblock holds, as typed values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with each write of the superblock; the newer of two valid copies counts.
    pub update: u64,
    pub features_compatible: u64,
    pub features_read_only: u64,
    pub features_incompatible: u64,
    pub cluster: Uuid,
    pub mirror: Uuid,
    pub node: Uuid,
    /// Reserved: consistency set, zero for none.
    pub consistency_set: Uuid,
    /// Agreed size of the mirror in bytes; zero until first agreed with the peer or forced.
    pub size_bytes: u64,
    /// Bytes of the data partition usable for data when this was written.
    pub usable_bytes: u64,
    /// 512 or 4096.
    pub logical_block_bytes: u32,
    /// log2 of the bytes one dirty bit stands for, 12 to 26.
    pub block_shift: u8,
    /// Slots of the activity log.
    pub log_slots: u32,
    pub flags: Flags,
    pub generations: GenerationSet,
    pub epoch: Epoch,
    /// Log transactions of another value are void: raising it empties the log with one write.
    pub log_epoch: u64,
    /// What is known of the peer. Slot 0 is the one in use; the format has room for 8.
    pub peer: PeerSlot,
    pub last_discard: Discard,
}

/// Facts that must survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Data is not a consistent image: a resync into it has begun and not ended, or never had data.
    pub inconsistent: bool,
    /// The peer is known to have gone on without this side.
    pub outdated: bool,
    /// A data write or flush failed here.
    pub failed: bool,
    /// Is primary, or was and did not demote or stop cleanly.
    pub primary: bool,
    /// Was the last side to be primary in the current generation.
    pub last_primary: bool,
    /// The log holds extents that must become dirty bits at the next start.
    pub log_active: bool,
    /// A superblock copy was lost: the data may be old until the peer confirms.
    pub doubtful: bool,
    /// The operator gave up this side's data; the next handshake makes it the target.
    pub discard_local: bool,
    /// The next handshake copies everything.
    pub full_resync: bool,
    /// Primary that stopped cleanly while primary.
    pub clean_stop: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerSlot {
    pub node: Uuid,
    /// Incarnation that data was last exchanged with.
    pub incarnation: Uuid,
    /// The peer lacks answered writes.
    pub outdated: bool,
    /// The peer's disk failed or it left it behind.
    pub detached: bool,
    /// The peer took leave while secondary with everything flushed.
    pub stopped_cleanly: bool,
    /// An operator or arbiter confirmed that the lost peer is down.
    pub confirmed_down: bool,
}

/// What was given up last (split brain, or an old primary's unacknowledged tail).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Discard {
    pub generation: Generation,
    pub bytes: u64,
    pub ranges: u64,
    /// Seconds since the Unix epoch.
    pub unix_s: u64,
}
