//! What must hold between the agent's keys, and between them and the rest of the file.

mod group;
mod monitor;

use std::collections::HashMap;

use super::authority::{DraftStopKind, TIMEOUTS_IN_A_LEASE_MIN};
use super::partition::{
    DraftHeartbeat, DraftPath, DraftResolverKind, HEARTBEAT_PATHS_MAX, RESOLVERS_MAX,
};
use super::{BEAT_ITEMS_MAX, addresses, delay};
use crate::config::draft::Draft;
use crate::config::problem::{Collector, Located};
use crate::config::section::nearest_of;

/// Heartbeats that must be lost in a row, at least, before the other node counts as lost.
const INTERVALS_IN_A_TIMEOUT_MIN: u32 = 3;

/// Adds every violation to `problems`.
pub fn check(draft: &Draft, problems: &mut Collector) {
    let agent = &draft.agent;
    if let (Some(first), None) = (&agent.first, &agent.heartbeat) {
        problems.add(
            Some(first.line),
            first.value,
            "this section is for the high-availability agent, but there is no [heartbeat]",
            "add [heartbeat] with a [[heartbeat.path]] or two, or remove the agent's sections; \
             mirrors work without them",
        );
    }
    if let Some(heartbeat) = &agent.heartbeat {
        check_heartbeat(draft, heartbeat, problems);
    }
    check_resolvers(draft, problems);
    check_authority(draft, problems);
    let names = agent.groups.iter().map(|group| group.name.as_ref());
    check_names("group", names, problems);
    let mut taken = group::Taken::default();
    for group in &agent.groups {
        group::check(draft, group, problems);
        for resource in &group.resources {
            group::check_resource(draft, group, resource, &mut taken, problems);
        }
    }
    let names = agent.monitors.iter().map(|monitor| monitor.name.as_ref());
    check_names("monitor", names, problems);
    for monitor in &agent.monitors {
        monitor::check(draft, monitor, problems);
    }
}

fn check_names<'a>(
    title: &str,
    names: impl Iterator<Item = Option<&'a Located<String>>>,
    problems: &mut Collector,
) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for name in names.flatten() {
        if let Some(first) = seen.insert(&name.value, name.line) {
            problems.add(
                Some(name.line),
                format!("{title} name"),
                format!("{:?} is on line {first} too", name.value),
                "give each its own name",
            );
        }
    }
}

fn node_names(draft: &Draft) -> Vec<&str> {
    draft.nodes.iter().map(|node| node.value.as_str()).collect()
}

fn check_heartbeat(draft: &Draft, heartbeat: &DraftHeartbeat, problems: &mut Collector) {
    let count = heartbeat.paths.len();
    if count == 0 || count > HEARTBEAT_PATHS_MAX {
        problems.add(
            Some(heartbeat.line),
            "heartbeat.path",
            format!("there are {count} paths"),
            format!(
                "write 1 to {HEARTBEAT_PATHS_MAX} [[heartbeat.path]] sections, each with a name \
                 and on = {{ server1 = \"ADDRESS:PORT\", server2 = \"ADDRESS:PORT\" }}"
            ),
        );
    }
    let mirrors: Vec<usize> = draft.mirrors.iter().map(|mirror| mirror.line).collect();
    let groups: Vec<usize> = draft.agent.groups.iter().map(|group| group.line).collect();
    for (title, lines) in [("mirror", mirrors), ("group", groups)] {
        if let Some(line) = lines.get(BEAT_ITEMS_MAX) {
            problems.add(
                Some(*line),
                title,
                format!("there are {} of them, and a heartbeat has room for {BEAT_ITEMS_MAX}", lines.len()),
                format!("write at most {BEAT_ITEMS_MAX} [[{title}]] sections where there is a [heartbeat]"),
            );
        }
    }
    let least = heartbeat.interval.value * INTERVALS_IN_A_TIMEOUT_MIN;
    if heartbeat.timeout.value < least {
        problems.add(
            Some(heartbeat.timeout.line),
            "heartbeat timeout",
            format!(
                "{} is less than {INTERVALS_IN_A_TIMEOUT_MIN} intervals of {}, so that one lost \
                 datagram and some delay would end in a failover",
                delay::shown(heartbeat.timeout.value),
                delay::shown(heartbeat.interval.value)
            ),
            format!("write at least {}", delay::shown(least)),
        );
    }
    let names = heartbeat.paths.iter().map(|path| path.name.as_ref());
    check_names("heartbeat.path", names, problems);
    for path in &heartbeat.paths {
        if let Some(on) = &path.on {
            on.check(&node_names(draft), problems);
        }
        check_path_ends(draft, path, problems);
    }
    addresses::check_heartbeats(draft, problems);
}

fn check_path_ends(draft: &Draft, path: &DraftPath, problems: &mut Collector) {
    let of = |node: &Located<String>| path.on.as_ref()?.of(&node.value);
    for node in &draft.nodes {
        if let Some(address) = of(node)
            && (address.value.ip().is_unspecified() || address.value.ip().is_multicast())
        {
            problems.add(
                Some(address.line),
                format!("{} on {:?}", path.title(), node.value),
                format!(
                    "{} is no address that the other node can send to",
                    address.value
                ),
                "write the address that this node has on the network of this path",
            );
        }
    }
    let [first, second] = &draft.nodes[..] else {
        return;
    };
    let (Some(one), Some(other)) = (of(first), of(second)) else {
        return;
    };
    let mut refuse = |message: String, remedy: &str| {
        problems.add(Some(other.line), path.title(), message, remedy);
    };
    let (one, other) = (one.value, other.value);
    if one == other {
        refuse(
            format!("{other} is the address of both nodes"),
            "give each node its own address, or on one machine its own port",
        );
    } else if one.is_ipv4() != other.is_ipv4() {
        refuse(
            format!("{one} and {other} are of different families"),
            "write two IPv4 or two IPv6 addresses",
        );
    } else if one.ip().is_loopback() != other.ip().is_loopback() {
        refuse(
            format!("one of {one} and {other} is on loopback, which the other node cannot reach"),
            "write the address that the node has on the network of this path",
        );
    }
}

fn check_resolvers(draft: &Draft, problems: &mut Collector) {
    let partition = &draft.agent.partition;
    if partition.resolvers.len() > RESOLVERS_MAX {
        problems.add(
            partition.line,
            "partition.resolver",
            format!("there are {} resolvers", partition.resolvers.len()),
            format!("write at most {RESOLVERS_MAX}"),
        );
    }
    let names = partition
        .resolvers
        .iter()
        .map(|resolver| resolver.name.as_ref());
    check_names("partition.resolver", names, problems);
    for resolver in &partition.resolvers {
        if let (Some(timeout), Some(heartbeat)) = (&resolver.timeout, &draft.agent.heartbeat)
            && timeout.value > heartbeat.timeout.value
        {
            problems.add(
                Some(timeout.line),
                format!("{} timeout", resolver.title()),
                format!(
                    "{} is longer than the heartbeat timeout of {}, so that there would be no \
                     answer when one is needed",
                    delay::shown(timeout.value),
                    delay::shown(heartbeat.timeout.value)
                ),
                "write a shorter one; seconds are usual",
            );
        }
        let Some(kind) = &resolver.kind else { continue };
        let mut refuse = |message: &str, remedy: &str| {
            problems.add(Some(kind.line), resolver.title(), message, remedy);
        };
        let has_arbiter = draft.agent.arbiter.is_some();
        match &kind.value {
            DraftResolverKind::Witness if !has_arbiter => refuse(
                "there is no witness to ask",
                "add [arbiter] with the url of a mirror-witness on a third host",
            ),
            DraftResolverKind::Majority if !has_arbiter => refuse(
                "two nodes alone have no majority: neither is more than half",
                "add [arbiter] with the url of a mirror-witness on a third host, which votes too",
            ),
            DraftResolverKind::None if partition.resolvers.len() > 1 => refuse(
                "\"none\" stands beside other resolvers",
                "remove it, or the others",
            ),
            DraftResolverKind::Ping { targets, .. } => {
                for target in targets {
                    if target.value.is_unspecified() || target.value.is_multicast() {
                        problems.add(
                            Some(target.line),
                            format!("{} targets", resolver.title()),
                            format!("{} is not the address of one device", target.value),
                            "write the address of a device that always answers, such as a router",
                        );
                    }
                }
            }
            _ => {}
        }
    }
}

fn check_authority(draft: &Draft, problems: &mut Collector) {
    let agent = &draft.agent;
    if let Some(stop) = &agent.forced_stop
        && let DraftStopKind::Aws { instances, .. } = &stop.kind
        && let Some(instances) = instances
    {
        instances.check(&node_names(draft), problems);
        if let [first, second] = &draft.nodes[..]
            && let Some(one) = instances.of(&first.value)
            && let Some(other) = instances.of(&second.value)
            && one.value.value == other.value.value
        {
            problems.add(
                Some(other.value.line),
                format!("{} {:?} instance", instances.title, second.value),
                format!("{} is the instance of both nodes", other.value.value),
                "write the id of each node's own instance; with one for both, a node would stop \
                 itself",
            );
        }
    }
    if let Some(arbiter) = &agent.arbiter {
        let timeout = arbiter.timeout();
        let least = timeout * TIMEOUTS_IN_A_LEASE_MIN;
        if arbiter.lease.value < least {
            let at = arbiter
                .timeout
                .as_ref()
                .map_or(arbiter.lease.line, |timeout| timeout.line);
            problems.add(
                Some(at),
                "arbiter lease",
                format!(
                    "a lease of {} has no room for two attempts of {} to renew it before I/O must \
                     freeze",
                    delay::shown(arbiter.lease.value),
                    delay::shown(timeout)
                ),
                format!(
                    "write a lease of at least {}, or a shorter timeout",
                    delay::shown(least)
                ),
            );
        }
    }
}

fn check_mirror(draft: &Draft, title: &str, mirror: &Located<String>, problems: &mut Collector) {
    let names = || {
        draft
            .mirrors
            .iter()
            .filter_map(|mirror| mirror.name.as_ref())
    };
    if !names().any(|name| name.value == mirror.value) {
        problems.add(
            Some(mirror.line),
            format!("{title} mirror"),
            format!("{:?} is no mirror of this file", mirror.value),
            nearest_of(&mirror.value, names().map(|name| name.value.as_str())),
        );
    }
}
