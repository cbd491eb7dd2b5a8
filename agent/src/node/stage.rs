//! The stages of a silence, and what follows on which: pure tables, tried by `partition` with what it knows.
//!
//! ```text
//! together ── silent ──► resolving ──► consent (arbiter) ──► fencing ──► alone
//!                            │             │                    └─────► barred
//!                            └─► cut off ◄─┘
//!                                   └──► final
//! ```
//!
//! Heard again, the two are together, from whatever stage but the last of "cut off": a node that has
//! begun to stop its groups for good sees that through. A forced stop that was called is seen through
//! too. A node that runs nothing has nothing to protect: cut off, it waits, and takes no final action.

use std::time::Duration;

use super::resolving::Verdict;
use crate::fencing::{Plan, WhyNot};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Stage {
    #[default]
    Together,
    /// The resolvers are asked.
    Resolving,
    /// The arbiter is asked.
    Consent {
        since_ms: u64,
    },
    CutOff {
        since_ms: u64,
    },
    /// Cut off for good: groups stop; then the final action.
    Final {
        acted: bool,
    },
    /// A forced stop is planned or under way.
    Fencing,
    Barred {
        reason: String,
    },
    Alone {
        proof: Proof,
    },
}

/// By what this node acts alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Proof {
    /// The other node is confirmed to be down.
    Stopped,
    /// Each mirror has its grant and its record.
    Arbiter,
    /// By the resolvers alone: both nodes may come to the same conclusion.
    Unproven,
}

/// What the arbiter has to say to this node's going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Consent {
    /// Every lease that it needs is live; or there is no arbiter.
    Given,
    /// It answers, or what runs here has its leases meanwhile.
    Pending,
    /// A lease ran out, and it does not answer.
    Unreached,
}

/// What still runs of this node's groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Groups {
    AllOffline,
    /// What is not offline did not stop, and will not.
    Stopped,
    Running,
}

/// What the next stage depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// The other node fell silent, and no mirror hears it either.
    pub lost: bool,
    pub heard: bool,
    pub verdict: Verdict,
    /// The stage has lasted as long as it may.
    pub overdue: bool,
    pub consent: Consent,
    pub plan: Plan,
    /// Every mirror that is primary here has its lease.
    pub leased: bool,
    pub groups: Groups,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    /// The resolvers are asked.
    NoticeLoss,
    /// The same, for what they said before counts no more.
    AskAnew,
    /// What they say now is decided on, as at first.
    EndIsolation,
    SeekConsent,
    /// The arbiter is asked for what the other node ran.
    AskArbiter,
    Fence(Duration),
    GoOnAlone,
    /// Nothing may start here before the other node is heard.
    Bar {
        reason: String,
    },
    CutOff(&'static str),
    /// It stays so: I/O fails, and the groups stop.
    StopForGood,
    TakeFinalAction,
    /// It is no longer cut off, whatever the other node does.
    Rejoin,
    Together,
}

pub(super) const NO_ANSWER: &str = "its resolvers gave no answer";
pub(super) const NO_TARGET: &str = "no resolver reaches its target";
pub(super) const NO_LEASE: &str = "the arbiter is not reached and the lease ran out";

/// From one stage to the next, by what is known at the moment.
pub(super) fn next(stage: &Stage, facts: &Facts) -> Next {
    let reached = facts.verdict == Verdict::Reached;
    match stage {
        Stage::Together if facts.lost => Next::NoticeLoss,
        Stage::Together => Next::Stay,
        Stage::Resolving => match facts.verdict {
            Verdict::Reached => Next::SeekConsent,
            Verdict::CutOff => Next::CutOff(NO_TARGET),
            // A driver that never answers must not keep this node undecided for ever.
            Verdict::Undecided if facts.overdue => Next::CutOff(NO_ANSWER),
            Verdict::Undecided => Next::Stay,
        },
        Stage::Consent { .. } => match (facts.consent, facts.plan) {
            (Consent::Given, Plan::Now) => Next::Fence(Duration::ZERO),
            (Consent::Given, Plan::After(delay)) => Next::Fence(delay),
            // Planned anew until the delay is over: nothing is decided by then that could not wait.
            (Consent::Given, Plan::Never(WhyNot::StartingUp)) => Next::Stay,
            (Consent::Given, Plan::Never(_)) => Next::GoOnAlone,
            (Consent::Pending, _) => Next::AskArbiter,
            (Consent::Unreached, _) if facts.overdue => Next::CutOff(NO_LEASE),
            (Consent::Unreached, _) => Next::Stay,
        },
        // Only an answer to a question put after the last verdict ends it.
        Stage::CutOff { .. } if reached && facts.leased => Next::EndIsolation,
        Stage::CutOff { .. } if facts.overdue && facts.groups != Groups::AllOffline => {
            Next::StopForGood
        }
        Stage::CutOff { .. } => Next::Stay,
        Stage::Final { acted: false } if facts.groups != Groups::Running => Next::TakeFinalAction,
        // What remains is a node without groups, which may join again.
        Stage::Final { acted: true }
            if facts.groups == Groups::AllOffline && (facts.heard || reached) =>
        {
            Next::Rejoin
        }
        Stage::Final { .. } | Stage::Fencing | Stage::Barred { .. } | Stage::Alone { .. } => {
            Next::Stay
        }
    }
}

/// The other node is heard again, or says that it leaves.
pub(super) fn on_word(stage: &Stage) -> Next {
    match stage {
        Stage::Together | Stage::Final { .. } => Next::Stay,
        _ => Next::Together,
    }
}

/// This node stood still: what was decided before may have been overtaken.
pub(super) fn on_awakening(stage: &Stage) -> Next {
    match stage {
        // A stop that was called is seen through; one that waits is called off, which leads there as well.
        Stage::Together | Stage::Final { .. } | Stage::Fencing => Next::Stay,
        _ => Next::AskAnew,
    }
}

/// How a forced stop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StopEnd {
    Completed,
    Failed { reason: String },
    CalledOff,
}

/// `silent`: the other node still is. `failover_on_failure`: as configured.
pub(super) fn on_stop(
    stage: &Stage,
    end: StopEnd,
    silent: bool,
    failover_on_failure: bool,
) -> Next {
    // Heard meanwhile in a new run, or cut off, it is another matter.
    if *stage != Stage::Fencing {
        return Next::Stay;
    }
    match end {
        StopEnd::Completed => Next::GoOnAlone,
        StopEnd::Failed { .. } if failover_on_failure => Next::GoOnAlone,
        StopEnd::Failed { reason } => Next::Bar { reason },
        // By a freeze of this node: the other is as silent as before.
        StopEnd::CalledOff if silent => Next::AskAnew,
        StopEnd::CalledOff => Next::Stay,
    }
}

pub(super) fn proof(peer_stopped: bool, arbiter: bool) -> Proof {
    match (peer_stopped, arbiter) {
        (true, _) => Proof::Stopped,
        (false, true) => Proof::Arbiter,
        (false, false) => Proof::Unproven,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(4);
    const PLANS: [Plan; 4] = [
        Plan::Now,
        Plan::After(DELAY),
        Plan::Never(WhyNot::StartingUp),
        Plan::Never(WhyNot::NothingAtStake),
    ];
    const VERDICTS: [Verdict; 3] = [Verdict::Reached, Verdict::CutOff, Verdict::Undecided];
    const CONSENTS: [Consent; 3] = [Consent::Given, Consent::Pending, Consent::Unreached];
    const GROUPS: [Groups; 3] = [Groups::AllOffline, Groups::Stopped, Groups::Running];

    fn stages() -> Vec<Stage> {
        let mut stages = vec![
            Stage::Together,
            Stage::Resolving,
            Stage::Consent { since_ms: 0 },
            Stage::CutOff { since_ms: 0 },
            Stage::Final { acted: false },
            Stage::Final { acted: true },
            Stage::Fencing,
            Stage::Barred {
                reason: "no".into(),
            },
        ];
        let proofs = [Proof::Stopped, Proof::Arbiter, Proof::Unproven];
        stages.extend(proofs.map(|proof| Stage::Alone { proof }));
        stages
    }

    /// Everything there is to know.
    fn every(mut check: impl FnMut(Facts)) {
        for plan in PLANS {
            for verdict in VERDICTS {
                for consent in CONSENTS {
                    for groups in GROUPS {
                        for bits in 0..1u32 << 4 {
                            let bit = |at: u32| bits & (1 << at) != 0;
                            check(Facts {
                                lost: bit(0),
                                heard: bit(1),
                                verdict,
                                overdue: bit(2),
                                consent,
                                plan,
                                leased: bit(3),
                                groups,
                            });
                        }
                    }
                }
            }
        }
    }

    /// What can follow a stage at all, over everything there is to know.
    fn followers(stage: &Stage) -> Vec<Next> {
        let mut all = Vec::new();
        every(|facts| {
            let found = next(stage, &facts);
            if !all.contains(&found) {
                all.push(found);
            }
        });
        all
    }

    #[test]
    fn each_stage_has_these_followers_and_no_others() {
        let table: [(Stage, &[Next]); 11] = [
            (Stage::Together, &[Next::Stay, Next::NoticeLoss]),
            (
                Stage::Resolving,
                &[
                    Next::Stay,
                    Next::SeekConsent,
                    Next::CutOff(NO_TARGET),
                    Next::CutOff(NO_ANSWER),
                ],
            ),
            (
                Stage::Consent { since_ms: 0 },
                &[
                    Next::Stay,
                    Next::Fence(Duration::ZERO),
                    Next::Fence(DELAY),
                    Next::GoOnAlone,
                    Next::AskArbiter,
                    Next::CutOff(NO_LEASE),
                ],
            ),
            (
                Stage::CutOff { since_ms: 0 },
                &[Next::Stay, Next::EndIsolation, Next::StopForGood],
            ),
            (
                Stage::Final { acted: false },
                &[Next::Stay, Next::TakeFinalAction],
            ),
            (Stage::Final { acted: true }, &[Next::Stay, Next::Rejoin]),
            (Stage::Fencing, &[Next::Stay]),
            (
                Stage::Barred {
                    reason: "no".into(),
                },
                &[Next::Stay],
            ),
            (
                Stage::Alone {
                    proof: Proof::Stopped,
                },
                &[Next::Stay],
            ),
            (
                Stage::Alone {
                    proof: Proof::Arbiter,
                },
                &[Next::Stay],
            ),
            (
                Stage::Alone {
                    proof: Proof::Unproven,
                },
                &[Next::Stay],
            ),
        ];
        assert_eq!(
            table.each_ref().map(|(stage, _)| stage.clone())[..],
            stages()[..]
        );
        for (stage, expected) in table {
            let found = followers(&stage);
            assert_eq!(found.len(), expected.len(), "{stage:?}: {found:?}");
            for one in expected {
                assert!(found.contains(one), "{stage:?}: {found:?} without {one:?}");
            }
        }
    }

    #[test]
    fn a_silence_is_decided_on_by_the_resolvers_first() {
        every(|facts| {
            let expected = match (facts.verdict, facts.overdue) {
                (Verdict::Reached, _) => Next::SeekConsent,
                (Verdict::CutOff, _) => Next::CutOff(NO_TARGET),
                (Verdict::Undecided, true) => Next::CutOff(NO_ANSWER),
                (Verdict::Undecided, false) => Next::Stay,
            };
            assert_eq!(next(&Stage::Resolving, &facts), expected, "{facts:?}");
            let expected = match facts.lost {
                true => Next::NoticeLoss,
                false => Next::Stay,
            };
            assert_eq!(next(&Stage::Together, &facts), expected, "{facts:?}");
        });
    }

    #[test]
    fn nothing_is_stopped_and_nobody_goes_on_without_the_arbiters_consent() {
        let consent = Stage::Consent { since_ms: 0 };
        every(|facts| {
            let expected = match (facts.consent, facts.overdue) {
                (Consent::Pending, _) => Next::AskArbiter,
                (Consent::Unreached, true) => Next::CutOff(NO_LEASE),
                (Consent::Unreached, false) => Next::Stay,
                (Consent::Given, _) => match facts.plan {
                    Plan::Now => Next::Fence(Duration::ZERO),
                    Plan::After(delay) => Next::Fence(delay),
                    Plan::Never(WhyNot::StartingUp) => Next::Stay,
                    Plan::Never(_) => Next::GoOnAlone,
                },
            };
            assert_eq!(next(&consent, &facts), expected, "{facts:?}");
        });
    }

    #[test]
    fn a_node_that_is_cut_off_comes_back_or_ends_what_it_runs() {
        let cut_off = Stage::CutOff { since_ms: 0 };
        every(|facts| {
            let back = facts.verdict == Verdict::Reached && facts.leased;
            let runs = facts.groups != Groups::AllOffline;
            let expected = match (back, facts.overdue && runs) {
                (true, _) => Next::EndIsolation,
                (false, true) => Next::StopForGood,
                (false, false) => Next::Stay,
            };
            assert_eq!(next(&cut_off, &facts), expected, "{facts:?}");
        });
    }

    #[test]
    fn the_final_action_comes_after_the_stop_and_the_way_back_after_both() {
        every(|facts| {
            let expected = match facts.groups {
                Groups::Running => Next::Stay,
                Groups::Stopped | Groups::AllOffline => Next::TakeFinalAction,
            };
            let before = Stage::Final { acted: false };
            assert_eq!(next(&before, &facts), expected, "{facts:?}");
            let reached = facts.heard || facts.verdict == Verdict::Reached;
            let expected = match (facts.groups, reached) {
                (Groups::AllOffline, true) => Next::Rejoin,
                _ => Next::Stay,
            };
            let after = Stage::Final { acted: true };
            assert_eq!(next(&after, &facts), expected, "{facts:?}");
        });
    }

    #[test]
    fn what_stands_at_the_end_of_a_silence_stands_until_a_word_comes() {
        for stage in stages() {
            let is_final = matches!(stage, Stage::Final { .. });
            let stays = is_final || stage == Stage::Together;
            let expected = if stays { Next::Stay } else { Next::Together };
            assert_eq!(on_word(&stage), expected, "{stage:?}");
            let expected = if stays || stage == Stage::Fencing {
                Next::Stay
            } else {
                Next::AskAnew
            };
            assert_eq!(on_awakening(&stage), expected, "{stage:?}");
        }
    }

    #[test]
    fn the_end_of_a_forced_stop_matters_to_whom_it_was_begun_for() {
        use StopEnd::{CalledOff, Completed, Failed};
        let reason = || "no".to_owned();
        for stage in stages() {
            for end in [Completed, Failed { reason: reason() }, CalledOff] {
                for silent in [false, true] {
                    for anyway in [false, true] {
                        let expected = match (&stage, &end) {
                            (Stage::Fencing, Completed) => Next::GoOnAlone,
                            (Stage::Fencing, Failed { .. }) if anyway => Next::GoOnAlone,
                            (Stage::Fencing, Failed { .. }) => Next::Bar { reason: reason() },
                            (Stage::Fencing, CalledOff) if silent => Next::AskAnew,
                            _ => Next::Stay,
                        };
                        let found = on_stop(&stage, end.clone(), silent, anyway);
                        assert_eq!(found, expected, "{stage:?}, {end:?}, {silent}, {anyway}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_confirmed_stop_is_the_best_proof() {
        assert_eq!(proof(true, false), Proof::Stopped);
        assert_eq!(proof(true, true), Proof::Stopped);
        assert_eq!(proof(false, true), Proof::Arbiter);
        assert_eq!(proof(false, false), Proof::Unproven);
    }
}
