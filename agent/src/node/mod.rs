//! The node: every decision of the agent, as a pure state machine.
//!
//! [`Node::step`] takes the time and one event, changes its state and appends effects; it does nothing
//! else. What the parts own, in the order in which a decision runs:
//!
//! | file | owns |
//! |---|---|
//! | `report` | what the nodes say of themselves to each other |
//! | `resolving` | the resolvers, and whether this node is cut off |
//! | `stage` | the stages of a silence, and what follows on which |
//! | `partition` | what the other node's silence means: cut off, fencing, alone (A1, A2) |
//! | `rights` | epochs and leases of the arbiter, and its record (A3) |
//! | `mirrors` | what the mirrors say, and when they freeze |
//! | `placement` | whether a group should start here |
//! | `situation` | what `placement` judges a group by |
//! | `starting` | from the decision to the first resource, over the arbiter's grants |
//! | `groups` | what the resources of a group do, and what comes of it (A6) |
//! | `failures` | what is remembered of a group that failed, and for how long |
//! | `moving` | a running group changes hands |
//! | `watching` | what the monitors find, and a mirror that is gone from under its group |
//! | `orders` | operators' commands, here and through the other node |
//! | `status` | what people see |
//!
//! Order of safety: a forced stop is confirmed, or the arbiter has granted, before a group is promoted;
//! a mirror is demoted before its lease goes back; a mirror goes on alone only when the other side is
//! down, outdated by its own word, or outdated on the arbiter's record. `docs/rules.md` has the rules A1 to A7.

pub mod config;
pub mod event;
pub mod failures;
mod groups;
mod mirrors;
mod moving;
mod orders;
mod partition;
pub mod placement;
pub mod report;
pub mod resolving;
mod rights;
mod situation;
mod stage;
mod starting;
mod status;
mod watching;

use crate::alert::{self, Kind};
use crate::control::State;
use crate::fencing::Fencing;
use crate::membership::{self, Membership, MembershipConfig, Peer, Run, Whose};
use crate::monitor::Monitors;

use config::NodeConfig;
use event::{Effect, Event};
use groups::Control;
use mirrors::Mirror;
use orders::Orders;
use partition::Partition;
use report::{GroupReport, Report};
use resolving::Resolver;
use rights::Rights;

/// Reports that the other node has not confirmed are sent again after this time.
const RESEND_MS: u64 = 200;
/// How often the other node is told that this one leaves, before it does.
const LEAVING_BEATS: u32 = 3;

#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    now_ms: u64,
    fx: Vec<Effect>,
    next_number: u64,

    membership: Membership,
    /// What this node says; sent in every beat.
    report: Report,
    /// What the other node said last in its present run.
    peer_report: Option<Report>,
    /// When that came.
    peer_reported_ms: u64,
    resent_ms: u64,
    config_differs: bool,

    resolvers: Vec<Resolver>,
    partition: Partition,
    fencing: Option<Fencing>,
    rights: Option<Rights>,
    mirrors: Vec<Mirror>,
    controls: Vec<Control>,
    monitors: Monitors,
    monitors_suspended: bool,
    orders: Orders,

    /// The start-up delay ends; none once it has.
    starting_until_ms: Option<u64>,
    standby: bool,
    /// This node was frozen, and its rights are in doubt since then.
    doubt: Option<Doubt>,
    leaving: Option<Leaving>,
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    since_ms: u64,
    /// Of this node's report: whoever knows it, has spoken since.
    version: u32,
}

#[derive(Debug, Clone, Copy)]
struct Leaving {
    beats: u32,
    told_ms: u64,
}

impl Node {
    /// `run` is drawn by the driver, and is not zero.
    pub fn new(
        config: NodeConfig,
        membership: MembershipConfig,
        run: Run,
        now_ms: u64,
        out: &mut Vec<Effect>,
    ) -> Self {
        let mut node = Self {
            now_ms,
            fx: Vec::new(),
            next_number: 1,
            membership: Membership::new(membership, run, now_ms),
            report: Report::default(),
            peer_report: None,
            peer_reported_ms: now_ms,
            resent_ms: now_ms,
            config_differs: false,
            resolvers: config
                .resolvers
                .iter()
                .map(|resolver| Resolver::new(resolver.clone(), now_ms))
                .collect(),
            partition: Partition::default(),
            fencing: config
                .forced_stop
                .as_ref()
                .map(|stop| Fencing::new(stop.fencing, now_ms)),
            rights: Rights::for_node(&config, now_ms),
            mirrors: config.mirrors.iter().map(|_| Mirror::default()).collect(),
            controls: config.groups.iter().map(Control::new).collect(),
            monitors: Monitors::new(config.monitors.clone()),
            monitors_suspended: false,
            orders: Orders::default(),
            starting_until_ms: Some(now_ms + config.startup_delay_ms),
            standby: false,
            doubt: None,
            leaving: None,
            config,
        };
        std::mem::swap(&mut node.fx, out);
        let name = node.config.my_name();
        node.alert(alert::NODE_STARTED, format!("The agent of {name} started."));
        let delay_ms = node.config.startup_delay_ms;
        if delay_ms > 0 {
            let text = format!("No group starts for {delay_ms} ms: the start-up delay.");
            node.alert(alert::STARTUP_WAIT, text);
        }
        std::mem::swap(&mut node.fx, out);
        node
    }

    /// One event, decided.
    pub fn step(&mut self, now_ms: u64, event: Event, out: &mut Vec<Effect>) {
        std::mem::swap(&mut self.fx, out);
        self.now_ms = now_ms;
        // Before anything else: a node that did not run may have lost its rights meanwhile.
        match event {
            Event::Received { path, from, bytes } => {
                self.hear(&membership::Event::Received { path, from, bytes });
            }
            event => {
                self.hear(&membership::Event::Tick);
                self.on_event(event);
            }
        }
        self.advance();
        std::mem::swap(&mut self.fx, out);
    }

    /// Panics when a rule that must always hold inside the node is broken.
    pub fn check_invariants(&self) {
        for control in &self.controls {
            control.group.check_invariants();
        }
        assert!(
            self.doubt.is_none() || self.is_freezing(),
            "a node in doubt of its rights keeps its mirrors frozen"
        );
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Received { .. } | Event::Tick => {}
            Event::Resolved { number, result } => self.on_resolved(number, &result),
            Event::Answered { number, result } => {
                self.with_rights(|rights, now_ms, out| {
                    rights.on_answer(now_ms, number, result, out);
                });
            }
            Event::Fenced(event) => self.fence(event),
            Event::Mirror { mirror, view } => self.on_mirror(mirror, view),
            Event::MirrorDone { number, result } => self.on_mirror_done(number, result),
            Event::ResourceDone {
                group,
                number,
                result,
            } => self.on_resource_done(group, number, result),
            Event::Probed { number, result } => {
                self.monitor_step(crate::monitor::Event::Probed { number, result });
            }
            Event::Found { group, states } => self.on_found(group, &states),
            Event::Command { id, request } => self.on_command(id, request),
            Event::Shutdown => self.on_shutdown(),
        }
    }

    fn advance(&mut self) {
        self.end_startup();
        self.probe_resolvers();
        self.with_rights(|rights, now_ms, out| rights.step(now_ms, out));
        self.fence(crate::fencing::Event::Tick);
        self.advance_partition();
        self.advance_doubt();
        self.advance_mirrors();
        self.advance_groups();
        self.advance_orders();
        self.monitor_step(crate::monitor::Event::Tick);
        self.advance_leaving();
        self.describe();
    }

    fn hear(&mut self, event: &membership::Event) {
        let mut heard = Vec::new();
        self.membership.step(self.now_ms, event, &mut heard);
        for effect in heard {
            self.on_heard(effect);
        }
    }

    fn on_heard(&mut self, effect: membership::Effect) {
        let peer = self.config.peer_name().to_owned();
        let path_name = |node: &Self, path: usize| node.membership.path_name(path).to_owned();
        match effect {
            membership::Effect::Send { path, to, bytes } => {
                self.fx.push(Effect::Send { path, to, bytes });
            }
            membership::Effect::PathUp { path } => {
                let text = format!("Heartbeat path {} works.", path_name(self, path));
                self.alert(alert::PATH_UP, text);
            }
            membership::Effect::PathLost { path } => {
                let text = format!("Heartbeat path {} is silent.", path_name(self, path));
                self.alert(alert::PATH_DOWN, text);
            }
            membership::Effect::PeerUp => {
                // Another run knows nothing of what was agreed with the last.
                self.peer_report = None;
                self.on_peer_up();
                self.alert(alert::PEER_UP, format!("{peer} is heard."));
            }
            membership::Effect::Body(body) => self.on_body(&body),
            membership::Effect::PeerLost { silent_ms } => {
                self.partition.heartbeat_lost(silent_ms);
            }
            membership::Effect::PeerLeft => {
                self.alert(alert::PEER_LEFT, format!("{peer} stops on purpose."));
                self.on_peer_left();
            }
            membership::Effect::Frozen { for_ms } => self.on_frozen(for_ms),
            membership::Effect::SameName { path, whose } => {
                let path = path_name(self, path);
                let text = match whose {
                    Whose::Mine => format!(
                        "Another machine calls itself {} too, as path {path} shows: no group starts here. Stop it, or give it a name of its own.",
                        self.config.my_name()
                    ),
                    Whose::Peers => format!(
                        "Two machines on path {path} call themselves {peer}: the one that was heard first is believed. Stop the other, or give it a name of its own."
                    ),
                };
                self.alert(alert::SAME_NAME, text);
            }
            membership::Effect::Refused {
                path,
                refusal,
                times,
            } => {
                let path = path_name(self, path);
                let more = match times {
                    1 => String::new(),
                    _ => format!(" It is the last of {times} since this was said before."),
                };
                let text = format!(
                    "A datagram on path {path} was not taken for a heartbeat: {refusal}.{more}"
                );
                self.alert(alert::BEAT_REFUSED, text);
            }
        }
    }

    fn on_body(&mut self, body: &[u8]) {
        let Some(report) = Report::decode(body) else {
            return;
        };
        let differs = report.config_digest != self.config.config_digest
            || report.groups.len() != self.config.groups.len()
            || report.mirrors.len() != self.config.mirrors.len();
        if differs && !self.config_differs {
            let text = format!(
                "{} runs with another configuration: copy the file to both nodes and restart the agents.",
                self.config.peer_name()
            );
            self.alert(alert::CONFIG_DIFFERS, text);
        }
        self.config_differs = differs;
        if differs {
            // Places in another file mean other things.
            self.peer_report = None;
            return;
        }
        let first = self.peer_report.is_none();
        self.peer_report = Some(report);
        self.peer_reported_ms = self.now_ms;
        self.on_report(first);
    }

    /// This node did not run for so long that others may hold it for dead.
    fn on_frozen(&mut self, for_ms: u64) {
        let text = format!(
            "This node did not run for {for_ms} ms: its mirrors are frozen until its rights are known."
        );
        self.alert(alert::FROZEN, text);
        // What the other said before is still in the sockets, and worth nothing.
        self.report.version += 1;
        self.resent_ms = 0;
        self.doubt = Some(Doubt {
            since_ms: self.now_ms,
            version: self.report.version,
        });
        let now_ms = self.now_ms;
        if let Some(rights) = &mut self.rights {
            rights.distrust(now_ms);
        }
        for mirror in &mut self.mirrors {
            // Nobody was there to hear it.
            mirror.silent_since_ms = mirror.silent_since_ms.map(|_| now_ms);
        }
        self.freeze_all();
        self.decide_anew(for_ms);
    }

    /// What ends the doubt after a freeze: the other node's word, or a decision about its silence.
    fn advance_doubt(&mut self) {
        let Some(Doubt { since_ms, version }) = self.doubt else {
            return;
        };
        let waited = self.now_ms.saturating_sub(since_ms) >= self.membership.timeout_ms();
        let certain = match self.membership.peer() {
            Peer::Up => {
                let answered = self
                    .peer_report
                    .as_ref()
                    .is_some_and(|report| report.seen >= version);
                if answered {
                    self.give_way_where_active_there();
                }
                answered
            }
            Peer::Lost => self.partition.may_act(),
            Peer::Left | Peer::Unknown => waited,
        };
        let held = self.rights.as_ref().is_none_or(|rights| {
            (0..self.mirrors.len()).all(|mirror| {
                !self.mirrors[mirror].is_primary() || rights.is_live(mirror, self.now_ms)
            })
        });
        if certain && held {
            self.doubt = None;
        }
    }

    fn end_startup(&mut self) {
        let Some(until_ms) = self.starting_until_ms else {
            return;
        };
        // Two nodes that hear each other, and know it, have nothing to wait for: a stop that was under
        // way would be told, and nothing of the last run can be undecided.
        let agreed = self
            .peer_report
            .as_ref()
            .is_some_and(|report| report.seen == self.report.version && !report.fencing);
        if self.now_ms >= until_ms || agreed {
            self.starting_until_ms = None;
            self.alert(alert::STARTUP_DONE, "The start-up delay is over.");
        }
    }

    fn on_shutdown(&mut self) {
        self.leave(|_| true);
    }

    /// Stops these groups, tells the other node, and ends.
    fn leave(&mut self, stops: impl Fn(&Control) -> bool) {
        if self.leaving.is_some() {
            return;
        }
        let text = format!("The agent of {} stops.", self.config.my_name());
        self.alert(alert::NODE_STOPPING, text);
        self.leaving = Some(Leaving {
            beats: 0,
            told_ms: self.now_ms,
        });
        for group in 0..self.controls.len() {
            if stops(&self.controls[group]) {
                self.group_step(group, crate::group::Event::Stop { force: false });
            }
        }
    }

    /// Groups first, then the leases, then the word to the other node.
    fn advance_leaving(&mut self) {
        let Some(leaving) = self.leaving else { return };
        let stopped = self
            .controls
            .iter()
            .all(|control| matches!(control.group.state(), State::Offline | State::Failed));
        let released = self.rights.as_ref().is_none_or(Rights::is_free);
        if !stopped || !(released || self.controls.iter().any(Control::is_failed)) {
            return;
        }
        // The other node must not take silence about what may still run here for a clean leave.
        if self.controls.iter().any(Control::is_failed) {
            self.fx.push(Effect::Exit);
            return;
        }
        let interval_ms = self.membership.interval_ms().min(RESEND_MS);
        if leaving.beats > 0 && self.now_ms.saturating_sub(leaving.told_ms) < interval_ms {
            return;
        }
        if leaving.beats == LEAVING_BEATS {
            self.fx.push(Effect::Exit);
            return;
        }
        self.leaving = Some(Leaving {
            beats: leaving.beats + 1,
            told_ms: self.now_ms,
        });
    }

    /// Puts into the beats what there is to say, and sends it at once where it is new.
    fn describe(&mut self) {
        let groups = (0..self.controls.len())
            .map(|group| self.group_report(group))
            .collect();
        let mut report = Report {
            version: self.report.version,
            seen: self.peer_report.as_ref().map_or(0, |report| report.version),
            config_digest: self.config.config_digest,
            starting: self.starting_until_ms.is_some(),
            standby: self.standby,
            isolated: self.partition.is_isolated(),
            fencing: self.is_fencing(),
            monitors_suspended: self.monitors_suspended,
            groups,
            mirrors: self.mirrors.iter().map(Mirror::report).collect(),
            order: self.orders.sent(),
            outcome: self.orders.outcome(),
        };
        let known = self
            .peer_report
            .as_ref()
            .is_some_and(|peer| peer.seen == self.report.version);
        let changed = !report.says_the_same(&self.report);
        if changed {
            report.version += 1;
        }
        let news = report.seen != self.report.seen;
        let resend = !known
            && self.membership.peer() == Peer::Up
            && self.now_ms.saturating_sub(self.resent_ms) >= RESEND_MS;
        let says_goodbye = self
            .leaving
            .is_some_and(|leaving| leaving.beats > 0 && leaving.told_ms == self.now_ms);
        let at_once = changed || news || resend || says_goodbye;
        if at_once {
            self.resent_ms = self.now_ms;
        }
        let leaving = self.leaving.is_some_and(|leaving| leaving.beats > 0);
        let body = report.encode();
        self.report = report;
        self.membership.describe(leaving, body, at_once);
        if at_once {
            self.hear(&membership::Event::Tick);
        }
    }

    fn group_report(&self, group: usize) -> GroupReport {
        let control = &self.controls[group];
        // What an operator started here must not start by itself there meanwhile.
        let state = match control.group.state() {
            State::Offline if self.is_started_by_hand(group) => State::OnlinePending,
            state => state,
        };
        GroupReport {
            state,
            given: control.is_given(),
            able: self.is_able(group),
            stopped: control.stopped,
            failed: control.failures.has_failed_start(),
            halted: control.failures.is_halted(),
            failovers: u8::try_from(self.failovers_here(group)).unwrap_or(u8::MAX),
        }
    }

    fn with_rights(&mut self, act: impl FnOnce(&mut Rights, u64, &mut Vec<rights::Effect>)) {
        let Some(rights) = &mut self.rights else {
            return;
        };
        let mut effects = Vec::new();
        act(rights, self.now_ms, &mut effects);
        for effect in effects {
            self.on_rights(effect);
        }
    }

    fn peer_group(&self, group: usize) -> Option<&GroupReport> {
        self.peer_report.as_ref()?.groups.get(group)
    }

    fn next_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn alert(&mut self, kind: Kind, message: impl Into<String>) {
        self.fx.push(Effect::Alert(kind.with(message)));
    }
}
