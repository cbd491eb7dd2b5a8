//! Types of the control API, shared by the daemons and the tools. HTTP + JSON on `mirrord.sock`.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`NodeStatus`]; with `?statistics=true` each mirror with its [`Statistics`] |
//! | `POST /v1/mirrors/{name}/command` | [`CommandRequest`] | [`CommandReply`] (409 with [`Refusal`]) |
//! | `POST /v1/mirrors/{name}/device` | [`DeviceRequest`] | [`CommandReply`] (409 with [`Refusal`]) |
//! | `GET /v1/mirrors/{name}/explain` | | [`Explanation`] |
//! | `GET /v1/mirrors/{name}/confirm?after=N&wait_ms=M` | | [`ConfirmWanted`]; waits up to M ms (default and most: 10 s) for a ticket above N |
//! | `GET /v1/events?after=N&wait_ms=M` | | [`EventPage`]; waits up to M ms (default and most: 10 s) for newer ones |
//! | `GET /metrics` | | the same for Prometheus, as OpenMetrics text |
//!
//! Every answer that is no success carries a [`Refusal`].

mod statistics;

use serde::{Deserialize, Serialize};

pub use self::statistics::{
    DiskCounters, LATENCY_BOUNDS_NS, Latencies, Latency, LatencyBucket, MemoryUse, QueueDepth,
    Statistics,
};
use crate::volume::event::Command;
pub use crate::volume::event::Grant;
pub use crate::volume::notice::{Notice, Severity};
pub use crate::volume::refusal::Refusal;
pub use crate::wire::message::{DiskState, InitialSync, Mode, Role};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: String,
    pub mirrors: Vec<MirrorStatus>,
    /// Configured mirrors that do not run, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<DownMirror>,
    /// Memory of the whole daemon that is in RAM, where it was asked for with the statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownMirror {
    pub name: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorStatus {
    pub name: String,
    pub role: Role,
    pub mode: Mode,
    pub connection: Connection,
    pub disk: DiskState,
    pub peer: PeerStatus,
    pub size_bytes: u64,
    pub out_of_sync_bytes: u64,
    pub sync: Option<SyncStatus>,
    pub lag_bytes: u64,
    pub lag_ms: u64,
    /// Nothing is answered: by order, or because nothing proves that this node may answer (A3).
    #[serde(default)]
    pub frozen: bool,
    /// The arbiter's leave to be primary here.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
    /// Newest ticket of an answer that waits for a confirmed lease, or waited for one.
    #[serde(default)]
    pub confirm_wanted: u64,
    /// It is on record here that the peer lacks answered writes, or this side may go on without it any moment.
    #[serde(default)]
    pub peer_outdated: bool,
    /// How long ago the peer was heard over the link; absent without a link.
    #[serde(default)]
    pub peer_heard_ms: Option<u64>,
    /// Requests wait for the word that the lost peer is really down, or for its return (`peer_loss = "hold"`).
    pub io_suspended: bool,
    pub generation: String,
    pub epoch: u64,
    pub device: Option<String>,
    /// A device of the last run waits for this side to be primary again in the epoch of then.
    #[serde(default)]
    pub device_waits: bool,
    pub exports: Vec<String>,
    pub counters: Counters,
    /// Bytes before for each byte after compression, of the data it covers; absent while there is none.
    #[serde(default)]
    pub compression_ratio: Option<f64>,
    /// Bytes of the last finished resync: what the source sent as data, without hashes and holes; on the target, all
    /// that it was given, holes included.
    pub last_sync_copied_bytes: u64,
    /// Result of the last finished verify: bytes in blocks that differed.
    pub last_verify_mismatch_bytes: Option<u64>,
    /// Only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
}

impl MirrorStatus {
    /// A mirror of 1 GiB whose sides are connected and equal, and that has done nothing yet: where tests begin. The
    /// peer is secondary.
    pub fn in_step(name: &str, role: Role, peer: &str) -> Self {
        Self {
            name: name.into(),
            role,
            mode: Mode::Sync,
            connection: Connection::Connected,
            disk: DiskState::UpToDate,
            peer: PeerStatus {
                node: peer.into(),
                role: Role::Secondary,
                disk: DiskState::UpToDate,
            },
            size_bytes: 1 << 30,
            out_of_sync_bytes: 0,
            sync: None,
            lag_bytes: 0,
            lag_ms: 0,
            frozen: false,
            lease: None,
            confirm_wanted: 0,
            peer_outdated: false,
            peer_heard_ms: Some(0),
            io_suspended: false,
            generation: "9f3c0123456789ab".into(),
            epoch: 3,
            device: None,
            device_waits: false,
            exports: Vec::new(),
            counters: Counters::default(),
            compression_ratio: None,
            last_sync_copied_bytes: 0,
            last_verify_mismatch_bytes: None,
            statistics: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    pub epoch: u64,
    /// On the node's clock that also counts suspended time (`CLOCK_BOOTTIME`).
    pub deadline_ms: u64,
    /// The deadline has not passed.
    pub live: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub node: String,
    pub role: Role,
    pub disk: DiskState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    Standalone,
    Connecting,
    Connected,
    SplitBrain,
    Unrelated,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncStatus {
    pub kind: SyncKind,
    pub direction: Direction,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub rate_bytes_per_s: u64,
    pub eta_s: Option<u64>,
    pub paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncKind {
    Resync,
    Full,
    Verify,
    /// What the last run may have left half written is compared with the peer, while serving.
    Recheck,
}

impl SyncKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Resync => "resync",
            Self::Full => "full",
            Self::Verify => "verify",
            Self::Recheck => "recheck",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Source,
    Target,
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    pub writes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Data for the peer that `compression` covers, part of what became `bytes_sent`.
    #[serde(default)]
    pub bytes_before_compression: u64,
    /// The same data as it was sent, compressed or not.
    #[serde(default)]
    pub bytes_after_compression: u64,
    pub metadata_writes: u64,
}

/// A command as it travels to the daemon. `resync` stays one word for people, so the API has it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CommandRequest {
    Promote {
        #[serde(default)]
        peer_down: bool,
        #[serde(default)]
        force: bool,
        /// Needed where an arbiter is configured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grant: Option<Grant>,
    },
    Lease {
        epoch: u64,
        deadline_ms: u64,
        #[serde(default)]
        confirmed: u64,
    },
    Freeze,
    Thaw,
    FailIo,
    Outdate,
    PeerDown,
    EpochSeen {
        epoch: u64,
    },
    Demote,
    Connect,
    Disconnect,
    Resync {
        #[serde(default)]
        full: bool,
        #[serde(default)]
        discard_local: bool,
    },
    Pause,
    Resume,
    Verify {
        #[serde(default)]
        repair: bool,
    },
    Resize,
}

/// What is to become of the mirror's device in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceRequest {
    /// Done too where it is attached already.
    Attach,
    Detach {
        /// Whoever has it open gets errors.
        #[serde(default)]
        force: bool,
    },
}

impl From<CommandRequest> for Command {
    fn from(request: CommandRequest) -> Self {
        match request {
            CommandRequest::Promote {
                peer_down,
                force,
                grant,
            } => Self::Promote {
                peer_down,
                force,
                grant,
            },
            CommandRequest::Lease {
                epoch,
                deadline_ms,
                confirmed,
            } => Self::Lease {
                epoch,
                deadline_ms,
                confirmed,
            },
            CommandRequest::Freeze => Self::Freeze,
            CommandRequest::Thaw => Self::Thaw,
            CommandRequest::FailIo => Self::FailIo,
            CommandRequest::Outdate => Self::Outdate,
            CommandRequest::PeerDown => Self::PeerDown,
            CommandRequest::EpochSeen { epoch } => Self::EpochSeen { epoch },
            CommandRequest::Demote => Self::Demote,
            CommandRequest::Connect => Self::Connect,
            CommandRequest::Disconnect => Self::Disconnect,
            CommandRequest::Resync {
                full,
                discard_local,
            } => Self::Resync {
                full,
                discard_local,
            },
            CommandRequest::Pause => Self::Pause,
            CommandRequest::Resume => Self::Resume,
            CommandRequest::Verify { repair } => Self::Verify { repair },
            CommandRequest::Resize => Self::Resize,
        }
    }
}

/// The newest ticket of an answer that waits for a lease asked for after its work was done (`LeaseCheck::RoundTrip`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmWanted {
    pub ticket: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandReply {
    pub message: String,
}

/// An event with its number and time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventRecord {
    pub number: u64,
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    pub mirror: String,
    #[serde(flatten)]
    pub notice: Notice,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventPage {
    pub events: Vec<EventRecord>,
    /// Pass as `after` next time.
    pub next: u64,
    /// Events between `after` and the first one here that are no longer kept.
    pub dropped: u64,
}

/// Why a mirror is in its state, and what can be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    pub mirror: String,
    /// The handshake rule that decided last, if any.
    pub rule: Option<String>,
    pub summary: String,
    /// Facts, one a line: what each side holds.
    pub facts: Vec<String>,
    pub choices: Vec<Choice>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Choice {
    pub command: String,
    pub effect: String,
    pub loses: String,
}
