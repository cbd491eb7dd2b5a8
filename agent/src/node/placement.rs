//! Whether a group should start here: a pure function over what both nodes say, tried rule by rule.
//! The first rule that applies decides. Both nodes run it; where both could start a group, the order of
//! its nodes breaks the tie.

use crate::control::State;

/// What this node may assume of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Other {
    /// Heard, and what it says is known.
    Up,
    /// Heard, and it has not said yet what it runs; or its start-up delay runs.
    Starting,
    /// It stopped on purpose.
    Left,
    /// Silent, and nobody has decided yet what that means.
    Undecided,
    /// Silent, and this node may go on without it.
    Gone,
    /// Silent, and this node may not: its forced stop failed.
    Barred,
    /// Not heard since this agent started.
    NeverHeard,
}

/// What the other node said last of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum There {
    /// All of it is offline there, or the other never said anything.
    Offline,
    /// The same, and its last start failed.
    StartFailed,
    /// It runs there wholly or in part, or may: also where it did not stop.
    Active,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    pub here: State,
    pub other: Other,
    pub there: There,
    /// The other node released it for this one.
    pub given: bool,
    /// The other could run it too: it is one of its nodes, no standby, its data is good and no start failed.
    pub there_able: bool,
    /// This node comes before the other in the order of the group's nodes.
    pub preferred: bool,
    pub starting: bool,
    pub isolated: bool,
    /// Another machine speaks under this node's name.
    pub namesake: bool,
    pub standby: bool,
    /// One of its nodes.
    pub allowed: bool,
    /// An operator stopped it.
    pub stopped: bool,
    /// Its last start failed here.
    pub failed: bool,
    /// Its mirrors' data is up to date here, as far as this side knows.
    pub able: bool,
    /// Nobody else can hold newer data: recorded here, or its mirrors or the arbiter will be asked.
    pub sure: bool,
    pub automatic_start: bool,
    pub failover: bool,
    /// It failed over too often lately.
    pub limited: bool,
    /// A mirror of it is connected to the other, its primary, whatever heartbeats say, and there is no grant to tell
    /// it otherwise: it would refuse.
    pub linked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Nothing to do here.
    Stay,
    Start(Cause),
    /// It would start here, but for this.
    Wait(Reason),
}

/// Why a group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    Automatic,
    /// It ran on the other node, or could not be started there.
    Failover,
    /// The other node gave it away.
    Given,
    /// An operator said so. `force`: and accepts that the data here is the truth from then on.
    Operator {
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    StartupDelay,
    CutOff,
    /// Another machine speaks under this node's name: what it runs, nobody here knows.
    Namesake,
    /// The other node is about to say what it runs.
    OtherStarts,
    /// What the silence of the other means is being found out.
    Partition,
    ForcedStopFailed,
    /// The data here is not up to date.
    Data,
    /// The other node is heard, and its side of the mirrors is not connected: which is newer is not known.
    Connection,
    /// Its mirrors are connected to the other node, which is primary, or have yet to notice that it is gone.
    Linked,
    /// The other node left, and the group did not stop there.
    DidNotStop,
    /// The data here may be old, and only the other node knows.
    OtherHasNewer,
    FailoverLimit,
}

pub fn place(s: &Situation) -> Placement {
    use Placement::{Start, Stay, Wait};

    if s.here != State::Offline || !s.allowed || s.stopped || s.standby || s.failed {
        return Stay;
    }
    let active_there = s.there == There::Active;
    let ran_there = s.there != There::Offline;
    let takes_over = s.failover && ran_there;
    if !s.automatic_start && !s.given && !takes_over {
        return Stay;
    }
    if s.starting {
        return Wait(Reason::StartupDelay);
    }
    if s.isolated {
        return Wait(Reason::CutOff);
    }
    if s.namesake {
        return Wait(Reason::Namesake);
    }
    match s.other {
        Other::Starting => Wait(Reason::OtherStarts),
        Other::Up if active_there => Stay,
        Other::Up if s.able && !s.sure && (s.given || s.preferred || !s.there_able) => {
            Wait(Reason::Connection)
        }
        Other::Up if s.given && s.able => Start(Cause::Given),
        Other::Up if s.there_able && !s.given && !s.preferred => Stay,
        Other::Up if !s.able && s.there_able => Stay,
        Other::Up if !s.able => Wait(Reason::Data),
        Other::Up if s.there == There::StartFailed && !s.failover => Stay,
        Other::Up if s.there == There::StartFailed && s.limited => Wait(Reason::FailoverLimit),
        Other::Up if s.there == There::StartFailed => Start(Cause::Failover),
        Other::Up => Start(Cause::Automatic),
        Other::NeverHeard if !s.automatic_start => Stay,
        Other::Undecided => Wait(Reason::Partition),
        Other::Barred => Wait(Reason::ForcedStopFailed),
        Other::Left if active_there => Wait(Reason::DidNotStop),
        Other::Left | Other::Gone if ran_there && !s.failover => Stay,
        Other::Left | Other::Gone if ran_there && s.limited => Wait(Reason::FailoverLimit),
        Other::Left | Other::Gone | Other::NeverHeard if !s.able => Wait(Reason::Data),
        Other::Left | Other::Gone | Other::NeverHeard if s.linked => Wait(Reason::Linked),
        Other::Gone if ran_there => Start(Cause::Failover),
        Other::Left | Other::NeverHeard if !s.sure => Wait(Reason::OtherHasNewer),
        Other::Left if ran_there => Start(Cause::Failover),
        Other::Left | Other::Gone | Other::NeverHeard => Start(Cause::Automatic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] = [
        State::Offline,
        State::OnlinePending,
        State::Online,
        State::OfflinePending,
        State::Failed,
        State::Unknown,
    ];
    const THERE: [There; 3] = [There::Offline, There::StartFailed, There::Active];
    const OTHERS: [Other; 7] = [
        Other::Up,
        Other::Starting,
        Other::Left,
        Other::Undecided,
        Other::Gone,
        Other::Barred,
        Other::NeverHeard,
    ];

    /// Every situation there is.
    fn every(mut check: impl FnMut(Situation, Placement)) {
        for here in STATES {
            for other in OTHERS {
                for there in THERE {
                    for bits in 0..1u32 << 16 {
                        let bit = |at: u32| bits & (1 << at) != 0;
                        let situation = Situation {
                            here,
                            other,
                            there,
                            given: bit(0),
                            there_able: bit(1),
                            preferred: bit(2),
                            starting: bit(3),
                            isolated: bit(4),
                            standby: bit(5),
                            allowed: bit(6),
                            stopped: bit(7),
                            failed: bit(8),
                            able: bit(9),
                            sure: bit(10),
                            automatic_start: bit(11),
                            failover: bit(12),
                            limited: bit(13),
                            linked: bit(14),
                            namesake: bit(15),
                        };
                        check(situation, place(&situation));
                    }
                }
            }
        }
    }

    #[test]
    fn a_group_starts_only_where_nothing_speaks_against_it() {
        every(|s, placement| {
            let Placement::Start(cause) = placement else {
                return;
            };
            assert_eq!(s.here, State::Offline, "{s:?}");
            assert!(s.allowed && s.able, "{s:?}");
            assert!(
                !(s.starting || s.isolated || s.namesake || s.standby || s.stopped || s.failed),
                "{s:?}"
            );
            assert!(
                matches!(
                    s.other,
                    Other::Up | Other::Left | Other::Gone | Other::NeverHeard
                ),
                "{s:?}"
            );
            let may_run_there = s.there == There::Active && s.other != Other::Gone;
            assert!(
                !may_run_there || s.other == Other::NeverHeard,
                "active there: {s:?}"
            );
            assert!(s.sure || s.other == Other::Gone, "{s:?}");
            assert!(!(s.linked && s.other != Other::Up), "{s:?}");
            match cause {
                Cause::Automatic => assert!(s.automatic_start || s.given, "{s:?}"),
                Cause::Failover => assert!(s.failover && !s.limited, "{s:?}"),
                Cause::Given => assert!(s.given, "{s:?}"),
                Cause::Operator { .. } => panic!("no rule gives an operator's word"),
            }
        });
    }

    #[test]
    fn two_nodes_that_hear_each_other_never_both_start_a_group() {
        every(|s, placement| {
            // The mirror image: both offline, both sides know the other's state.
            if s.other != Other::Up || s.here != State::Offline || s.there != There::Offline {
                return;
            }
            let able_here = s.able && s.allowed && !s.standby && !s.failed;
            for given in [false, true] {
                for sure in [false, true] {
                    let mirrored = Situation {
                        given,
                        sure,
                        there_able: able_here,
                        preferred: !s.preferred,
                        able: s.there_able,
                        failed: false,
                        standby: false,
                        allowed: true,
                        ..s
                    };
                    let both = matches!(placement, Placement::Start(_))
                        && matches!(place(&mirrored), Placement::Start(_));
                    // Given away by both at once: the arbiter, or the mirror, decides.
                    assert!(!both || s.given || given, "{s:?}");
                }
            }
        });
    }

    #[test]
    fn a_group_that_can_run_somewhere_is_not_left_lying() {
        every(|s, placement| {
            let free = s.other == Other::Up
                && s.here == State::Offline
                && s.there == There::Offline
                && s.allowed
                && s.automatic_start
                && !(s.starting || s.isolated || s.namesake || s.standby || s.stopped || s.failed);
            if free && s.able && s.sure && (s.preferred || !s.there_able) {
                assert!(matches!(placement, Placement::Start(_)), "{s:?}");
            }
        });
    }

    #[test]
    fn a_failover_waits_for_the_decision_about_the_other() {
        every(|s, placement| {
            if s.other == Other::Undecided || s.other == Other::Barred {
                assert!(!matches!(placement, Placement::Start(_)), "{s:?}");
            }
        });
    }
}
