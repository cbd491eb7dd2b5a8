//! The agent's part of the file, checked: who is heard how, who decides in a partition, who stops whom,
//! and what runs where. `mirrord` reads of it only whether an arbiter is there.
//!
//! The sections are read by the module that knows their keys into a [`draft`], with the line of what
//! is compared later; [`validate`] and [`addresses`] find what cannot be, [`weaknesses`] what can be
//! and has a price. Nothing here looks at the machine.

pub(super) mod addresses;
mod authority;
mod delay;
pub(super) mod draft;
mod group;
mod monitor;
mod partition;
pub(super) mod validate;
pub(super) mod weaknesses;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mirror_core::volume::config::LeaseCheck;

/// Most mirrors and most groups that a heartbeat has room for.
pub const BEAT_ITEMS_MAX: usize = 64;

/// Everything that `mirror-agent` needs. There is one only where the file has `[heartbeat]`.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub heartbeat: Heartbeat,
    pub partition: Partition,
    pub forced_stop: Option<ForcedStop>,
    pub arbiter: Option<Arbiter>,
    pub groups: Vec<Group>,
    pub monitors: Vec<Monitor>,
    /// `service_startup_delay`, computed where it says "auto" (A5).
    pub startup_delay: Duration,
    /// What "auto" comes to, shown beside a delay that was written.
    pub startup_delay_needed: Duration,
    /// Text lines; the same as JSON goes beside it with `.json` added.
    pub alert_log: PathBuf,
}

/// `[heartbeat]`
#[derive(Debug, Clone)]
pub struct Heartbeat {
    pub interval: Duration,
    pub timeout: Duration,
    /// In file order, which is that of `status`: every beat goes over all of them. At least one.
    pub paths: Vec<HeartbeatPath>,
}

/// `[[heartbeat.path]]`
#[derive(Debug, Clone)]
pub struct HeartbeatPath {
    pub name: String,
    /// Where each node listens and what the other sends to, in the order of the nodes.
    pub addresses: [SocketAddr; 2],
}

/// `[partition]`
#[derive(Debug, Clone)]
pub struct Partition {
    pub resolvers: Vec<Resolver>,
    /// Several resolvers: one that reaches its target is enough, or all must.
    pub need: Need,
    /// How long this node must stay cut off before its groups are stopped.
    pub isolation_timeout: Duration,
    /// What follows once they are (A1); the backstop of every step before.
    pub action: FinalAction,
}

/// `[[partition.resolver]]`
#[derive(Debug, Clone)]
pub struct Resolver {
    pub name: String,
    pub kind: ResolverKind,
    pub interval: Duration,
    /// Longest wait for one answer.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolverKind {
    Ping {
        targets: Vec<IpAddr>,
        need: Need,
    },
    Http {
        urls: Vec<String>,
        need: Need,
    },
    /// The arbiter of `[arbiter]` answers.
    Witness,
    /// More than half of the voters (both nodes and the arbiter) see each other.
    Majority,
    /// Written to say that there is none on purpose.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Any,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinalAction {
    None,
    StopGroup,
    StopService,
    StopServiceAndShutdown,
    Reboot,
    SysrqPanic,
    WatchdogReset,
}

/// `[forced_stop]`
#[derive(Debug, Clone)]
pub struct ForcedStop {
    pub kind: ForcedStopKind,
    /// Longest that one attempt may take.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// Longest wait until the stop is confirmed, after it was accepted.
    pub stop_wait: Duration,
    /// How long the node that runs no group waits before it stops the other (A2).
    pub fence_delay: Duration,
    /// How often it is tried whether a stop would work.
    pub check_interval: Duration,
    /// Go on when the stop failed. Without an arbiter both nodes can then be active.
    pub failover_on_failure: bool,
}

#[derive(Debug, Clone)]
pub enum ForcedStopKind {
    Custom {
        script: PathBuf,
    },
    Aws {
        /// Instance ids, in the order of the nodes.
        instances: [String; 2],
        action: AwsAction,
        region: Option<String>,
        endpoint: Option<String>,
        profile: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwsAction {
    Stop,
    Terminate,
}

/// `[arbiter]`
#[derive(Debug, Clone)]
pub struct Arbiter {
    pub url: String,
    pub lease: Duration,
    /// By how much the clocks of holder and arbiter may differ in rate, in parts per million.
    pub drift_ppm_max: u32,
    pub timeout: Duration,
    pub lease_check: LeaseCheck,
}

/// `[[group]]`
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    /// Nodes that may run it, by falling preference.
    pub nodes: Vec<usize>,
    pub automatic_start: bool,
    pub failover: bool,
    pub failback: bool,
    /// Failovers within [`Self::failover_window`] after which it stays where it is; 0 is no limit.
    pub failovers_max: u32,
    pub failover_window: Duration,
    /// How long a failed start keeps it from a node, and the last action of a monitor from both; absent: until an
    /// operator starts it.
    pub failure_reset: Option<Duration>,
    /// When it cannot be started anywhere, or will not stop.
    pub final_action: FinalAction,
    /// In file order; dependencies come before their dependents.
    pub resources: Vec<Resource>,
}

/// `[[group.resource]]`
#[derive(Debug, Clone)]
pub struct Resource {
    pub name: String,
    pub kind: ResourceKind,
    /// Indices of earlier resources of the group.
    pub depends_on: Vec<usize>,
    pub start_timeout: Duration,
    pub stop_timeout: Duration,
    /// Attempts after the first before a start counts as failed.
    pub start_retries: u32,
}

#[derive(Debug, Clone)]
pub enum ResourceKind {
    MirrorDisk(MirrorDisk),
    FloatingIp(FloatingIp),
    /// Commands with their arguments; no shell.
    Exec {
        start: Vec<String>,
        stop: Vec<String>,
        /// Asked whether it runs; exit code 0 is yes.
        check: Option<Vec<String>>,
    },
    Systemd {
        unit: String,
    },
    ProbePort(ProbePort),
}

#[derive(Debug, Clone)]
pub struct MirrorDisk {
    /// Name of the `[[mirror]]`.
    pub mirror: String,
    pub attach: Attach,
    /// Absent: the device is attached and not mounted.
    pub mount: Option<PathBuf>,
    pub filesystem: Filesystem,
    pub options: String,
    pub fsck: Fsck,
    /// Longest that fsck may take.
    pub fsck_timeout: Duration,
    /// Attempts of an unmount before its users are killed.
    pub unmount_retries: u32,
    pub unmount_interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// `/dev/nbdN` of the kernel.
    Kernel,
    /// `nbdfuse` and a loop device.
    Fuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    Ext4,
    Xfs,
}

/// When the file system is checked before it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsck {
    Always,
    /// After an unclean stop: the journal alone otherwise.
    Auto,
    Never,
}

#[derive(Debug, Clone)]
pub struct FloatingIp {
    pub address: IpAddr,
    pub prefix: u8,
    /// Interface of each node, in the order of the nodes.
    pub interfaces: [String; 2],
}

/// Tells load balancers where the group is online.
#[derive(Debug, Clone)]
pub struct ProbePort {
    /// Accepts connections only while the group is online here.
    pub tcp: Option<SocketAddr>,
    /// Answers `GET` with 200 while the group is online here, and 503 otherwise.
    pub http: Option<SocketAddr>,
}

/// `[[monitor]]`
#[derive(Debug, Clone)]
pub struct Monitor {
    pub name: String,
    pub kind: MonitorKind,
    pub interval: Duration,
    pub timeout: Duration,
    /// Faults in a row, after the first, before anything is done.
    pub retries: u32,
    /// The group that it is about: it runs only while that is online here.
    pub group: Option<usize>,
    /// What is restarted: one resource of the group, or all of it.
    pub resource: Option<usize>,
    /// Restarts before the group fails over.
    pub restarts_max: u32,
    /// Failovers before the final action.
    pub failovers_max: u32,
    pub final_action: FinalAction,
    /// Only warn.
    pub warn_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorKind {
    MirrorDisk {
        mirror: String,
    },
    MirrorLink {
        mirror: String,
    },
    /// A process whose command line begins so.
    Process {
        command: String,
        count_min: u32,
    },
    Exec {
        command: Vec<String>,
    },
    Tcp {
        address: SocketAddr,
    },
    Http {
        url: String,
        status: u16,
    },
    /// Carrier of a network interface, by node.
    NetworkLink {
        interfaces: [String; 2],
    },
    /// Writes a block to a file in this folder, syncs it and reads it back.
    Disk {
        folder: PathBuf,
    },
    /// This agent's own progress; feeds the kernel's watchdog while all is well.
    Stall {
        watchdog: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests;
