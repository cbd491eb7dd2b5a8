//! What the other node's silence means (A1, A2): `stage` says what follows on what, and here is what that takes.

use std::time::Duration;

use nbd_frontend::config::agent::FinalAction;

use super::Node;
use super::config::Reach;
use super::event::{Effect, MirrorCommand};
use super::resolving::{Change, Said, Verdict, verdict};
use super::stage::{
    Consent, Facts, Groups, Next, Proof, Stage, StopEnd, next, on_awakening, on_stop, on_word,
    proof,
};
use crate::alert;
use crate::control::State;
use crate::fencing::{self, Phase, Plan, Situation, in_next_round, plan};
use crate::membership::Peer;

/// Longest wait for the first answers of the resolvers, unless `isolation_timeout` is longer.
const RESOLVING_MS_MAX: u64 = 15_000;

#[derive(Debug, Default)]
pub(super) struct Partition {
    stage: Stage,
    /// The heartbeats stopped: for how long they had been silent, until the alert is given.
    silent_ms: Option<u64>,
    /// When the other node was last lost.
    lost_ms: u64,
    /// This node was cut off or stood still since, and could not decide in time.
    late: bool,
    /// When it last stood still: until when, and from when on.
    stood_still_ms: Option<(u64, u64)>,
    /// When the questions that count began.
    asked_ms: u64,
    /// The other node is confirmed to be down since it was last heard.
    peer_stopped: bool,
    /// The request of this forced stop was announced; another attempt is the same request.
    stop_told: bool,
}

impl Partition {
    pub(super) fn heartbeat_lost(&mut self, silent_ms: u64) {
        self.silent_ms = Some(silent_ms);
    }

    pub(super) fn stage(&self) -> &Stage {
        &self.stage
    }

    pub(super) fn is_isolated(&self) -> bool {
        matches!(self.stage, Stage::CutOff { .. } | Stage::Final { .. })
    }

    pub(super) fn is_peer_stopped(&self) -> bool {
        self.peer_stopped
    }

    /// The silence is decided on, and this node goes on.
    pub(super) fn may_act(&self) -> bool {
        matches!(self.stage, Stage::Alone { .. })
    }
}

impl Node {
    pub(super) fn probe_resolvers(&mut self) {
        for index in 0..self.resolvers.len() {
            // The arbiter is asked by `rights`; its answers count for these.
            if matches!(
                self.resolvers[index].config.kind,
                Reach::Arbiter | Reach::Majority
            ) {
                continue;
            }
            let number = self.next_number;
            if self.resolvers[index].ask(self.now_ms, number) {
                self.next_number += 1;
                self.fx.push(Effect::Resolve {
                    number,
                    resolver: index,
                });
            }
        }
    }

    pub(super) fn on_resolved(&mut self, number: u64, result: &Result<(), String>) {
        for index in 0..self.resolvers.len() {
            let Some(change) = self.resolvers[index].on_answer(number, result) else {
                continue;
            };
            let name = &self.resolvers[index].config.name;
            match change {
                Change::None => {}
                Change::Up => {
                    let text = format!("Resolver {name} reaches its target.");
                    self.alert(alert::RESOLVER_UP, text);
                }
                Change::Down(reason) => {
                    let text = format!("Resolver {name} does not reach its target: {reason}.");
                    self.alert(alert::RESOLVER_DOWN, text);
                }
            }
            return;
        }
    }

    pub(super) fn on_peer_up(&mut self) {
        self.partition.silent_ms = None;
        self.partition.peer_stopped = false;
        self.fence(fencing::Event::Cancel);
        if matches!(self.partition.stage, Stage::CutOff { .. }) {
            self.alert(alert::ISOLATION_ENDED, "The other node is heard again.");
        }
        self.go_to(on_word(&self.partition.stage));
    }

    /// What was decided before this node was frozen may have been overtaken.
    pub(super) fn decide_anew(&mut self, frozen_ms: u64) {
        self.partition.peer_stopped = false;
        self.partition.late = true;
        self.partition.stood_still_ms = Some((self.now_ms, self.now_ms.saturating_sub(frozen_ms)));
        // A stop that waits would go out the moment this node wakes.
        self.fence(fencing::Event::Cancel);
        self.go_to(on_awakening(&self.partition.stage));
    }

    /// An operator's word that the silent node is down.
    pub(super) fn take_word_that_peer_is_down(&mut self) {
        self.fence(fencing::Event::Cancel);
        self.partition.silent_ms = None;
        self.partition.peer_stopped = true;
        self.partition.stage = Stage::Alone {
            proof: Proof::Stopped,
        };
    }

    pub(super) fn on_peer_left(&mut self) {
        self.partition.silent_ms = None;
        for mirror in &mut self.mirrors {
            mirror.in_step_at_leave = mirror
                .view
                .is_some_and(|view| view.connected && view.current);
        }
        self.fence(fencing::Event::Cancel);
        self.go_to(on_word(&self.partition.stage));
    }

    pub(super) fn advance_partition(&mut self) {
        let facts = self.facts();
        self.go_to(next(&self.partition.stage, &facts));
        self.give_up_consent();
    }

    fn facts(&self) -> Facts {
        let waited_ms = |since_ms: u64| self.now_ms.saturating_sub(since_ms);
        let limit_ms = self.config.isolation_timeout_ms;
        let is = |all: fn(State) -> bool| {
            self.controls
                .iter()
                .all(|control| all(control.group.state()))
        };
        Facts {
            lost: self.partition.silent_ms.is_some()
                && self.membership.peer() == Peer::Lost
                && !self.is_peer_heard_by_a_mirror(),
            heard: self.membership.peer() == Peer::Up,
            verdict: self.verdict(),
            overdue: match self.partition.stage {
                Stage::Resolving => {
                    waited_ms(self.partition.asked_ms) >= limit_ms.max(RESOLVING_MS_MAX)
                }
                Stage::Consent { since_ms } | Stage::CutOff { since_ms } => {
                    waited_ms(since_ms) >= limit_ms
                }
                _ => false,
            },
            consent: self.consent(),
            plan: self.plan(),
            leased: self.has_its_leases(),
            groups: if is(|state| state == State::Offline) {
                Groups::AllOffline
            } else if is(|state| matches!(state, State::Offline | State::Failed)) {
                Groups::Stopped
            } else {
                Groups::Running
            },
        }
    }

    fn go_to(&mut self, to: Next) {
        match to {
            Next::Stay => {}
            Next::Together => self.partition.stage = Stage::Together,
            Next::NoticeLoss => self.notice_loss(),
            Next::AskAnew => {
                self.partition.stage = Stage::Resolving;
                self.ask_anew();
            }
            Next::EndIsolation => {
                self.alert(
                    alert::ISOLATION_ENDED,
                    "A resolver reaches its target again.",
                );
                self.partition.stage = Stage::Resolving;
            }
            Next::SeekConsent => {
                self.partition.stage = Stage::Consent {
                    since_ms: self.now_ms,
                };
                // It may have said all that is needed.
                let facts = self.facts();
                self.go_to(next(&self.partition.stage, &facts));
            }
            Next::AskArbiter => self.ask_arbiter(),
            Next::Fence(delay) => self.begin_fencing(delay.as_millis() as u64),
            Next::GoOnAlone => self.go_on_alone(),
            Next::Bar { reason } => self.bar(reason),
            Next::CutOff(why) => self.cut_off(why),
            Next::StopForGood => self.stop_for_good(),
            Next::TakeFinalAction => {
                self.partition.stage = Stage::Final { acted: true };
                self.take_final_action(self.config.final_action, "this node is cut off");
            }
            Next::Rejoin => {
                self.alert(alert::ISOLATION_ENDED, "This node is no longer cut off.");
                self.partition.stage = if self.membership.peer() == Peer::Lost {
                    Stage::Resolving
                } else {
                    Stage::Together
                };
                self.ask_anew();
            }
        }
    }

    /// What was asked of the arbiter for a failover that does not take place would keep the other node out.
    fn give_up_consent(&mut self) {
        let moot = matches!(
            self.partition.stage,
            Stage::Together | Stage::CutOff { .. } | Stage::Final { .. } | Stage::Barred { .. }
        );
        if !moot {
            return;
        }
        let idle = |node: &Self, group: usize| {
            let control = &node.controls[group];
            control.group.state() == State::Offline && !control.waits_for_grant
        };
        let mirrors = self.mirrors_of(idle);
        if let Some(rights) = &mut self.rights {
            for mirror in mirrors {
                rights.want(mirror, false);
            }
        }
    }

    fn notice_loss(&mut self) {
        let Some(silent_ms) = self.partition.silent_ms else {
            return;
        };
        self.partition.silent_ms = None;
        let text = format!(
            "{} was not heard on any path for {silent_ms} ms.",
            self.config.peer_name()
        );
        self.alert(alert::PEER_DOWN, text);
        let timeout_ms = self.membership.timeout_ms();
        let mut heard_ms = self.now_ms.saturating_sub(silent_ms);
        // What was said while this node stood still is forgiven to the other, not to this node.
        if let Some((until_ms, from_ms)) = self.partition.stood_still_ms
            && heard_ms <= until_ms
        {
            heard_ms = from_ms;
        }
        let lost_ms = heard_ms.saturating_add(timeout_ms).min(self.now_ms);
        self.partition.lost_ms = lost_ms;
        self.partition.late = self.now_ms - lost_ms > 2 * self.membership.interval_ms();
        self.partition.stage = Stage::Resolving;
        self.ask_anew();
    }

    /// Questions put from now on count.
    fn ask_anew(&mut self) {
        self.partition.asked_ms = self.now_ms;
        for resolver in &mut self.resolvers {
            resolver.hurry(self.now_ms);
        }
        if let Some(rights) = &mut self.rights {
            rights.hurry(self.now_ms);
        }
        self.probe_resolvers();
    }

    fn verdict(&self) -> Verdict {
        let since_ms = self.partition.asked_ms;
        let arbiter = || match self
            .rights
            .as_ref()
            .and_then(|rights| rights.said_since(since_ms))
        {
            None => Said::Nothing,
            Some(true) => Said::Reached,
            Some(false) => Said::Unreached,
        };
        let said: Vec<Said> = self
            .resolvers
            .iter()
            .map(|resolver| match resolver.config.kind {
                Reach::Ping | Reach::Http => resolver.said_since(since_ms),
                Reach::Arbiter | Reach::Majority => arbiter(),
            })
            .collect();
        if said.is_empty() && self.rights.is_some() {
            // An arbiter that is there and answers is as good a witness as any.
            return verdict(self.config.need, [arbiter()].into_iter());
        }
        verdict(self.config.need, said.into_iter())
    }

    /// The arbiter's leave first, where there is one, so that only one of two healthy nodes goes on to
    /// stop the other.
    fn consent(&self) -> Consent {
        let Some(rights) = &self.rights else {
            return Consent::Given;
        };
        let mine =
            self.mirrors_of(|node, group| node.controls[group].group.state() != State::Offline);
        let live = |mirror: &usize| rights.is_live(*mirror, self.now_ms);
        let kept = mine.iter().all(live);
        if kept && self.mirrors_to_take_over().iter().all(live) {
            return Consent::Given;
        }
        let asked = rights.said_since(self.partition.asked_ms);
        if !kept && asked != Some(true) {
            return Consent::Unreached;
        }
        Consent::Pending
    }

    fn ask_arbiter(&mut self) {
        let theirs = self.mirrors_to_take_over();
        if let Some(rights) = &mut self.rights {
            for mirror in theirs {
                rights.want(mirror, true);
            }
        }
    }

    fn mirrors_to_take_over(&self) -> Vec<usize> {
        self.mirrors_of(|node, group| node.would_fail_over(group) && node.is_able(group))
    }

    fn mirrors_of(&self, which: impl Fn(&Self, usize) -> bool) -> Vec<usize> {
        (0..self.controls.len())
            .filter(|group| which(self, *group))
            .flat_map(|group| self.config.groups[group].mirrors.iter().flatten().copied())
            .collect()
    }

    /// Whether the other node is to be stopped, and when.
    fn plan(&self) -> Plan {
        // Given away, it may run there by now though nobody said so, and the other node knows: this one goes last.
        let gave_away = self.controls.iter().any(|control| control.is_unclaimed());
        let situation = Situation {
            configured: self.fencing.is_some(),
            peer: self.membership.peer(),
            peer_down: self.partition.peer_stopped,
            peer_group_fails_over: !gave_away
                && (0..self.controls.len()).any(|group| self.would_fail_over(group)),
            peer_could_start: gave_away
                || (0..self.controls.len()).any(|group| self.could_start_there(group)),
            // An arbiter's record lets them go.
            answers_wait: self.rights.is_none()
                && self.mirrors.iter().any(|mirror| {
                    let view = mirror.view;
                    view.is_some_and(|view| view.primary && view.suspended)
                }),
            starting_up: self.starting_until_ms.is_some(),
            owns_group: self
                .controls
                .iter()
                .any(|control| control.group.state() != State::Offline),
            isolated: self.partition.is_isolated(),
            is_first_node: self.config.me == 0 && !gave_away,
        };
        let delay = self
            .config
            .forced_stop
            .as_ref()
            .map_or_else(Default::default, |stop| stop.fence_delay);
        let planned = plan(&situation, delay);
        // With an arbiter, only one of the two gets here.
        if self.partition.late && self.rights.is_none() {
            let silence = self.now_ms.saturating_sub(self.partition.lost_ms);
            return in_next_round(planned, Duration::from_millis(silence), delay);
        }
        planned
    }

    fn go_on_alone(&mut self) {
        let proof = proof(self.partition.peer_stopped, self.rights.is_some());
        self.partition.stage = Stage::Alone { proof };
        self.tell_of_doubt();
    }

    /// The operator wrote that a failed stop is no obstacle: what waits for the end of the other node
    /// waits no longer.
    pub(super) fn is_peer_taken_for_stopped(&self) -> bool {
        let stop = self.config.forced_stop.as_ref();
        let unproven = Stage::Alone {
            proof: Proof::Unproven,
        };
        self.partition.stage == unproven && stop.is_some_and(|stop| stop.failover_on_failure)
    }

    /// Nothing proves that the other node does not run this group. An arbiter vouches for mirrors only.
    pub(super) fn is_unproven(&self, group: usize) -> bool {
        match self.partition.stage {
            Stage::Alone {
                proof: Proof::Unproven,
            } => true,
            Stage::Alone {
                proof: Proof::Arbiter,
            } => self.group_mirrors(group).is_empty(),
            _ => false,
        }
    }

    /// The other node may start what runs here, and is told the same of itself.
    fn tell_of_doubt(&mut self) {
        let peer = self.config.peer_name();
        let texts: Vec<String> = self
            .config
            .groups
            .iter()
            .enumerate()
            .filter(|(group, placed)| {
                self.controls[*group].group.state() != State::Offline
                    && placed.nodes.contains(&(1 - self.config.me))
                    && self.is_unproven(*group)
            })
            .map(|(_, placed)| {
                format!(
                    "{} goes on although nothing proves that {peer} is down: it may be active on both nodes.",
                    placed.config.name
                )
            })
            .collect();
        for text in texts {
            self.alert(alert::MAY_BE_ACTIVE_TWICE, text);
        }
    }

    /// The other node could start a group that this one does not know of, and no arbiter would stop it.
    fn could_start_there(&self, group: usize) -> bool {
        let placed = &self.config.groups[group];
        let arbitrated = self.rights.is_some() && placed.mirrors.iter().any(Option::is_some);
        placed.nodes.contains(&(1 - self.config.me))
            && (placed.automatic_start || placed.failover)
            && !self.controls[group].stopped
            && !self.controls[group].failures.is_halted()
            && !arbitrated
    }

    fn begin_fencing(&mut self, after_ms: u64) {
        self.partition.stage = Stage::Fencing;
        self.partition.stop_told = false;
        self.fence(fencing::Event::Begin { after_ms });
    }

    pub(super) fn is_fencing(&self) -> bool {
        self.fencing
            .as_ref()
            .is_some_and(|fencing| fencing.phase() != Phase::Idle)
    }

    pub(super) fn fence(&mut self, event: fencing::Event) {
        let Some(fencing) = &mut self.fencing else {
            return;
        };
        let mut effects = Vec::new();
        fencing.step(self.now_ms, event, &mut effects);
        for effect in effects {
            self.on_fencing(effect);
        }
    }

    fn on_fencing(&mut self, effect: fencing::Effect) {
        let peer = self.config.peer_name().to_owned();
        match effect {
            fencing::Effect::Stop { .. } => {
                if !std::mem::replace(&mut self.partition.stop_told, true) {
                    let text = format!("The forced stop of {peer} is requested.");
                    self.alert(alert::STOP_REQUESTED, text);
                }
                self.fx.push(Effect::Fence(effect));
            }
            fencing::Effect::Query { .. } | fencing::Effect::Check { .. } => {
                self.fx.push(Effect::Fence(effect));
            }
            fencing::Effect::Completed { took_ms } => {
                let text =
                    format!("{peer} is confirmed to be down, {took_ms} ms after the request.");
                self.alert(alert::STOP_COMPLETED, text);
                self.partition.peer_stopped |= self.partition.stage == Stage::Fencing;
                self.on_stop_end(StopEnd::Completed);
            }
            fencing::Effect::Failed { reason } => {
                let text = format!("The forced stop of {peer} failed: {reason}.");
                self.alert(alert::STOP_FAILED, text);
                self.on_stop_end(StopEnd::Failed { reason });
            }
            fencing::Effect::Cancelled => self.on_stop_end(StopEnd::CalledOff),
            fencing::Effect::HealthChanged { ok: true, .. } => {
                self.alert(
                    alert::STOP_CHECK_RECOVERED,
                    format!("A forced stop of {peer} would work."),
                );
            }
            fencing::Effect::HealthChanged { ok: false, reason } => {
                let reason = reason.unwrap_or_else(|| "no reason was given".into());
                let text = format!("A forced stop of {peer} would not work: {reason}.");
                self.alert(alert::STOP_CHECK_FAILED, text);
            }
        }
    }

    fn on_stop_end(&mut self, end: StopEnd) {
        let stop = self.config.forced_stop.as_ref();
        let anyway = stop.is_some_and(|stop| stop.failover_on_failure);
        let silent = self.membership.peer() == Peer::Lost;
        self.go_to(on_stop(&self.partition.stage, end, silent, anyway));
    }

    fn bar(&mut self, reason: String) {
        if (0..self.controls.len()).any(|group| self.would_fail_over(group)) {
            self.alert(
                alert::FAILOVER_CANCELLED,
                "The failover does not take place: the other node may still run.",
            );
        }
        self.partition.stage = Stage::Barred { reason };
    }

    fn cut_off(&mut self, why: &str) {
        let text = format!("{} is cut off: {why}.", self.config.my_name());
        self.alert(alert::ISOLATED, text);
        self.partition.late = true;
        self.partition.stage = Stage::CutOff {
            since_ms: self.now_ms,
        };
        self.fence(fencing::Event::Cancel);
        self.freeze_all();
        self.ask_anew();
    }

    fn stop_for_good(&mut self) {
        self.alert(
            alert::ISOLATION_FINAL,
            "This node stays cut off: I/O fails and its groups stop.",
        );
        self.partition.stage = Stage::Final { acted: false };
        self.fail_io();
        for group in 0..self.controls.len() {
            self.group_step(group, crate::group::Event::Stop { force: true });
        }
    }

    fn has_its_leases(&self) -> bool {
        self.rights.as_ref().is_none_or(|rights| {
            (0..self.mirrors.len()).all(|mirror| {
                !self.mirrors[mirror].is_primary() || rights.is_live(mirror, self.now_ms)
            })
        })
    }

    pub(super) fn take_final_action(&mut self, action: FinalAction, why: &str) {
        let what = match action {
            FinalAction::None | FinalAction::StopGroup => return,
            FinalAction::StopService => "the service on this node stops",
            FinalAction::StopServiceAndShutdown => "the service stops and the machine shuts down",
            FinalAction::Reboot => "the machine reboots",
            FinalAction::SysrqPanic => "the kernel panics",
            FinalAction::WatchdogReset => "the watchdog resets the machine",
        };
        self.alert(
            alert::FINAL_ACTION,
            format!("Final action, because {why}: {what}."),
        );
        if action == FinalAction::StopService {
            // With all groups that stop, so that the other node may run them.
            self.leave(|control| !control.is_failed());
        } else {
            self.fx.push(Effect::Act(action));
        }
    }

    /// Another node holds the right to a mirror now: what stands on it here stops, and answers nothing.
    pub(super) fn on_lease_lost(&mut self, mirror: usize) {
        if self.mirrors[mirror].is_primary() {
            self.command_mirror(mirror, MirrorCommand::FailIo);
        }
        for group in 0..self.controls.len() {
            if self.config.groups[group].mirrors.contains(&Some(mirror)) {
                self.group_step(group, crate::group::Event::Stop { force: true });
            }
        }
    }
}
