//! A world: two nodes, a network, clients, in virtual time. It carries effects out and brings their
//! completions back; whatever chance decides, it draws from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use mirror_core::layout::geometry::Geometry;
use mirror_core::layout::metadata::{self, FreshParams, Image};
use mirror_core::request::{Answer, Operation, Request};
use mirror_core::units::{ByteRange, CommandId, LinkId, Now, RequestId, Uuid};
use mirror_core::volume::Volume;
use mirror_core::volume::config::{Seed, VolumeConfig};
use mirror_core::volume::effect::Effect;
use mirror_core::volume::event::{Command, DiskFault, Event, TICK_MS, WAKE_MS};
use mirror_core::volume::refusal::Refusal;
use mirror_core::wire::frame;
use mirror_core::wire::header::Header;
use mirror_core::wire::message::{Channel, Envelope, Message, Mode};

use crate::random::Random;
use crate::sim::client::{Asked, Pending};
use crate::sim::content::{self, ZEROES};
use crate::sim::disk::{Crash, SimDisk, Task, Unit};
use crate::sim::durable;
use crate::sim::metadata_disk::{InFlightFate, MetadataDisk};
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
    /// A write that a mutation held back lands.
    LandLate {
        node: NodeIndex,
        units: std::ops::Range<Unit>,
        tag: content::Tag,
    },
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
}

/// Messages that travel as bytes, so that the codecs are met by what volumes really say.
const FRAMED_PERCENT: u64 = 10;

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
    next_tie: u64,
    pub nodes: [SimNode; 2],
    pub network: Network,
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
    pub(super) next_request: u64,
    pub(super) next_tag: u64,
    pub(super) next_command: u64,
    pub(super) outstanding: BTreeMap<CommandId, (NodeIndex, Command)>,
    pub(super) outcomes: BTreeMap<CommandId, Result<String, Refusal>>,
    pub(super) operator: Operator,
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
    trace: Option<VecDeque<String>>,
    effects: Vec<Effect>,
}

impl World {
    pub fn new(seed: u64, settings: Settings, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let nodes = [0, 1].map(|index| new_node(index, &settings));
        let mut world = Self {
            clock_us: 1_000_000,
            order: 1,
            queue: BinaryHeap::new(),
            next_tie: 0,
            nodes,
            network: Network::default(),
            in_transit: 0,
            truths: vec![Oracle::default()],
            line: [0, 0],
            pending: BTreeMap::new(),
            answers: BTreeMap::new(),
            keep_answers: false,
            answered_early: std::collections::BTreeSet::new(),
            next_request: 0,
            next_tag: 0,
            next_command: 0,
            outstanding: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            operator: Operator::default(),
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
    fn place_leftovers(&mut self) {
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
        Now {
            monotonic_ms: self.now_ms() + self.nodes[node].clock_offset_ms,
            unix_s: 1_700_000_000 + self.now_ms() / 1000,
        }
    }

    pub(super) fn schedule(&mut self, in_us: u64, happening: Happening) {
        self.schedule_at(self.clock_us + in_us, happening);
    }

    fn schedule_at(&mut self, at_us: u64, happening: Happening) {
        self.next_tie += 1;
        self.queue.push(Reverse(Scheduled {
            at_us,
            tie: self.next_tie,
            happening,
        }));
    }

    fn span(&mut self, (low, high): (u64, u64)) -> u64 {
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
        state.notices.clear();
        let seed = Seed {
            incarnation: state.incarnation(),
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
    }

    /// The node stops at once. What its disks keep is a matter of chance and of `metadata_fate`.
    pub fn crash(&mut self, node: NodeIndex, crash: Crash) {
        if !self.nodes[node].is_up() {
            return;
        }
        self.order += 1;
        self.tally.crashes += 1;
        self.trace(|| format!("node {node} crashes: {crash:?}"));
        let (now, fate) = (self.order, self.metadata_fate);
        let state = &mut self.nodes[node];
        state.volume = None;
        state.serving = false;
        state.life += 1;
        state.broken = now;
        state.data.crash(crash, now, &mut self.random);
        state.metadata.crash(crash, fate, &mut self.random);
        if crash == Crash::PowerLoss {
            self.on_cache_lost(node);
        }
        self.network.wanted[node] = false;
        self.drop_end_of_dead(node, crash);
        self.drop_requests_of(node);
        self.outstanding.retain(|_, (at, _)| *at != node);
        self.check_step();
    }

    fn drop_end_of_dead(&mut self, node: NodeIndex, crash: Crash) {
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

    fn drop_requests_of(&mut self, node: NodeIndex) {
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

    // --- network ---------------------------------------------------------------------------

    /// What these nodes send is lost until [`World::heal`]. Ends notice within `notice_ms`, or by
    /// their keepalive.
    pub fn cut(&mut self, from: &[NodeIndex], notice_ms: Option<u64>) {
        self.tally.cuts += 1;
        self.trace(|| format!("network: nothing from {from:?} arrives any more"));
        for node in from {
            self.network.unreachable[*node] = true;
            self.network.mute(*node);
        }
        if let Some(notice_ms) = notice_ms {
            for node in [0, 1] {
                if let Some(link) = self.network.current(node) {
                    let delay_us = self.random.below(notice_ms * 1000 + 1);
                    self.schedule(delay_us, Happening::LinkDown { node, link });
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.trace(|| "network: healed".into());
        self.network.unreachable = [false; 2];
        // A link that lost messages never delivers again: its ends are reset when they speak.
        for node in [0, 1] {
            if (self.network.is_mute(0) || self.network.is_mute(1))
                && let Some(link) = self.network.current(node)
            {
                let delay_us = self.random.between(1_000, 400_000);
                self.schedule(delay_us, Happening::LinkDown { node, link });
            }
        }
        self.look_for_peer();
    }

    fn look_for_peer(&mut self) {
        if self.network.can_connect() && !self.network.connecting {
            self.network.connecting = true;
            let delay_us = self.random.between(500, 60_000);
            self.schedule(delay_us, Happening::Connect);
        }
    }

    fn connect(&mut self) {
        self.network.connecting = false;
        if !self.network.can_connect() || !self.nodes.iter().all(SimNode::is_up) {
            return;
        }
        let delays = [0, 1].map(|_| self.random.between(10, 2_000));
        let links = self
            .network
            .establish(delays.map(|delay| self.clock_us + delay));
        self.in_transit = 0;
        self.trace(|| format!("network: links {links:?}"));
        for node in [0, 1] {
            let life = self.nodes[node].life;
            let link = links[node];
            self.schedule(delays[node], Happening::LinkUp { node, link, life });
        }
    }

    /// True while what is held back by a test's filter waits.
    fn is_held(&self, from: NodeIndex, message: &Message) -> bool {
        self.network
            .hold
            .as_ref()
            .is_some_and(|hold| hold(from, message))
    }

    fn transmit(&mut self, from: NodeIndex, link: LinkId, envelope: Envelope) {
        if let Some(cut) = &self.network.cut_at
            && cut(from, &envelope.message)
        {
            self.network.cut_at = None;
            self.cut(&[0, 1], Some(200));
        }
        if self.settings.mutation == Some(Mutation::ClearBitEarly)
            && let Message::ResyncData { sequence, .. } = envelope.message
            && let Some(link) = self.network.current(from)
        {
            let ack = Message::Ack {
                sequences: vec![sequence],
            };
            let envelope = Box::new(Envelope {
                epoch: envelope.epoch,
                message: ack,
            });
            self.in_transit += 1;
            self.schedule(
                1_000,
                Happening::Deliver {
                    to: from,
                    link,
                    envelope,
                },
            );
            return;
        }
        let envelope = if self.random.percent(FRAMED_PERCENT) {
            through_frame(&envelope)
        } else {
            envelope
        };
        let channel = envelope.message.channel();
        let arrival_us = self.clock_us + self.span(self.settings.network_us);
        match self.network.send(from, link, channel, arrival_us) {
            Some((link, at_us)) => {
                self.in_transit += 1;
                let to = other(from);
                self.trace(|| format!("{from} → {to}: {}", brief(&envelope.message)));
                let envelope = Box::new(envelope);
                self.schedule_at(at_us, Happening::Deliver { to, link, envelope });
            }
            None => self.trace(|| format!("{from} → lost: {}", brief(&envelope.message))),
        }
    }

    fn deliver(&mut self, to: NodeIndex, link: LinkId, envelope: Box<Envelope>) {
        let from = other(to);
        if self.network.is_newest(link) {
            self.in_transit = self.in_transit.saturating_sub(1);
        }
        if !self.network.is_open(to, link) || self.network.unreachable[from] {
            return;
        }
        if self.is_held(from, &envelope.message) {
            // Everything behind it on its channel arrives later too, in order.
            self.in_transit += 1;
            let channel: Channel = envelope.message.channel();
            self.network.postpone(from, channel, self.clock_us + 1_000);
            self.schedule(1_000, Happening::Deliver { to, link, envelope });
            return;
        }
        self.trace(|| format!("{to} gets {}", brief(&envelope.message)));
        self.note_delivery(to, &envelope.message);
        self.step(
            to,
            Event::Message {
                link,
                envelope: *envelope,
            },
        );
    }

    // --- happenings ------------------------------------------------------------------------

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::DataDone { node, life, number } if self.nodes[node].hangs => {
                self.schedule(HANG_RETRY_US, Happening::DataDone { node, life, number });
            }
            Happening::DataDone { node, life, number } => {
                if self.nodes[node].life == life {
                    self.order += 1;
                    let now = self.order;
                    let written = self.nodes[node].data.write_in_flight(number);
                    let done = self.nodes[node]
                        .data
                        .complete(number, now, &mut self.random);
                    if let Some((io, result)) = done {
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
                    self.crash(node, Crash::Kill);
                    let down_us = self.random.between(5_000, 500_000);
                    self.schedule(down_us, Happening::Restart { node });
                }
            }
            Happening::Heal => self.heal(),
            Happening::Client => self.on_client_turn(),
            Happening::Operator => self.on_operator_turn(),
            Happening::Fault => self.on_fault_turn(),
            Happening::LandLate { node, units, tag } => {
                let now = self.order;
                for unit in units {
                    self.nodes[node].data.apply(unit, tag, false, now);
                }
            }
        }
    }

    fn after_end_closed(&mut self, node: NodeIndex) {
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
        let Some(volume) = &mut self.nodes[node].volume else {
            return;
        };
        let mut effects = std::mem::take(&mut self.effects);
        volume.step(now, event, &mut effects);
        volume.check_invariants();
        self.carry_out_all(node, effects);
    }

    // --- effects ---------------------------------------------------------------------------

    fn carry_out_all(&mut self, node: NodeIndex, mut effects: Vec<Effect>) {
        for effect in effects.drain(..) {
            self.carry_out(node, effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, node: NodeIndex, effect: Effect) {
        match effect {
            Effect::Read { io, range } => self.submit_data(node, io, range, Task::Read),
            Effect::ReadSparse { io, range } => self.submit_data(node, io, range, Task::ReadSparse),
            Effect::Write {
                io,
                range,
                data,
                fua,
            } => match content::decode(self.settings.unit_bytes, &data) {
                Some(tags) => self.submit_data(node, io, range, Task::Write { tags, fua }),
                None => self.violate("D6", format!("node {node} writes mixed bytes to {range:?}")),
            },
            Effect::WriteZeroes { io, range, fua, .. } => {
                let units = self.nodes[node].data.units_of(range);
                let tags = vec![ZEROES; (units.end - units.start) as usize];
                self.submit_data(node, io, range, Task::Write { tags, fua });
            }
            Effect::Flush { io } => {
                self.submit_data(node, io, ByteRange::new(0, 0), Task::Flush);
            }
            Effect::WriteMetadata { io, offset, bytes } => {
                self.submit_metadata(node, io, offset, bytes);
            }
            Effect::Send { link, envelope } => self.transmit(node, link, envelope),
            Effect::CloseLink { link } => {
                if self.network.is_open(node, link) {
                    self.trace(|| format!("{node} closes its link"));
                    // What was sent before is still delivered; the reset comes behind it.
                    let delay_us = self.random.between(10, 1_000);
                    self.schedule(delay_us, Happening::LinkDown { node, link });
                }
            }
            Effect::Connect { wanted } => {
                self.network.wanted[node] = wanted;
                self.look_for_peer();
            }
            Effect::Serve { serving } => self.on_serve(node, serving),
            Effect::Answer { id, answer } => self.on_answer(node, id, answer),
            Effect::CommandDone { id, result } => {
                self.trace(|| format!("{node} command {id:?}: {result:?}"));
                match self.outstanding.remove(&id) {
                    None => self.violate("D12", format!("command {id:?} ended twice")),
                    Some((_, Command::Stop)) if result.is_ok() => {
                        let life = self.nodes[node].life;
                        self.schedule(2_000, Happening::Exit { node, life });
                    }
                    Some(_) => {}
                }
                self.outcomes.insert(id, result);
            }
            Effect::Measure => {
                let life = self.nodes[node].life;
                self.schedule(500, Happening::Measured { node, life });
            }
            Effect::Resized { .. } => {}
            Effect::Wake => {
                let life = self.nodes[node].life;
                self.schedule(WAKE_MS * 1000, Happening::Wake { node, life });
            }
            Effect::Report(notice) => {
                self.trace(|| format!("{node} reports {}: {}", notice.kind, notice.message));
                if notice.kind == "connected" {
                    self.nodes[node].peer_left = false;
                }
                if notice.kind == "resync-finished" {
                    self.nodes[node].told_down = false;
                    self.on_resynced();
                }
                self.nodes[node].notices.push((notice.kind, notice.message));
            }
        }
    }

    fn submit_data(
        &mut self,
        node: NodeIndex,
        io: mirror_core::units::IoToken,
        range: ByteRange,
        mut task: Task,
    ) {
        let units = self.nodes[node].data.units_of(range);
        let span = match task {
            Task::Flush => self.settings.flush_us,
            _ => self.settings.disk_us,
        };
        let delay_us = self.span(span);
        if matches!(task, Task::Flush) {
            self.sync_points[node] += 1;
        }
        if let Task::Write { tags, .. } = &mut task {
            if range.end() > self.settings.size_bytes + self.settings.room_bytes {
                self.violate(
                    "D12",
                    format!("node {node} writes past the mirror: {range:?}"),
                );
                return;
            }
            if let Some(overlap) = self.nodes[node].data.overlapping_write(&units) {
                let theirs = overlap.units.clone();
                self.violate(
                    "D6",
                    format!("node {node} has overlapping writes in flight: units {theirs:?} and {units:?}"),
                );
            }
            self.check_overwrite(node, range);
            self.mutate_write(node, &units, tags, delay_us);
        }
        let fault = self.fault_of(node, &task);
        self.trace(|| match &task {
            Task::Write { tags, fua } => {
                let first = tags.first().copied().unwrap_or(ZEROES);
                format!("{node} disk: {io:?} write {units:?} tag {first:x} fua {fua}")
            }
            task => format!("{node} disk: {io:?} {} {units:?}", task_name(task)),
        });
        let early = self.random.coin();
        let number = self.nodes[node].data.submit(io, units, task, early);
        if let Some(fault) = fault {
            self.nodes[node].data.inject(number, fault);
        }
        let life = self.nodes[node].life;
        self.schedule(delay_us, Happening::DataDone { node, life, number });
    }

    fn fault_of(&mut self, node: NodeIndex, task: &Task) -> Option<DiskFault> {
        let armed = self.nodes[node].is_armed();
        if armed && self.settings.operator && !self.other_holds_everything(node) {
            return None;
        }
        let state = &mut self.nodes[node];
        match task {
            Task::Write { .. } if std::mem::take(&mut state.fail_next_write) => Some(DiskFault::Io),
            Task::Write { .. } if std::mem::take(&mut state.full_next_write) => {
                Some(DiskFault::NoSpace)
            }
            Task::Flush if std::mem::take(&mut state.fail_next_flush) => {
                self.on_cache_lost(node);
                Some(DiskFault::Io)
            }
            _ => None,
        }
    }

    fn submit_metadata(
        &mut self,
        node: NodeIndex,
        io: mirror_core::units::IoToken,
        offset: u64,
        bytes: Vec<u8>,
    ) {
        let mut bytes = bytes;
        self.sync_points[node] += 1;
        if self.settings.mutation == Some(Mutation::ForgetDirtyBits) {
            forget_bits(&self.nodes[node], offset, &mut bytes);
        }
        self.trace(|| {
            let region = crate::sim::metadata_disk::Region::of(offset);
            format!("{node} metadata: {io:?} {region:?} {} bytes", bytes.len())
        });
        let fault = std::mem::take(&mut self.nodes[node].fail_next_metadata);
        let number = self.nodes[node].metadata.submit(io, offset, bytes, fault);
        let (life, delay_us) = (self.nodes[node].life, self.span(self.settings.disk_us));
        self.schedule(delay_us, Happening::MetadataDone { node, life, number });
    }

    /// The mutation that answers as soon as the local disk has a write.
    fn answer_early(&mut self, node: NodeIndex, written: Option<std::ops::Range<Unit>>) {
        if self.settings.mutation != Some(Mutation::AnswerBeforePeer) || !self.nodes[node].serving {
            return;
        }
        let Some(written) = written else {
            return;
        };
        let answered = self.pending.iter().find(|(_, pending)| {
            pending.node == node && pending.asked.is_change() && pending.asked.units() == written
        });
        if let Some(id) = answered.map(|(id, _)| *id) {
            self.on_answer(node, id, Answer::Done);
            self.answered_early.insert(id);
        }
    }

    /// Lets a mutation change what a write does.
    fn mutate_write(
        &mut self,
        node: NodeIndex,
        units: &std::ops::Range<Unit>,
        tags: &mut [content::Tag],
        delay_us: u64,
    ) {
        let on_primary = self.nodes[node].serving;
        let reorder = match self.settings.mutation {
            Some(Mutation::ReorderLocal) => on_primary,
            Some(Mutation::ReorderPeer) => !on_primary,
            Some(Mutation::DropReplicaWrite) if !on_primary && self.random.percent(5) => {
                // The disk writes what it has already: the new content never gets there.
                for (unit, tag) in units.clone().zip(tags.iter_mut()) {
                    *tag = self.nodes[node].data.current(unit);
                }
                return;
            }
            _ => false,
        };
        if reorder && self.random.percent(20) && tags.iter().all(|tag| *tag == tags[0]) {
            // Completes at once, and lands once more after whatever overlaps it by then.
            let (units, tag) = (units.clone(), tags[0]);
            let late_us = delay_us + self.random.between(2_000, 20_000);
            self.schedule(late_us, Happening::LandLate { node, units, tag });
        }
    }

    // --- requests and commands -------------------------------------------------------------

    pub fn submit(&mut self, node: NodeIndex, asked: Asked) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.order += 1;
        let order = self.order;
        let unit_bytes = self.settings.unit_bytes;
        let units = asked.units();
        let range = ByteRange::new(
            units.start * u64::from(unit_bytes),
            ((units.end - units.start) * u64::from(unit_bytes)) as u32,
        );
        let mut tag = ZEROES;
        let operation = match &asked {
            Asked::Read { .. } => Operation::Read,
            Asked::Write { fua, .. } => {
                tag = self.new_tag();
                let tags = vec![tag; (units.end - units.start) as usize];
                Operation::Write {
                    data: content::encode(unit_bytes, &tags),
                    fua: *fua,
                }
            }
            Asked::Trim { fua, .. } => Operation::Trim { fua: *fua },
            Asked::WriteZeroes { fua, no_hole, .. } => Operation::WriteZeroes {
                fua: *fua,
                no_hole: *no_hole,
                fast: false,
            },
            Asked::Flush => Operation::Flush,
        };
        self.trace(|| format!("client → {node}: {id:?} {asked:?} tag {tag:x}"));
        if asked.is_change() {
            let line = self.line[node];
            self.truths[line].submit(id.0, units.clone(), tag, order);
        }
        self.pending.insert(
            id,
            Pending {
                node,
                asked,
                tag,
                submitted: order,
            },
        );
        self.step(
            node,
            Event::Request(Request {
                id,
                range,
                operation,
            }),
        );
        self.check_step();
        id
    }

    pub(super) fn new_tag(&mut self) -> content::Tag {
        self.next_tag += 1;
        // Spread over the word, so that no tag is the shear of another.
        self.next_tag | (self.next_tag << 32)
    }

    /// Gives a command and does not wait for its end.
    pub fn give(&mut self, node: NodeIndex, command: Command) -> CommandId {
        self.next_command += 1;
        let id = CommandId(self.next_command);
        self.trace(|| format!("operator → {node}: {id:?} {command:?}"));
        if let Command::Promote { peer_down, force } = command
            && (peer_down || force)
        {
            self.nodes[node].told_down = true;
        }
        self.outstanding.insert(id, (node, command));
        self.step(node, Event::Command { id, command });
        self.check_step();
        id
    }

    /// Gives a command and waits for its end. `None` if it did not end in time.
    pub fn command(
        &mut self,
        node: NodeIndex,
        command: Command,
    ) -> Option<Result<String, Refusal>> {
        let id = self.give(node, command);
        self.run_until(20_000, |world| world.outcomes.contains_key(&id));
        self.outcomes.remove(&id)
    }

    /// How a given command ended, if it has.
    pub fn outcome(&self, id: CommandId) -> Option<&Result<String, Refusal>> {
        self.outcomes.get(&id)
    }

    /// Waits for the answer to a request.
    pub fn answer_to(&mut self, id: RequestId) -> Option<Answer> {
        self.run_until(20_000, |world| world.answers.contains_key(&id));
        self.answers.get(&id).cloned()
    }

    /// Submits a request and waits for its answer.
    pub fn ask(&mut self, node: NodeIndex, asked: Asked) -> Option<Answer> {
        let id = self.submit(node, asked);
        self.answer_to(id)
    }

    /// The data partition of a node becomes as large as it can.
    pub fn grow(&mut self, node: NodeIndex) {
        self.nodes[node].config.usable_bytes = self.settings.size_bytes + self.settings.room_bytes;
    }

    pub fn keep_answers(&mut self) {
        self.keep_answers = true;
    }
}

fn new_node(index: NodeIndex, settings: &Settings) -> SimNode {
    let name = |index: NodeIndex| ["alpha", "beta"][index].to_owned();
    let id = |index: NodeIndex| Uuid::from_name("node", &name(index));
    let config = VolumeConfig {
        name: "md1".into(),
        node_name: name(index),
        peer_name: name(other(index)),
        cluster: Uuid::from_name("cluster", "sim"),
        mirror: Uuid::from_name("mirror", "md1"),
        node: id(index),
        peer: id(other(index)),
        mode: Mode::Sync,
        initial_sync: settings.initial_sync,
        peer_loss: settings.peer_loss,
        fast_zero: true,
        config_digest: [7; 16],
        usable_bytes: settings.size_bytes,
        logical_block_bytes: settings.unit_bytes,
        first: index == 0,
        peer_timeout_ms: settings.peer_timeout_ms,
        resync_rate_max: 0,
        resync_in_flight: settings.resync_in_flight,
        checkpoint_bytes: settings.checkpoint_bytes,
    };
    let mut metadata = MetadataDisk::new(fresh_metadata(&config, settings));
    let mut data = SimDisk::new(settings.unit_bytes);
    if settings.mutation == Some(Mutation::SkipMetadataFlush) {
        metadata.volatile = Some(Vec::new());
    }
    data.lies_about_flushes = settings.mutation == Some(Mutation::SkipDataFlush);
    let mut node = SimNode::new(config, data, metadata);
    node.clock_offset_ms = 5_000 * index as u64;
    node
}

fn fresh_metadata(config: &VolumeConfig, settings: &Settings) -> Vec<u8> {
    let params = FreshParams {
        cluster: config.cluster,
        mirror: config.mirror,
        node: config.node,
        peer: config.peer,
        usable_bytes: config.usable_bytes,
        logical_block_bytes: config.logical_block_bytes,
        adopted: None,
    };
    let (mut superblock, _) = metadata::fresh(params).expect("a simulated size is in range");
    superblock.log_slots = settings.log_slots;
    let image = Image::new(&superblock, None).expect("a simulated size is in range");
    // A metadata partition has room for a larger mirror from the start.
    let largest = Geometry::of(&superblock)
        .and_then(|geometry| geometry.resized(config.usable_bytes + settings.room_bytes))
        .expect("a simulated size is in range");
    let mut bytes = vec![0; largest.area_bytes() as usize];
    for piece in image {
        bytes[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    bytes
}

/// Rewrites bitmap pages on their way to disk as if nothing were dirty.
fn forget_bits(node: &SimNode, offset: u64, bytes: &mut [u8]) {
    use mirror_core::layout::bitmap_page;
    use mirror_core::layout::geometry::{Geometry, METADATA_BLOCK_BYTES, WORDS_PER_PAGE};
    let Ok(geometry) = Geometry::new(node.config.usable_bytes, 12, 1) else {
        return;
    };
    if offset >= geometry.bitmap_offset() {
        let first = (offset - geometry.bitmap_offset()) / METADATA_BLOCK_BYTES;
        for (page, block) in bytes
            .chunks_exact_mut(METADATA_BLOCK_BYTES as usize)
            .enumerate()
        {
            bitmap_page::encode_into(first as u32 + page as u32, &[0; WORDS_PER_PAGE], block);
        }
    }
}

/// A message as its receiver decodes it.
fn through_frame(envelope: &Envelope) -> Envelope {
    let (head, data) = frame::encode(envelope);
    let (header, inline) = head
        .split_first_chunk()
        .expect("a frame begins with its header");
    let header = Header::decode(header).expect("a header that was just encoded");
    let payload = data.unwrap_or_else(|| inline.to_vec().into());
    frame::decode(&header, payload).expect("a frame that was just encoded")
}

fn task_name(task: &Task) -> &'static str {
    match task {
        Task::Read => "read",
        Task::ReadSparse => "sparse read",
        Task::Write { .. } => "write",
        Task::Flush => "flush",
    }
}

/// A message on one line of the trace.
fn brief(message: &Message) -> String {
    let text = format!("{message:?}");
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
