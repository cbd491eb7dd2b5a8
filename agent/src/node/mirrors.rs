//! What the mirrors say, what they are told, and when they freeze.
//!
//! A mirror that lost its peer and holds its answers waits for one of three words: the peer is down (a
//! forced stop was confirmed), the arbiter has recorded that this side alone is current (`rights`), or the
//! peer's own durable record that it is outdated, asked for here over the heartbeats.

use super::Node;
use super::event::{Effect, MirrorCommand, MirrorView};
use super::report::MirrorReport;
use super::rights;
use crate::alert;
use crate::control::State;
use crate::membership::Peer;

/// Pause between tries of a command that a mirror has not taken up.
const RETRY_MS: u64 = 500;
/// Longest that a command to a mirror may go unanswered before it is given again.
const ANSWER_MS: u64 = 10_000;
/// Longest that a restarted `mirrord` is given to go on with its device. Under an arbiter it waits 3 s for its peer, and
/// has handshake and metadata before and after that.
const RESUME_MS_MAX: u64 = 10_000;

#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) view: Option<MirrorView>,
    /// Looks in a row at which it was no primary.
    pub(super) secondary_views: u32,
    /// Since when its daemon has not answered.
    pub(super) silent_since_ms: Option<u64>,
    /// Since when its restarted daemon means to be primary again.
    resuming_since_ms: Option<u64>,
    /// Connected when the other node took its leave, and up to date: nobody can have newer data.
    pub(super) in_step_at_leave: bool,
    seen: bool,
    /// Number of this side's request that the other records itself as outdated; zero: none.
    outdate: u32,
    /// The other's request that this side has carried out.
    outdated: u32,
    /// The other's request that is being carried out.
    outdating: Option<Outdating>,
    /// A freeze or thaw that was told, and when.
    told: Option<(bool, u64)>,
    /// Word that the peer is down was given, and when.
    peer_down_ms: Option<u64>,
    /// It was told to make room for the other node, and when.
    demoted_ms: Option<u64>,
    /// That the lease ran out was told.
    late_told: bool,
}

#[derive(Debug, Clone, Copy)]
struct Outdating {
    /// Of the command; none once it was refused.
    number: Option<u64>,
    request: u32,
    at_ms: u64,
}

impl Mirror {
    pub(super) fn is_primary(&self) -> bool {
        self.view.is_some_and(|view| view.primary)
    }

    pub(super) fn report(&self) -> MirrorReport {
        MirrorReport {
            outdate: self.outdate,
            outdated: self.outdated,
        }
    }
}

impl Node {
    pub(super) fn on_mirror(&mut self, mirror: usize, view: Option<MirrorView>) {
        let before = std::mem::replace(&mut self.mirrors[mirror].view, view);
        let first = !std::mem::replace(&mut self.mirrors[mirror].seen, true);
        let now_ms = self.now_ms;
        let state = &mut self.mirrors[mirror];
        let resumes = view.is_some_and(|view| !view.primary && view.resuming);
        state.resuming_since_ms = resumes.then(|| state.resuming_since_ms.unwrap_or(now_ms));
        let patient = state
            .resuming_since_ms
            .is_some_and(|since_ms| now_ms.saturating_sub(since_ms) < RESUME_MS_MAX);
        state.secondary_views = match view {
            Some(view) if !view.primary && !patient => state.secondary_views.saturating_add(1),
            _ => 0,
        };
        let silent = &mut self.mirrors[mirror].silent_since_ms;
        *silent = match view {
            Some(_) => None,
            None => silent.or(Some(self.now_ms)),
        };
        if let Some(rights) = &mut self.rights {
            rights.on_view(mirror, view);
        }
        let name = self.config.mirrors[mirror].name.clone();
        match (before, view) {
            (Some(_), None) => {
                let text = format!("mirrord does not answer for {name}.");
                self.alert(alert::MIRROR_UNREACHABLE, text);
            }
            (before, Some(view)) => {
                let before = before.unwrap_or_default();
                self.tell_changes(&name, before, view, first);
            }
            (None, None) => {}
        }
        for group in 0..self.controls.len() {
            self.note_held(group);
        }
    }

    fn tell_changes(&mut self, name: &str, before: MirrorView, view: MirrorView, first: bool) {
        if view.connected && !before.connected {
            self.alert(alert::MIRROR_CONNECTED, format!("{name} is connected."));
        }
        if before.connected && !view.connected {
            let text = format!("{name} lost its connection.");
            self.alert(alert::MIRROR_DISCONNECTED, text);
            if !view.primary && !view.peer_outdated {
                let text = format!(
                    "Which side of {name} is newer cannot be determined while the other is not heard."
                );
                self.alert(alert::MIRROR_AGE_UNKNOWN, text);
            }
        }
        if view.split_brain && !before.split_brain {
            let text = format!(
                "Both sides of {name} were written to: `mirrorctl explain {name}` shows what each holds, \
                 and `mirrorctl group resolve` keeps one."
            );
            self.alert(alert::MIRROR_SPLIT_BRAIN, text);
        }
        if view.suspended && !before.suspended {
            let text = format!("{name} holds its answers until its lost peer is known to be down.");
            self.alert(alert::MIRROR_SUSPENDED, text);
        }
        if view.frozen != before.frozen && !first {
            let state = if view.frozen { "frozen" } else { "released" };
            self.alert(alert::MIRROR_FROZEN, format!("I/O of {name} is {state}."));
        }
    }

    /// The mirror's link carried something lately: the machine at the other end lives, whatever its
    /// agent does.
    pub(super) fn is_peer_heard_by_a_mirror(&self) -> bool {
        let recent_ms = self.membership.timeout_ms() / 2;
        self.mirrors.iter().any(|mirror| {
            mirror.view.is_some_and(|view| {
                view.connected && view.heard_ms.is_some_and(|heard_ms| heard_ms < recent_ms)
            })
        })
    }

    pub(super) fn command_mirror(&mut self, mirror: usize, command: MirrorCommand) -> u64 {
        let number = self.next_number();
        self.fx.push(Effect::Mirror {
            number,
            mirror,
            command,
        });
        number
    }

    /// Every mirror should give no answer now.
    pub(super) fn is_freezing(&self) -> bool {
        self.doubt.is_some() || self.partition.is_isolated()
    }

    pub(super) fn freeze_all(&mut self) {
        for mirror in 0..self.mirrors.len() {
            // Before the first word of it, a mirror may be anything.
            if self.mirrors[mirror].view.is_none_or(|view| view.primary) {
                self.command_mirror(mirror, MirrorCommand::Freeze);
                self.mirrors[mirror].told = Some((true, self.now_ms));
            }
        }
    }

    pub(super) fn fail_io(&mut self) {
        for mirror in 0..self.mirrors.len() {
            if self.mirrors[mirror].is_primary() {
                self.command_mirror(mirror, MirrorCommand::FailIo);
            }
        }
    }

    pub(super) fn advance_mirrors(&mut self) {
        for mirror in 0..self.mirrors.len() {
            let Some(view) = self.mirrors[mirror].view else {
                continue;
            };
            self.reconcile_freeze(mirror, view);
            self.settle_suspension(mirror, view);
            self.answer_outdate(mirror, view);
            self.make_room(mirror, view);
            self.tell_late_lease(mirror, view);
        }
    }

    fn tell_late_lease(&mut self, mirror: usize, view: MirrorView) {
        let Some(rights) = &self.rights else { return };
        let late = view.primary
            && rights.grant(mirror).is_some()
            && !rights.is_live(mirror, self.now_ms)
            && matches!(rights.last(), Some(Err(_)));
        if late && !self.mirrors[mirror].late_told {
            let text = format!(
                "The lease of {} ran out: what its peer does not acknowledge waits for the arbiter.",
                self.config.mirrors[mirror].name
            );
            self.alert(alert::LEASE_LATE, text);
        }
        self.mirrors[mirror].late_told = late;
    }

    fn reconcile_freeze(&mut self, mirror: usize, view: MirrorView) {
        let wanted = self.is_freezing();
        if !view.primary || view.frozen == wanted {
            self.mirrors[mirror].told = None;
            return;
        }
        let told = self.mirrors[mirror].told;
        let again = told.is_none_or(|(told, at_ms)| {
            told != wanted || self.now_ms.saturating_sub(at_ms) >= RETRY_MS
        });
        if again {
            let command = if wanted {
                MirrorCommand::Freeze
            } else {
                MirrorCommand::Thaw
            };
            self.command_mirror(mirror, command);
            self.mirrors[mirror].told = Some((wanted, self.now_ms));
        }
    }

    fn settle_suspension(&mut self, mirror: usize, view: MirrorView) {
        if !view.suspended || !view.primary {
            self.mirrors[mirror].outdate = 0;
            self.mirrors[mirror].peer_down_ms = None;
            return;
        }
        let confirmed = self.partition.is_peer_stopped() || self.is_peer_taken_for_stopped();
        let peer_word = self.membership.peer() == Peer::Up && self.outdated_there(mirror);
        if confirmed || peer_word {
            let due = self.mirrors[mirror]
                .peer_down_ms
                .is_none_or(|told_ms| self.now_ms.saturating_sub(told_ms) >= RETRY_MS);
            if due {
                self.mirrors[mirror].peer_down_ms = Some(self.now_ms);
                self.command_mirror(mirror, MirrorCommand::PeerDown);
            }
        } else if self.membership.peer() == Peer::Up && self.mirrors[mirror].outdate == 0 {
            // Numbers are never used twice in a run, so an old word cannot answer a new request.
            self.mirrors[mirror].outdate = self.next_number() as u32;
        }
    }

    /// A mirror that is primary under no group, while the other node tries to start its group: the `mirrord` of a group
    /// that stopped without it came back, say, and went on with its device. Under an arbiter nobody can have promoted it
    /// by hand, and as long as its lease is renewed the other node cannot even begin.
    fn make_room(&mut self, mirror: usize, view: MirrorView) {
        let arbitrated = self.rights.is_some();
        let heard = self.membership.peer() == Peer::Up;
        let in_the_way = (0..self.controls.len()).any(|group| {
            let there = self.peer_group(group).map(|there| there.state);
            let wanted_there = heard && view.connected && there == Some(State::OnlinePending);
            self.group_mirrors(group).contains(&mirror)
                && self.controls[group].group.state() == State::Offline
                && !self.controls[group].waits_for_grant
                && (arbitrated || wanted_there)
        });
        if !view.primary || !in_the_way {
            self.mirrors[mirror].demoted_ms = None;
            return;
        }
        let due = self.mirrors[mirror]
            .demoted_ms
            .is_none_or(|told_ms| self.now_ms.saturating_sub(told_ms) >= RETRY_MS);
        if due {
            self.mirrors[mirror].demoted_ms = Some(self.now_ms);
            self.command_mirror(mirror, MirrorCommand::Demote);
        }
    }

    fn outdated_there(&self, mirror: usize) -> bool {
        let request = self.mirrors[mirror].outdate;
        request != 0
            && self
                .peer_report
                .as_ref()
                .is_some_and(|report| report.mirrors[mirror].outdated == request)
    }

    /// The other side goes on alone and asks this one to record that it is behind.
    fn answer_outdate(&mut self, mirror: usize, view: MirrorView) {
        let asked = self
            .peer_report
            .as_ref()
            .map_or(0, |report| report.mirrors[mirror].outdate);
        let state = &self.mirrors[mirror];
        if asked == 0 || asked == state.outdated || view.primary || view.connected {
            return;
        }
        let patience_ms = |outdating: Outdating| match outdating.number {
            Some(_) => ANSWER_MS,
            None => RETRY_MS,
        };
        if state.outdating.is_some_and(|outdating| {
            outdating.request == asked
                && self.now_ms.saturating_sub(outdating.at_ms) < patience_ms(outdating)
        }) {
            return;
        }
        let number = self.command_mirror(mirror, MirrorCommand::Outdate);
        self.mirrors[mirror].outdating = Some(Outdating {
            number: Some(number),
            request: asked,
            at_ms: self.now_ms,
        });
    }

    pub(super) fn on_mirror_done(&mut self, number: u64, result: Result<(), String>) {
        for mirror in 0..self.mirrors.len() {
            let Some(outdating) = &mut self.mirrors[mirror].outdating else {
                continue;
            };
            if outdating.number != Some(number) {
                continue;
            }
            outdating.number = None;
            let request = outdating.request;
            if result.is_ok() {
                self.mirrors[mirror].outdated = request;
                let text = format!(
                    "This side of {} is recorded as outdated: {} goes on without it.",
                    self.config.mirrors[mirror].name,
                    self.config.peer_name()
                );
                self.alert(alert::MIRROR_OUTDATED, text);
            }
            return;
        }
        self.on_discarded(number, result);
    }

    pub(super) fn on_rights(&mut self, effect: rights::Effect) {
        let name = |node: &Self, mirror: usize| node.config.mirrors[mirror].name.clone();
        match effect {
            rights::Effect::Ask { number, request } => {
                self.fx.push(Effect::Ask { number, request });
            }
            rights::Effect::Mirror { mirror, command } => {
                self.command_mirror(mirror, command);
            }
            rights::Effect::Up => self.alert(alert::ARBITER_UP, "The arbiter answers."),
            rights::Effect::Down { reason } => {
                let text = format!("The arbiter does not answer: {reason}.");
                self.alert(alert::ARBITER_DOWN, text);
            }
            rights::Effect::PeerHeard { heard: true } => {
                let text = format!("The arbiter hears {}.", self.config.peer_name());
                self.alert(alert::PATH_UP, text);
            }
            rights::Effect::PeerHeard { heard: false } => {
                let text = format!("The arbiter hears {} no more.", self.config.peer_name());
                self.alert(alert::PATH_DOWN, text);
            }
            rights::Effect::Granted { mirror } => {
                let epoch = self
                    .rights
                    .as_ref()
                    .and_then(|rights| rights.grant(mirror))
                    .map_or(0, |grant| grant.epoch);
                let text = format!("Epoch {epoch} of {} is granted.", name(self, mirror));
                self.alert(alert::GRANTED, text);
            }
            rights::Effect::Refused { mirror, refusal } => {
                let text = format!("{} is not granted: {refusal}.", name(self, mirror));
                self.alert(alert::GRANT_REFUSED, text);
            }
            rights::Effect::Lost {
                mirror,
                epoch,
                holder,
            } => {
                let whose = match holder {
                    Some(holder) => format!("was granted to {holder}"),
                    None => "counts by now".into(),
                };
                let text = format!(
                    "The lease of {} is lost: epoch {} {whose}.",
                    name(self, mirror),
                    epoch.0
                );
                self.alert(alert::LEASE_LOST, text);
                self.on_lease_lost(mirror);
            }
            rights::Effect::Enrolled { mirror } => {
                let text = format!("The arbiter took up {}.", name(self, mirror));
                self.alert(alert::ENROLLED, text);
            }
            rights::Effect::Recorded { mirror, alone } => {
                let who = if alone {
                    format!("{} alone has", self.config.my_name())
                } else {
                    "both nodes have".to_owned()
                };
                let text = format!("On record: {who} current data of {}.", name(self, mirror));
                self.alert(alert::RECORDED, text);
            }
        }
    }
}
