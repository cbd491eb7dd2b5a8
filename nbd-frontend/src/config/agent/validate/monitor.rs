//! What must hold between a monitor and what it is about.

use super::{check_mirror, node_names};
use crate::config::agent::FinalAction;
use crate::config::agent::group::DraftGroup;
use crate::config::agent::monitor::{DraftMonitor, DraftMonitorKind};
use crate::config::draft::Draft;
use crate::config::problem::{Collector, Located};
use crate::config::section::nearest_of;

pub fn check(draft: &Draft, monitor: &DraftMonitor, problems: &mut Collector) {
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
    if let Some(DraftMonitorKind::Stall { .. }) = monitor.kind {
        problems.add(
            Some(group.line),
            format!("{} group", monitor.title()),
            "a stall is one of the agent itself, wherever its groups run",
            "remove the key",
        );
    }
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
