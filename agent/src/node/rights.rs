//! The rights that the arbiter gave: epochs, leases, and the record of who holds current data (A3).
//!
//! A lease is counted here from before the question was sent, less the margin for drift, and given to
//! `mirrord` as an absolute time. "This node alone is current" is on the arbiter's record before
//! `mirrord` may answer alone; "both are" only once the peer's resync is durable. One question of a kind
//! is out at a time, so that an answer that was given up can never overtake a later one.

use mirror_core::units::Epoch;

use super::config::{ArbiterConfig, MirrorConfig, NodeConfig};
use super::event::{Answer, Grant, MirrorCommand, MirrorView};
use crate::arbiter::call::{Claim, Holding, Refusal, Renewal, Reply, Request};

/// Renewals in a lease.
const RENEWALS_IN_LEASE: u64 = 4;
/// Pause between tries of what the arbiter refused or did not answer.
const RETRY_MS: u64 = 250;
/// Different reasons of one outage that are told; more are only shown.
const REASONS_TOLD_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Ask {
        number: u64,
        request: Request,
    },
    Mirror {
        mirror: usize,
        command: MirrorCommand,
    },
    /// The arbiter answers, or does no longer; said again where the reason becomes another.
    Up,
    Down {
        reason: String,
    },
    /// The arbiter hears the other node, or does no longer.
    PeerHeard {
        heard: bool,
    },
    Granted {
        mirror: usize,
    },
    Refused {
        mirror: usize,
        refusal: Refusal,
    },
    /// The arbiter does not count this node's epoch any more.
    Lost {
        mirror: usize,
        epoch: Epoch,
        /// Who was granted that one, where that is known.
        holder: Option<String>,
    },
    Enrolled {
        mirror: usize,
    },
    /// On its record: this node alone holds current data, or both do.
    Recorded {
        mirror: usize,
        alone: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Beat {
        /// Mirrors of the renewals, in order, with the confirmation each had asked for.
        held: Vec<(usize, u64)>,
    },
    Acquire(usize),
    Release(usize),
    Record {
        mirror: usize,
        alone: bool,
    },
    Enrol(usize),
}

#[derive(Debug, Default)]
struct Right {
    held: Option<Held>,
    /// A group here is primary of it, or is to be.
    wanted: bool,
    /// A start waits for an epoch that no promotion has used.
    awaited: bool,
    /// An operator wants it, whoever holds newer data.
    forced: bool,
    retry_ms: u64,
    refused: Option<Refusal>,
    /// What is known to be on record: `Some(true)` this node alone, `Some(false)` both.
    recorded: Option<bool>,
    /// When the arbiter was last known to know it; none: it has to be enrolled.
    known_ms: Option<u64>,
    /// The arbiter said that it does not know it.
    unknown_told: bool,
    view: Option<MirrorView>,
    /// It was seen as secondary or stopped, and not started since: silence of its daemon hides no primary.
    secondary: bool,
    /// Highest confirmation that was asked for, and that was given.
    confirming: u64,
    confirmed: u64,
}

impl Right {
    /// What this node knows, for an arbiter that knows nothing. A right that was granted counts as used:
    /// the mirror may take it up at any moment while it lasts.
    fn claim(&self, view: MirrorView, now_ms: u64) -> Claim {
        let held = self.held.map_or(0, |held| held.epoch.0);
        Claim {
            epoch: Epoch(view.epoch.max(held)),
            current: view.current,
            peer_outdated: view.peer_outdated,
            primary: view.primary || self.held.is_some_and(|held| now_ms <= held.deadline_ms),
        }
    }

    /// Or may be: its daemon is silent, and was not seen as anything else since it was told to start.
    fn is_primary(&self) -> bool {
        self.view.map_or(!self.secondary, |view| view.primary)
    }

    /// The arbiter does not know the mirror any more, nor what was recorded of it.
    fn forget_record(&mut self, now_ms: u64) {
        self.known_ms = None;
        self.unknown_told = true;
        self.recorded = None;
        self.retry_ms = now_ms;
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: Epoch,
    deadline_ms: u64,
    /// The mirror was primary by it. An epoch is good for one promotion.
    used: bool,
}

#[derive(Debug)]
pub struct Rights {
    config: ArbiterConfig,
    names: [String; 2],
    me: usize,
    mirrors: Vec<MirrorConfig>,
    rights: Vec<Right>,
    asked: Vec<(u64, u64, Asked)>,
    next_number: u64,
    beat_due_ms: u64,
    /// How the last question ended.
    heard: Option<Heard>,
    /// Reasons of the present outage that were told.
    reasons_told: Vec<String>,
    /// Whether the arbiter hears the other node. None: not since it started, or nothing was said yet.
    peer_heard: Option<bool>,
}

#[derive(Debug)]
struct Heard {
    /// When the question was put.
    asked_ms: u64,
    result: Result<(), String>,
}

impl Rights {
    /// `None` where no arbiter is configured.
    pub fn for_node(config: &NodeConfig, now_ms: u64) -> Option<Self> {
        Some(Self {
            config: config.arbiter.clone()?,
            names: config.names.clone(),
            me: config.me,
            rights: config.mirrors.iter().map(|_| Right::default()).collect(),
            mirrors: config.mirrors.clone(),
            asked: Vec::new(),
            next_number: 1,
            beat_due_ms: now_ms,
            heard: None,
            reasons_told: Vec::new(),
            peer_heard: None,
        })
    }

    /// Nothing is held, nor being given back.
    pub fn is_free(&self) -> bool {
        self.rights.iter().all(|right| right.held.is_none())
            && !self.is_asking(|asked| matches!(asked, Asked::Release(_)))
    }

    /// Whether the arbiter answered a question that was put since.
    pub fn said_since(&self, since_ms: u64) -> Option<bool> {
        let heard = self.heard.as_ref()?;
        (heard.asked_ms >= since_ms).then_some(heard.result.is_ok())
    }

    /// How the last question ended: answered, or why not.
    pub fn last(&self) -> Option<Result<(), &str>> {
        let heard = self.heard.as_ref()?;
        Some(heard.result.as_ref().copied().map_err(String::as_str))
    }

    /// Whether the arbiter hears the other node. None where it does not answer, or has not heard it
    /// since it started.
    pub fn hears_peer(&self) -> Option<bool> {
        self.last()?.ok()?;
        self.peer_heard
    }

    /// The next beat does not wait for its time.
    pub fn hurry(&mut self, now_ms: u64) {
        self.beat_due_ms = now_ms;
    }

    pub fn grant(&self, mirror: usize) -> Option<Grant> {
        self.rights[mirror].held.map(|held| Grant {
            epoch: held.epoch.0,
            deadline_ms: held.deadline_ms,
        })
    }

    /// A lease here is trusted at this time.
    pub fn is_live(&self, mirror: usize, now_ms: u64) -> bool {
        self.rights[mirror]
            .held
            .is_some_and(|held| now_ms < held.deadline_ms)
    }

    /// The same, and the mirror may be promoted by it, or is primary by it already.
    pub fn is_usable(&self, mirror: usize, now_ms: u64) -> bool {
        let right = &self.rights[mirror];
        let primary = right.view.is_some_and(|view| view.primary);
        self.is_live(mirror, now_ms) && right.held.is_some_and(|held| !held.used || primary)
    }

    /// It is about to be promoted.
    pub fn on_promoting(&mut self, mirror: usize) {
        self.rights[mirror].secondary = false;
    }

    /// A stop of it succeeded, which the next look at it will show, if its daemon still runs.
    pub fn on_demoted(&mut self, mirror: usize) {
        let right = &mut self.rights[mirror];
        right.secondary = true;
        if let Some(view) = &mut right.view {
            view.primary = false;
        }
    }

    /// What the arbiter said the last time it refused this mirror.
    pub fn refusal(&self, mirror: usize) -> Option<&Refusal> {
        self.rights[mirror].refused.as_ref()
    }

    /// A group is to be primary of it, in an epoch of its own for that; or will be no longer.
    pub fn want(&mut self, mirror: usize, wanted: bool) {
        let right = &mut self.rights[mirror];
        if wanted && !right.awaited {
            right.retry_ms = 0;
        }
        right.wanted = wanted;
        right.awaited = wanted;
        right.forced = false;
    }

    /// The same, and the data here is the truth by an operator's word, whatever the record says.
    pub fn want_by_force(&mut self, mirror: usize) {
        self.want(mirror, true);
        self.rights[mirror].forced = true;
    }

    /// Nothing is held, and nothing is asked for.
    pub fn is_idle(&self, mirror: usize) -> bool {
        let right = &self.rights[mirror];
        right.held.is_none() && !right.awaited
    }

    /// A group was found that is primary of it already.
    pub fn keep(&mut self, mirror: usize) {
        self.rights[mirror].wanted = true;
    }

    /// The mirror is demoted: the lease goes back.
    fn release(&mut self, now_ms: u64, mirror: usize, out: &mut Vec<Effect>) {
        assert!(
            !self.rights[mirror].is_primary(),
            "a mirror is demoted before its lease goes back"
        );
        let Some(held) = self.rights[mirror].held.take() else {
            return;
        };
        let holding = self.holding(mirror, held.epoch);
        self.ask(
            now_ms,
            Asked::Release(mirror),
            Request::Release { holding },
            out,
        );
    }

    /// What was promised is no longer believed: asked again before anything is built on it.
    pub fn distrust(&mut self, now_ms: u64) {
        for right in &mut self.rights {
            if let Some(held) = &mut right.held {
                held.deadline_ms = 0;
            }
        }
        self.heard = None;
        self.beat_due_ms = now_ms;
    }

    pub fn on_view(&mut self, mirror: usize, view: Option<MirrorView>) {
        let right = &mut self.rights[mirror];
        right.view = view;
        let Some(view) = view else { return };
        right.secondary = !view.primary;
        // In step with a primary, which puts that on record: the refusal is over. With none, nobody does,
        // and the other node is the one that may start.
        if view.connected
            && view.current
            && view.peer_primary
            && matches!(right.refused, Some(Refusal::Outdated { .. }))
        {
            right.refused = None;
        }
        // This agent was restarted and the mirror was not: its epoch is the claim to the lease.
        if view.primary && right.held.is_none() && view.epoch > 0 && right.refused.is_none() {
            right.held = Some(Held {
                epoch: Epoch(view.epoch),
                deadline_ms: 0,
                used: true,
            });
        }
        if let Some(held) = &mut right.held {
            held.used |= view.primary && view.epoch == held.epoch.0;
        }
    }

    pub fn step(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        self.forget_unanswered(now_ms, out);
        for mirror in 0..self.rights.len() {
            self.advance(now_ms, mirror, out);
        }
        self.beat(now_ms, out);
    }

    fn forget_unanswered(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        // The driver answers within the time-out; this is the backstop for one that does not.
        let limit_ms = self.config.timeout_ms * 2 + 1_000;
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked_ms, _)| now_ms.saturating_sub(*asked_ms) > limit_ms)
            .map(|(number, _, _)| *number)
            .collect();
        for number in late {
            let error = Err("no answer".to_owned());
            self.on_answer(now_ms, number, error, out);
        }
    }

    fn advance(&mut self, now_ms: u64, mirror: usize, out: &mut Vec<Effect>) {
        let right = &mut self.rights[mirror];
        if now_ms < right.retry_ms {
            return;
        }
        // An arbiter that lost its file needs the word of both nodes, also of the one that asks nothing.
        let idle = right.held.is_none() && !right.wanted;
        if idle
            && right
                .known_ms
                .is_some_and(|known_ms| now_ms.saturating_sub(known_ms) >= self.config.lease_ms)
        {
            right.known_ms = None;
        }
        let right = &self.rights[mirror];
        if right.known_ms.is_none() {
            // An epoch that is on its way belongs into the claim.
            let waits = self.is_asking(|asked| {
                matches!(asked, Asked::Enrol(other) | Asked::Acquire(other) if *other == mirror)
            });
            // What both nodes say is known there, and fits nothing but this.
            let conflict = matches!(right.refused, Some(Refusal::Conflict { .. }));
            if right.awaited && right.forced && conflict && !waits {
                self.acquire(now_ms, mirror, out);
            } else if let (Some(view), false) = (right.view, waits) {
                let request = Request::Enrol {
                    mirror: self.mirrors[mirror].name.clone(),
                    claim: right.claim(view, now_ms),
                };
                self.ask(now_ms, Asked::Enrol(mirror), request, out);
            }
            return;
        }
        let Some(held) = right.held else {
            if right.awaited && !self.is_asking(|asked| *asked == Asked::Acquire(mirror)) {
                self.acquire(now_ms, mirror, out);
            }
            return;
        };
        if !right.is_primary() {
            // Demoted; or a start waits for another epoch. Under a group that runs, a mirrord that was restarted may go
            // on with its device, for which it needs the lease of the epoch that it had.
            if !right.wanted || (held.used && right.awaited) {
                self.release(now_ms, mirror, out);
            }
            return;
        }
        let Some(view) = right.view else { return };
        let alone = match (view.connected, view.peer_current) {
            (false, _) => true,
            // Its resync is durable.
            (true, true) if view.out_of_sync_bytes == 0 => false,
            // Behind, and being brought up to date: the record stays what it is.
            (true, _) => return,
        };
        let asking = self.is_asking(
            |asked| matches!(asked, Asked::Record { mirror: other, .. } if *other == mirror),
        );
        if right.recorded == Some(alone) {
            if alone && view.suspended {
                // Said before, and the mirror has not taken it up.
                out.push(Effect::Mirror {
                    mirror,
                    command: MirrorCommand::PeerDown,
                });
                self.rights[mirror].retry_ms = now_ms + RETRY_MS;
            }
        } else if !asking {
            let current = if alone {
                vec![self.names[self.me].clone()]
            } else {
                self.names.to_vec()
            };
            let holding = self.holding(mirror, held.epoch);
            let request = Request::Record { holding, current };
            // Until it is answered, either may be on record.
            self.rights[mirror].recorded = None;
            self.ask(now_ms, Asked::Record { mirror, alone }, request, out);
        }
    }

    fn acquire(&mut self, now_ms: u64, mirror: usize, out: &mut Vec<Effect>) {
        let request = Request::Acquire {
            mirror: self.mirrors[mirror].name.clone(),
            force: self.rights[mirror].forced,
        };
        self.ask(now_ms, Asked::Acquire(mirror), request, out);
    }

    fn beat(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        if self.is_asking(|asked| matches!(asked, Asked::Beat { .. })) {
            return;
        }
        let wanted = |right: &Right| right.view.map_or(0, |view| view.confirm_wanted);
        let confirm = self
            .rights
            .iter()
            .any(|right| right.held.is_some() && wanted(right) > right.confirming);
        if now_ms < self.beat_due_ms && !confirm {
            return;
        }
        self.beat_due_ms = now_ms + self.config.lease_ms / RENEWALS_IN_LEASE;
        let mut held = Vec::new();
        let mut renew = Vec::new();
        for mirror in 0..self.rights.len() {
            let Some(Held { epoch, .. }) = self.rights[mirror].held else {
                continue;
            };
            let ticket = wanted(&self.rights[mirror]);
            self.rights[mirror].confirming = ticket;
            held.push((mirror, ticket));
            renew.push(self.holding(mirror, epoch));
        }
        self.ask(now_ms, Asked::Beat { held }, Request::Beat { renew }, out);
    }

    pub fn on_answer(
        &mut self,
        now_ms: u64,
        number: u64,
        result: Result<Answer, String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(position) = self.asked.iter().position(|(asked, _, _)| *asked == number) else {
            return;
        };
        let (_, asked_ms, asked) = self.asked.swap_remove(position);
        let was_up = matches!(self.last(), Some(Ok(())));
        self.heard = Some(Heard {
            asked_ms,
            result: result.as_ref().map(|_| ()).map_err(Clone::clone),
        });
        match result {
            Ok(answer) => {
                if !was_up {
                    self.reasons_told.clear();
                    out.push(Effect::Up);
                }
                self.on_reply(now_ms, &asked, answer, out);
            }
            Err(reason) => {
                // A wrong key behind a broken network is another thing to mend.
                let told = self.reasons_told.contains(&reason);
                if !told && self.reasons_told.len() < REASONS_TOLD_MAX {
                    self.reasons_told.push(reason.clone());
                    out.push(Effect::Down { reason });
                }
                self.give_up(now_ms, &asked);
            }
        }
    }

    /// A node that beats has several beats in a lease.
    fn on_peer_heard(&mut self, ago_ms: Option<u64>, out: &mut Vec<Effect>) {
        let heard = ago_ms.map(|ago_ms| ago_ms < self.config.lease_ms);
        let was = std::mem::replace(&mut self.peer_heard, heard);
        if was.is_none() && heard == Some(false) || was == heard {
            return;
        }
        out.push(Effect::PeerHeard {
            heard: heard == Some(true),
        });
    }

    fn give_up(&mut self, now_ms: u64, asked: &Asked) {
        match asked {
            Asked::Beat { held } => {
                for (mirror, _) in held {
                    let right = &mut self.rights[*mirror];
                    right.confirming = right.confirmed;
                }
                self.beat_due_ms = self.beat_due_ms.min(now_ms + RETRY_MS);
            }
            Asked::Acquire(mirror)
            | Asked::Release(mirror)
            | Asked::Record { mirror, .. }
            | Asked::Enrol(mirror) => self.rights[*mirror].retry_ms = now_ms + RETRY_MS,
        }
    }

    fn on_reply(&mut self, now_ms: u64, asked: &Asked, answer: Answer, out: &mut Vec<Effect>) {
        let deadline_ms = answer.sent_ms + self.config.trusted_ms();
        match (asked, answer.reply) {
            (
                Asked::Beat { held },
                Reply::Beat {
                    leases,
                    peer_heard_ms,
                },
            ) => {
                self.on_peer_heard(peer_heard_ms, out);
                for ((mirror, ticket), renewal) in held.iter().zip(leases) {
                    self.on_renewal(now_ms, *mirror, *ticket, renewal, deadline_ms, out);
                }
            }
            (Asked::Acquire(mirror), Reply::Granted { epoch }) => {
                let right = &mut self.rights[*mirror];
                right.refused = None;
                right.recorded = None;
                right.awaited = false;
                right.forced = false;
                right.held = Some(Held {
                    epoch,
                    deadline_ms,
                    used: false,
                });
                out.push(Effect::Granted { mirror: *mirror });
            }
            (Asked::Record { mirror, alone }, Reply::Recorded) => {
                let right = &mut self.rights[*mirror];
                right.recorded = Some(*alone);
                out.push(Effect::Recorded {
                    mirror: *mirror,
                    alone: *alone,
                });
                if *alone && right.view.is_some_and(|view| !view.connected) {
                    out.push(Effect::Mirror {
                        mirror: *mirror,
                        command: MirrorCommand::PeerDown,
                    });
                }
            }
            (Asked::Enrol(mirror), Reply::Enrolled { complete }) => {
                let right = &mut self.rights[*mirror];
                right.retry_ms = now_ms + RETRY_MS;
                if complete {
                    right.known_ms = Some(now_ms);
                    right.retry_ms = now_ms;
                    if std::mem::take(&mut right.unknown_told) {
                        right.refused = None;
                        out.push(Effect::Enrolled { mirror: *mirror });
                    }
                } else {
                    right.unknown_told = true;
                }
            }
            (Asked::Beat { .. } | Asked::Release(_), _) => {}
            (
                Asked::Acquire(mirror) | Asked::Record { mirror, .. } | Asked::Enrol(mirror),
                Reply::Refused(refusal),
            ) => self.on_refused(now_ms, *mirror, refusal, out),
            // An answer to something else: as good as none.
            (asked, _) => self.give_up(now_ms, asked),
        }
    }

    fn on_renewal(
        &mut self,
        now_ms: u64,
        mirror: usize,
        ticket: u64,
        renewal: Renewal,
        deadline_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        let right = &mut self.rights[mirror];
        let Some(held) = &mut right.held else { return };
        match renewal {
            Renewal::Renewed => {
                held.deadline_ms = deadline_ms;
                right.confirmed = ticket;
                out.push(Effect::Mirror {
                    mirror,
                    command: MirrorCommand::Lease {
                        epoch: held.epoch.0,
                        deadline_ms,
                        confirmed: ticket,
                    },
                });
            }
            Renewal::Lost { epoch, holder } => self.on_lost(mirror, epoch, holder, out),
            Renewal::Unknown => right.forget_record(now_ms),
        }
    }

    fn on_lost(
        &mut self,
        mirror: usize,
        epoch: Epoch,
        holder: Option<String>,
        out: &mut Vec<Effect>,
    ) {
        let right = &mut self.rights[mirror];
        right.held = None;
        right.wanted = false;
        right.awaited = false;
        right.recorded = None;
        right.refused = Some(Refusal::Superseded { epoch });
        out.push(Effect::Mirror {
            mirror,
            command: MirrorCommand::EpochSeen { epoch: epoch.0 },
        });
        out.push(Effect::Lost {
            mirror,
            epoch,
            holder,
        });
    }

    fn on_refused(&mut self, now_ms: u64, mirror: usize, refusal: Refusal, out: &mut Vec<Effect>) {
        let right = &mut self.rights[mirror];
        right.retry_ms = now_ms + RETRY_MS;
        if refusal == Refusal::Unknown {
            right.forget_record(now_ms);
        }
        if let (Refusal::Superseded { epoch }, true) = (&refusal, right.held.is_some()) {
            let epoch = *epoch;
            return self.on_lost(mirror, epoch, None, out);
        }
        let kind = |refusal: &Refusal| std::mem::discriminant(refusal);
        let told = right.refused.as_ref().map(kind) == Some(kind(&refusal));
        right.refused = Some(refusal.clone());
        if !told {
            out.push(Effect::Refused { mirror, refusal });
        }
    }

    fn is_asking(&self, what: impl Fn(&Asked) -> bool) -> bool {
        self.asked.iter().any(|(_, _, asked)| what(asked))
    }

    fn holding(&self, mirror: usize, epoch: Epoch) -> Holding {
        Holding {
            mirror: self.mirrors[mirror].name.clone(),
            epoch,
        }
    }

    fn ask(&mut self, now_ms: u64, asked: Asked, request: Request, out: &mut Vec<Effect>) {
        let number = self.next_number;
        self.next_number += 1;
        self.asked.push((number, now_ms, asked));
        out.push(Effect::Ask { number, request });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_a_granted_right_as_used_while_it_lasts() {
        let view = MirrorView {
            current: true,
            epoch: 5,
            ..MirrorView::default()
        };
        let granted = Right {
            held: Some(Held {
                epoch: Epoch(6),
                deadline_ms: 100,
                used: false,
            }),
            ..Right::default()
        };
        let claim = |right: &Right, now_ms| {
            let claim = right.claim(view, now_ms);
            (claim.epoch.0, claim.primary)
        };
        assert_eq!(claim(&Right::default(), 0), (5, false));
        assert_eq!(
            claim(&granted, 100),
            (6, true),
            "not promoted yet, but may be"
        );
        assert_eq!(claim(&granted, 101), (6, false));
    }

    #[test]
    #[should_panic(expected = "demoted before its lease goes back")]
    fn the_lease_of_a_primary_does_not_go_back() {
        let right = Right {
            held: Some(Held {
                epoch: Epoch(6),
                deadline_ms: 100,
                used: true,
            }),
            view: Some(MirrorView {
                primary: true,
                ..MirrorView::default()
            }),
            ..Right::default()
        };
        let mut rights = Rights {
            config: ArbiterConfig {
                url: "http://witness".into(),
                lease_ms: 100,
                drift_ppm_max: 0,
                timeout_ms: 10,
            },
            names: ["alpha", "beta"].map(String::from),
            me: 0,
            mirrors: vec![MirrorConfig { name: "md1".into() }],
            rights: vec![right],
            asked: Vec::new(),
            next_number: 1,
            beat_due_ms: 0,
            heard: None,
            reasons_told: Vec::new(),
            peer_heard: None,
        };
        rights.release(50, 0, &mut Vec::new());
    }

    #[test]
    fn what_was_recorded_is_forgotten_with_the_mirror() {
        let mut right = Right {
            recorded: Some(true),
            ..Right::default()
        };
        right.forget_record(7);
        assert!(right.known_ms.is_none() && right.recorded.is_none() && right.retry_ms == 7);
    }
}
