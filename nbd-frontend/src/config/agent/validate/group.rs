//! What must hold within a group, and between the resources of all groups.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::{check_mirror, check_names, node_names};
use crate::config::agent::Attach;
use crate::config::agent::addresses;
use crate::config::agent::group::{DraftGroup, DraftMirrorDisk, DraftResource, DraftResourceKind};
use crate::config::draft::Draft;
use crate::config::problem::{Collector, Located};
use crate::config::section::nearest_of;

pub fn check(draft: &Draft, group: &DraftGroup, problems: &mut Collector) {
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
pub struct Taken<'a> {
    mirrors: HashMap<&'a str, String>,
    mounts: HashMap<&'a Path, String>,
    floating: HashMap<IpAddr, String>,
}

pub fn check_resource<'a>(
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
            if disk.attach == Attach::Kernel {
                check_devices(draft, group, &title, disk, resource.line, problems);
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

/// The kernel's way needs a device on every node that the group may run on.
fn check_devices(
    draft: &Draft,
    group: &DraftGroup,
    title: &str,
    disk: &DraftMirrorDisk,
    line: usize,
    problems: &mut Collector,
) {
    let may_run = |node: &str| match &group.nodes {
        Some(list) => list.value.iter().any(|allowed| allowed.value == node),
        None => true,
    };
    let Some(mirror) = &disk.mirror else { return };
    let mirrors = draft.mirrors.iter();
    let found =
        mirrors.filter(|found| found.name.as_ref().map(|name| &name.value) == Some(&mirror.value));
    for side in found.flat_map(|mirror| &mirror.sides) {
        if side.device.is_none() && may_run(&side.node.value) {
            problems.add(
                Some(line),
                format!("{title} attach"),
                format!(
                    "mirror {:?} has no device on {}",
                    mirror.value, side.node.value
                ),
                "add a line such as device = \"/dev/nbd0\" to its section of that node, or write \
                 attach = \"fuse\"",
            );
        }
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
