//! The kinds of cluster that are simulated, and what they are configured with. Times are those of the
//! field, divided by ten or so.

use std::time::Duration;

use agent::fencing::FencingConfig;
use agent::group::{GroupConfig, ResourceConfig};
use agent::membership::{BeatKey, MembershipConfig};
use agent::monitor::MonitorConfig;
use agent::node::config::{
    ArbiterConfig, ForcedStopConfig, MirrorConfig, NodeConfig, PlacedGroup, Reach, ResolverConfig,
};
use agent::node::failures::Patience;
use mirror_core::link::preface::ClusterKey;
use mirror_core::units::Uuid;
use nbd_frontend::config::agent::{FinalAction, Need};

use super::network::PATHS;

pub const NAMES: [&str; 2] = ["alpha", "beta"];
pub const GROUP: &str = "service";
pub const MIRROR: &str = "md1";
/// Places of the group's resources.
pub const DISK: usize = 0;
pub const APPLICATION: usize = 1;
/// Lives in the agent.
pub const PROBE_PORT: usize = 2;

/// What decides between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A ping resolver and a forced stop.
    Classic,
    /// Ping and a witness.
    Witness,
    WitnessAndStop,
    /// Ping alone, and mirrors that go on without their peer: both nodes may be active.
    Nothing,
}

pub const PROFILES: [Profile; 4] = [
    Profile::Classic,
    Profile::Witness,
    Profile::WitnessAndStop,
    Profile::Nothing,
];

#[derive(Debug, Clone)]
pub struct Settings {
    pub profile: Profile,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub lease_ms: u64,
    pub drift_ppm_max: u32,
    /// Answers given alone wait for a confirmation that was asked for after the work (A3).
    pub round_trip: bool,
    /// A kernel device outlives `mirrord`, which goes on with it in the epoch that it had.
    pub reinstates: bool,
    pub startup_delay_ms: u64,
    pub isolation_timeout_ms: u64,
    pub fence_delay_ms: u64,
    pub final_action: FinalAction,
    pub failback: bool,
    pub automatic_start: bool,
    pub patience: Patience,
    pub monitor_action: FinalAction,
    /// None: nobody says that a node is cut off.
    pub resolvers: Vec<Reach>,
    pub need: Need,
    /// A failover takes place although the forced stop failed; the arbiter decides alone then.
    pub failover_on_failure: bool,
    /// Longest that a stop takes from its acceptance.
    pub stop_takes_ms: u64,
    /// Longest wait for its confirmation.
    pub stop_wait_ms: u64,
}

impl Settings {
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            interval_ms: 200,
            timeout_ms: 1_500,
            lease_ms: 2_000,
            drift_ppm_max: 10_000,
            round_trip: false,
            reinstates: false,
            startup_delay_ms: 8_000,
            isolation_timeout_ms: 4_000,
            fence_delay_ms: 4_000,
            final_action: FinalAction::Reboot,
            failback: false,
            automatic_start: true,
            patience: Patience {
                failovers_max: 0,
                failover_window_ms: 60_000,
                reset_ms: None,
            },
            monitor_action: FinalAction::StopGroup,
            resolvers: vec![Reach::Ping],
            need: Need::Any,
            failover_on_failure: false,
            stop_takes_ms: 1_000,
            stop_wait_ms: 3_000,
        }
    }

    pub fn has_arbiter(&self) -> bool {
        matches!(self.profile, Profile::Witness | Profile::WitnessAndStop)
    }

    pub fn has_forced_stop(&self) -> bool {
        matches!(self.profile, Profile::Classic | Profile::WitnessAndStop)
    }

    /// The application never starts before the other node is down, whatever it may answer there.
    pub fn stops_first(&self) -> bool {
        self.has_forced_stop() && !self.failover_on_failure
    }

    pub fn is_exclusive(&self) -> bool {
        self.profile != Profile::Nothing
    }

    /// From the end of the last fault to the next answered write: a start-up after a boot, a decision
    /// about a silence, a forced stop, a stop and a start of the group, twice over for a move that was
    /// under way.
    pub fn back_in_service_ms(&self) -> u64 {
        let fencing = self.fencing().longest_ms() + 2 * self.fence_delay_ms;
        let group = 2 * (START_TIMEOUT_MS + STOP_TIMEOUT_MS);
        let decision = 4 * self.timeout_ms + 2 * self.isolation_timeout_ms;
        self.startup_delay_ms + BOOT_MS + fencing + 2 * (group + decision) + 2 * self.lease_ms
    }

    /// What `service_startup_delay = "auto"` comes to.
    pub fn startup_delay_auto_ms(&self) -> u64 {
        let stop_ms = match self.has_forced_stop() {
            true => 2 * self.fence_delay_ms + self.fencing().longest_ms(),
            false => 0,
        };
        stop_ms + self.timeout_ms + self.interval_ms
    }

    fn fencing(&self) -> FencingConfig {
        FencingConfig {
            timeout_ms: 1_000,
            retries: 1,
            stop_wait_ms: self.stop_wait_ms,
            check_interval_ms: 10_000,
        }
    }

    pub fn membership(&self, me: usize) -> MembershipConfig {
        let secret = ClusterKey::new(&[7; 32]).expect("it is long enough");
        let node = |node: usize| Uuid([node as u8 + 1; 16]);
        MembershipConfig {
            key: BeatKey::new(&secret),
            cluster: Uuid([9; 16]),
            node: node(me),
            peer: node(1 - me),
            paths: (0..PATHS).map(|path| format!("path{path}")).collect(),
            interval_ms: self.interval_ms,
            timeout_ms: self.timeout_ms,
        }
    }

    pub fn node(&self, me: usize) -> NodeConfig {
        NodeConfig {
            cluster: "simulated".into(),
            names: NAMES.map(String::from),
            me,
            config_digest: 42,
            startup_delay_ms: self.startup_delay_ms,
            resolvers: self
                .resolvers
                .iter()
                .map(|kind| ResolverConfig {
                    name: kind.name().into(),
                    kind: *kind,
                    interval_ms: 1_000,
                    timeout_ms: 400,
                })
                .collect(),
            need: self.need,
            isolation_timeout_ms: self.isolation_timeout_ms,
            final_action: self.final_action,
            arbiter: self.has_arbiter().then(|| ArbiterConfig {
                url: "http://witness".into(),
                lease_ms: self.lease_ms,
                drift_ppm_max: self.drift_ppm_max,
                timeout_ms: ASK_TIMEOUT_MS,
            }),
            forced_stop: self.has_forced_stop().then(|| ForcedStopConfig {
                kind: "custom".into(),
                fencing: self.fencing(),
                fence_delay: Duration::from_millis(self.fence_delay_ms),
                failover_on_failure: self.failover_on_failure,
            }),
            mirrors: vec![MirrorConfig {
                name: MIRROR.into(),
            }],
            groups: vec![self.group()],
            monitors: vec![MonitorConfig {
                name: "disk".into(),
                interval_ms: 1_000,
                timeout_ms: 500,
                retries: 1,
                group: Some(0),
                resource: Some(DISK),
                restarts_max: 3,
                failovers_max: 2,
                warn_only: false,
                is_own: false,
            }],
            monitor_actions: vec![self.monitor_action],
        }
    }

    /// `peer_loss = "hold"`.
    pub fn holds(&self) -> bool {
        self.profile != Profile::Nothing
    }

    fn group(&self) -> PlacedGroup {
        let resource = |name: &str, depends_on: Vec<usize>| ResourceConfig {
            name: name.into(),
            depends_on,
            start_timeout_ms: START_TIMEOUT_MS,
            stop_timeout_ms: STOP_TIMEOUT_MS,
            start_retries: 2,
        };
        PlacedGroup {
            config: GroupConfig {
                name: GROUP.into(),
                resources: vec![
                    resource("disk", Vec::new()),
                    resource("application", vec![DISK]),
                    resource("probe", vec![APPLICATION]),
                ],
            },
            kinds: vec!["mirror-disk".into(), "exec".into(), "probe-port".into()],
            nodes: vec![0, 1],
            automatic_start: self.automatic_start,
            failover: true,
            failback: self.failback,
            patience: self.patience,
            final_action: self.final_action,
            mirrors: vec![Some(0), None, None],
            in_agent: vec![false, false, true],
        }
    }
}

pub const START_TIMEOUT_MS: u64 = 4_000;
pub const STOP_TIMEOUT_MS: u64 = 3_000;
/// Longest that the driver waits for the witness.
pub const ASK_TIMEOUT_MS: u64 = 500;
/// From power to the agent's first step, at most.
pub const BOOT_MS: u64 = 6_000;
