//! The settings a node decides by: checked values, made by the driver from the configuration.

use std::time::Duration;

use nbd_frontend::config::agent::{FinalAction, Need};

use super::failures::Patience;
use crate::fencing::FencingConfig;
use crate::group::GroupConfig;
use crate::monitor::MonitorConfig;

#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub cluster: String,
    pub names: [String; 2],
    /// Which of the two this is.
    pub me: usize,
    /// Over everything that both nodes must agree on.
    pub config_digest: u64,
    pub startup_delay_ms: u64,
    pub resolvers: Vec<ResolverConfig>,
    pub need: Need,
    pub isolation_timeout_ms: u64,
    pub final_action: FinalAction,
    pub arbiter: Option<ArbiterConfig>,
    pub forced_stop: Option<ForcedStopConfig>,
    pub mirrors: Vec<MirrorConfig>,
    pub groups: Vec<PlacedGroup>,
    pub monitors: Vec<MonitorConfig>,
    /// Final action of each monitor.
    pub monitor_actions: Vec<FinalAction>,
}

impl NodeConfig {
    pub fn peer_name(&self) -> &str {
        &self.names[1 - self.me]
    }

    pub fn my_name(&self) -> &str {
        &self.names[self.me]
    }
}

#[derive(Debug, Clone)]
pub struct ResolverConfig {
    pub name: String,
    pub kind: Reach,
    pub interval_ms: u64,
    pub timeout_ms: u64,
}

/// How a resolver's target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The driver probes it.
    Ping,
    Http,
    /// The arbiter answers a call.
    Arbiter,
    /// Two of the three, both nodes and the arbiter, see each other: with the peer silent, that is the
    /// arbiter again, named for what it means.
    Majority,
}

impl Reach {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Http => "http",
            Self::Arbiter => "witness",
            Self::Majority => "majority",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ArbiterConfig {
    pub url: String,
    pub lease_ms: u64,
    pub drift_ppm_max: u32,
    pub timeout_ms: u64,
}

impl ArbiterConfig {
    /// How long the holder trusts a lease, counted from sending the request: what is left when its own
    /// clock runs slow and the arbiter's fast, each by the greatest drift there may be.
    pub fn trusted_ms(&self) -> u64 {
        let margin = self.lease_ms * 2 * u64::from(self.drift_ppm_max) / 1_000_000 + 1;
        self.lease_ms.saturating_sub(margin)
    }
}

#[derive(Debug, Clone)]
pub struct ForcedStopConfig {
    pub kind: String,
    pub fencing: FencingConfig,
    pub fence_delay: Duration,
    pub failover_on_failure: bool,
}

#[derive(Debug, Clone)]
pub struct MirrorConfig {
    pub name: String,
}

#[derive(Debug, Clone)]
pub struct PlacedGroup {
    pub config: GroupConfig,
    /// Kinds of its resources, for people.
    pub kinds: Vec<String>,
    /// Nodes that may run it, by falling preference.
    pub nodes: Vec<usize>,
    pub automatic_start: bool,
    pub failover: bool,
    pub failback: bool,
    pub patience: Patience,
    pub final_action: FinalAction,
    /// The mirror of each resource that is a mirror disk.
    pub mirrors: Vec<Option<usize>>,
    /// Of each resource: it lives in the agent, and ends with it whatever becomes of the others.
    pub in_agent: Vec<bool>,
}
