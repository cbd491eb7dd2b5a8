//! The settings a volume runs with: checked values, made by the daemon from the configuration.

use super::ack_policy::BACKLOG_WRITES_MAX;
pub use crate::link::compression::Compression;
pub use crate::resync::pace::Rates;
use crate::units::Uuid;
pub use crate::wire::message::PeerLoss;
use crate::wire::message::{InitialSync, Mode};

/// How it is made sure that a lease still holds when an answer is given alone (A3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseCheck {
    /// By a clock that also counts suspended time. A pause that stops the clocks themselves escapes it.
    Clock,
    /// By the arbiter's confirmation, asked for after the work was done.
    RoundTrip,
}

/// What async does when the peer does not keep up and the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// Writes wait for room.
    Block,
    /// Writes only set dirty bits, and a resync brings them to the peer, which counts as inconsistent until then.
    Degrade,
}

#[derive(Debug, Clone)]
pub struct VolumeConfig {
    pub name: String,
    pub node_name: String,
    pub peer_name: String,
    pub cluster: Uuid,
    pub mirror: Uuid,
    pub node: Uuid,
    pub peer: Uuid,
    pub mode: Mode,
    /// Semisync and async: bytes handed on to the peer and not acknowledged. A write that finds no room waits.
    pub queue_bytes: u64,
    pub queue_full: QueueFull,
    /// Async: bytes a second that writes may take of the link; 0 for no limit.
    pub bandwidth_max: u64,
    /// What this side sends compressed, if the peer takes it. The two sides may differ.
    pub compression: Compression,
    pub initial_sync: InitialSync,
    pub peer_loss: PeerLoss,
    /// Zeroing is cheap on the data partition.
    pub fast_zero: bool,
    /// Digest over the settings that both nodes must share.
    pub config_digest: [u8; 16],
    /// What the data partition can hold, metadata taken off.
    pub usable_bytes: u64,
    /// 512 or 4096: what the data partition needs.
    pub logical_block_bytes: u32,
    /// First of the two nodes in the configuration: breaks ties.
    pub first: bool,
    /// Silence after which a peer counts as lost.
    pub peer_timeout_ms: u64,
    /// Bytes a second that a resync keeps up against clients, and may move at most.
    pub resync_rates: Rates,
    /// Resync steps in flight, each up to 1 MiB of buffer memory.
    pub resync_in_flight: u32,
    /// An arbiter decides who may be primary, and every answer needs proof that this node still is (A3).
    pub arbitration: Option<LeaseCheck>,
    /// Copied bytes after which a resync takes a checkpoint: what a cut may make us copy again.
    pub checkpoint_bytes: u64,
}

impl VolumeConfig {
    /// Room in the tables of what is in flight, taken at start (D12).
    pub(super) fn in_flight_max(&self) -> usize {
        match self.mode {
            Mode::Sync => 1024,
            Mode::Semisync | Mode::Async => 2 * BACKLOG_WRITES_MAX,
        }
    }
}

/// What the driver draws and finds for one run of the daemon; the volume has no randomness of its own.
#[derive(Debug, Clone, Copy)]
pub struct Seed {
    /// For a run that is not known to go on with what an earlier one had.
    pub incarnation: Uuid,
    /// The same as long as the machine runs without a restart, so that nothing which a disk has completed is
    /// lost; zero where that is not known.
    pub boot: Uuid,
    /// Start of the sequence that generations are drawn from.
    pub entropy: u64,
}
