//! A world: two nodes, a network, clients, in virtual time. It carries effects out and brings their
//! completions back; whatever chance decides, it draws from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use mirror_core::request::{Answer, Request};
use mirror_core::units::{CommandId, IoToken, LinkId, Now, RequestId};
use mirror_core::volume::Volume;
use mirror_core::volume::config::Seed;
use mirror_core::volume::effect::Effect;
use mirror_core::volume::event::{Command, Event, TICK_MS};
use mirror_core::volume::refusal::Refusal;
use mirror_core::wire::message::{Envelope, Role};

use crate::random::Random;
use crate::sim::ahead::{Fall, Travelling};
use crate::sim::arbiter::{Arbiter, Question, Reply, drifted};
use crate::sim::build::new_node;
use crate::sim::client::Pending;
use crate::sim::content::{self};
use crate::sim::disk::{Crash, Unit};
use crate::sim::durable;
use crate::sim::metadata_disk::InFlightFate;
use crate::sim::mutation::Mutation;
use crate::sim::network::{Network, NodeIndex, other};
use crate::sim::node::SimNode;
use crate::sim::operator::Operator;
use crate::sim::oracle::{Oracle, Order};
use crate::sim::settings::Settings;

/// How often a hanging disk is asked whether it still does.
const HANG_RETRY_US: u64 = 20_000;

/// A rule that a step broke.
#[derive(Debug, Clone)]
pub struct Violation {
    pub rule: &'static str,
    pub message: String,
}

#[derive(Debug)]
pub(super) enum Happening {
    DataDone {
        node: NodeIndex,
        life: u64,
        number: u64,
    },
    MetadataDone {
        node: NodeIndex,
        life: u64,
        number: u64,
    },
    Deliver {
        to: NodeIndex,
        link: LinkId,
        envelope: Box<Envelope>,
    },
    Connect,
    LinkUp {
        node: NodeIndex,
        link: LinkId,
        life: u64,
    },
    LinkDown {
        node: NodeIndex,
        link: LinkId,
    },
    Measured {
        node: NodeIndex,
        life: u64,
    },
    Tick {
        node: NodeIndex,
        life: u64,
    },
    Wake {
        node: NodeIndex,
        life: u64,
    },
    Restart {
        node: NodeIndex,
    },
    /// A stopped daemon ends.
    Exit {
        node: NodeIndex,
        life: u64,
    },
    Heal,
    Client,
    Operator,
    Fault,
    /// A client's request reaches a node.
    Arrive {
        node: NodeIndex,
        life: u64,
        request: Request,
    },
    Agent {
        node: NodeIndex,
        life: u64,
    },
    /// A mirror wants its lease confirmed.
    Nudge {
        node: NodeIndex,
        life: u64,
    },
    Ask {
        node: NodeIndex,
        number: u64,
        question: Question,
    },
    Told {
        node: NodeIndex,
        life: u64,
        number: u64,
        reply: Reply,
    },
    PauseEnds {
        node: NodeIndex,
    },
    ArbiterHeals,
    ArbiterReturns,
    /// A write that a mutation held back lands.
    LandLate {
        node: NodeIndex,
        units: std::ops::Range<Unit>,
        tag: content::Tag,
    },
}

impl Happening {
    /// The node that would have to run for it.
    fn runs_on(&self) -> Option<NodeIndex> {
        match self {
            Self::DataDone { node, .. }
            | Self::MetadataDone { node, .. }
            | Self::LinkUp { node, .. }
            | Self::LinkDown { node, .. }
            | Self::Measured { node, .. }
            | Self::Tick { node, .. }
            | Self::Wake { node, .. }
            | Self::Exit { node, .. }
            | Self::Arrive { node, .. }
            | Self::Agent { node, .. }
            | Self::Nudge { node, .. }
            | Self::Told { node, .. } => Some(*node),
            Self::Deliver { to, .. } => Some(*to),
            Self::Connect
            | Self::Restart { .. }
            | Self::Heal
            | Self::Client
            | Self::Operator
            | Self::Fault
            | Self::Ask { .. }
            | Self::PauseEnds { .. }
            | Self::ArbiterHeals
            | Self::ArbiterReturns
            | Self::LandLate { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Scheduled {
    at_us: u64,
    tie: u64,
    happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.tie) == (other.at_us, other.tie)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.tie).cmp(&(other.at_us, other.tie))
    }
}

/// What was done, for the summary of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub steps: u64,
    pub writes_answered: u64,
    pub reads_answered: u64,
    pub flushes_answered: u64,
    pub failed: u64,
    pub crashes: u64,
    pub cuts: u64,
    pub promotions: u64,
    pub compared: u64,
    pub rechecks: u64,
}

/// Lines kept of what happened last.
const TRACE_LINES: usize = 500_000;

#[derive(Debug)]
pub struct World {
    pub settings: Settings,
    pub(super) random: Random,
    pub(super) clock_us: u64,
    /// Counts steps: the total order that the checkers speak of.
    pub(super) order: Order,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub(super) next_tie: u64,
    pub nodes: [SimNode; 2],
    pub network: Network,
    pub arbiter: Arbiter,
    /// Messages of the standing link that have not arrived.
    pub(super) in_transit: u64,
    /// Lines of history: one, and a second one after a split brain.
    pub(super) truths: Vec<Oracle>,
    /// Which of them each node serves.
    pub(super) line: [usize; 2],
    pub(super) pending: BTreeMap<RequestId, Pending>,
    /// Answers of requests that tests submitted.
    pub answers: BTreeMap<RequestId, Answer>,
    pub(super) keep_answers: bool,
    /// Answered by a mutation: the volume's own answer comes later.
    pub(super) answered_early: std::collections::BTreeSet<RequestId>,
    /// Client reads at a disk, for a mutation that answers them itself.
    pub(super) reads_out: BTreeMap<(NodeIndex, IoToken), std::ops::Range<Unit>>,
    pub(super) next_request: u64,
    pub(super) next_tag: u64,
    pub(super) next_command: u64,
    pub(super) outstanding: BTreeMap<CommandId, (NodeIndex, Command)>,
    pub(super) outcomes: BTreeMap<CommandId, Result<String, Refusal>>,
    pub(super) operator: Operator,
    /// Changes that were handed on (async) or have arrived (semisync).
    pub(super) on_its_way: std::collections::BTreeSet<Travelling>,
    /// What the last primary said of its lag, until somebody has what counts.
    pub(super) fall: Option<Fall>,
    pub(super) last_served: Option<NodeIndex>,
    /// When writes were answered, where that matters.
    pub(super) answered_us: BTreeMap<u64, u64>,
    pub(super) client_paused_until_us: u64,
    pub(super) faults_end_us: u64,
    pub(super) differing: std::collections::BTreeSet<Unit>,
    pub(super) checked_versions: [u64; 2],
    /// What metadata writes in flight come to when their node crashes.
    pub metadata_fate: InFlightFate,
    /// Metadata writes and flushes that each node began: where a crash may matter.
    pub sync_points: [u64; 2],
    /// The node crashes as soon as it has begun that many of them.
    pub crash_at: Option<(NodeIndex, u64, Crash)>,
    /// Where writes gather.
    pub(super) hot_spots: Vec<Unit>,
    pub violation: Option<Violation>,
    pub tally: Tally,
    /// Kept only when asked for: it costs most of a world's time.
    pub(super) trace: Option<VecDeque<String>>,
    pub(super) effects: Vec<Effect>,
}

impl World {
    pub fn new(seed: u64, settings: Settings, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let mut nodes = [0, 1].map(|index| new_node(index, &settings));
        let mut arbiter = Arbiter::new(0);
        if let Some(plan) = settings.arbiter {
            // Drawn apart, so that worlds without an arbiter stay what they were.
            let mut clocks = Random::new(seed ^ 0xc10c);
            let bound = plan.drift_ppm_max;
            let mut drift = || clocks.between(0, 2 * bound) as i64 - bound as i64;
            for node in &mut nodes {
                node.drift_ppm = drift();
            }
            arbiter.drift_ppm = drift();
        }
        let mut world = Self {
            clock_us: 1_000_000,
            order: 1,
            queue: BinaryHeap::new(),
            next_tie: 0,
            nodes,
            network: Network::default(),
            arbiter,
            in_transit: 0,
            truths: vec![Oracle::new(settings.mode.runs_ahead())],
            line: [0, 0],
            pending: BTreeMap::new(),
            answers: BTreeMap::new(),
            keep_answers: false,
            answered_early: std::collections::BTreeSet::new(),
            reads_out: BTreeMap::new(),
            next_request: 0,
            next_tag: 0,
            next_command: 0,
            outstanding: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            operator: Operator::default(),
            on_its_way: std::collections::BTreeSet::new(),
            fall: None,
            last_served: None,
            answered_us: BTreeMap::new(),
            client_paused_until_us: 0,
            faults_end_us: 0,
            differing: std::collections::BTreeSet::new(),
            checked_versions: [0; 2],
            metadata_fate: InFlightFate::Random,
            sync_points: [0; 2],
            crash_at: None,
            hot_spots: Vec::new(),
            violation: None,
            tally: Tally::default(),
            trace: traced.then(VecDeque::new),
            effects: Vec::new(),
            random: random.fork(),
            settings,
        };
        world.place_leftovers();
        world.draw_hot_spots();
        world
    }

    /// Content from before the mirror, different on both sides.
    pub(super) fn place_leftovers(&mut self) {
        if self.settings.initial_sync == mirror_core::wire::message::InitialSync::Skip {
            return;
        }
        let units = self.settings.size_bytes / u64::from(self.settings.unit_bytes);
        for _ in 0..self.settings.leftovers {
            let unit = self.random.below(units);
            let node = self.random.below(2) as usize;
            let tag = self.new_tag();
            self.nodes[node].data.place(unit, tag);
        }
    }

    // --- time ------------------------------------------------------------------------------

    pub fn now_ms(&self) -> u64 {
        self.clock_us / 1000
    }

    pub(super) fn now_of(&self, node: NodeIndex) -> Now {
        let state = &self.nodes[node];
        let now_us = state
            .paused_since_us
            .filter(|_| state.clock_stopped)
            .unwrap_or(self.clock_us);
        let shown_us = drifted(now_us - state.stopped_us, state.drift_ppm);
        Now {
            monotonic_ms: shown_us / 1000 + state.clock_offset_ms,
            unix_s: 1_700_000_000 + self.now_ms() / 1000,
        }
    }

    pub(super) fn schedule(&mut self, in_us: u64, happening: Happening) {
        self.schedule_at(self.clock_us + in_us, happening);
    }

    pub(super) fn schedule_at(&mut self, at_us: u64, happening: Happening) {
        self.next_tie += 1;
        self.queue.push(Reverse(Scheduled {
            at_us,
            tie: self.next_tie,
            happening,
        }));
    }

    pub(super) fn span(&mut self, (low, high): (u64, u64)) -> u64 {
        let span = self.random.between(low, high);
        if self.random.percent(self.settings.hiccups) {
            span * 100
        } else {
            span
        }
    }

    /// Lets the next thing happen. False when nothing is left to happen or a rule was broken.
    pub fn advance(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some(Reverse(next)) = self.queue.pop() else {
            return false;
        };
        self.clock_us = self.clock_us.max(next.at_us);
        self.tally.steps += 1;
        self.happen(next.happening);
        self.check_step();
        if let Some((node, count, crash)) = self.crash_at
            && self.sync_points[node] >= count
        {
            self.crash_at = None;
            self.crash(node, crash);
        }
        self.violation.is_none()
    }

    /// Runs until the condition holds. False if it did not within that virtual time.
    pub fn run_until(&mut self, limit_ms: u64, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let end_us = self.clock_us + limit_ms * 1000;
        loop {
            if self.violation.is_some() {
                return false;
            }
            if holds(self) {
                return true;
            }
            let due = self.queue.peek().map(|Reverse(next)| next.at_us);
            if due.is_none_or(|at_us| at_us > end_us) {
                self.clock_us = end_us;
                return holds(self);
            }
            self.advance();
        }
    }

    pub fn run_for(&mut self, span_ms: u64) {
        self.run_until(span_ms, |_| false);
    }

    // --- trace -----------------------------------------------------------------------------

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            let us = self.clock_us;
            trace.push_back(format!(
                "{:>9}.{:03} {:>6} {}",
                us / 1000,
                us % 1000,
                self.order,
                line()
            ));
        }
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default().into()
    }

    pub(super) fn violate(&mut self, rule: &'static str, message: String) {
        self.trace(|| format!("VIOLATION of {rule}: {message}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, message });
        }
    }

    // --- life of a node --------------------------------------------------------------------

    pub fn start(&mut self, node: NodeIndex) {
        if self.nodes[node].is_up() {
            return;
        }
        let loaded = match durable::load(self.nodes[node].metadata.image()) {
            Ok(loaded) => loaded,
            Err(fault) => {
                self.violate(
                    "D9",
                    format!("node {node} cannot open its metadata: {fault}"),
                );
                return;
            }
        };
        let entropy = self.random.next();
        let now = self.now_of(node);
        let state = &mut self.nodes[node];
        state.life += 1;
        state.doomed = false;
        state.notices.clear();
        let seed = Seed {
            incarnation: state.incarnation(),
            boot: state.boot(),
            entropy,
        };
        let life = state.life;
        self.order += 1;
        let mut effects = Vec::new();
        let volume = Volume::open(
            self.nodes[node].config.clone(),
            loaded,
            seed,
            now,
            &mut effects,
        );
        self.nodes[node].volume = Some(volume);
        self.trace(|| format!("node {node} starts, life {life}"));
        self.carry_out_all(node, effects);
        self.schedule(TICK_MS * 1000, Happening::Tick { node, life });
        self.start_agent(node);
    }

    /// The node stops at once. What its disks keep is a matter of chance and of `metadata_fate`.
    pub fn crash(&mut self, node: NodeIndex, crash: Crash) {
        if !self.nodes[node].is_up() {
            return;
        }
        // One that is being demoted lets nobody in, and still answers.
        let status = self.status(node);
        if status.is_some_and(|status| status.role == Role::Primary) {
            self.note_fall(node);
        }
        self.order += 1;
        self.tally.crashes += 1;
        self.trace(|| format!("node {node} crashes: {crash:?}"));
        let (now, fate, clock_us) = (self.order, self.metadata_fate, self.clock_us);
        let state = &mut self.nodes[node];
        state.volume = None;
        state.serving = false;
        state.goes_on = false;
        state.unproven = false;
        state.life += 1;
        state.broken = now;
        let paused_us = state
            .paused_since_us
            .take()
            .map_or(0, |since| clock_us - since);
        if std::mem::take(&mut state.clock_stopped) {
            state.stopped_us += paused_us;
        }
        let backlog = std::mem::take(&mut state.backlog);
        state.data.crash(crash, now, &mut self.random);
        state.metadata.crash(crash, fate, &mut self.random);
        // What its kernel has taken in of a link still tells of the link's end.
        for happening in backlog {
            self.schedule(0, happening);
        }
        if crash == Crash::PowerLoss {
            if self.settings.mutation != Some(Mutation::ForgetReboot) {
                self.nodes[node].boots += 1;
            }
            self.on_cache_lost(node);
        }
        self.network.wanted[node] = false;
        self.drop_end_of_dead(node, crash);
        self.drop_requests_of(node);
        self.outstanding.retain(|_, (at, _)| *at != node);
        self.check_step();
    }

    pub(super) fn drop_end_of_dead(&mut self, node: NodeIndex, crash: Crash) {
        let Some(link) = self.network.current(node) else {
            return;
        };
        self.network.close_end(node, link);
        if let Some(theirs) = self.network.current(other(node)) {
            let delay_us = match crash {
                // The kernel of a dead process closes its sockets; what was sent still arrives.
                Crash::Kill => self.random.between(100, 3_000),
                // Nobody says anything: the keepalive has to find out, or TCP much later.
                Crash::PowerLoss => self.random.between(1_000, 4_000_000),
            };
            self.schedule(
                delay_us,
                Happening::LinkDown {
                    node: other(node),
                    link: theirs,
                },
            );
        }
    }

    pub(super) fn drop_requests_of(&mut self, node: NodeIndex) {
        let (order, line) = (self.order, self.line[node]);
        let dead: Vec<RequestId> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            if let Some(pending) = self.pending.remove(&id)
                && pending.asked.is_change()
            {
                self.truths[line].abandon(id.0, order);
            }
        }
    }

    // --- happenings ------------------------------------------------------------------------

    pub(super) fn happen(&mut self, happening: Happening) {
        if let Some(node) = happening.runs_on()
            && self.is_paused(node)
        {
            self.nodes[node].backlog.push(happening);
            return;
        }
        match happening {
            Happening::DataDone { node, life, number } if self.nodes[node].hangs => {
                self.schedule(HANG_RETRY_US, Happening::DataDone { node, life, number });
            }
            Happening::DataDone { node, life, number } => {
                if self.nodes[node].life == life {
                    self.order += 1;
                    let now = self.order;
                    let written = self.nodes[node].data.write_in_flight(number);
                    let drops = self.nodes[node].data.is_failing_flush(number);
                    let done = self.nodes[node]
                        .data
                        .complete(number, now, &mut self.random);
                    if drops {
                        self.on_cache_lost(node);
                    }
                    if let Some((io, result)) = done {
                        self.answer_ungated(node, io, &result);
                        if result.is_err() {
                            self.trace(|| format!("{node} data {io:?} fails: {result:?}"));
                        }
                        self.step(node, Event::LocalDone { io, result });
                        self.answer_early(node, written);
                    }
                }
            }
            Happening::MetadataDone { node, life, number } => {
                if self.nodes[node].life == life
                    && let Some((io, result)) = self.nodes[node].metadata.complete(number)
                {
                    self.trace(|| format!("{node} metadata {io:?} done: {result:?}"));
                    self.step(node, Event::MetadataDone { io, result });
                }
            }
            Happening::Deliver { to, link, envelope } => self.deliver(to, link, envelope),
            Happening::Connect => self.connect(),
            Happening::LinkUp { node, link, life } => {
                if self.nodes[node].life == life && self.network.is_open(node, link) {
                    self.step(node, Event::LinkUp { link });
                }
            }
            Happening::LinkDown { node, link } => {
                if self.network.close_end(node, link) {
                    self.trace(|| format!("{node} learns that its link is gone"));
                    self.after_end_closed(node);
                    self.step(node, Event::LinkDown { link });
                }
            }
            Happening::Measured { node, life } => {
                if self.nodes[node].life == life {
                    let usable_bytes = self.nodes[node].config.usable_bytes;
                    self.step(node, Event::Measured { usable_bytes });
                }
            }
            Happening::Tick { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].is_up() {
                    let next_us = self.random.between(TICK_MS * 500, TICK_MS * 1000);
                    self.schedule(next_us, Happening::Tick { node, life });
                    self.step(node, Event::Tick);
                }
            }
            Happening::Wake { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].is_up() {
                    self.step(node, Event::Tick);
                }
            }
            Happening::Restart { node } => self.start(node),
            Happening::Exit { node, life } => {
                if self.nodes[node].life == life {
                    // A run that ended with everything flushed takes nothing along.
                    let broken = self.nodes[node].broken;
                    self.crash(node, Crash::Kill);
                    self.nodes[node].broken = broken;
                    let down_us = self.random.between(5_000, 500_000);
                    self.schedule(down_us, Happening::Restart { node });
                }
            }
            Happening::Heal => self.heal(),
            Happening::Client => self.on_client_turn(),
            Happening::Operator => self.on_operator_turn(),
            Happening::Fault => self.on_fault_turn(),
            Happening::Arrive {
                node,
                life,
                request,
            } => {
                if self.nodes[node].life == life {
                    self.step(node, Event::Request(request));
                }
            }
            Happening::Agent { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].is_up() {
                    self.on_agent_turn(node);
                }
            }
            Happening::Nudge { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].is_up() {
                    self.ask_arbiter(node);
                }
            }
            Happening::Ask {
                node,
                number,
                question,
            } => self.on_ask(node, number, question),
            Happening::Told {
                node,
                life,
                number,
                reply,
            } => {
                if self.nodes[node].life == life && self.nodes[node].is_up() {
                    self.on_told(node, number, reply);
                }
            }
            Happening::PauseEnds { node } => self.wake(node),
            Happening::ArbiterHeals => self.arbiter.cut = [false; 2],
            Happening::ArbiterReturns => {
                let now_us = self.arbiter_us();
                self.arbiter.restart(now_us);
            }
            Happening::LandLate { node, units, tag } => {
                let now = self.order;
                for unit in units {
                    self.nodes[node].data.apply(unit, tag, false, now);
                }
            }
        }
    }

    pub(super) fn after_end_closed(&mut self, node: NodeIndex) {
        // The other end gets a reset, unless nothing gets through from here.
        let peer = other(node);
        if let Some(link) = self.network.current(peer) {
            let delay_us = if self.network.is_mute(node) || self.network.unreachable[node] {
                self.random.between(1_000, 5_000_000)
            } else {
                self.random.between(100, 5_000)
            };
            self.schedule(delay_us, Happening::LinkDown { node: peer, link });
        }
        self.look_for_peer();
    }

    pub(super) fn step(&mut self, node: NodeIndex, event: Event) {
        self.order += 1;
        let now = self.now_of(node);
        self.nodes[node].stepped_us = self.clock_us;
        let Some(volume) = &mut self.nodes[node].volume else {
            return;
        };
        let mut effects = std::mem::take(&mut self.effects);
        volume.step(now, event, &mut effects);
        volume.check_invariants();
        self.carry_out_all(node, effects);
    }
}
