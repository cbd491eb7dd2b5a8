//! The status screen, in the form that users of such clusters know. Pure: a [`ClusterStatus`] to text.
//!
//! What an operator must act on stands first, every line of it behind [`MARK`]. Then node by node and group
//! by group; a thing that is not configured has no section.

use std::fmt::Write as _;

use agent::control::{
    ArbiterStatus, ClusterStatus, ForcedStopStatus, GroupStatus, Health, HealthStatus,
    MonitorStatus, NodeState, NodeStatus, ResourceStatus, State,
};

use super::seconds;
use crate::mdstat;

/// Before every line that calls for a person.
pub const MARK: &str = "!!!";

const TOP: &str = " ========================  CLUSTER STATUS  ===========================";
const BOTTOM: &str = " =====================================================================";
/// Columns of a name with the dots after it, and of a name in the line below.
const HEAD_WIDTH: usize = 16;
const NAME_WIDTH: usize = 15;
const WORD_WIDTH: usize = 16;

pub fn render(status: &ClusterStatus) -> String {
    let mut screen = Screen::default();
    screen.line(TOP);
    warnings(&mut screen, status);
    screen.line(&format!("  Cluster : {}", status.cluster));
    if let Some(startup) = &status.startup {
        screen.line(&format!(
            "  Start-up delay : {} of {} left; no group starts before its end",
            seconds(startup.remaining_ms),
            seconds(startup.delay_ms)
        ));
    }
    screen.line("  <server>");
    for node in &status.nodes {
        server(&mut screen, node, node.name == status.node);
    }
    if !status.groups.is_empty() {
        screen.line("  <group>");
    }
    for found in &status.groups {
        group(&mut screen, status, found);
    }
    monitors(&mut screen, &status.monitors, status.monitors_suspended);
    mirrors(&mut screen, status);
    if let Some(found) = &status.arbiter {
        arbiter(&mut screen, found);
    }
    if let Some(found) = &status.forced_stop {
        forced_stop(&mut screen, found);
    }
    screen.line(BOTTOM);
    screen.0
}

/// Whether a group is active on more than one node.
fn is_active_twice(group: &GroupStatus) -> bool {
    group.current.len() > 1
}

fn warnings(screen: &mut Screen, status: &ClusterStatus) {
    for group in status.groups.iter().filter(|group| is_active_twice(group)) {
        screen.line(&format!(
            "  {MARK} BOTH NODES ARE ACTIVE: {} runs on {}",
            group.name,
            group.current.join(" and ")
        ));
        screen.line(&format!(
            "  {MARK}   choose the side to keep, then: mirrorctl group resolve {} --keep NODE",
            group.name
        ));
    }
    for warning in &status.warnings {
        screen.line(&format!("  {MARK} {warning}"));
    }
}

fn server(screen: &mut Screen, node: &NodeStatus, answers: bool) {
    let star = if answers { '*' } else { ' ' };
    let standby = if node.standby { ", Standby" } else { "" };
    screen.line(&format!(
        "   {star}{}: {}{standby}",
        dotted(&node.name),
        node_word(node.state)
    ));
    for health in node.paths.iter().chain(&node.resolvers) {
        screen.health(health);
    }
}

fn group(screen: &mut Screen, status: &ClusterStatus, group: &GroupStatus) {
    let twice = if is_active_twice(group) {
        format!("  {MARK} on both nodes")
    } else {
        String::new()
    };
    let overall = overall(&group.states);
    screen.line(&format!(
        "    {}: {}{twice}",
        dotted(&group.name),
        state_word(overall)
    ));
    if !group.current.is_empty() {
        screen.entry("current", &group.current.join(", "));
    }
    for (node, state) in status.nodes.iter().zip(&group.states) {
        if !matches!(state, State::Online | State::Offline) {
            screen.entry(&format!("on {}", node.name), state_word(*state));
        }
    }
    if let Some(reason) = &group.waits_for {
        screen.entry("waits for", reason);
    }
    let elsewhere = group.state == State::Offline && overall != State::Offline;
    for resource in &group.resources {
        screen.resource(resource, elsewhere);
    }
}

fn monitors(screen: &mut Screen, monitors: &[MonitorStatus], suspended: bool) {
    if monitors.is_empty() && !suspended {
        return;
    }
    screen.line(if suspended {
        "  <monitor>  suspended; they go on with: mirrorctl monitor resume"
    } else {
        "  <monitor>"
    });
    for monitor in monitors {
        screen.wide(
            &monitor.name,
            health_word(monitor.health),
            &monitor.kind,
            monitor.detail.as_deref(),
        );
    }
}

fn mirrors(screen: &mut Screen, status: &ClusterStatus) {
    if !status.mirrors.is_empty() {
        screen.line("  <mirror>");
    }
    for mirror in &status.mirrors {
        let mut text = String::new();
        mdstat::render_mirror(&mut text, &status.node, mirror);
        for line in text.lines() {
            screen.line(&format!("    {line}"));
        }
    }
}

fn arbiter(screen: &mut Screen, arbiter: &ArbiterStatus) {
    screen.line("  <arbiter>");
    screen.wide(
        &arbiter.url,
        health_word(arbiter.health),
        "",
        arbiter.detail.as_deref(),
    );
    for lease in &arbiter.leases {
        screen.entry(
            &lease.mirror,
            &format!(
                "lease of epoch {}, {} left",
                lease.epoch,
                seconds(lease.remaining_ms)
            ),
        );
    }
}

fn forced_stop(screen: &mut Screen, stop: &ForcedStopStatus) {
    screen.line("  <forced stop>");
    screen.wide(
        &stop.kind,
        health_word(stop.health),
        "",
        stop.detail.as_deref(),
    );
}

/// A group's state in the cluster, from its states on the nodes: where it is most alive counts.
fn overall(states: &[State]) -> State {
    let alive = |state: &&State| match state {
        State::Online => 5,
        State::OnlinePending => 4,
        State::OfflinePending => 3,
        State::Failed => 2,
        State::Unknown => 1,
        State::Offline => 0,
    };
    states
        .iter()
        .max_by_key(alive)
        .map_or(State::Offline, |s| *s)
}

/// The lines so far.
#[derive(Debug, Default)]
struct Screen(String);

impl Screen {
    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{}", line.trim_end());
    }

    /// Below a server or a group.
    fn entry(&mut self, name: &str, text: &str) {
        self.line(&format!("      {name:NAME_WIDTH$}: {text}"));
    }

    fn health(&mut self, found: &HealthStatus) {
        let word = health_word(found.health);
        let detail = remark(found.detail.as_deref());
        self.entry(
            &found.name,
            &format!("{word:WORD_WIDTH$} {}{detail}", found.kind),
        );
    }

    fn resource(&mut self, found: &ResourceStatus, elsewhere: bool) {
        let word = match (elsewhere, found.state) {
            (true, State::Offline) => "Offline here",
            (_, state) => state_word(state),
        };
        let detail = remark(found.error.as_deref());
        self.entry(
            &found.name,
            &format!("{word:WORD_WIDTH$} {}{detail}", found.kind),
        );
    }

    /// In a section of its own, without a server or group above.
    fn wide(&mut self, name: &str, word: &str, kind: &str, detail: Option<&str>) {
        let width = NAME_WIDTH + 2;
        let detail = remark(detail);
        self.line(&format!(
            "    {name:width$}: {word:WORD_WIDTH$} {kind}{detail}"
        ));
    }
}

fn dotted(name: &str) -> String {
    let dots = HEAD_WIDTH.saturating_sub(name.chars().count() + 1).max(1);
    format!("{name} {}", ".".repeat(dots))
}

fn remark(detail: Option<&str>) -> String {
    detail.map_or(String::new(), |detail| format!("  {detail}"))
}

fn node_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Online => "Online",
        NodeState::Offline => "Offline",
        NodeState::Lost => "Lost",
        NodeState::Unknown => "Unknown",
        NodeState::Pending => "Pending",
    }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Offline => "Offline",
        State::OnlinePending => "Online Pending",
        State::Online => "Online",
        State::OfflinePending => "Offline Pending",
        State::Failed => "Failed",
        State::Unknown => "Unknown",
    }
}

fn health_word(health: Health) -> &'static str {
    match health {
        Health::Normal => "Normal",
        Health::Caution => "Caution",
        Health::Error => "Error",
        Health::Unused => "Unused",
        Health::Suspend => "Suspend",
        Health::Unknown => "Unknown",
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
