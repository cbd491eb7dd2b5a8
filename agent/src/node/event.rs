//! Everything that can happen to a node, and everything it can ask of its driver.

use std::net::SocketAddr;

use mirror_core::control::Refusal;
use nbd_frontend::config::agent::FinalAction;

use crate::alert::Alert;
use crate::arbiter::call::{Reply, Request};
use crate::control::{CommandReply, CommandRequest, State};
use crate::fencing;
use crate::group::{Action, Failure};

/// A command's number, by which its outcome finds whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandId(pub u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A datagram came on a heartbeat path.
    Received {
        path: usize,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Answer to [`Effect::Resolve`].
    Resolved {
        number: u64,
        result: Result<(), String>,
    },
    /// Answer to [`Effect::Ask`].
    Answered {
        number: u64,
        result: Result<Answer, String>,
    },
    /// Answer to [`Effect::Fence`].
    Fenced(fencing::Event),
    /// What `mirrord` says of a mirror; `None` where it does not answer.
    Mirror {
        mirror: usize,
        view: Option<MirrorView>,
    },
    /// Answer to [`Effect::Mirror`]; the error is the refusal's text.
    MirrorDone {
        number: u64,
        result: Result<(), String>,
    },
    /// Answer to [`Effect::Run`].
    ResourceDone {
        group: usize,
        number: u64,
        result: Result<(), Failure>,
    },
    /// Answer to [`Effect::Probe`].
    Probed {
        number: u64,
        result: Result<(), String>,
    },
    /// What was found running when the agent started; once a group, before the first tick.
    Found { group: usize, states: Vec<State> },
    Command {
        id: CommandId,
        request: CommandRequest,
    },
    /// Stop the groups, tell the peer, and end.
    Shutdown,
    /// Time passed. Expected at least every [`TICK_MS`].
    Tick,
}

/// Longest time between two ticks, unless the heartbeat interval is shorter still.
pub const TICK_MS: u64 = 50;

/// What the arbiter said, and when it was asked on this node's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub reply: Reply,
    pub sent_ms: u64,
}

/// What the node needs to know of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorView {
    pub primary: bool,
    pub peer_primary: bool,
    pub connected: bool,
    /// Both sides wrote without each other.
    pub split_brain: bool,
    /// The own disk is up to date.
    pub current: bool,
    pub peer_current: bool,
    /// The own disk is consistent and known to be behind.
    pub outdated: bool,
    /// It is recorded here that the other side is outdated.
    pub peer_outdated: bool,
    pub out_of_sync_bytes: u64,
    /// Answers wait for the word that the lost peer is down.
    pub suspended: bool,
    pub frozen: bool,
    /// Its daemon was restarted and means to be primary again, for a device that waits for that.
    pub resuming: bool,
    pub epoch: u64,
    /// Answers wait for a lease confirmation of this number.
    pub confirm_wanted: u64,
    /// How long ago the peer's mirrord was heard over the link; none without a link.
    pub heard_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Send {
        path: usize,
        /// None: to the other node's address of the path.
        to: Option<SocketAddr>,
        bytes: Vec<u8>,
    },
    /// Try a resolver's target.
    Resolve {
        number: u64,
        resolver: usize,
    },
    /// Ask the arbiter.
    Ask {
        number: u64,
        request: Request,
    },
    /// Stop the other node from outside, or ask about that. Only `Stop`, `Query` and `Check`.
    Fence(fencing::Effect),
    Mirror {
        number: u64,
        mirror: usize,
        command: MirrorCommand,
    },
    Run {
        group: usize,
        number: u64,
        resource: usize,
        action: Action,
        timeout_ms: u64,
        permit: Permit,
    },
    Probe {
        number: u64,
        monitor: usize,
        timeout_ms: u64,
    },
    /// The action of last resort, on this very machine. Only those that end it.
    Act(FinalAction),
    Alert(Alert),
    /// Whether a group is online here: what its readiness probes answer.
    Ready {
        group: usize,
        ready: bool,
    },
    CommandDone {
        id: CommandId,
        result: Result<CommandReply, Refusal>,
    },
    /// The agent may end.
    Exit,
}

/// By what right a mirror is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permit {
    pub grant: Option<Grant>,
    /// The lost peer counts as down.
    pub peer_down: bool,
    /// The data here is the truth, by an operator's word.
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    pub epoch: u64,
    /// On the clock that both daemons of a node share.
    pub deadline_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorCommand {
    Lease {
        epoch: u64,
        deadline_ms: u64,
        confirmed: u64,
    },
    Freeze,
    Thaw,
    FailIo,
    Outdate,
    PeerDown,
    Demote,
    EpochSeen {
        epoch: u64,
    },
    /// Give up what this side wrote, and connect.
    DiscardLocal,
}
