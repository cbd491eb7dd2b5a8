//! What must hold between the keys of a file. Pure: it looks at values, never at the machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use mirror_core::control::Mode;

use crate::kernel::found::DeviceNumber;

use super::draft::{Draft, DraftMirror, DraftSide};
use super::problem::{Collector, Located};
use super::section::nearest_of;
use super::{Encryption, Machine, MetadataPlace, NbdListen, PeerLoss, QueueFull, agent};

/// Adds every violation to `problems`.
pub(super) fn check(draft: &Draft, problems: &mut Collector) {
    check_nodes(draft, problems);
    check_mirror_names(draft, problems);
    for mirror in &draft.mirrors {
        check_sides_differ(mirror, problems);
        check_rates(mirror, problems);
        for side in &mirror.sides {
            check_paths(mirror, side, problems);
            check_exports(draft, mirror, side, problems);
        }
    }
    // As long as it is not clear which the two nodes are, every name of one would be held against the wrong list.
    if draft.node_pair().is_none() {
        return;
    }
    for mirror in &draft.mirrors {
        check_sides_are_the_nodes(draft, mirror, problems);
    }
    for node in &draft.nodes {
        check_addresses(draft, &node.value, problems);
        check_shared_paths(draft, &node.value, problems);
        check_shared_devices(draft, &node.value, problems);
    }
    agent::validate::check(draft, problems);
}

/// Adds what is allowed and has a price.
pub(super) fn find_weaknesses(draft: &Draft, machine: Machine, problems: &mut Collector) {
    agent::weaknesses::find(draft, machine, problems);
    for mirror in &draft.mirrors {
        let mut warn = |key: &str, message: &str, remedy: &str| {
            problems.add(
                Some(mirror.line),
                format!("{} {key}", mirror.title()),
                message,
                remedy,
            );
        };
        if draft.peer_loss(mirror) == PeerLoss::Continue && draft.agent.heartbeat.is_none() {
            warn(
                "peer_loss",
                "with \"continue\", answered writes can be lost if both nodes lose each other, \
                 both go on, and one side is given up afterwards",
                "write peer_loss = \"hold\" if waiting for an operator's word is better than that",
            );
        }
        match mirror.mode.value {
            Mode::Sync => {}
            Mode::Semisync => warn(
                "mode",
                "semisync answers a write before the peer's disk has it: if both servers lose power at once, \
                 flushed writes of the last moment can be on one disk alone, and are lost with that disk",
                "write mode = \"sync\" where no answered write may ever be lost with one server",
            ),
            Mode::Async => warn(
                "mode",
                "async answers a write before the peer has it, flushed or not: a failover loses the last of \
                 them, up to queue_size (mirrorctl mdstat shows the lag)",
                "write mode = \"sync\" where a failover must lose nothing that was answered",
            ),
        }
        let queue = [
            ("queue_size", mirror.queue_size.is_some(), Mode::Semisync),
            ("queue_full", mirror.queue_full.is_some(), Mode::Async),
            ("bandwidth_max", mirror.bandwidth_max.is_some(), Mode::Async),
        ];
        for (key, is_set, least) in queue {
            let used = mirror.mode.value == Mode::Async || mirror.mode.value == least;
            if is_set && !used {
                warn(
                    key,
                    "it says nothing in this mode",
                    "remove it, or choose another mode",
                );
            }
        }
        if mirror
            .queue_full
            .as_ref()
            .is_some_and(|full| full.value == QueueFull::Degrade)
        {
            warn(
                "queue_full",
                "with \"degrade\", a peer that does not keep up is inconsistent until it has caught up: \
                 meanwhile no failover can use it",
                "write queue_full = \"block\" if writes should rather wait",
            );
        }
        if mirror.encryption == Encryption::Off {
            warn(
                "encryption",
                "data crosses the network unencrypted",
                "remove encryption = \"off\" unless that network is trusted",
            );
        }
        if mirror.insecure && !checks_clients(draft) {
            warn(
                "insecure",
                "whoever reaches the NBD port can read and write the disk",
                "keep that port behind a firewall, or add [nbd.tls] with client_ca_file",
            );
        }
    }
}

fn side_title(mirror: &DraftMirror, side: &DraftSide) -> String {
    format!("{} on {:?}", mirror.title(), side.node.value)
}

fn check_nodes(draft: &Draft, problems: &mut Collector) {
    if draft.nodes.len() != 2 {
        problems.add(
            draft.nodes.last().map(|node| node.line),
            "node",
            format!("there are {} nodes", draft.nodes.len()),
            "a cluster has exactly two: write two [[node]] sections with a name each",
        );
    }
    for (position, node) in draft.nodes.iter().enumerate() {
        if let Some(first) = draft.nodes[..position]
            .iter()
            .find(|other| other.value == node.value)
        {
            problems.add(
                Some(node.line),
                "node name",
                format!(
                    "{:?} is the name of the node on line {} too",
                    node.value, first.line
                ),
                "give each node its own name, and check again: the rest of the file goes by them",
            );
        }
    }
}

fn check_mirror_names(draft: &Draft, problems: &mut Collector) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for name in draft
        .mirrors
        .iter()
        .filter_map(|mirror| mirror.name.as_ref())
    {
        if let Some(first) = seen.insert(&name.value, name.line) {
            problems.add(
                Some(name.line),
                "mirror name",
                format!(
                    "{:?} is the name of the mirror on line {first} too",
                    name.value
                ),
                "give each mirror its own name",
            );
        }
    }
    if draft.mirrors.is_empty() {
        problems.add(
            None,
            "mirror",
            "there is no mirror",
            "add a [[mirror]] section with a [mirror.on.NODE] section for each node",
        );
    }
}

fn check_sides_are_the_nodes(draft: &Draft, mirror: &DraftMirror, problems: &mut Collector) {
    let nodes = || draft.nodes.iter().map(|node| node.value.as_str());
    for side in &mirror.sides {
        if !nodes().any(|node| node == side.node.value) {
            problems.add(
                Some(side.node.line),
                side_title(mirror, side),
                format!("{:?} is no node of this cluster", side.node.value),
                nearest_of(&side.node.value, nodes()),
            );
        }
    }
    for node in nodes() {
        if !mirror.sides.iter().any(|side| side.node.value == node) {
            problems.add(
                Some(mirror.line),
                mirror.title(),
                format!("it has no side on {node:?}"),
                format!("add [mirror.on.{node}] with data, metadata and replication"),
            );
        }
    }
}

fn check_sides_differ(mirror: &DraftMirror, problems: &mut Collector) {
    let [first, second] = &mirror.sides[..] else {
        return;
    };
    let (Some(one), Some(other)) = (&first.replication, &second.replication) else {
        return;
    };
    if one.value == other.value {
        problems.add(
            Some(other.line),
            format!("{} replication", side_title(mirror, second)),
            format!("{} is the address of the other side too", other.value),
            "give each node its own address, or on one machine its own port",
        );
    }
    for side in &mirror.sides {
        if let Some(address) = &side.replication
            && address.value.ip().is_unspecified()
        {
            problems.add(
                Some(address.line),
                format!("{} replication", side_title(mirror, side)),
                format!(
                    "{} is no address that the other node can connect to",
                    address.value
                ),
                "write the address that this node has on the network between the nodes",
            );
        }
    }
}

/// A minimum that is not written gives way to a lower maximum.
fn check_rates(mirror: &DraftMirror, problems: &mut Collector) {
    let (Some(min), Some(max)) = (&mirror.resync_rate_min, &mirror.resync_rate_max) else {
        return;
    };
    if max.value > 0 && min.value > max.value {
        problems.add(
            Some(min.line),
            format!("{} resync_rate_min", mirror.title()),
            format!("it is above resync_rate_max, on line {}", max.line),
            "lower it to that or below, or raise resync_rate_max",
        );
    }
}

fn check_paths(mirror: &DraftMirror, side: &DraftSide, problems: &mut Collector) {
    let (Some(data), Some(metadata)) = (&side.data, &side.metadata) else {
        return;
    };
    if let MetadataPlace::Path(path) = &metadata.value
        && *path == data.value
    {
        problems.add(
            Some(metadata.line),
            format!("{} metadata", side_title(mirror, side)),
            format!("{} is the data partition itself", path.display()),
            "write \"internal\" to keep the metadata at its end, or name another partition",
        );
    }
}

fn check_exports(draft: &Draft, mirror: &DraftMirror, side: &DraftSide, problems: &mut Collector) {
    let key = || format!("{} nbd", side_title(mirror, side));
    for (position, export) in side.nbd.iter().enumerate() {
        if side.nbd[..position]
            .iter()
            .any(|other| other.value == export.value)
        {
            problems.add(
                Some(export.line),
                key(),
                "the same export is listed twice",
                "remove one",
            );
        }
        let NbdListen::Tcp(address) = export.value else {
            continue;
        };
        if address.ip().is_loopback() || mirror.insecure || checks_clients(draft) {
            continue;
        }
        let (message, remedy) = match draft.nbd_tls {
            None => (
                "would offer the disk to the network without authentication",
                "use \"unix\" or a loopback address, or add [nbd.tls] with client_ca_file, or \
                 write insecure = true on the mirror if that network is trusted",
            ),
            Some(_) => (
                "would offer the disk, over TLS but without authentication of clients, to the \
                 network",
                "add client_ca_file to [nbd.tls], or write insecure = true on the mirror if \
                 whoever is on that network may read and write the disk",
            ),
        };
        problems.add(
            Some(export.line),
            key(),
            format!("{address} {message}"),
            remedy,
        );
    }
}

/// Whether clients over TCP have to show who they are.
fn checks_clients(draft: &Draft) -> bool {
    let tls = draft.nbd_tls.as_ref();
    tls.is_some_and(|tls| tls.client_ca_file.is_some())
}

/// No two listening sockets of one node may want the same port.
fn check_addresses(draft: &Draft, node: &str, problems: &mut Collector) {
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    let mut claim = |address: Located<SocketAddr>, key: String| {
        if let Some((_, owner)) = taken
            .iter()
            .find(|(other, _)| addresses_clash(*other, address.value))
        {
            problems.add(
                Some(address.line),
                key.clone(),
                format!("{} is taken by {owner}", address.value),
                "choose another port",
            );
        }
        taken.push((address.value, key));
    };
    for (address, owner) in agent::addresses::probes(&draft.agent) {
        claim(address, owner);
    }
    for (mirror, side) in sides_of(draft, node) {
        if let Some(address) = &side.replication {
            claim(
                address.clone(),
                format!("{} replication", side_title(mirror, side)),
            );
        }
        for export in &side.nbd {
            if let NbdListen::Tcp(value) = export.value {
                let line = export.line;
                claim(
                    Located { value, line },
                    format!("{} nbd", side_title(mirror, side)),
                );
            }
        }
    }
}

pub(super) fn addresses_clash(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (any || one.ip() == other.ip())
}

/// No partition of one node may serve two mirrors.
fn check_shared_paths(draft: &Draft, node: &str, problems: &mut Collector) {
    let mut taken: HashMap<&Path, (&DraftMirror, String)> = HashMap::new();
    for (mirror, side) in sides_of(draft, node) {
        let data = side
            .data
            .iter()
            .map(|data| (data.value.as_path(), data.line, "data"));
        let metadata = side
            .metadata
            .iter()
            .filter_map(|metadata| match &metadata.value {
                MetadataPlace::Path(path) => Some((path.as_path(), metadata.line, "metadata")),
                MetadataPlace::Internal => None,
            });
        for (path, line, key) in data.chain(metadata) {
            let key = format!("{} {key}", side_title(mirror, side));
            match taken.get(path) {
                // Data and metadata of one mirror in one place: `check_paths` says it better.
                Some((owner, _)) if std::ptr::eq(*owner, mirror) => {}
                Some((_, owner)) => problems.add(
                    Some(line),
                    key,
                    format!("{} is taken by {owner}", path.display()),
                    "give each mirror its own partitions",
                ),
                None => {
                    taken.insert(path, (mirror, key));
                }
            }
        }
    }
}

/// A device serves one mirror.
fn check_shared_devices(draft: &Draft, node: &str, problems: &mut Collector) {
    let mut taken: HashMap<DeviceNumber, String> = HashMap::new();
    for (mirror, side) in sides_of(draft, node) {
        let Some(device) = &side.device else { continue };
        let key = format!("{} device", side_title(mirror, side));
        if let Some(owner) = taken.get(&device.value) {
            problems.add(
                Some(device.line),
                key,
                format!("{} is taken by {owner}", device.value.path().display()),
                "give each mirror a number of its own",
            );
        } else {
            taken.insert(device.value, key);
        }
    }
}

pub(super) fn sides_of<'a>(
    draft: &'a Draft,
    node: &'a str,
) -> impl Iterator<Item = (&'a DraftMirror, &'a DraftSide)> {
    draft.mirrors.iter().flat_map(move |mirror| {
        mirror
            .sides
            .iter()
            .filter(move |side| side.node.value == node)
            .map(move |side| (mirror, side))
    })
}
