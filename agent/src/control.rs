//! The agent's control API: HTTP + JSON on `agent.sock`, shared by the agent and `mirrorctl`.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`ClusterStatus`] |
//! | `POST /v1/command` | [`CommandRequest`] | [`CommandReply`] (409 with a `Refusal`) |
//! | `GET /v1/alerts?after=N&wait_ms=M` | | [`AlertPage`]; waits up to M ms for newer ones |
//!
//! Every answer that is no success carries a `mirror_core::control::Refusal`.

use mirror_core::control::MirrorStatus;
use serde::{Deserialize, Serialize};

use crate::alert::Alert;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub cluster: String,
    /// The node that answers.
    pub node: String,
    /// In the order of the configuration.
    pub nodes: Vec<NodeStatus>,
    pub groups: Vec<GroupStatus>,
    pub monitors: Vec<MonitorStatus>,
    pub monitors_suspended: bool,
    pub mirrors: Vec<MirrorStatus>,
    pub arbiter: Option<ArbiterStatus>,
    pub forced_stop: Option<ForcedStopStatus>,
    /// While the start-up delay runs.
    pub startup: Option<StartupStatus>,
    /// What an operator must know now, gravest first: "both nodes are active", "cut off" …
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub state: NodeState,
    pub standby: bool,
    /// How this node hears that one, by path; empty for the node itself.
    pub paths: Vec<HealthStatus>,
    /// Resolvers as seen from the node that answers; empty for the other.
    pub resolvers: Vec<HealthStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    Online,
    /// Stopped on purpose.
    Offline,
    /// Not heard for the heartbeat time-out.
    Lost,
    /// Not heard since this agent started.
    Unknown,
    /// It waits for its start-up delay, or cut off.
    Pending,
}

/// A thing with a name that is in order or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    pub name: String,
    /// "LAN heartbeat", "ping", "http", "witness" …
    pub kind: String,
    pub health: Health,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Normal,
    Caution,
    Error,
    Unused,
    Suspend,
    Unknown,
}

/// States of groups and resources (A6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Offline,
    OnlinePending,
    Online,
    OfflinePending,
    Failed,
    /// Of a group on a node that is not heard.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub name: String,
    /// On the node that answers.
    pub state: State,
    /// On each node, in the order of the configuration.
    pub states: Vec<State>,
    /// Where it is online or on its way there or away; both nodes where it is active twice.
    pub current: Vec<String>,
    /// Why it does not run here although it could: whom or what it waits for.
    pub waits_for: Option<String>,
    /// On which it stands.
    #[serde(default)]
    pub mirrors: Vec<String>,
    pub resources: Vec<ResourceStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    pub name: String,
    pub kind: String,
    /// On the node that answers.
    pub state: State,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorStatus {
    pub name: String,
    pub kind: String,
    pub health: Health,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterStatus {
    pub url: String,
    pub health: Health,
    pub detail: Option<String>,
    /// Leases that this node holds.
    pub leases: Vec<LeaseStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    pub mirror: String,
    pub epoch: u64,
    pub remaining_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForcedStopStatus {
    pub kind: String,
    pub health: Health,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupStatus {
    pub delay_ms: u64,
    pub remaining_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CommandRequest {
    /// Moves a group. Without `to`: to the node that does not run it. Answered when it is online there.
    Switchover {
        group: String,
        to: Option<String>,
    },
    /// Starts a group on the node that is asked. `peer_down`: the operator's word that the silent other
    /// node is really down. `force`: the operator's word that the data of its mirrors here is the truth, whatever the other
    /// node has beyond it.
    GroupStart {
        group: String,
        #[serde(default)]
        peer_down: bool,
        #[serde(default)]
        force: bool,
    },
    /// Stops a group wherever it runs, and keeps it stopped until `group-start`.
    GroupStop {
        group: String,
    },
    /// After both nodes were active: `keep` goes on, the other stops the group and gives up what it wrote.
    GroupResolve {
        group: String,
        keep: String,
    },
    /// Groups leave the node and none starts there.
    NodeStandby {
        node: String,
    },
    NodeActive {
        node: String,
    },
    MonitorSuspend,
    MonitorResume,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReply {
    pub message: String,
    /// Of a switchover: from the last moment online there to the first online here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_service_ms: Option<u64>,
}

/// An alert with its number, time and node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlertRecord {
    pub number: u64,
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    pub node: String,
    #[serde(flatten)]
    pub alert: Alert,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlertPage {
    pub alerts: Vec<AlertRecord>,
    /// Pass as `after` next time.
    pub next: u64,
    /// Alerts between `after` and the first one here that are no longer kept.
    pub dropped: u64,
}
