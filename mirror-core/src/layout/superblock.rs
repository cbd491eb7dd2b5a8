//! The superblock: who this side of the mirror is, what data it has, and how far it can be trusted.
//! Bytes and copies are described in `docs/metadata-format.md`.
//!
//! There are two copies. A change is written to one copy, made durable, then to the other, made
//! durable, and only then may anything depend on it. So a crash leaves at most one copy torn and the
//! other whole, and a copy that is older by one change is older by a change that nothing depends on.
//! A bad or older copy is the first to be written anew ([`Found::copy_first`]); otherwise a second
//! crash could tear the only good one.

use std::fmt;

use crate::generation::{GenerationSet, HISTORY_LENGTH};
use crate::layout::field::{put, u32_at, u64_at, uuid_at};
use crate::layout::geometry::{Geometry, METADATA_BLOCK_BYTES};
use crate::units::{Epoch, FullSyncId, Generation, Uuid};

/// Older programs may ignore such a feature, and drop it when they write.
pub const FEATURES_COMPATIBLE: u64 = FEATURE_RUN;
/// Older programs may read metadata with such a feature, and must not write.
pub const FEATURES_READ_ONLY: u64 = 0;
/// Older programs must not touch metadata with such a feature. Bit 0 is the first format itself.
pub const FEATURES_INCOMPATIBLE: u64 = FEATURE_FORMAT_1;
/// What this build tells its peer it understands.
pub const FEATURES_SUPPORTED: u64 = FEATURES_INCOMPATIBLE;
/// The run that wrote it last is named. Whoever does not know of it drops it: then nobody runs on.
pub const FEATURE_RUN: u64 = 1 << 0;
/// The layout of `docs/metadata-format.md`; without it the block is not ours to read.
pub const FEATURE_FORMAT_1: u64 = 1 << 0;

pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"MIRRORSB";
/// Peers that the format has room for. Slot 0 is the one in use.
pub const PEER_SLOTS: usize = 8;

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;

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
    /// log2 of the bytes one dirty bit stands for, 12 to 20.
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
    /// Where internal metadata lay before the device grew; zero if it never moved. What is left of it
    /// there must never be taken for the mirror's metadata.
    pub moved_from: u64,
    pub last_discard: Discard,
    pub run: Run,
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
    /// Incarnation that data was last exchanged with. None after a promotion without the peer.
    pub incarnation: Uuid,
    /// The full copy that the two are in, until it ends. On the source: the bitmap says all that a
    /// target of this copy lacks. On the target: nothing but this copy has written here since it began.
    pub full_sync: FullSyncId,
    /// The peer lacks answered writes.
    pub outdated: bool,
    /// The peer's disk failed or it left it behind.
    pub detached: bool,
    /// The peer took leave while secondary with everything flushed.
    pub stopped_cleanly: bool,
    /// An operator or arbiter confirmed that the lost peer is down.
    pub confirmed_down: bool,
    /// A copy between the two has begun at some time, in either direction.
    pub had_copy: bool,
}

/// The run of the daemon that opened this metadata last. Known by [`FEATURE_RUN`], else nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// What the peer knows this side by. Kept by a run that lost nothing of what the one before it had written.
    pub incarnation: Uuid,
    /// The boot of the machine; zero: not known; [`Run::ENDED`]: the run is over, with everything flushed.
    pub boot: Uuid,
}

impl Run {
    /// No boot is named so.
    const ENDED: Uuid = Uuid([0xff; 16]);

    /// All that it acknowledged is durable, and it acknowledges nothing more.
    pub fn end(&mut self) {
        self.boot = Self::ENDED;
    }

    pub fn has_ended(&self) -> bool {
        self.boot == Self::ENDED && self.incarnation != Uuid::default()
    }
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

/// Offsets of the fields in the block. What is not named is reserved and written as zero.
mod at {
    pub const UPDATE: usize = 8;
    pub const FEATURES_COMPATIBLE: usize = 16;
    pub const FEATURES_READ_ONLY: usize = 24;
    pub const FEATURES_INCOMPATIBLE: usize = 32;
    pub const CLUSTER: usize = 40;
    pub const MIRROR: usize = 56;
    pub const NODE: usize = 72;
    pub const CONSISTENCY_SET: usize = 88;
    pub const SIZE_BYTES: usize = 104;
    pub const USABLE_BYTES: usize = 112;
    pub const LOGICAL_BLOCK_BYTES: usize = 120;
    pub const BLOCK_SHIFT: usize = 124;
    pub const PEERS: usize = 125;
    pub const LOG_SLOTS: usize = 128;
    pub const FLAGS: usize = 136;
    pub const EPOCH: usize = 144;
    pub const LOG_EPOCH: usize = 152;
    pub const GENERATION: usize = 160;
    pub const HISTORY: usize = 168;
    pub const MOVED_FROM: usize = 232;
    pub const DISCARD: usize = 240;
    pub const RUN_INCARNATION: usize = 272;
    pub const RUN_BOOT: usize = 288;
    pub const PEER_SLOTS: usize = 512;
    pub const CHECKSUM: usize = 4092;

    /// Within a peer slot of 64 bytes.
    pub const PEER_SLOT_BYTES: usize = 64;
    pub const PEER_NODE: usize = 0;
    pub const PEER_INCARNATION: usize = 16;
    pub const PEER_GENERATION: usize = 32;
    pub const PEER_FLAGS: usize = 40;
    pub const PEER_FULL_SYNC: usize = 48;

    const _: () = {
        assert!(HISTORY + super::HISTORY_LENGTH * 8 <= MOVED_FROM);
        assert!(DISCARD + 32 <= RUN_INCARNATION);
        assert!(RUN_BOOT + 16 <= PEER_SLOTS);
        assert!(PEER_SLOTS + super::PEER_SLOTS * PEER_SLOT_BYTES <= CHECKSUM);
        assert!(CHECKSUM + 4 == super::BLOCK);
    };
}

impl Superblock {
    /// The block of this superblock, for either copy.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut u64_to = |offset: usize, value: u64| put(&mut block, offset, &value.to_le_bytes());
        u64_to(at::UPDATE, self.update);
        u64_to(
            at::FEATURES_COMPATIBLE,
            self.features_compatible & FEATURES_COMPATIBLE,
        );
        u64_to(at::FEATURES_READ_ONLY, self.features_read_only);
        u64_to(at::FEATURES_INCOMPATIBLE, self.features_incompatible);
        u64_to(at::SIZE_BYTES, self.size_bytes);
        u64_to(at::USABLE_BYTES, self.usable_bytes);
        u64_to(at::FLAGS, self.flags.bits());
        u64_to(at::EPOCH, self.epoch.0);
        u64_to(at::LOG_EPOCH, self.log_epoch);
        u64_to(at::GENERATION, self.generations.current.0);
        for (index, generation) in self.generations.history.iter().enumerate() {
            u64_to(at::HISTORY + index * 8, generation.0);
        }
        u64_to(at::MOVED_FROM, self.moved_from);
        u64_to(at::DISCARD, self.last_discard.generation.0);
        u64_to(at::DISCARD + 8, self.last_discard.bytes);
        u64_to(at::DISCARD + 16, self.last_discard.ranges);
        u64_to(at::DISCARD + 24, self.last_discard.unix_s);
        u64_to(
            at::PEER_SLOTS + at::PEER_GENERATION,
            self.generations.base.0,
        );
        u64_to(at::PEER_SLOTS + at::PEER_FLAGS, self.peer.bits());
        u64_to(at::PEER_SLOTS + at::PEER_FULL_SYNC, self.peer.full_sync.0);

        put(&mut block, 0, &SUPERBLOCK_MAGIC);
        put(&mut block, at::CLUSTER, &self.cluster.0);
        put(&mut block, at::MIRROR, &self.mirror.0);
        put(&mut block, at::NODE, &self.node.0);
        put(&mut block, at::CONSISTENCY_SET, &self.consistency_set.0);
        put(&mut block, at::RUN_INCARNATION, &self.run.incarnation.0);
        put(&mut block, at::RUN_BOOT, &self.run.boot.0);
        put(
            &mut block,
            at::LOGICAL_BLOCK_BYTES,
            &self.logical_block_bytes.to_le_bytes(),
        );
        put(&mut block, at::BLOCK_SHIFT, &[self.block_shift]);
        put(&mut block, at::PEERS, &[1]);
        put(&mut block, at::LOG_SLOTS, &self.log_slots.to_le_bytes());
        let slot = at::PEER_SLOTS;
        put(&mut block, slot + at::PEER_NODE, &self.peer.node.0);
        put(
            &mut block,
            slot + at::PEER_INCARNATION,
            &self.peer.incarnation.0,
        );
        let checksum = crc32fast::hash(&block[..at::CHECKSUM]);
        put(&mut block, at::CHECKSUM, &checksum.to_le_bytes());
        block
    }

    /// Reads one copy.
    pub fn decode(block: &[u8]) -> Result<Self, SuperblockFault> {
        if block.len() != BLOCK || block[..SUPERBLOCK_MAGIC.len()] != SUPERBLOCK_MAGIC {
            return Err(SuperblockFault::NotFound);
        }
        if u32_at(block, at::CHECKSUM) != crc32fast::hash(&block[..at::CHECKSUM]) {
            return Err(SuperblockFault::Checksum);
        }
        let features_incompatible = u64_at(block, at::FEATURES_INCOMPATIBLE);
        let unknown = features_incompatible & !FEATURES_INCOMPATIBLE;
        if unknown != 0 {
            return Err(SuperblockFault::NewerFormat { features: unknown });
        }
        if features_incompatible & FEATURE_FORMAT_1 == 0 {
            return Err(SuperblockFault::Invalid {
                field: "incompatible features",
            });
        }
        let invalid = |field| SuperblockFault::Invalid { field };
        let features_compatible = u64_at(block, at::FEATURES_COMPATIBLE);
        let slot = &block[at::PEER_SLOTS..at::PEER_SLOTS + at::PEER_SLOT_BYTES];
        let mut history = [Generation::NONE; HISTORY_LENGTH];
        for (index, generation) in history.iter_mut().enumerate() {
            *generation = Generation(u64_at(block, at::HISTORY + index * 8));
        }
        if block[at::PEERS] != 1 {
            return Err(invalid("peers in use"));
        }
        let superblock = Self {
            update: u64_at(block, at::UPDATE),
            features_compatible,
            features_read_only: u64_at(block, at::FEATURES_READ_ONLY),
            features_incompatible,
            cluster: uuid_at(block, at::CLUSTER),
            mirror: uuid_at(block, at::MIRROR),
            node: uuid_at(block, at::NODE),
            consistency_set: uuid_at(block, at::CONSISTENCY_SET),
            size_bytes: u64_at(block, at::SIZE_BYTES),
            usable_bytes: u64_at(block, at::USABLE_BYTES),
            logical_block_bytes: u32_at(block, at::LOGICAL_BLOCK_BYTES),
            block_shift: block[at::BLOCK_SHIFT],
            log_slots: u32_at(block, at::LOG_SLOTS),
            flags: Flags::from_bits(u64_at(block, at::FLAGS)).ok_or(invalid("flags"))?,
            generations: GenerationSet {
                current: Generation(u64_at(block, at::GENERATION)),
                base: Generation(u64_at(slot, at::PEER_GENERATION)),
                history,
            },
            epoch: Epoch(u64_at(block, at::EPOCH)),
            log_epoch: u64_at(block, at::LOG_EPOCH),
            peer: PeerSlot::from_bits(
                uuid_at(slot, at::PEER_NODE),
                uuid_at(slot, at::PEER_INCARNATION),
                FullSyncId(u64_at(slot, at::PEER_FULL_SYNC)),
                u64_at(slot, at::PEER_FLAGS),
            )
            .ok_or(invalid("peer flags"))?,
            moved_from: u64_at(block, at::MOVED_FROM),
            last_discard: Discard {
                generation: Generation(u64_at(block, at::DISCARD)),
                bytes: u64_at(block, at::DISCARD + 8),
                ranges: u64_at(block, at::DISCARD + 16),
                unix_s: u64_at(block, at::DISCARD + 24),
            },
            run: match features_compatible & FEATURE_RUN {
                0 => Run::default(),
                _ => Run {
                    incarnation: uuid_at(block, at::RUN_INCARNATION),
                    boot: uuid_at(block, at::RUN_BOOT),
                },
            },
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// Features that forbid this build to write, if any: such metadata may only be inspected.
    pub fn read_only_features(&self) -> Option<u64> {
        Some(self.features_read_only & !FEATURES_READ_ONLY).filter(|unknown| *unknown != 0)
    }

    fn check(&self) -> Result<(), SuperblockFault> {
        let invalid = |field| Err(SuperblockFault::Invalid { field });
        if !matches!(self.logical_block_bytes, 512 | 4096) {
            return invalid("logical block size");
        }
        if Geometry::of(self).is_err() {
            return invalid("geometry");
        }
        let logical = u64::from(self.logical_block_bytes);
        if self.size_bytes > self.usable_bytes || !self.size_bytes.is_multiple_of(logical) {
            return invalid("size");
        }
        Ok(())
    }
}

/// The names of the flags, in the order of their bits.
pub const FLAG_NAMES: [&str; 10] = [
    "inconsistent",
    "outdated",
    "failed",
    "primary",
    "last-primary",
    "log-active",
    "doubtful",
    "discard-local",
    "full-resync",
    "clean-stop",
];

impl Flags {
    /// Bit `n` is the flag `FLAG_NAMES[n]`.
    pub fn bits(self) -> u64 {
        pack([
            self.inconsistent,
            self.outdated,
            self.failed,
            self.primary,
            self.last_primary,
            self.log_active,
            self.doubtful,
            self.discard_local,
            self.full_resync,
            self.clean_stop,
        ])
    }

    /// None if a bit is set that has no meaning.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let [
            inconsistent,
            outdated,
            failed,
            primary,
            last_primary,
            log_active,
            doubtful,
            discard_local,
            full_resync,
            clean_stop,
        ] = unpack(bits)?;
        Some(Self {
            inconsistent,
            outdated,
            failed,
            primary,
            last_primary,
            log_active,
            doubtful,
            discard_local,
            full_resync,
            clean_stop,
        })
    }
}

impl PeerSlot {
    fn bits(self) -> u64 {
        pack([
            self.outdated,
            self.detached,
            self.stopped_cleanly,
            self.confirmed_down,
            self.had_copy,
        ])
    }

    fn from_bits(node: Uuid, incarnation: Uuid, full_sync: FullSyncId, bits: u64) -> Option<Self> {
        let [
            outdated,
            detached,
            stopped_cleanly,
            confirmed_down,
            had_copy,
        ] = unpack(bits)?;
        Some(Self {
            node,
            incarnation,
            full_sync,
            outdated,
            detached,
            stopped_cleanly,
            confirmed_down,
            had_copy,
        })
    }
}

fn pack<const N: usize>(flags: [bool; N]) -> u64 {
    flags
        .iter()
        .rev()
        .fold(0, |bits, flag| bits << 1 | u64::from(*flag))
}

fn unpack<const N: usize>(bits: u64) -> Option<[bool; N]> {
    (bits >> N == 0).then(|| std::array::from_fn(|bit| bits >> bit & 1 == 1))
}

/// Why one copy cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockFault {
    #[error("no superblock is written there")]
    NotFound,
    #[error("the block cannot be read")]
    Unreadable,
    #[error("its checksum does not match")]
    Checksum,
    #[error("it was written by a newer version (unknown incompatible features {features:#x})")]
    NewerFormat { features: u64 },
    #[error("its {field} makes no sense")]
    Invalid { field: &'static str },
}

/// The superblock that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub superblock: Superblock,
    /// What is wrong with copy A and copy B.
    pub faults: [Option<SuperblockFault>; 2],
    /// The copies hold different updates: a change was cut short. Write both anew.
    pub uneven: bool,
    /// Index of the bad or older copy, else 0. Writing the other one first could leave both bad.
    pub copy_first: usize,
}

impl Found {
    /// One copy is lost: what it said may have been newer, so the data may be old (rule D9).
    pub fn fell_back(&self) -> bool {
        self.faults.iter().any(Option::is_some)
    }
}

/// Why neither copy can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChooseFault {
    /// Neither place was ever written.
    NotFound,
    /// Both copies are bad.
    BothBad { faults: [SuperblockFault; 2] },
    /// A copy is whole, and of a format that this build must not touch.
    NewerFormat { features: u64 },
    /// Both copies are whole and contradict each other.
    Contradiction { field: &'static str },
}

impl fmt::Display for ChooseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => write!(
                f,
                "there is no mirror metadata; `mirrorctl init` writes it on a new mirror"
            ),
            Self::BothBad { faults: [a, b] } => write!(
                f,
                "both superblock copies are bad (copy A: {a}; copy B: {b}); the metadata says \
                 nothing about the data any more: look at it with `mirror-inspect`, and let this \
                 node be copied from its peer after `mirrorctl init --force`"
            ),
            Self::NewerFormat { features } => write!(
                f,
                "the metadata was written by a newer version (unknown incompatible features \
                 {features:#x}); use that version"
            ),
            Self::Contradiction { field } => write!(
                f,
                "the superblock copies contradict each other in their {field}; look at both with \
                 `mirror-inspect`"
            ),
        }
    }
}

/// Which of the two copies counts: the newer valid one. Pass `None` for a copy that could not be read.
pub fn choose(copies: [Option<&[u8]>; 2]) -> Result<Found, ChooseFault> {
    let read = copies.map(|copy| match copy {
        Some(block) => Superblock::decode(block),
        None => Err(SuperblockFault::Unreadable),
    });
    for copy in &read {
        if let Err(SuperblockFault::NewerFormat { features }) = copy {
            return Err(ChooseFault::NewerFormat {
                features: *features,
            });
        }
    }
    match read {
        [Ok(a), Ok(b)] => newer(a, b),
        [Ok(superblock), Err(fault)] => Ok(Found {
            superblock,
            faults: [None, Some(fault)],
            uneven: true,
            copy_first: 1,
        }),
        [Err(fault), Ok(superblock)] => Ok(Found {
            superblock,
            faults: [Some(fault), None],
            uneven: true,
            copy_first: 0,
        }),
        [
            Err(SuperblockFault::NotFound),
            Err(SuperblockFault::NotFound),
        ] => Err(ChooseFault::NotFound),
        [Err(a), Err(b)] => Err(ChooseFault::BothBad { faults: [a, b] }),
    }
}

fn newer(a: Superblock, b: Superblock) -> Result<Found, ChooseFault> {
    for (field, same) in [
        ("cluster", a.cluster == b.cluster),
        ("mirror", a.mirror == b.mirror),
        ("node", a.node == b.node),
        ("content at one update", a.update != b.update || a == b),
    ] {
        if !same {
            return Err(ChooseFault::Contradiction { field });
        }
    }
    let uneven = a.update != b.update;
    let copy_first = usize::from(a.update > b.update);
    let superblock = if a.update >= b.update { a } else { b };
    Ok(Found {
        superblock,
        faults: [None, None],
        uneven,
        copy_first,
    })
}

#[cfg(test)]
mod tests;
