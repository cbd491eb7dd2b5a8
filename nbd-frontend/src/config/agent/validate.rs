//! What must hold between the agent's keys, and between them and the rest of the file.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::addresses;
use super::authority::{DraftStopKind, TIMEOUTS_IN_A_LEASE_MIN};
use super::group::{DraftGroup, DraftResource, DraftResourceKind};
use super::monitor::{DraftMonitor, DraftMonitorKind};
use super::partition::{
    DraftHeartbeat, DraftPath, DraftResolverKind, HEARTBEAT_PATHS_MAX, RESOLVERS_MAX,
};
use super::{FinalAction, delay};
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
    let mut taken = Taken::default();
    for group in &agent.groups {
        check_group(draft, group, problems);
        for resource in &group.resources {
            check_resource(draft, group, resource, &mut taken, problems);
        }
    }
    let names = agent.monitors.iter().map(|monitor| monitor.name.as_ref());
    check_names("monitor", names, problems);
    for monitor in &agent.monitors {
        check_monitor(draft, monitor, problems);
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

fn check_group(draft: &Draft, group: &DraftGroup, problems: &mut Collector) {
    let nodes = node_names(draft);
    if let Some(list) = &group.nodes {
        let key = || format!("{} nodes", group.title());
        if list.value.is_empty() {
            problems.add(
                Some(list.line),
                key(),
                "no node may run it",
                "name one or both nodes, the preferred one first, or remove the key",
            );
        }
        for (position, node) in list.value.iter().enumerate() {
            if !nodes.contains(&node.value.as_str()) {
                problems.add(
                    Some(node.line),
                    key(),
                    format!("{:?} is no node of this cluster", node.value),
                    nearest_of(&node.value, nodes.iter().copied()),
                );
            }
            let before = &list.value[..position];
            if before.iter().any(|other| other.value == node.value) {
                problems.add(
                    Some(node.line),
                    key(),
                    format!("{:?} is listed twice", node.value),
                    "remove one",
                );
            }
        }
    }
    if group.resources.is_empty() {
        problems.add(
            Some(group.line),
            group.title(),
            "it has no resources",
            "add [[group.resource]] sections below it, such as a mirror-disk",
        );
    }
    let names = group
        .resources
        .iter()
        .map(|resource| resource.name.as_ref());
    check_names(&format!("{} resource", group.title()), names, problems);
    for (position, resource) in group.resources.iter().enumerate() {
        check_dependencies(group, position, resource, problems);
    }
}

fn check_dependencies(
    group: &DraftGroup,
    position: usize,
    resource: &DraftResource,
    problems: &mut Collector,
) {
    let dependencies = resource.depends_on.iter().flatten();
    for (nth, dependency) in dependencies.clone().enumerate() {
        let mut refuse = |message: String, remedy: String| {
            let key = format!("{} depends_on", group.resource_title(resource));
            problems.add(Some(dependency.line), key, message, remedy);
        };
        let name = &dependency.value;
        if dependencies
            .clone()
            .take(nth)
            .any(|other| other.value == *name)
        {
            refuse(format!("{name:?} is listed twice"), "remove one".into());
            continue;
        }
        match group.position(name) {
            None => {
                let names = group
                    .resources
                    .iter()
                    .filter_map(|other| other.name.as_ref());
                refuse(
                    format!("{name:?} is no resource of this group"),
                    nearest_of(name, names.map(|name| name.value.as_str())),
                );
            }
            Some(other) if other == position => refuse(
                "it depends on itself".into(),
                "name what must be online before it".into(),
            ),
            Some(other) if other > position && leads_to(group, other, position) => refuse(
                format!("it and {name:?} depend on each other, so that neither can start first"),
                "remove one of the dependencies".into(),
            ),
            Some(other) if other > position => refuse(
                format!(
                    "{name:?} is written below it, and resources start in the order of the file"
                ),
                format!("write the section of {name:?} above this one"),
            ),
            Some(_) => {}
        }
    }
}

/// Whether the resource at `from` needs the one at `to`, by what is written alone.
fn leads_to(group: &DraftGroup, from: usize, to: usize) -> bool {
    let mut waiting = vec![from];
    let mut seen = vec![false; group.resources.len()];
    while let Some(position) = waiting.pop() {
        if position == to {
            return true;
        }
        if std::mem::replace(&mut seen[position], true) {
            continue;
        }
        let next = group.resources[position].depends_on.iter().flatten();
        waiting.extend(next.filter_map(|name| group.position(&name.value)));
    }
    false
}

/// What only one resource of the file may have, with the title of its owner.
#[derive(Debug, Default)]
struct Taken<'a> {
    mirrors: HashMap<&'a str, String>,
    mounts: HashMap<&'a Path, String>,
    floating: HashMap<IpAddr, String>,
}

fn check_resource<'a>(
    draft: &'a Draft,
    group: &'a DraftGroup,
    resource: &'a DraftResource,
    taken: &mut Taken<'a>,
    problems: &mut Collector,
) {
    let title = group.resource_title(resource);
    match &resource.kind {
        Some(DraftResourceKind::MirrorDisk(disk)) => {
            if let Some(mirror) = &disk.mirror {
                check_mirror(draft, &title, mirror, problems);
                if let Some(owner) = taken.mirrors.insert(&mirror.value, title.clone()) {
                    problems.add(
                        Some(mirror.line),
                        format!("{title} mirror"),
                        format!("{:?} belongs to {owner} already", mirror.value),
                        "give each mirror to one resource, so that it is promoted where that runs",
                    );
                }
            }
            if let Some(mount) = &disk.mount
                && let Some(owner) = taken.mounts.insert(&mount.value, title.clone())
            {
                problems.add(
                    Some(mount.line),
                    format!("{title} mount"),
                    format!("{} belongs to {owner} already", mount.value.display()),
                    "give each mirror a folder of its own",
                );
            }
        }
        Some(DraftResourceKind::FloatingIp { address, interface }) => {
            if let Some(interface) = interface {
                interface.check(&node_names(draft), problems);
            }
            if let Some(address) = address {
                check_floating(draft, &title, address, taken, problems);
            }
        }
        Some(DraftResourceKind::ProbePort {
            tcp: None,
            http: None,
        }) => problems.add(
            Some(resource.line),
            title,
            "it listens nowhere",
            "add a line such as: http = \"0.0.0.0:29010\", or tcp = \"0.0.0.0:29010\"",
        ),
        _ => {}
    }
}

fn check_floating<'a>(
    draft: &'a Draft,
    title: &str,
    address: &Located<(IpAddr, u8)>,
    taken: &mut Taken<'a>,
    problems: &mut Collector,
) {
    let (ip, _) = address.value;
    let own = addresses::inside(draft)
        .into_iter()
        .find(|(other, owner)| *other == ip && owner != title);
    let owner = match (taken.floating.insert(ip, title.into()), own) {
        (Some(owner), _) => owner,
        // Two resources with one address are reported once, at the second.
        (None, Some((_, owner))) if !owner.starts_with("group") => owner,
        _ => return,
    };
    problems.add(
        Some(address.line),
        format!("{title} address"),
        format!("{ip} is taken by {owner}"),
        "choose a free address: it moves between the nodes and stays with neither",
    );
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

fn check_monitor(draft: &Draft, monitor: &DraftMonitor, problems: &mut Collector) {
    match &monitor.kind {
        Some(
            DraftMonitorKind::MirrorDisk {
                mirror: Some(mirror),
            }
            | DraftMonitorKind::MirrorLink {
                mirror: Some(mirror),
            },
        ) => check_mirror(draft, &monitor.title(), mirror, problems),
        Some(DraftMonitorKind::NetworkLink {
            interface: Some(interface),
        }) => interface.check(&node_names(draft), problems),
        _ => {}
    }
    let Some(group) = &monitor.group else {
        refuse_without_group(monitor, problems);
        return;
    };
    let groups = &draft.agent.groups;
    let named = |group: &&DraftGroup, name: &str| {
        let own = group.name.as_ref();
        own.is_some_and(|own| own.value == name)
    };
    let Some(found) = groups.iter().find(|found| named(found, &group.value)) else {
        let names = groups.iter().filter_map(|group| group.name.as_ref());
        problems.add(
            Some(group.line),
            format!("{} group", monitor.title()),
            format!("{:?} is no group of this file", group.value),
            nearest_of(&group.value, names.map(|name| name.value.as_str())),
        );
        return;
    };
    if let Some(resource) = &monitor.resource
        && found.position(&resource.value).is_none()
    {
        let names = found
            .resources
            .iter()
            .filter_map(|other| other.name.as_ref());
        problems.add(
            Some(resource.line),
            format!("{} resource", monitor.title()),
            format!("{:?} is no resource of {}", resource.value, found.title()),
            nearest_of(&resource.value, names.map(|name| name.value.as_str())),
        );
    }
}

/// Keys that say what becomes of a group need one.
fn refuse_without_group(monitor: &DraftMonitor, problems: &mut Collector) {
    let stops_group = monitor
        .final_action
        .as_ref()
        .filter(|action| action.value == FinalAction::StopGroup);
    let counts = |count: &Option<Located<u32>>| {
        let count = count.as_ref().filter(|count| count.value > 0);
        count.map(|count| count.line)
    };
    let found = [
        ("resource", monitor.resource.as_ref().map(|name| name.line)),
        ("restarts_max", counts(&monitor.restarts_max)),
        ("failovers_max", counts(&monitor.failovers_max)),
        ("final_action", stops_group.map(|action| action.line)),
    ];
    for (key, line) in found {
        let Some(line) = line else { continue };
        problems.add(
            Some(line),
            format!("{} {key}", monitor.title()),
            "this monitor is about no group, so that there is nothing to restart, move or stop",
            "add a line such as group = \"failover1\", or remove this one",
        );
    }
}
