//! The cluster, one step of time after the other; the drivers of its agents.
//!
//! Nothing here decides: effects become calls that take their time, and what comes of them becomes
//! events. A process that does not run gets its events when it runs again.

mod drivers;
mod mirrors;

use std::collections::BTreeMap;

use agent::alert::{self, Alert};
use agent::arbiter::call::Request;
use agent::control::{CommandRequest, State};
use agent::fencing;
use agent::membership::Run;
use agent::node::Node;
use agent::node::event::{CommandId, Effect, Event, MirrorCommand};
use nbd_frontend::config::agent::FinalAction;

use super::checker::{Checker, Violation};
use super::faults::{Fault, Trouble};
use super::machine::{Agent, Clock, Job, Machine, Stage};
use super::mirror::{Message, Mirror, Rules};
use super::network::{Line, Network};
use super::settings::{GROUP, NAMES, Settings};
use super::witness::Witness;
use crate::random::Random;

/// The grain of time.
pub const STEP_MS: u64 = 5;
/// How often a driver looks at its mirror at least.
const VIEW_MS: u64 = 100;
/// Where all clocks begin.
const CLOCK_START_MS: u64 = 1_000_000;

#[derive(Debug)]
enum Happening {
    Datagram {
        to: usize,
        path: usize,
        bytes: Vec<u8>,
    },
    /// For one run of an agent, and no other.
    ToAgent {
        node: usize,
        run: u64,
        event: Event,
    },
    AtWitness {
        from: usize,
        run: u64,
        number: u64,
        request: Request,
        sent_ms: u64,
    },
    AtMirror {
        node: usize,
        run: u64,
        number: u64,
        command: MirrorCommand,
        late_ms: u64,
    },
    Probe {
        node: usize,
        run: u64,
        number: u64,
    },
    /// Whoever stops nodes from outside takes this one down.
    StopTakesEffect {
        by: usize,
        asked_ms: u64,
    },
}

/// Mistakes on purpose, to prove that the checker sees.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mistakes {
    /// The forced stop says "done" and does nothing.
    pub stop_lies: bool,
    pub arbiter_forgets_leases: bool,
    pub no_gate: bool,
    /// Both nodes act at once: no head start for the owner.
    pub no_fence_delay: bool,
}

#[derive(Debug)]
pub struct World {
    pub settings: Settings,
    pub random: Random,
    pub now_ms: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    queued: u64,
    pub machines: [Machine; 2],
    pub mirrors: [Mirror; 2],
    cable: [std::collections::VecDeque<(u64, u64, u64, Message)>; 2],
    session: u64,
    promotions: u64,
    generations: u64,
    jobs: u64,
    runs: u64,
    writes: usize,
    pub witness: Witness,
    pub network: Network,
    /// Datagrams of all times, as (path, bytes).
    tape: Vec<(usize, Vec<u8>)>,
    pub checker: Checker,
    mistakes: Mistakes,
    provider_fails: bool,
    provider_slow_ms: u64,
    commands: Vec<(usize, u64, u64)>,
    last_command: u64,
    /// Nothing that happens here is a reason to move or to stop anything.
    pub quiet: bool,
    pub alerts: Vec<(u64, usize, Alert)>,
    pub outcomes: Vec<(u64, Result<String, String>)>,
    pub keep_trace: bool,
    pub trace: Vec<String>,
}

impl World {
    pub fn new(settings: Settings, seed: u64, mistakes: Mistakes) -> Self {
        let mut random = Random::new(seed);
        let drift = i64::from(settings.drift_ppm_max);
        let mut clock = || {
            let ppm = random.below(2 * drift as u64 + 1) as i64 - drift;
            Clock::new(CLOCK_START_MS + random.below(1_000_000), ppm)
        };
        let machines = [0, 1].map(|_| Machine::new(clock()));
        let mut witness = Witness::new(clock());
        witness.forgets_leases = mistakes.arbiter_forgets_leases;
        let rules = |first| Rules {
            arbiter: settings.has_arbiter(),
            round_trip: settings.round_trip,
            reinstates: settings.reinstates,
            hold: settings.holds(),
            first,
            no_gate: mistakes.no_gate,
        };
        let mut world = Self {
            mirrors: [true, false].map(|first| Mirror::new(rules(first))),
            checker: Checker::new(settings.is_exclusive()),
            random,
            now_ms: 0,
            queue: BTreeMap::new(),
            queued: 0,
            machines,
            cable: Default::default(),
            session: 0,
            promotions: 0,
            generations: 1,
            jobs: 0,
            runs: 0,
            writes: 0,
            witness,
            network: Network::default(),
            tape: Vec::new(),
            mistakes,
            provider_fails: false,
            provider_slow_ms: 0,
            commands: Vec::new(),
            last_command: 0,
            quiet: false,
            alerts: Vec::new(),
            outcomes: Vec::new(),
            keep_trace: false,
            trace: Vec::new(),
            settings,
        };
        for node in 0..2 {
            world.machines[node].boot_ms = Some(world.random.below(3_000));
        }
        world
    }

    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.keep_trace {
            let line = format!("{:>8} {}", self.now_ms, text());
            self.trace.push(line);
        }
    }

    /// Runs until then, or until a rule is broken. True if none was.
    pub fn run_until(&mut self, until_ms: u64) -> bool {
        while self.now_ms < until_ms && self.checker.violation().is_none() {
            self.step();
        }
        self.checker.violation().is_none()
    }

    /// Runs until it is so; false if that takes longer than this, or a rule is broken.
    pub fn run_until_so(&mut self, within_ms: u64, is_so: impl Fn(&Self) -> bool) -> bool {
        let until_ms = self.now_ms + within_ms;
        while self.now_ms < until_ms && self.checker.violation().is_none() {
            self.step();
            if is_so(self) {
                return true;
            }
        }
        false
    }

    pub fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        for node in 0..2 {
            self.machines[node].wake(now_ms);
            self.start_what_is_due(node);
        }
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > now_ms {
                break;
            }
            let happening = entry.remove();
            self.happen(happening);
        }
        self.run_mirrors();
        for node in 0..2 {
            self.run_jobs(node);
            self.run_agent(node);
        }
    }

    fn after(&mut self, delay_ms: u64, happening: Happening) {
        self.queued += 1;
        let at_ms = self.now_ms + delay_ms;
        self.queue.insert((at_ms, self.queued), happening);
    }

    fn answer_after(&mut self, delay_ms: u64, node: usize, run: u64, event: Event) {
        self.after(delay_ms, Happening::ToAgent { node, run, event });
    }

    fn start_what_is_due(&mut self, node: usize) {
        let now_ms = self.now_ms;
        let due = |at_ms: Option<u64>| at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        if due(self.machines[node].boot_ms) && !self.machines[node].powered {
            self.machines[node].boot_ms = None;
            self.machines[node].powered = true;
            let mirror_ms = now_ms + self.random.between(300, 2_000);
            let agent_ms = now_ms + self.random.between(300, 2_500);
            self.machines[node].mirror_start_ms = Some(mirror_ms);
            self.machines[node].agent_start_ms = Some(agent_ms);
            self.say(|| format!("{node} boots"));
        }
        if !self.machines[node].is_running(now_ms) {
            return;
        }
        if due(self.machines[node].mirror_start_ms) {
            self.machines[node].mirror_start_ms = None;
            let node_ms = self.machines[node].clock.read(now_ms);
            self.mirrors[node].start(node_ms);
            self.say(|| format!("{node} mirrord starts"));
        }
        if due(self.machines[node].agent_start_ms) {
            self.machines[node].agent_start_ms = None;
            self.start_agent(node);
        }
    }

    fn start_agent(&mut self, node: usize) {
        if self.machines[node].agent.is_some() {
            return;
        }
        self.runs += 1;
        let run = self.runs;
        let node_ms = self.machines[node].clock.read(self.now_ms);
        let mut config = self.settings.node(node);
        if self.mistakes.no_fence_delay
            && let Some(stop) = &mut config.forced_stop
        {
            stop.fence_delay = std::time::Duration::ZERO;
        }
        let mut effects = Vec::new();
        let agent = Node::new(
            config,
            self.settings.membership(node),
            Run(run),
            node_ms,
            &mut effects,
        );
        let machine = &mut self.machines[node];
        machine.inbox.clear();
        machine.agent = Some(Agent {
            node: agent,
            run,
            tick_ms: self.now_ms,
            viewed: None,
            view_ms: 0,
        });
        self.say(|| format!("{node} agent starts, run {run}"));
        self.carry_out(node, effects);
        // The dead agent's children died with it.
        self.machines[node].jobs.clear();
        self.machines[node].probe_port = false;
        let states = self.found(node);
        self.hand_agent(node, Event::Found { group: 0, states });
    }

    fn found(&self, node: usize) -> Vec<State> {
        let machine = &self.machines[node];
        let disk = match (machine.mounted, self.mirrors[node].is_primary()) {
            (true, true) => State::Online,
            (false, false) => State::Offline,
            _ => State::Unknown,
        };
        let state = |runs: bool| match runs {
            true => State::Online,
            false => State::Offline,
        };
        vec![disk, state(machine.application), state(machine.probe_port)]
    }

    fn run_agent(&mut self, node: usize) {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[node];
        if machine.agent.is_none() || !machine.agent_runs(now_ms) {
            return;
        }
        while let Some(event) = self.machines[node].inbox.pop_front() {
            self.hand_agent(node, event);
        }
        let node_ms = self.machines[node].clock.read(now_ms);
        let mirror_runs = self.machines[node].mirror_runs(now_ms);
        let view = self.mirrors[node].view(node_ms).filter(|_| mirror_runs);
        let Some(agent) = &mut self.machines[node].agent else {
            return;
        };
        let news = agent.viewed.map(plain) != Some(plain(view));
        if news || now_ms >= agent.view_ms + VIEW_MS {
            agent.viewed = Some(view);
            agent.view_ms = now_ms;
            self.hand_agent(node, Event::Mirror { mirror: 0, view });
        }
        let next_ms = now_ms + self.random.between(10, 50);
        if let Some(agent) = &mut self.machines[node].agent
            && now_ms >= agent.tick_ms
        {
            agent.tick_ms = next_ms;
            self.hand_agent(node, Event::Tick);
        }
    }

    fn hand_agent(&mut self, node: usize, event: Event) {
        let node_ms = self.machines[node].clock.read(self.now_ms);
        if !self.machines[node].agent_runs(self.now_ms) {
            if self.machines[node].agent.is_some() {
                self.machines[node].keep(event);
            }
            return;
        }
        let Some(agent) = &mut self.machines[node].agent else {
            return;
        };
        let mut effects = Vec::new();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            agent.node.step(node_ms, event, &mut effects);
            agent.node.check_invariants();
        }));
        if let Err(panic) = outcome {
            let what = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            self.checker.report(Violation::Broken { node, what });
            return;
        }
        self.carry_out(node, effects);
    }

    /// What goes wrong now, and what ends it.
    pub fn begin(&mut self, trouble: &Trouble) {
        let now_ms = self.now_ms;
        let until_ms = now_ms + trouble.for_ms;
        self.say(|| format!("-- {:?} for {} ms", trouble.fault, trouble.for_ms));
        match trouble.fault.clone() {
            Fault::Cut(lines) => self.network.cut(&lines),
            Fault::Noise {
                loss_percent,
                twice_percent,
                delay_ms,
                again_percent,
            } => {
                self.network.again_percent = again_percent;
                self.network.loss_percent = loss_percent;
                self.network.twice_percent = twice_percent;
                self.network.delay_ms = delay_ms;
            }
            Fault::FreezeAgent(node) => self.machines[node].agent_frozen_until_ms = until_ms,
            Fault::FreezeMirror(node) => self.machines[node].mirror_frozen_until_ms = until_ms,
            Fault::FreezeBoth(node) => {
                self.machines[node].agent_frozen_until_ms = until_ms;
                self.machines[node].mirror_frozen_until_ms = until_ms;
            }
            Fault::Pause(node) => self.machines[node].pause(now_ms, until_ms),
            Fault::KillAgent(node) => self.kill_agent(node, trouble.for_ms.min(10_000)),
            Fault::KillMirror(node) => self.kill_mirror(node, trouble.for_ms.min(10_000)),
            Fault::Crash(node) => {
                self.power_off(node);
                self.machines[node].boot_ms = Some(until_ms);
            }
            Fault::StartFails(node) => self.machines[node].trouble.start_fails = true,
            Fault::StartHangs(node) => self.machines[node].trouble.start_hangs = true,
            Fault::ProbeFails(node) => self.machines[node].trouble.probe_fails = true,
            Fault::StopFails(node) => self.machines[node].trouble.stop_fails = true,
            Fault::StopSlow { node, ms } => self.machines[node].trouble.stop_slow_ms = ms,
            Fault::ProviderFails => self.provider_fails = true,
            Fault::ProviderSlow { ms } => self.provider_slow_ms = ms,
            Fault::WitnessDown => self.witness.stop(),
            Fault::WitnessLosesFile => {
                self.witness.stop();
                self.witness.lose_file();
            }
            Fault::Switchover(node) => {
                let request = CommandRequest::Switchover {
                    group: GROUP.into(),
                    to: None,
                };
                self.command(node, request);
            }
            Fault::GroupStop(node) => self.group_command(node, false),
            Fault::GroupStart(node) => self.group_command(node, true),
            Fault::Standby { node, from } => {
                let node = NAMES[node].to_owned();
                self.command(from, CommandRequest::NodeStandby { node });
            }
        }
    }

    pub fn end(&mut self, trouble: &Trouble) {
        self.say(|| format!("-- end of {:?}", trouble.fault));
        match trouble.fault.clone() {
            Fault::Cut(lines) => self.network.mend(&lines),
            Fault::Noise { .. } => {
                self.network.loss_percent = 0;
                self.network.twice_percent = 0;
                self.network.delay_ms = 0;
                self.network.again_percent = 0;
            }
            Fault::StartFails(node)
            | Fault::StartHangs(node)
            | Fault::ProbeFails(node)
            | Fault::StopFails(node)
            | Fault::StopSlow { node, .. } => {
                self.machines[node].trouble = super::machine::Trouble::default();
            }
            Fault::ProviderFails => self.provider_fails = false,
            Fault::ProviderSlow { .. } => self.provider_slow_ms = 0,
            Fault::WitnessDown | Fault::WitnessLosesFile => self.witness.start(self.now_ms),
            Fault::Standby { node, from } => {
                let node = NAMES[node].to_owned();
                self.command(from, CommandRequest::NodeActive { node });
            }
            Fault::GroupStop(node) => self.group_command(node, true),
            _ => {}
        }
    }

    /// No fault is left; what is down comes up.
    pub fn heal(&mut self) {
        self.say(|| "-- all is mended".into());
        let now_ms = self.now_ms;
        self.network.mend_all();
        self.provider_fails = false;
        self.provider_slow_ms = 0;
        self.witness.start(now_ms);
        for machine in &mut self.machines {
            machine.thaw(now_ms);
            machine.trouble = super::machine::Trouble::default();
            if !machine.powered {
                let soon_ms = now_ms + 500;
                machine.boot_ms = Some(machine.boot_ms.map_or(soon_ms, |at| at.min(soon_ms)));
            }
        }
    }

    fn group_command(&mut self, node: usize, start: bool) {
        let group = GROUP.to_owned();
        self.command(
            node,
            if start {
                CommandRequest::GroupStart {
                    group,
                    peer_down: false,
                    force: false,
                }
            } else {
                CommandRequest::GroupStop { group }
            },
        );
    }

    /// Returns its number.
    pub fn command(&mut self, node: usize, request: CommandRequest) -> u64 {
        self.last_command += 1;
        let id = self.last_command;
        let Some(agent) = &self.machines[node].agent else {
            return id;
        };
        let run = agent.run;
        self.say(|| format!("{node} <- {id} {request:?}"));
        self.commands.push((node, run, id));
        let id = CommandId(id);
        self.hand_agent(node, Event::Command { id, request });
        self.last_command
    }

    /// Commands that a living agent owes an answer to.
    pub fn unanswered(&self) -> Option<(usize, u64)> {
        self.commands.first().map(|(node, _, id)| (*node, *id))
    }

    pub fn kill_agent(&mut self, node: usize, for_ms: u64) {
        if self.machines[node].agent.is_none() {
            return;
        }
        self.say(|| format!("{node} agent dies"));
        self.machines[node].kill_agent();
        self.commands.retain(|(at, _, _)| *at != node);
        self.machines[node].agent_start_ms = Some(self.now_ms + for_ms.max(100));
    }

    pub fn kill_mirror(&mut self, node: usize, for_ms: u64) {
        if self.mirrors[node].process.is_none() {
            return;
        }
        self.say(|| format!("{node} mirrord dies"));
        self.mirrors[node].fail_all();
        self.mirrors[node].kill();
        // Its socket is closed for it.
        self.cable[node].push_back((self.now_ms + 1, self.session, 0, Message::End));
        self.machines[node].mirror_start_ms = Some(self.now_ms + for_ms.max(100));
    }

    pub fn power_off(&mut self, node: usize) {
        self.say(|| format!("{node} is down"));
        self.machines[node].power_off();
        self.commands.retain(|(at, _, _)| *at != node);
        self.mirrors[node].kill();
        self.machines[node].thaw(self.now_ms);
    }

    pub fn has_alert(&self, node: usize, id: u16) -> bool {
        self.alerts
            .iter()
            .any(|(_, at, alert)| *at == node && alert.id == id)
    }

    /// The agent that runs there now has heard the other one.
    pub fn has_heard_peer(&self, node: usize) -> bool {
        let its = self.alerts.iter().rev().filter(|(_, at, _)| *at == node);
        its.take_while(|(_, _, told)| told.id != alert::NODE_STARTED.id)
            .any(|(_, _, told)| told.id == alert::PEER_UP.id)
    }

    /// Whose client gets answers.
    pub fn serves(&self, node: usize) -> bool {
        let node_ms = self.machines[node].clock.read(self.now_ms);
        let machine = &self.machines[node];
        machine.application && machine.mounted && self.mirrors[node].is_serving(node_ms)
    }

    /// In a line, for a report.
    pub fn describe(&self) -> String {
        let node = |node: usize| {
            let machine = &self.machines[node];
            let state = machine.agent.as_ref().map(|agent| {
                let status = agent.node.status(&["disk".into()]);
                let group = &status.groups[0];
                format!(
                    "{:?} waits for {:?}, partition {:?}",
                    group.state, group.waits_for, status.warnings
                )
            });
            let node_ms = machine.clock.read(self.now_ms);
            format!(
                "{node}: powered {} mounted {} application {} view {:?} group {state:?}",
                machine.powered,
                machine.mounted,
                machine.application,
                self.mirrors[node].view(node_ms)
            )
        };
        format!("{}; {}", node(0), node(1))
    }

    fn note_alert(&mut self, node: usize, alert: Alert) {
        let id = alert.id;
        self.say(|| format!("{node} {} {}", alert.id, alert.message));
        let two = [alert::MAY_BE_ACTIVE_TWICE.id, alert::BOTH_ACTIVE.id];
        self.checker.announced |= two.contains(&id);
        self.checker.failovers += u64::from(id == alert::FAILING_OVER.id);
        let moves = [
            alert::PEER_DOWN.id,
            alert::ISOLATED.id,
            alert::STOP_REQUESTED.id,
            alert::LEASE_LOST.id,
            alert::FAILING_OVER.id,
            alert::GROUP_STOPPING.id,
            alert::FROZEN.id,
        ];
        if self.quiet && moves.contains(&id) {
            let what = alert.message.clone();
            self.checker.report(Violation::WithoutNeed { what });
        }
        self.alerts.push((self.now_ms, node, alert));
    }
}

/// Without what changes all the time.
fn plain(view: Option<agent::node::event::MirrorView>) -> Option<agent::node::event::MirrorView> {
    view.map(|mut view| {
        view.heard_ms = None;
        view
    })
}
