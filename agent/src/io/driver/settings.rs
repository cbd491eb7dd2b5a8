//! From the checked configuration to what the node decides by.

use std::time::Duration;

use nbd_frontend::config::agent::{
    AgentConfig, Group, MonitorKind, ResolverKind, Resource, ResourceKind,
};
use nbd_frontend::config::{ClusterKey, Config};
use sha2::{Digest, Sha256};

use crate::fencing::FencingConfig;
use crate::group::{GroupConfig, ResourceConfig};
use crate::membership::{BeatKey, MembershipConfig};
use crate::monitor::MonitorConfig;
use crate::node::config::{
    ArbiterConfig, ForcedStopConfig, MirrorConfig, NodeConfig, PlacedGroup, Reach, ResolverConfig,
};
use crate::node::failures::Patience;
use nbd_frontend::config::agent::ForcedStopKind;

pub fn membership(
    config: &Config,
    agent: &AgentConfig,
    me: usize,
    key: &ClusterKey,
) -> MembershipConfig {
    MembershipConfig {
        key: BeatKey::new(key),
        cluster: config.cluster_id(),
        node: config.node_id(me),
        peer: config.node_id(1 - me),
        paths: agent
            .heartbeat
            .paths
            .iter()
            .map(|path| path.name.clone())
            .collect(),
        interval_ms: ms(agent.heartbeat.interval),
        timeout_ms: ms(agent.heartbeat.timeout),
    }
}

pub fn node(config: &Config, agent: &AgentConfig, me: usize) -> NodeConfig {
    NodeConfig {
        cluster: config.cluster.clone(),
        names: config.nodes.clone(),
        me,
        config_digest: digest(config, agent),
        startup_delay_ms: ms(agent.startup_delay),
        resolvers: resolvers(agent),
        need: agent.partition.need,
        isolation_timeout_ms: ms(agent.partition.isolation_timeout),
        final_action: agent.partition.action,
        arbiter: agent.arbiter.as_ref().map(|arbiter| ArbiterConfig {
            url: arbiter.url.clone(),
            lease_ms: ms(arbiter.lease),
            drift_ppm_max: arbiter.drift_ppm_max,
            timeout_ms: ms(arbiter.timeout),
        }),
        forced_stop: agent.forced_stop.as_ref().map(|stop| ForcedStopConfig {
            kind: match stop.kind {
                ForcedStopKind::Custom { .. } => "custom".into(),
                ForcedStopKind::Aws { .. } => "aws".into(),
            },
            fencing: FencingConfig::from(stop),
            fence_delay: stop.fence_delay,
            failover_on_failure: stop.failover_on_failure,
        }),
        mirrors: config
            .mirrors
            .iter()
            .map(|mirror| MirrorConfig {
                name: mirror.name.clone(),
            })
            .collect(),
        groups: agent
            .groups
            .iter()
            .map(|group| placed(config, group))
            .collect(),
        monitors: agent
            .monitors
            .iter()
            .map(|monitor| MonitorConfig {
                name: monitor.name.clone(),
                interval_ms: ms(monitor.interval),
                timeout_ms: ms(monitor.timeout),
                retries: monitor.retries,
                group: monitor.group,
                resource: monitor.resource,
                restarts_max: monitor.restarts_max,
                failovers_max: monitor.failovers_max,
                warn_only: monitor.warn_only,
                is_own: matches!(monitor.kind, MonitorKind::Stall { .. }),
            })
            .collect(),
        monitor_actions: agent
            .monitors
            .iter()
            .map(|monitor| monitor.final_action)
            .collect(),
    }
}

/// Shortest of what the driver must be on time for.
pub fn tick(agent: &AgentConfig) -> Duration {
    let longest = Duration::from_millis(crate::node::event::TICK_MS);
    (agent.heartbeat.interval / 4).clamp(Duration::from_millis(2), longest)
}

/// What each monitor is, for people.
pub fn monitor_kinds(agent: &AgentConfig) -> Vec<String> {
    let name = |kind: &MonitorKind| match kind {
        MonitorKind::MirrorDisk { .. } => "mirror disk",
        MonitorKind::MirrorLink { .. } => "mirror link",
        MonitorKind::Process { .. } => "process",
        MonitorKind::Exec { .. } => "exec",
        MonitorKind::Tcp { .. } => "TCP",
        MonitorKind::Http { .. } => "HTTP",
        MonitorKind::NetworkLink { .. } => "network link",
        MonitorKind::Disk { .. } => "disk",
        MonitorKind::Stall { .. } => "stall",
    };
    agent
        .monitors
        .iter()
        .map(|monitor| name(&monitor.kind).to_owned())
        .collect()
}

fn placed(config: &Config, group: &Group) -> PlacedGroup {
    let mirror_of = |resource: &Resource| match &resource.kind {
        ResourceKind::MirrorDisk(disk) => config
            .mirrors
            .iter()
            .position(|mirror| mirror.name == disk.mirror),
        _ => None,
    };
    let kind_of = |resource: &Resource| match &resource.kind {
        ResourceKind::MirrorDisk(_) => "mirror-disk",
        ResourceKind::FloatingIp(_) => "floating-ip",
        ResourceKind::Exec { .. } => "exec",
        ResourceKind::Systemd { .. } => "systemd",
        ResourceKind::ProbePort(_) => "probe-port",
    };
    PlacedGroup {
        config: GroupConfig {
            name: group.name.clone(),
            resources: group
                .resources
                .iter()
                .map(|resource| ResourceConfig {
                    name: resource.name.clone(),
                    depends_on: resource.depends_on.clone(),
                    start_timeout_ms: ms(resource.start_timeout),
                    stop_timeout_ms: ms(resource.stop_timeout),
                    start_retries: resource.start_retries,
                })
                .collect(),
        },
        kinds: group
            .resources
            .iter()
            .map(|resource| kind_of(resource).to_owned())
            .collect(),
        nodes: group.nodes.clone(),
        automatic_start: group.automatic_start,
        failover: group.failover,
        failback: group.failback,
        patience: Patience {
            failovers_max: group.failovers_max,
            failover_window_ms: ms(group.failover_window),
            reset_ms: group.failure_reset.map(ms),
        },
        final_action: group.final_action,
        mirrors: group.resources.iter().map(mirror_of).collect(),
        in_agent: group
            .resources
            .iter()
            .map(|resource| matches!(resource.kind, ResourceKind::ProbePort(_)))
            .collect(),
    }
}

fn resolvers(agent: &AgentConfig) -> Vec<ResolverConfig> {
    agent
        .partition
        .resolvers
        .iter()
        .filter_map(|resolver| {
            let kind = match resolver.kind {
                ResolverKind::Ping { .. } => Reach::Ping,
                ResolverKind::Http { .. } => Reach::Http,
                ResolverKind::Witness => Reach::Arbiter,
                ResolverKind::Majority => Reach::Majority,
                ResolverKind::None => return None,
            };
            Some(ResolverConfig {
                name: resolver.name.clone(),
                kind,
                interval_ms: ms(resolver.interval),
                timeout_ms: ms(resolver.timeout),
            })
        })
        .collect()
}

/// Over what the places in a report stand for: with another file they would mean other things.
fn digest(config: &Config, agent: &AgentConfig) -> u64 {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    config.nodes.iter().for_each(|node| add(node));
    add("mirrors");
    config.mirrors.iter().for_each(|mirror| add(&mirror.name));
    add("groups");
    for group in &agent.groups {
        add(&group.name);
        for node in &group.nodes {
            add(&config.nodes[*node]);
        }
        for resource in &group.resources {
            add(&resource.name);
        }
    }
    let digest = hash.finalize();
    u64::from_le_bytes(digest[..8].try_into().expect("it has 32 bytes"))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("the configuration bounds every duration")
}
