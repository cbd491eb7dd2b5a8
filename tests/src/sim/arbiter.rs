//! An arbiter and the two agents that ask it, as short as they can be and still be right: epochs,
//! leases and the record of who holds current data (A3). The arbiter runs on a clock of its own, is
//! cut off, restarts, and loses its file.
//!
//! A node's agent lives and pauses with its node. It has one question out at a time; the way to the
//! arbiter keeps the order, so that an older word never arrives after a newer one.

use mirror_core::control::{Connection, MirrorStatus};
use mirror_core::units::RequestId;
use mirror_core::volume::event::{Command, Grant};
use mirror_core::wire::message::{DiskState, Role};

use crate::sim::client::Pending;
use crate::sim::mutation::Mutation;
use crate::sim::network::{NodeIndex, other};
use crate::sim::oracle::Order;
use crate::sim::settings::ArbiterPlan;
use crate::sim::world::{Happening, World};

/// How long an agent waits for an answer before it asks again.
const ANSWER_MS_MAX: u64 = 250;
/// How much later than its mirror an agent may wake.
const AGENT_WAKES_US_MAX: u64 = 5_000;
/// Virtual time within which a mirror that is at rest must answer a request.
const SERVICE_MS_MAX: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    epoch: u64,
    current: bool,
    peer_outdated: bool,
    primary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Renew {
        epoch: u64,
        wanted: u64,
    },
    Acquire,
    Record {
        epoch: u64,
        both: bool,
    },
    Enrol(Claim),
    /// Nothing is wanted but to hear whether it is still known.
    Greet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Renewed { both: bool },
    Granted { epoch: u64 },
    Recorded { both: bool },
    Superseded { epoch: u64 },
    Refused,
    Unknown,
    Greeted,
    Enrolled { complete: bool },
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    node: NodeIndex,
    /// On the arbiter's clock.
    granted_us: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agent {
    number: u64,
    /// The question that is out: its number, and when it was sent on the node's clock.
    out: Option<(u64, u64, Question)>,
    /// Newest ticket that its mirror published.
    wanted: u64,
    unknown: bool,
    /// Newest epoch that it was granted, and until when. It may be taken up at any moment while that lasts.
    granted: Option<(u64, u64)>,
    recorded_both: bool,
    /// The arbiter knows its node under a later epoch than the mirror has, or as nobody who holds one.
    refused: bool,
    /// The operator told its mirror to hold or to fail what it is asked.
    pub(super) ordered: bool,
    arrives_us: [u64; 2],
}

#[derive(Debug, Default)]
pub struct Arbiter {
    pub up: bool,
    /// Who cannot reach it.
    pub cut: [bool; 2],
    known: bool,
    epoch: u64,
    holder: Option<Holder>,
    current: [bool; 2],
    claims: [Option<Claim>; 2],
    pub(super) agents: [Agent; 2],
    pub drift_ppm: i64,
    /// Highest epoch that answered anything, and when it first did.
    answered: (u64, Order),
}

impl Arbiter {
    pub fn new(drift_ppm: i64) -> Self {
        Self {
            up: true,
            drift_ppm,
            ..Self::default()
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When it last counted a lease anew, on its own clock.
    pub fn counted_us(&self) -> Option<u64> {
        self.holder.map(|holder| holder.granted_us)
    }

    /// It comes back as somebody who cannot know how old a lease is.
    pub fn restart(&mut self, now_us: u64) {
        self.up = true;
        if let Some(holder) = &mut self.holder {
            holder.granted_us = now_us;
        }
    }

    pub fn lose_file(&mut self) {
        self.known = false;
        self.epoch = 0;
        self.holder = None;
        self.current = [false; 2];
        self.claims = [None; 2];
    }

    fn lease_lives(&self, but: NodeIndex, now_us: u64, lease_us: u64) -> bool {
        self.holder
            .is_some_and(|holder| holder.node != but && now_us < holder.granted_us + lease_us)
    }

    fn answer(
        &mut self,
        node: NodeIndex,
        question: Question,
        now_us: u64,
        lease_us: u64,
        mutation: Option<Mutation>,
    ) -> Reply {
        if let Question::Enrol(claim) = question {
            return self.enrol(node, claim, now_us);
        }
        if !self.known {
            return Reply::Unknown;
        }
        let holds = self.holder.is_some_and(|holder| holder.node == node);
        match question {
            Question::Acquire if self.lease_lives(node, now_us, lease_us) => Reply::Refused,
            Question::Acquire if !self.current[node] => Reply::Refused,
            Question::Acquire => {
                self.epoch += 1;
                self.holder = Some(Holder {
                    node,
                    granted_us: now_us,
                });
                Reply::Granted { epoch: self.epoch }
            }
            Question::Renew { epoch, .. } | Question::Record { epoch, .. }
                if !holds || epoch != self.epoch =>
            {
                match holds {
                    true => Reply::Refused,
                    false => Reply::Superseded { epoch: self.epoch },
                }
            }
            Question::Renew { .. } => {
                if let Some(holder) = &mut self.holder
                    && mutation != Some(Mutation::LeaseCountedFromBefore)
                {
                    holder.granted_us = now_us;
                }
                Reply::Renewed {
                    both: self.current == [true; 2],
                }
            }
            Question::Record { both, .. } => {
                self.current = [both; 2];
                self.current[node] = true;
                Reply::Recorded { both }
            }
            Question::Greet => Reply::Greeted,
            Question::Enrol(_) => Reply::Refused,
        }
    }

    /// Knows nothing until both nodes have said what they know.
    fn enrol(&mut self, node: NodeIndex, claim: Claim, now_us: u64) -> Reply {
        if self.known {
            return Reply::Enrolled { complete: true };
        }
        self.claims[node] = Some(claim);
        let [Some(a), Some(b)] = self.claims else {
            return Reply::Enrolled { complete: false };
        };
        self.known = true;
        self.epoch = a.epoch.max(b.epoch);
        // Neither has data yet: whichever the operator makes the truth.
        let none = !a.current && !b.current;
        self.current = [
            none || a.current && !(b.peer_outdated && b.epoch >= a.epoch),
            none || b.current && !(a.peer_outdated && a.epoch >= b.epoch),
        ];
        let primary = [a, b]
            .iter()
            .position(|claim| claim.primary && claim.epoch == self.epoch);
        self.holder = primary.map(|node| Holder {
            node,
            granted_us: now_us,
        });
        Reply::Enrolled { complete: true }
    }
}

impl World {
    pub fn has_arbiter(&self) -> bool {
        self.settings.arbiter.is_some()
    }

    fn plan(&self) -> Option<ArbiterPlan> {
        self.settings.arbiter
    }

    pub fn arbiter_us(&self) -> u64 {
        drifted(self.clock_us, self.arbiter.drift_ppm)
    }

    /// The agent of a node begins to run with it.
    pub(super) fn start_agent(&mut self, node: NodeIndex) {
        if !self.has_arbiter() {
            return;
        }
        let (arrives_us, number) = {
            let agent = &self.arbiter.agents[node];
            (agent.arrives_us, agent.number)
        };
        self.arbiter.agents[node] = Agent {
            arrives_us,
            number,
            ..Agent::default()
        };
        let life = self.nodes[node].life;
        let delay_us = self.random.between(1_000, 30_000);
        self.schedule(delay_us, Happening::Agent { node, life });
    }

    pub(super) fn on_confirm_wanted(&mut self, node: NodeIndex, ticket: u64) {
        self.arbiter.agents[node].wanted = ticket;
        let life = self.nodes[node].life;
        let delay_us = self.random.between(100, 1_000);
        self.schedule(delay_us, Happening::Nudge { node, life });
    }

    pub(super) fn on_agent_turn(&mut self, node: NodeIndex) {
        let Some(plan) = self.plan() else {
            return;
        };
        let life = self.nodes[node].life;
        let pause_us = self.random.between(plan.lease_ms * 50, plan.lease_ms * 250);
        self.schedule(pause_us, Happening::Agent { node, life });
        self.ask_arbiter(node);
    }

    pub(super) fn ask_arbiter(&mut self, node: NodeIndex) {
        let now_ms = self.now_of(node).monotonic_ms;
        let agent = self.arbiter.agents[node];
        if agent
            .out
            .is_some_and(|(_, sent, _)| now_ms.saturating_sub(sent) < ANSWER_MS_MAX)
        {
            return;
        }
        let Some(status) = self.status(node) else {
            return;
        };
        let Some(question) = self.choose_question(node, &status) else {
            return;
        };
        let agent = &mut self.arbiter.agents[node];
        agent.number += 1;
        let number = agent.number;
        agent.out = Some((number, now_ms, question));
        let delay_us = self.span(self.settings.network_us);
        let agent = &mut self.arbiter.agents[node];
        let at_us = (self.clock_us + delay_us).max(agent.arrives_us[0]);
        agent.arrives_us[0] = at_us;
        self.schedule_at(
            at_us,
            Happening::Ask {
                node,
                number,
                question,
            },
        );
    }

    fn choose_question(&mut self, node: NodeIndex, status: &MirrorStatus) -> Option<Question> {
        let agent = self.arbiter.agents[node];
        let epoch = status.epoch;
        if agent.unknown {
            let now_ms = self.now_of(node).monotonic_ms;
            let (granted, until_ms) = agent.granted.unwrap_or_default();
            return Some(Question::Enrol(Claim {
                epoch: epoch.max(granted),
                current: status.disk == DiskState::UpToDate,
                peer_outdated: status.peer_outdated,
                primary: status.role == Role::Primary || now_ms <= until_ms,
            }));
        }
        let connected = status.connection == Connection::Connected;
        if status.role == Role::Primary {
            let equal = connected
                && status.peer.disk == DiskState::UpToDate
                && status.sync.is_none()
                && status.out_of_sync_bytes == 0
                && !status.peer_outdated;
            // Where answers run ahead nothing goes without a lease, so the agent asks anew.
            if self.runs_ahead() && agent.refused {
                return Some(Question::Acquire);
            }
            if status.io_suspended && self.random.coin() {
                return Some(Question::Record { epoch, both: false });
            }
            if equal && !agent.recorded_both && self.random.coin() {
                return Some(Question::Record { epoch, both: true });
            }
            let wanted = agent.wanted;
            return Some(Question::Renew { epoch, wanted });
        }
        let needed = !connected || status.peer.role != Role::Primary;
        let able = status.disk == DiskState::UpToDate || self.is_fresh();
        let eager = self.clock_us >= self.faults_end_us || self.random.percent(40);
        if able && (needed && eager || self.settings.operator && self.random.percent(2)) {
            return Some(Question::Acquire);
        }
        // Where nothing goes without a lease, an arbiter that lost its file needs the word of both.
        self.runs_ahead().then_some(Question::Greet)
    }

    /// A question has come as far as the arbiter.
    pub(super) fn on_ask(&mut self, node: NodeIndex, number: u64, question: Question) {
        let Some(plan) = self.plan() else {
            return;
        };
        if !self.arbiter.up || self.arbiter.cut[node] {
            return;
        }
        let (now_us, lease_us) = (self.arbiter_us(), plan.lease_ms * 1000);
        let mutation = self.settings.mutation;
        let reply = self
            .arbiter
            .answer(node, question, now_us, lease_us, mutation);
        self.trace(|| format!("arbiter ← {node}: {question:?}: {reply:?}"));
        let delay_us = self.span(self.settings.network_us);
        let agent = &mut self.arbiter.agents[node];
        let at_us = (self.clock_us + delay_us).max(agent.arrives_us[1]);
        agent.arrives_us[1] = at_us;
        let life = self.nodes[node].life;
        self.schedule_at(
            at_us,
            Happening::Told {
                node,
                life,
                number,
                reply,
            },
        );
    }

    pub(super) fn on_told(&mut self, node: NodeIndex, number: u64, reply: Reply) {
        let Some(plan) = self.plan() else {
            return;
        };
        let agent = &mut self.arbiter.agents[node];
        if self.settings.mutation == Some(Mutation::ConfirmedTooLate)
            && let Some((_, _, Question::Renew { wanted, .. })) = &mut agent.out
        {
            *wanted = agent.wanted;
        }
        let Some((_, sent_ms, question)) = agent.out.take_if(|(out, _, _)| *out == number) else {
            return;
        };
        let deadline_ms = if self.settings.mutation == Some(Mutation::LeaseCountedFromReply) {
            self.now_of(node).monotonic_ms + plan.lease_ms
        } else {
            sent_ms + plan.held_ms()
        };
        let agent_epoch = self.status(node).map_or(0, |status| status.epoch);
        let agent = &mut self.arbiter.agents[node];
        match (reply, question) {
            (Reply::Renewed { both }, Question::Renew { epoch, wanted }) => {
                agent.recorded_both = both;
                self.give(
                    node,
                    Command::Lease {
                        epoch,
                        deadline_ms,
                        confirmed: wanted,
                    },
                );
            }
            (Reply::Granted { epoch }, _) => {
                let agent = &mut self.arbiter.agents[node];
                agent.refused = false;
                agent.granted = Some((epoch, deadline_ms));
                let force = self.is_fresh();
                // Cut off, paused or not met yet, it makes no difference: nobody asked the other for what it has.
                let cut = !self.network.connected() || !self.is_connected(node);
                if cut || self.is_paused(other(node)) {
                    self.nodes[node].superseded = false;
                    self.nodes[other(node)].superseded = true;
                }
                let grant = Some(Grant { epoch, deadline_ms });
                self.give(
                    node,
                    Command::Promote {
                        peer_down: false,
                        force,
                        grant,
                    },
                );
            }
            (Reply::Recorded { both: true }, _) => agent.recorded_both = true,
            (Reply::Recorded { both: false }, _) => {
                agent.recorded_both = false;
                self.give(node, Command::PeerDown);
            }
            (Reply::Superseded { epoch }, _) => {
                // Nobody has a later one: it knows of no holder any more.
                agent.refused = epoch <= agent_epoch;
                self.give(node, Command::EpochSeen { epoch });
            }
            (Reply::Unknown, _) => {
                agent.unknown = true;
                agent.recorded_both = false;
            }
            (Reply::Enrolled { complete }, _) => agent.unknown = !complete,
            (Reply::Refused, Question::Renew { .. }) => agent.refused = true,
            (Reply::Refused | Reply::Renewed { .. } | Reply::Greeted, _) => {}
        }
    }

    // --- pauses ------------------------------------------------------------------------------

    pub fn is_paused(&self, node: NodeIndex) -> bool {
        self.nodes[node].paused_since_us.is_some()
    }

    /// Nothing on the node runs until [`World::wake`]. `stops_clock`: its clocks do not either.
    pub fn pause(&mut self, node: NodeIndex, stops_clock: bool) {
        if !self.nodes[node].is_up() || self.is_paused(node) {
            return;
        }
        self.trace(|| format!("node {node} is paused, clock stopped: {stops_clock}"));
        self.nodes[node].paused_since_us = Some(self.clock_us);
        self.nodes[node].clock_stopped = stops_clock;
    }

    /// The node goes on with all that came meanwhile, in order.
    pub fn wake(&mut self, node: NodeIndex) {
        let Some(since_us) = self.nodes[node].paused_since_us.take() else {
            return;
        };
        if std::mem::take(&mut self.nodes[node].clock_stopped) {
            self.nodes[node].stopped_us += self.clock_us - since_us;
        }
        self.trace(|| format!("node {node} wakes"));
        // Its agent is a process of its own, which runs on no sooner and no later than the other.
        let agent_us = self.random.between(0, AGENT_WAKES_US_MAX);
        for happening in std::mem::take(&mut self.nodes[node].backlog) {
            let of_agent = matches!(
                happening,
                Happening::Agent { .. } | Happening::Nudge { .. } | Happening::Told { .. }
            );
            self.schedule(if of_agent { agent_us } else { 0 }, happening);
        }
    }

    // --- A3 ----------------------------------------------------------------------------------

    /// Once a later epoch has answered anything, no earlier one answers anything. A clock that stood
    /// still cannot tell how long an answer was on its way, so a node that was so paused may give one
    /// that was earned before; what it is asked after that it may not answer.
    pub(super) fn check_authority(&mut self, node: NodeIndex, id: RequestId, pending: &Pending) {
        if !self.has_arbiter() {
            return;
        }
        let Some(epoch) = self.status(node).map(|status| status.epoch) else {
            return;
        };
        let (newest, since) = self.arbiter.answered;
        if epoch > newest {
            self.arbiter.answered = (epoch, self.order);
        } else if epoch < newest {
            let excused = self.nodes[node].stopped_us > 0 && pending.submitted < since;
            if !excused {
                self.violate(
                    "A3",
                    format!("node {node} answers {id:?} in epoch {epoch}, and epoch {newest} of node {} has answered already", other(node)),
                );
            }
        }
    }

    /// The mirror is at rest, so a request is answered.
    pub(super) fn check_service(&mut self) {
        let Some(node) = self.serving().filter(|_| self.has_arbiter()) else {
            return;
        };
        let keeps = std::mem::replace(&mut self.keep_answers, true);
        let ids = [
            self.submit(node, crate::sim::client::Asked::write(0..1)),
            self.submit(node, crate::sim::client::Asked::read(0..1)),
        ];
        let served = self.run_until(SERVICE_MS_MAX, |world| {
            ids.iter().all(|id| world.answers.contains_key(id))
        });
        self.keep_answers = keeps;
        if !served && self.violation.is_none() {
            let status = self.status(node);
            self.violate(
                "A3",
                format!("all is healed, and node {node} does not answer: {status:#?}"),
            );
        }
    }
}

/// What a clock shows that is wrong by so many millionths.
pub(super) fn drifted(true_us: u64, ppm: i64) -> u64 {
    let wrong = i128::from(true_us) * i128::from(ppm) / 1_000_000;
    u64::try_from(i128::from(true_us) + wrong).unwrap_or(0)
}
