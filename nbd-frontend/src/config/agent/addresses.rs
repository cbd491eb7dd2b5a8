//! Addresses of the whole file: who listens where, and which addresses are those of the nodes.

use std::net::{IpAddr, SocketAddr};

use super::draft::AgentDraft;
use super::group::DraftResourceKind;
use crate::config::draft::Draft;
use crate::config::problem::{Collector, Located};
use crate::config::validate::addresses_clash;

/// Probe ports, which are the same on both nodes, with what problems call each. They listen on TCP.
pub fn probes(agent: &AgentDraft) -> Vec<(Located<SocketAddr>, String)> {
    let mut found = Vec::new();
    for group in &agent.groups {
        for resource in &group.resources {
            let Some(DraftResourceKind::ProbePort { tcp, http }) = &resource.kind else {
                continue;
            };
            for (address, key) in [(tcp, "tcp"), (http, "http")] {
                if let Some(address) = address {
                    let title = format!("{} {key}", group.resource_title(resource));
                    found.push((address.clone(), title));
                }
            }
        }
    }
    found
}

/// Heartbeats listen on UDP, so that only they can clash with each other.
pub fn check_heartbeats(draft: &Draft, problems: &mut Collector) {
    let Some(heartbeat) = &draft.agent.heartbeat else {
        return;
    };
    for node in &draft.nodes {
        let mut taken: Vec<(SocketAddr, String)> = Vec::new();
        for path in &heartbeat.paths {
            let Some(address) = path.on.as_ref().and_then(|on| on.of(&node.value)) else {
                continue;
            };
            let mut owners = taken.iter();
            if let Some((_, owner)) =
                owners.find(|(other, _)| addresses_clash(*other, address.value))
            {
                problems.add(
                    Some(address.line),
                    format!("{} on {:?}", path.title(), node.value),
                    format!("{} is taken by {owner}", address.value),
                    "choose another port, and another network, or the paths fail together",
                );
            }
            let owner = format!("{} on {:?}", path.title(), node.value);
            taken.push((address.value, owner));
        }
    }
}

/// Where each node, or a group of it, is reached, with what the file calls it. An answer from one of
/// these says nothing about the network between the nodes.
pub fn inside(draft: &Draft) -> Vec<(IpAddr, String)> {
    let mut found = Vec::new();
    for mirror in &draft.mirrors {
        for side in &mirror.sides {
            let title = format!("{} on {:?}", mirror.title(), side.node.value);
            if let Some(address) = &side.replication {
                found.push((address.value.ip(), format!("the replication of {title}")));
            }
        }
    }
    for path in draft
        .agent
        .heartbeat
        .iter()
        .flat_map(|heartbeat| &heartbeat.paths)
    {
        for node in &draft.nodes {
            if let Some(address) = path.on.as_ref().and_then(|on| on.of(&node.value)) {
                let title = format!("{} on {:?}", path.title(), node.value);
                found.push((address.value.ip(), title));
            }
        }
    }
    for group in &draft.agent.groups {
        for resource in &group.resources {
            if let Some(DraftResourceKind::FloatingIp {
                address: Some(address),
                ..
            }) = &resource.kind
            {
                found.push((address.value.0, group.resource_title(resource)));
            }
        }
    }
    found
}

/// What `address` is in the cluster, if it is in it.
pub fn owner_of(address: IpAddr, draft: &Draft) -> Option<String> {
    if address.is_loopback() || address.is_unspecified() {
        return Some("this node itself".into());
    }
    let mut inside = inside(draft).into_iter();
    inside
        .find(|(own, _)| *own == address)
        .map(|(_, owner)| owner)
}

/// What the host of `url` is in the cluster, by address or by the name of a node.
pub fn owner_of_host(url: &str, draft: &Draft) -> Option<String> {
    let uri: hyper::Uri = url.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if let Ok(address) = host.parse() {
        return owner_of(address, draft);
    }
    if host == "localhost" {
        return Some("this node itself".into());
    }
    let mut nodes = draft.nodes.iter();
    let node = nodes.find(|node| node.value.eq_ignore_ascii_case(host))?;
    Some(format!("the node {:?}", node.value))
}

/// Whether the two are likely to share a network, as far as that can be told without its prefix:
/// by the first 24 bits, or the first 64 with IPv6.
pub fn probably_one_network(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        _ => false,
    }
}
