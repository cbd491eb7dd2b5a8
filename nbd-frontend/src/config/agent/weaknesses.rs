//! What is allowed and has a price; above all, every set-up in which both nodes can become active.

use mirror_core::volume::config::LeaseCheck;

use super::Fsck;
use super::addresses::{owner_of, owner_of_host, probably_one_network};
use super::authority::DraftStopKind;
use super::delay::{Sum, shown};
use super::draft::{AgentDraft, StartupDelay};
use super::group::{DraftGroup, DraftResourceKind};
use super::partition::{DraftHeartbeat, DraftResolverKind};
use crate::config::draft::Draft;
use crate::config::problem::Collector;
use crate::config::{Machine, PeerLoss};

/// Adds a warning for each.
pub fn find(draft: &Draft, machine: Machine, warnings: &mut Collector) {
    let agent = &draft.agent;
    let Some(heartbeat) = &agent.heartbeat else {
        return;
    };
    find_no_resolver(agent, heartbeat, warnings);
    find_resolvers_inside(draft, warnings);
    find_no_authority(agent, heartbeat, warnings);
    find_unsafe_stop(agent, heartbeat, warnings);
    find_short_delay(agent, warnings);
    find_going_on_alone(draft, warnings);
    find_arbiter_in_doubt(draft, heartbeat, machine, warnings);
    find_paths_in_common(draft, heartbeat, warnings);
    find_mirrors_without_group(draft, warnings);
    for group in &agent.groups {
        find_group_in_doubt(group, warnings);
    }
}

fn find_no_resolver(agent: &AgentDraft, heartbeat: &DraftHeartbeat, warnings: &mut Collector) {
    let resolvers = &agent.partition.resolvers;
    let none = resolvers.iter().find(|resolver| {
        let kind = resolver.kind.as_ref();
        kind.is_some_and(|kind| kind.value == DraftResolverKind::None)
    });
    if none.is_none() && !resolvers.is_empty() {
        return;
    }
    let (line, key) = match none {
        Some(resolver) => (resolver.line, resolver.title()),
        None => (
            agent.partition.line.unwrap_or(heartbeat.line),
            "partition.resolver".into(),
        ),
    };
    let (message, remedy) = if agent.arbiter.is_some() {
        (
            "there is no network-partition resolver: a node that is cut off freezes when its lease \
             runs out, but does not stop its groups",
            "add [[partition.resolver]] with kind = \"witness\"",
        )
    } else {
        (
            "there is no network-partition resolver: a node that is cut off takes the other one for \
             dead, and both nodes can become active",
            "add [[partition.resolver]] with kind = \"ping\" and a device on the network of the \
             clients, or [arbiter] and kind = \"witness\"",
        )
    };
    warnings.add(Some(line), key, message, remedy);
}

fn find_resolvers_inside(draft: &Draft, warnings: &mut Collector) {
    for resolver in &draft.agent.partition.resolvers {
        let owners: Vec<(usize, String, Option<String>)> = match &resolver.kind {
            Some(kind) => match &kind.value {
                DraftResolverKind::Ping { targets, .. } => targets
                    .iter()
                    .map(|target| {
                        let owner = owner_of(target.value, draft);
                        (target.line, target.value.to_string(), owner)
                    })
                    .collect(),
                DraftResolverKind::Http { targets, .. } => targets
                    .iter()
                    .map(|target| {
                        let owner = owner_of_host(&target.value, draft);
                        (target.line, target.value.clone(), owner)
                    })
                    .collect(),
                _ => Vec::new(),
            },
            None => Vec::new(),
        };
        for (line, target, owner) in owners {
            let Some(owner) = owner else { continue };
            warnings.add(
                Some(line),
                format!("{} targets", resolver.title()),
                format!(
                    "{target} is inside the cluster ({owner}): a node that is cut off still \
                     reaches what is its own, so that both nodes can become active"
                ),
                "name a device outside the cluster that always answers, such as the router of the \
                 clients' network",
            );
        }
    }
}

fn find_no_authority(agent: &AgentDraft, heartbeat: &DraftHeartbeat, warnings: &mut Collector) {
    if agent.forced_stop.is_some() || agent.arbiter.is_some() {
        return;
    }
    warnings.add(
        Some(heartbeat.line),
        "heartbeat",
        "there is neither a forced stop nor an arbiter: if the nodes lose each other while both \
         still reach their resolvers, both nodes can become active",
        "add [arbiter] with a mirror-witness on a third host, or [forced_stop]",
    );
}

fn find_unsafe_stop(agent: &AgentDraft, heartbeat: &DraftHeartbeat, warnings: &mut Collector) {
    let Some(stop) = &agent.forced_stop else {
        return;
    };
    if agent.arbiter.is_some() {
        return;
    }
    if stop.failover_on_failure.value {
        warnings.add(
            Some(stop.failover_on_failure.line),
            "forced_stop failover_on_failure",
            "the group fails over although the stop of the other node failed, and there is no \
             arbiter to ask: both nodes can become active",
            "remove failover_on_failure, or add [arbiter]",
        );
    }
    let interval = heartbeat.interval.value;
    let delay = stop.fence_delay(interval, false);
    let hits_within = stop.hits_within();
    if delay.value < interval + hits_within {
        let quicker = match stop.kind {
            DraftStopKind::Custom { .. } => ", or the `timeout` that the script really needs",
            DraftStopKind::Aws { .. } => "",
        };
        warnings.add(
            Some(delay.line),
            "forced_stop fence_delay",
            format!(
                "{} is less than one heartbeat interval of {} and the {} that a stop may take until \
                 it hits: two nodes that lose each other can stop each other, and nothing is left \
                 running",
                shown(delay.value),
                shown(interval),
                shown(hits_within)
            ),
            format!(
                "write {} or more{quicker}, or add [arbiter]",
                shown(stop.fence_delay_safe(interval))
            ),
        );
    }
}

fn find_short_delay(agent: &AgentDraft, warnings: &mut Collector) {
    let (Some(written), Some(sum)) = (&agent.startup_delay, Sum::of_draft(agent)) else {
        return;
    };
    let StartupDelay::Written(delay) = written.value else {
        return;
    };
    if delay >= sum.total() {
        return;
    }
    warnings.add(
        Some(written.line),
        "agent service_startup_delay",
        format!(
            "{} is too short ({sum}): a node that comes back can start its groups while the other \
             one is still about to take them over, so that both nodes can become active or the \
             forced stop hits a node that is starting",
            shown(delay)
        ),
        "write \"auto\", or that sum",
    );
}

fn find_going_on_alone(draft: &Draft, warnings: &mut Collector) {
    for mirror in &draft.mirrors {
        if draft.peer_loss(mirror) != PeerLoss::Continue {
            continue;
        }
        let line = mirror
            .peer_loss
            .as_ref()
            .map_or(mirror.line, |written| written.line);
        let message = "with \"continue\", a primary that loses its peer goes on at once, before \
                       anybody knows that the peer does not: both nodes can become active, and \
                       answered writes of one of them are then lost";
        let remedy = if draft.agent.finds_out_about_the_peer() {
            "remove peer_loss, which is \"hold\" beside a forced stop or an arbiter"
        } else {
            "add [arbiter] or [forced_stop], beside which \"hold\" is the default, or write \
             peer_loss = \"hold\" and wait for an operator's word instead"
        };
        warnings.add(
            Some(line),
            format!("{} peer_loss", mirror.title()),
            message,
            remedy,
        );
    }
}

fn find_arbiter_in_doubt(
    draft: &Draft,
    heartbeat: &DraftHeartbeat,
    machine: Machine,
    warnings: &mut Collector,
) {
    let Some(arbiter) = &draft.agent.arbiter else {
        return;
    };
    if let Some(url) = &arbiter.url
        && let Some(owner) = owner_of_host(&url.value, draft)
    {
        warnings.add(
            Some(url.line),
            "arbiter url",
            format!(
                "the arbiter is inside the cluster ({owner}): when that node is lost, the other \
                 one gets no lease and stops too"
            ),
            "run mirror-witness on a third host",
        );
    }
    let stop = draft.agent.forced_stop.as_ref();
    let unfenced = stop.is_none_or(|stop| stop.failover_on_failure.value);
    if arbiter.lease_check(machine) == LeaseCheck::Clock && machine == Machine::Virtual && unfenced
    {
        let line = arbiter
            .lease_check
            .as_ref()
            .map_or(arbiter.line, |written| written.line);
        warnings.add(
            Some(line),
            "arbiter lease_check",
            "this is a virtual machine, and one that is paused cannot see by its clock that its \
             lease ran out: when it wakes, both nodes can become active for a moment; a paused \
             machine is outside the guarantee",
            "remove the key, which is \"round-trip\" on virtual machines, or add [forced_stop] without \
             failover_on_failure",
        );
    }
    if arbiter.lease.value > heartbeat.timeout.value {
        warnings.add(
            Some(arbiter.lease.line),
            "arbiter lease",
            format!(
                "a lease of {} outlives the heartbeat timeout of {}, so that a failover waits for \
                 the lease of the lost node",
                shown(arbiter.lease.value),
                shown(heartbeat.timeout.value)
            ),
            "write a lease that is shorter than the heartbeat timeout",
        );
    }
}

fn find_paths_in_common(draft: &Draft, heartbeat: &DraftHeartbeat, warnings: &mut Collector) {
    if heartbeat.paths.len() == 1 {
        warnings.add(
            Some(heartbeat.paths[0].line),
            heartbeat.paths[0].title(),
            "it is the only heartbeat path: one broken cable looks like a lost node",
            "add a second [[heartbeat.path]] on another network",
        );
    }
    let replications: Vec<_> = draft
        .mirrors
        .iter()
        .flat_map(|mirror| &mirror.sides)
        .filter_map(|side| Some((&side.node.value, side.replication.as_ref()?.value.ip())))
        .collect();
    let shares = |path: &super::partition::DraftPath| {
        replications.iter().any(|(node, replication)| {
            let own = path.on.as_ref().and_then(|on| on.of(node));
            own.is_some_and(|own| probably_one_network(own.value.ip(), *replication))
        })
    };
    if !heartbeat.paths.is_empty() && heartbeat.paths.iter().all(shares) {
        warnings.add(
            Some(heartbeat.line),
            "heartbeat.path",
            "all heartbeat paths seem to be in the network of the replication: when that breaks, \
             the nodes lose the mirror and each other at once",
            "add a [[heartbeat.path]] on the network of the clients",
        );
    }
}

fn find_mirrors_without_group(draft: &Draft, warnings: &mut Collector) {
    let resources = draft.agent.groups.iter().flat_map(|group| &group.resources);
    let used: Vec<&str> = resources
        .filter_map(|resource| match &resource.kind {
            Some(DraftResourceKind::MirrorDisk(disk)) => Some(disk.mirror.as_ref()?.value.as_str()),
            _ => None,
        })
        .collect();
    for mirror in &draft.mirrors {
        let Some(name) = &mirror.name else { continue };
        if !used.contains(&name.value.as_str()) {
            warnings.add(
                Some(mirror.line),
                mirror.title(),
                "no group has it: the agent neither promotes it nor moves it, and no lease keeps \
                 it from being primary on both nodes",
                "add a mirror-disk resource for it to a [[group]], unless an operator is meant to \
                 promote it by hand",
            );
        }
    }
}

fn find_group_in_doubt(group: &DraftGroup, warnings: &mut Collector) {
    let mut has_disk = false;
    for resource in &group.resources {
        let Some(DraftResourceKind::MirrorDisk(disk)) = &resource.kind else {
            continue;
        };
        has_disk = true;
        let least = disk.fsck_timeout;
        if let Some(start_timeout) = &resource.start_timeout
            && disk.mount.is_some()
            && disk.fsck != Fsck::Never
            && start_timeout.value < least
        {
            warnings.add(
                Some(start_timeout.line),
                format!("{} start_timeout", group.resource_title(resource)),
                format!(
                    "{} ends before a check of the file system may, which has {}",
                    shown(start_timeout.value),
                    shown(least)
                ),
                "write a longer start_timeout, or a shorter fsck_timeout",
            );
        }
    }
    if !has_disk && group.failover {
        warnings.add(
            Some(group.line),
            group.title(),
            "it has no mirror-disk: nothing but the agents' own agreement keeps it from running on \
             both nodes, which can both become active",
            "add the mirror-disk that its data is on, or write failover = false",
        );
    }
}
