//! Everything that can happen to a volume.

use serde::{Deserialize, Serialize};

use crate::buffer::Buffer;
use crate::request::Request;
use crate::units::{CommandId, IoToken, LinkId};
use crate::wire::message::Envelope;

#[derive(Debug)]
pub enum Event {
    /// A client asks for something. Only sent while the volume serves (see `Effect::Serve`).
    Request(Request),
    /// A disk operation on the data partition finished.
    LocalDone {
        io: IoToken,
        result: Result<Output, DiskFault>,
    },
    /// A metadata write is durable, or failed.
    MetadataDone {
        io: IoToken,
        result: Result<(), DiskFault>,
    },
    /// Both connections to the peer stand and the peer has proved that it has the cluster key.
    LinkUp {
        link: LinkId,
    },
    /// The link is gone. Nothing more comes from it.
    LinkDown {
        link: LinkId,
    },
    Message {
        link: LinkId,
        envelope: Envelope,
    },
    Command {
        id: CommandId,
        command: Command,
    },
    /// Answer to `Effect::Measure`: what the data partition could hold, metadata taken off.
    Measured {
        usable_bytes: u64,
    },
    /// Time passed. Sent at least every [`TICK_MS`].
    Tick,
}

/// Longest time between two ticks.
pub const TICK_MS: u64 = 100;

/// A tick that was asked for with `Effect::Wake` comes after this time.
pub const WAKE_MS: u64 = 1;

/// What a successful local operation brings.
#[derive(Debug)]
pub enum Output {
    Nothing,
    Data(Buffer),
    /// The range is known to be unallocated and reads as zeroes.
    Hole,
}

/// Why a local operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    Io,
    NoSpace,
}

/// The arbiter's leave to be primary (A3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Above every epoch that was granted before.
    pub epoch: u64,
    /// When the lease runs out, on the clock of [`Now::monotonic_ms`](crate::units::Now).
    pub deadline_ms: u64,
}

/// What an operator or the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Promote {
        peer_down: bool,
        force: bool,
        grant: Option<Grant>,
    },
    /// Primary again in the epoch that this node held when `mirrord` died, for a kernel device that is still there.
    /// `alone`: without having seen the peer, where an arbiter is the one to tell.
    Reinstate {
        alone: bool,
    },
    /// The lease of that epoch was renewed.
    Lease {
        epoch: u64,
        deadline_ms: u64,
        /// It was asked for after the volume had published this ticket.
        confirmed: u64,
    },
    /// Nothing is answered until `Thaw`.
    Freeze,
    Thaw,
    /// What waits and what comes is answered with errors until `Thaw`, a demotion or a promotion.
    FailIo,
    /// Records on a secondary that its primary goes on without it.
    Outdate,
    /// The lost peer is confirmed to be down or outdated.
    PeerDown,
    /// The arbiter granted that epoch to the other node.
    EpochSeen {
        epoch: u64,
    },
    Demote,
    Connect,
    Disconnect,
    Resync {
        full: bool,
        discard_local: bool,
    },
    Pause,
    Resume,
    Verify {
        repair: bool,
    },
    /// Take up a data partition that grew on both nodes.
    Resize,
    /// Finish what is in flight, make everything durable, take leave of the peer.
    Stop,
}

impl Command {
    /// About answers and epochs: it waits for no handshake.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::Lease { .. }
                | Self::Freeze
                | Self::Thaw
                | Self::FailIo
                | Self::Outdate
                | Self::PeerDown
                | Self::EpochSeen { .. }
        )
    }
}
