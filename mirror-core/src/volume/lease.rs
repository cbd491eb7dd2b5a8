//! The gate before every answer: a primary gives one only with proof that nobody else may give one by
//! then (A3). `docs/leases.md` has the argument for each way.
//!
//! Whatever answers a client comes through [`Volume::release`]. Errors pass at once. A success passes when
//! its work is done and, in the very step that lets it go, one of these holds:
//!
//! * the peer acknowledged this very request, and was asked for it a moment ago ([`WORD_MS`]);
//! * the lease is live on the clock (`LeaseCheck::Clock`);
//! * the peer said in answer to a question put after the work was done that it follows this epoch;
//! * the lease was renewed on a request made after the work was done (`LeaseCheck::RoundTrip`).
//!
//! What has no proof waits, bounded by the requests that clients may have in flight. The peer's word
//! counts in sync mode only. Without an arbiter the gate stands open, and only an order shuts it.
//!
//! The gate knows nothing of what a request did: `alone` decides before it whether an answer is owed.

use std::collections::VecDeque;

use super::Volume;
use super::config::LeaseCheck;
use super::effect::Effect;
use super::notice::Notice;
use super::store::After;
use crate::control::LeaseStatus;
use crate::request::{Answer, Failure};
use crate::units::{CommandId, Epoch, RequestId};
use crate::wire::message::{DiskState, Message, Mode, Role};

/// How long a word of the peer counts, from the moment it was asked for. Whatever sleeps longer between
/// its question and the answer finds the answer worthless.
pub(super) const WORD_MS: u64 = 1_000;
/// A side that gave its word waits this long before it becomes primary without the other's leave. It
/// is longer by more than two clocks may drift apart.
pub(super) const WORD_OVER_MS: u64 = WORD_MS + WORD_MS / 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Open,
    /// No answers.
    Frozen,
    /// Errors instead of answers.
    Failing,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    epoch: Epoch,
    deadline_ms: u64,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    answer: Answer,
    /// First question to the peer that is put after the work was done.
    question: u64,
    /// A lease asked for after this ticket was published is proof. Zero: none published yet.
    ticket: u64,
    /// Owed because it is in line for the peer. If the line is cut first, it is owed no more.
    ahead: bool,
}

#[derive(Debug)]
pub(super) struct Gate {
    check: Option<LeaseCheck>,
    order: Order,
    lease: Option<Lease>,
    waiting: VecDeque<Waiting>,
    /// Newest question to the peer, and since when it is out.
    question: u64,
    asked_ms: Option<u64>,
    ticket: u64,
    /// When this side last gave the peer its word.
    vouched_ms: u64,
    told_frozen: bool,
    told_expired: bool,
}

impl Gate {
    pub(super) fn new(check: Option<LeaseCheck>, now_ms: u64) -> Self {
        Self {
            check,
            order: Order::Open,
            lease: None,
            waiting: VecDeque::new(),
            question: 0,
            asked_ms: None,
            // No ticket of an earlier run may be taken for one of this.
            ticket: check.map_or(0, |_| now_ms << 10),
            // The last run may have given its word until now.
            vouched_ms: now_ms,
            told_frozen: false,
            told_expired: false,
        }
    }

    /// Nothing to prove and no order: answers go as they come.
    fn stands_open(&self) -> bool {
        self.check.is_none() && self.order == Order::Open
    }

    pub(super) fn is_failing(&self) -> bool {
        self.order == Order::Failing
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    pub(super) fn note_word(&mut self, now_ms: u64) {
        self.vouched_ms = now_ms;
    }

    pub(super) fn word_is_over(&self, now_ms: u64) -> bool {
        now_ms >= self.vouched_ms.saturating_add(WORD_OVER_MS)
    }

    fn is_live(&self, epoch: Epoch, now_ms: u64) -> bool {
        self.lease
            .is_some_and(|lease| lease.epoch == epoch && now_ms < lease.deadline_ms)
    }
}

impl Volume {
    /// The one way to a client. `asked_ms`: when the peer was asked for this very request, if it has
    /// acknowledged it.
    pub(super) fn release(&mut self, id: RequestId, answer: Answer, asked_ms: Option<u64>) {
        self.pass_or_wait(id, answer, asked_ms, false);
    }

    /// The same for success that rests on a line to the peer.
    pub(super) fn release_ahead(&mut self, id: RequestId) {
        self.pass_or_wait(id, Answer::Done, None, true);
    }

    fn pass_or_wait(&mut self, id: RequestId, answer: Answer, asked_ms: Option<u64>, ahead: bool) {
        if self.gate.stands_open() || matches!(answer, Answer::Failed(_)) {
            self.fx.push(Effect::Answer { id, answer });
            return;
        }
        match self.gate.order {
            Order::Failing => {
                let answer = Answer::Failed(Failure::Io);
                self.fx.push(Effect::Answer { id, answer });
            }
            Order::Open if self.is_clock_proof() || self.is_word_fresh(asked_ms) => {
                self.fx.push(Effect::Answer { id, answer });
            }
            Order::Open | Order::Frozen => {
                let question = self.gate.question + 1;
                self.gate.waiting.push_back(Waiting {
                    id,
                    answer,
                    question,
                    ticket: 0,
                    ahead,
                });
            }
        }
    }

    /// What waits here and rested on a line to the peer that is cut now.
    pub(super) fn take_ahead(&mut self) -> Vec<RequestId> {
        let (ahead, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.gate.waiting)
            .into_iter()
            .partition(|waiting| waiting.ahead);
        self.gate.waiting = rest;
        ahead.into_iter().map(|waiting| waiting.id).collect()
    }

    /// Every answer that waits becomes this one.
    pub(super) fn fail_waiting(&mut self, answer: &Answer) {
        for waiting in std::mem::take(&mut self.gate.waiting) {
            let answer = answer.clone();
            self.fx.push(Effect::Answer {
                id: waiting.id,
                answer,
            });
        }
    }

    /// Lets go what may go, asks for what is missing, and says once when the gate shuts and opens.
    pub(super) fn advance_gate(&mut self) {
        if self.gate.stands_open() && self.gate.is_empty() && !self.gate.told_frozen {
            return;
        }
        match self.gate.order {
            Order::Failing => {
                self.fail_waiting(&Answer::Failed(Failure::Io));
                self.fail_suspended();
            }
            Order::Frozen => {}
            Order::Open if self.gate.check.is_none() || self.is_clock_proof() => {
                self.let_go(|_| true);
            }
            Order::Open => {
                self.ask_peer();
                self.publish_ticket();
            }
        }
        self.tell_gate();
    }

    /// A step can let an answer go here, or soon.
    pub(super) fn can_prove(&self) -> bool {
        self.gate.order == Order::Open
            && (self.gate.check.is_none() || self.is_lease_live() || self.can_peer_vouch())
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.gate.order != Order::Open || (self.role == Role::Primary && !self.can_prove())
    }

    pub(super) fn is_ordered_frozen(&self) -> bool {
        self.gate.order == Order::Frozen
    }

    pub(super) fn has_arbiter(&self) -> bool {
        self.gate.check.is_some()
    }

    pub(super) fn lease_status(&self) -> Option<LeaseStatus> {
        self.gate.lease.map(|lease| LeaseStatus {
            epoch: lease.epoch.0,
            deadline_ms: lease.deadline_ms,
            live: self.is_lease_live(),
        })
    }

    /// Why answers wait, in words; none if they do not.
    pub(super) fn why_frozen(&self) -> Option<String> {
        match self.gate.order {
            Order::Frozen => Some("answers wait by order of the agent (freeze) until it thaws them".into()),
            Order::Failing => {
                Some("requests get errors by order of the agent (fail-io) until a thaw, a demotion or a promotion".into())
            }
            Order::Open if self.is_frozen() => Some(format!(
                "answers wait: {} has no live lease of epoch {}, and no peer that is connected and in its service; they go when the agent renews the lease or the peer is back",
                self.config.node_name, self.superblock.epoch.0
            )),
            Order::Open => None,
        }
    }

    // --- what proves -------------------------------------------------------------------------

    fn is_lease_live(&self) -> bool {
        self.gate
            .is_live(self.superblock.epoch, self.now.monotonic_ms)
    }

    fn is_clock_proof(&self) -> bool {
        self.gate.check == Some(LeaseCheck::Clock) && self.is_lease_live()
    }

    fn can_peer_vouch(&self) -> bool {
        self.config.mode == Mode::Sync && self.is_replicating()
    }

    /// The peer did what it was asked for a moment ago. Nothing done for a session that is gone counts.
    fn is_word_fresh(&self, asked_ms: Option<u64>) -> bool {
        self.can_peer_vouch()
            && asked_ms.is_some_and(|asked| self.now.monotonic_ms.saturating_sub(asked) <= WORD_MS)
    }

    fn let_go(&mut self, proved: impl Fn(&Waiting) -> bool) {
        for waiting in std::mem::take(&mut self.gate.waiting) {
            if proved(&waiting) {
                let Waiting { id, answer, .. } = waiting;
                self.fx.push(Effect::Answer { id, answer });
            } else {
                self.gate.waiting.push_back(waiting);
            }
        }
    }

    /// One question at a time; what waits meanwhile shares the next.
    fn ask_peer(&mut self) {
        let now = self.now.monotonic_ms;
        if !self.can_peer_vouch() {
            self.gate.asked_ms = None;
            return;
        }
        let out = self
            .gate
            .asked_ms
            .is_some_and(|asked| now.saturating_sub(asked) <= WORD_MS);
        if self.gate.is_empty() || out {
            return;
        }
        self.gate.question += 1;
        self.gate.asked_ms = Some(now);
        let number = self.gate.question;
        self.send(Message::Confirm { number });
    }

    /// The peer follows this epoch still, in answer to a question of ours.
    pub(super) fn on_confirmed(&mut self, number: u64) {
        if number != self.gate.question {
            return;
        }
        let asked_ms = self.gate.asked_ms.take();
        if self.gate.order == Order::Open && self.is_word_fresh(asked_ms) {
            self.let_go(|waiting| waiting.question <= number);
        }
    }

    /// A primary asks whether this side follows it still. Silence is the other answer.
    pub(super) fn on_confirm(&mut self, epoch: Epoch, number: u64) {
        let follows = self.role != Role::Primary
            && self.commands.promoting.is_none()
            && self.link_ready()
            && epoch == self.superblock.epoch;
        if follows {
            self.send(Message::Confirmed { number });
        }
    }

    /// What only the arbiter can prove: a number for the agent to ask on.
    fn publish_ticket(&mut self) {
        if self.gate.check != Some(LeaseCheck::RoundTrip) || self.can_peer_vouch() {
            return;
        }
        if self.gate.waiting.iter().all(|waiting| waiting.ticket != 0) {
            return;
        }
        self.gate.ticket += 1;
        let ticket = self.gate.ticket;
        for waiting in &mut self.gate.waiting {
            if waiting.ticket == 0 {
                waiting.ticket = ticket;
            }
        }
        self.fx.push(Effect::ConfirmWanted { ticket });
    }

    // --- orders --------------------------------------------------------------------------------

    pub(super) fn take_lease(&mut self, epoch: Epoch, deadline_ms: u64) {
        let deadline_ms = match self.gate.lease {
            // Renewals may overtake each other.
            Some(lease) if lease.epoch == epoch => lease.deadline_ms.max(deadline_ms),
            _ => deadline_ms,
        };
        self.gate.lease = Some(Lease { epoch, deadline_ms });
    }

    /// A promotion is on record: what the last holder of the role was told to do is over.
    pub(super) fn begin_authority(&mut self, deadline_ms: Option<u64>) {
        self.end_authority();
        if let Some(deadline_ms) = deadline_ms {
            self.take_lease(self.superblock.epoch, deadline_ms);
        }
    }

    pub(super) fn end_authority(&mut self) {
        self.gate.lease = None;
        self.gate.told_expired = false;
        if self.gate.order == Order::Failing {
            self.gate.order = Order::Open;
        }
    }

    pub(super) fn on_lease(&mut self, id: CommandId, epoch: u64, deadline_ms: u64, confirmed: u64) {
        if self.refuse_without_arbiter(id) {
            return;
        }
        if self.role != Role::Primary || epoch != self.superblock.epoch.0 {
            let (role, own) = (self.role, self.superblock.epoch.0);
            self.refuse(
                id,
                "not-its-epoch",
                format!("this side is {role:?} at epoch {own}; a lease of epoch {epoch} says nothing for it").to_lowercase(),
                "let the lease run out, or promote with a new grant",
            );
            return;
        }
        self.take_lease(Epoch(epoch), deadline_ms);
        if self.gate.order == Order::Open
            && self.gate.check == Some(LeaseCheck::RoundTrip)
            && self.is_lease_live()
        {
            self.let_go(|waiting| waiting.ticket != 0 && waiting.ticket <= confirmed);
        }
        self.finish_command(
            id,
            Ok(format!("lease of epoch {epoch} until {deadline_ms}")),
        );
    }

    pub(super) fn freeze(&mut self, id: CommandId) {
        if self.gate.order == Order::Open {
            self.gate.order = Order::Frozen;
        }
        self.finish_command(id, Ok("nothing is answered until thaw".into()));
    }

    pub(super) fn thaw(&mut self, id: CommandId) {
        self.gate.order = Order::Open;
        self.finish_command(id, Ok("answers go where something proves them".into()));
    }

    pub(super) fn fail_io(&mut self, id: CommandId) {
        self.gate.order = Order::Failing;
        self.finish_command(id, Ok("requests get errors until thaw".into()));
    }

    /// Requests that wait for a lost peer would keep an unmount waiting.
    fn fail_suspended(&mut self) {
        let waits =
            self.requests.has_held() || self.requests.has_parked() || self.flushing.has_held();
        if waits && self.role == Role::Primary && self.link().is_none() {
            self.fail_all(Answer::Failed(Failure::Io));
        }
    }

    /// True if it refused.
    fn refuse_without_arbiter(&mut self, id: CommandId) -> bool {
        if self.gate.check.is_none() {
            self.refuse(
                id,
                "no-arbiter",
                "this mirror runs without an arbiter",
                "configure one on both nodes and restart mirrord",
            );
        }
        self.gate.check.is_none()
    }

    // --- another epoch -------------------------------------------------------------------------

    pub(super) fn on_epoch_seen(&mut self, id: CommandId, epoch: u64) {
        if self.refuse_without_arbiter(id) {
            return;
        }
        let own = self.superblock.epoch.0;
        if epoch <= own {
            self.finish_command(
                id,
                Ok(format!("epoch {own} is this side's; {epoch} is no news")),
            );
            return;
        }
        self.step_aside(Epoch(epoch));
        self.persist(After::Outdated { id });
    }

    /// The arbiter granted a later epoch to the other node: nothing that is done here counts any more.
    /// Recorded by the caller.
    pub(super) fn step_aside(&mut self, epoch: Epoch) {
        if self.role == Role::Primary {
            self.report(Notice::error(
                "superseded",
                format!(
                    "epoch {} was granted to {}: this node stops serving and is outdated",
                    epoch.0, self.config.peer_name
                ),
            ));
            self.stop_serving();
            self.role = Role::Secondary;
            self.fail_all(Answer::Failed(Failure::NotPrimary));
            self.end_alone();
        }
        self.end_authority();
        self.give_up_promotion();
        self.reinstatable = None;
        self.forget_recheck();
        let diverged = !self.superblock.generations.base.is_none();
        let flags = &mut self.superblock.flags;
        flags.outdated = true;
        // What was written here alone was never answered; the one who serves has all that was.
        flags.discard_local |= diverged;
        self.renegotiate();
    }

    pub(super) fn on_outdate(&mut self, id: CommandId) {
        if self.role == Role::Primary {
            self.refuse(
                id,
                "is-primary",
                "this side is primary: its data is what counts",
                "demote it first, or outdate the other side",
            );
            return;
        }
        if self.superblock.peer.outdated && self.disk_state() == DiskState::UpToDate {
            // Whoever asks slept through that, and neither side would be whole if both were outdated.
            self.refuse(
                id,
                "is-ahead",
                format!(
                    "this side went on without {}: it has what {} lacks",
                    self.config.peer_name, self.config.peer_name
                ),
                "let the two connect: the side that is behind is brought up to date",
            );
            return;
        }
        if self.commands.promoting.is_some() || self.commands.leaving.is_some() {
            self.refuse_busy(id);
            return;
        }
        self.superblock.flags.outdated = true;
        self.persist(After::Outdated { id });
    }

    pub(super) fn on_outdated_recorded(&mut self, id: CommandId) {
        self.report(Notice::warning(
            "outdated",
            format!(
                "this side is outdated until {} brings it up to date",
                self.config.peer_name
            ),
        ));
        self.finish_command(id, Ok("outdated".into()));
        // Only a handshake brings it up to date again, be it by a resync of nothing.
        self.renegotiate();
    }

    // --- what is told --------------------------------------------------------------------------

    fn tell_gate(&mut self) {
        let primary = self.role == Role::Primary;
        if primary && self.gate.lease.is_some() {
            let live = self.is_lease_live();
            if !live && !self.gate.told_expired {
                let epoch = self.superblock.epoch.0;
                self.report(Notice::warning(
                    "lease-expired",
                    format!("the lease of epoch {epoch} was not renewed in time: answers need the peer's word"),
                ));
            }
            self.gate.told_expired = !live;
        }
        let frozen = primary && self.is_frozen();
        if frozen == self.gate.told_frozen {
            return;
        }
        self.gate.told_frozen = frozen;
        if let Some(why) = self.why_frozen().filter(|_| frozen) {
            self.report(Notice::warning("frozen", why));
        } else {
            self.report(Notice::info("thawed", "answers go again"));
        }
    }
}
