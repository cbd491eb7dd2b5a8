//! Every message of the replication link, as typed values. `frame` gives each its bytes.
//!
//! Data and its acknowledgements carry a [`Sequence`] chosen by the sender of the operation; the
//! receiver echoes it. A message counts only within the link it came on.

use crate::buffer::Buffer;
use crate::generation::GenerationSet;
use crate::units::{ByteRange, Epoch, FullSyncId, Sequence, Uuid};

/// Oldest and newest protocol version this build speaks.
pub const VERSION_MIN: u16 = 1;
pub const VERSION_MAX: u16 = 3;
/// First version with [`Message::Confirm`].
pub const VERSION_CONFIRM: u16 = 2;
/// First version that serves other modes than sync: [`Message::Received`], and flushes that keep their
/// place among the writes.
pub const VERSION_MODES: u16 = 3;
/// In [`Hello::features`]: the sender takes data in compressed frames. Features of the superblock have the lower half.
pub const FEATURE_COMPRESSION: u64 = 1 << 32;
/// Bytes of one block hash in [`Message::Compare`]: a BLAKE3 hash cut to 128 bits.
pub const HASH_BYTES: usize = 16;

/// A message with the epoch its sender was in.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub epoch: Epoch,
    pub message: Message,
}

/// Which of the two connections of a link carries a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Small, urgent: handshake, acknowledgements, state, keepalive.
    Control,
    /// Ordered bulk: writes, flushes, resync data, read replies.
    Data,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// First message of each side; everything the handshake decides on.
    Hello(Box<Hello>),
    /// What this side decided, so that the other can check that it is the mirror image.
    Verdict {
        rule: u16,
        strategy: u8,
    },
    /// A run of dirty bits of the resync target. `words` holds at most 496 words (one page).
    /// `first_block` is counted in blocks of `1 << block_shift` bytes.
    BitmapChunk {
        sequence: Sequence,
        first_block: u64,
        block_shift: u8,
        words: Vec<u64>,
    },
    /// Extents of the target whose bits are only doubt after a crash. At most 1024 a message.
    DoubtChunk {
        sequence: Sequence,
        extents: Vec<u32>,
    },
    BitmapEnd,

    /// Replicated write. `depends_on`: apply only after all operations of this link up to and
    /// including that number are complete (the barrier that semisync and async need).
    Write {
        sequence: Sequence,
        depends_on: Sequence,
        range: ByteRange,
        fua: bool,
        data: Buffer,
    },
    Trim {
        sequence: Sequence,
        depends_on: Sequence,
        range: ByteRange,
        fua: bool,
    },
    WriteZeroes {
        sequence: Sequence,
        depends_on: Sequence,
        range: ByteRange,
        fua: bool,
        no_hole: bool,
    },
    /// Everything acknowledged before it was sent becomes durable before it is acknowledged. In semisync
    /// and async it is itself an operation in line: begun when all before it are complete.
    Flush {
        sequence: Sequence,
    },
    /// Completed operations, batched. At most 1024 a message.
    Ack {
        sequences: Vec<Sequence>,
    },
    /// Operations that are here and will be done, whatever becomes of the link (semisync). At most 1024 a
    /// message.
    Received {
        sequences: Vec<Sequence>,
    },
    /// The peer could not do an operation; its disk is failed from here on.
    Refused {
        sequence: Sequence,
    },

    /// Read from the peer, when the local disk cannot serve.
    ReadRequest {
        sequence: Sequence,
        range: ByteRange,
    },
    ReadReply {
        sequence: Sequence,
        range: ByteRange,
        data: Buffer,
    },
    ReadFailed {
        sequence: Sequence,
    },

    /// Source to target: `total_bytes` differ. The target becomes durably inconsistent before it
    /// answers [`Message::ResyncReady`].
    ResyncStart {
        total_bytes: u64,
        /// The full copy that this begins or continues; none for a difference resync.
        full_sync: FullSyncId,
    },
    ResyncReady,
    /// Content for a range under the source's range lock.
    ResyncData {
        sequence: Sequence,
        range: ByteRange,
        data: Buffer,
    },
    ResyncZeroes {
        sequence: Sequence,
        range: ByteRange,
        no_hole: bool,
    },
    /// Hashes of each `block_bytes` of a range, for the other side to compare with its own.
    Compare {
        sequence: Sequence,
        range: ByteRange,
        block_bytes: u32,
        verify: bool,
        hashes: Vec<[u8; HASH_BYTES]>,
    },
    /// One bit a block, set where the hashes differ; lowest bit first.
    CompareResult {
        sequence: Sequence,
        unequal: Vec<u64>,
    },
    /// The disk of the target holds everything that the source acknowledged as cleared up to here.
    ResyncDone {
        generations: GenerationSet,
    },
    ResyncDoneAck,
    ResyncPaused {
        paused: bool,
    },

    /// Role, disk or epoch of the sender changed.
    State {
        role: Role,
        disk: DiskState,
    },
    /// Asks leave to become primary; the other answers with `State` or `Refused`.
    PromoteRequest {
        sequence: Sequence,
        epoch: Epoch,
    },
    PromoteReply {
        sequence: Sequence,
        granted: bool,
    },
    /// The sender's disk failed and it serves from the receiver from now on: the receiver starts a
    /// new generation and tracks what the sender lacks. `ranges` were written but never flushed.
    Detached {
        sequence: Sequence,
        extents: Vec<u32>,
    },
    /// The sender lacks nothing more: it is leaving on purpose. `clean`: it was not primary, its
    /// disk is flushed and it will not go on alone.
    Goodbye {
        clean: bool,
    },
    Ping {
        stamp_ms: u64,
    },
    Pong {
        stamp_ms: u64,
    },
    /// A primary asks whether the receiver follows its epoch still. Only a side that does answers.
    Confirm {
        number: u64,
    },
    Confirmed {
        number: u64,
    },

    /// Grow the mirror: the proposer's usable bytes, then the agreed ones.
    ResizePropose {
        usable_bytes: u64,
    },
    ResizeOffer {
        usable_bytes: u64,
    },
    ResizeCommit {
        size_bytes: u64,
    },
    ResizeCommitted {
        size_bytes: u64,
    },
}

impl Message {
    pub fn channel(&self) -> Channel {
        match self {
            Self::Write { .. }
            | Self::Trim { .. }
            | Self::WriteZeroes { .. }
            | Self::Flush { .. }
            | Self::ReadReply { .. }
            | Self::ResyncData { .. }
            | Self::ResyncZeroes { .. }
            | Self::Compare { .. } => Channel::Data,
            _ => Channel::Control,
        }
    }
}

/// What each side says of itself before anything else.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    pub version_min: u16,
    pub version_max: u16,
    /// Features the sender understands: `FEATURE_*` in `layout::superblock`, and [`FEATURE_COMPRESSION`].
    pub features: u64,
    pub cluster: Uuid,
    pub mirror: Uuid,
    pub node: Uuid,
    /// This run of the daemon. Another one may have lost what it acknowledged and did not flush.
    pub incarnation: Uuid,
    /// The peer incarnation that the sender last exchanged data with (zero: none).
    pub peer_incarnation_seen: Uuid,
    pub mode: Mode,
    /// Agreed size of the mirror; zero before the first handshake.
    pub size_bytes: u64,
    /// What the sender's data partition could hold.
    pub usable_bytes: u64,
    pub logical_block_bytes: u32,
    pub block_shift: u8,
    /// Digest over the settings both sides must share.
    pub config_digest: [u8; 16],
    pub generations: GenerationSet,
    pub role: Role,
    pub disk: DiskState,
    /// Was primary and did not stop cleanly since.
    pub crashed_primary: bool,
    /// Was the last to be primary in its current generation.
    pub last_primary: bool,
    /// A copy between the two has begun at some time.
    pub had_copy: bool,
    /// Gives up its own data after a split brain.
    pub discard_local: bool,
    /// Asks that everything is copied.
    pub full_resync: bool,
    pub initial_sync: InitialSync,
    pub peer_loss: PeerLoss,
    /// Stands first in the sender's configuration.
    pub first: bool,
    /// Zeroing is cheap on the sender's disk.
    pub fast_zero: bool,
    /// The full copy that the sender was in when the last link ended; zero for none.
    pub full_sync: FullSyncId,
}

/// What a primary does when it loses its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerLoss {
    /// Answers wait until the peer's stop is confirmed.
    Hold,
    /// Goes on at once. Without fencing this can lose answered writes if the peer goes on too.
    Continue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Secondary,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    UpToDate,
    Outdated,
    Inconsistent,
    Failed,
    Unknown,
}

impl DiskState {
    /// The word for it in `mdstat`, in its JSON and in explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "up-to-date",
            Self::Outdated => "outdated",
            Self::Inconsistent => "inconsistent",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Sync,
    Semisync,
    Async,
}

impl Mode {
    /// The word for it in the configuration and in `mdstat`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Semisync => "semisync",
            Self::Async => "async",
        }
    }

    /// Answers run ahead of the peer's disk.
    pub const fn runs_ahead(self) -> bool {
        !matches!(self, Self::Sync)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialSync {
    Full,
    Sparse,
    Skip,
}
