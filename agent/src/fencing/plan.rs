//! Who may stop the other node, and when. One decision over what is known at the moment; it keeps nothing.

use std::fmt;
use std::time::Duration;

use crate::membership::Peer;

/// What the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// There is a `[forced_stop]`.
    pub configured: bool,
    pub peer: Peer,
    /// The other node is confirmed to be down since it was last heard.
    pub peer_down: bool,
    /// It ran a group that would fail over to this node.
    pub peer_group_fails_over: bool,
    /// It could start a group without the consent of this node or of the arbiter.
    pub peer_could_start: bool,
    /// A mirror here holds its answers until the other node is known to be down, and nobody else can
    /// tell that.
    pub answers_wait: bool,
    /// This node's start-up delay is not over.
    pub starting_up: bool,
    /// This node runs a group.
    pub owns_group: bool,
    /// The resolvers say that it is this node that is cut off.
    pub isolated: bool,
    /// This node comes first in the configuration: the tie-break where neither or both run a group.
    pub is_first_node: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Now,
    /// Only if nothing changes meanwhile; the other side, if it lives, has stopped this node by then.
    After(Duration),
    Never(WhyNot),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhyNot {
    PeerUp,
    PeerLeft,
    PeerNeverHeard,
    PeerDown,
    NotConfigured,
    Isolated,
    StartingUp,
    NothingAtStake,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerUp => "the other node is heard",
            Self::PeerLeft => "the other node stopped by itself and said so",
            Self::PeerNeverHeard => "the other node was not heard since this one started",
            Self::PeerDown => "the other node is confirmed to be down",
            Self::NotConfigured => "no forced stop is configured",
            Self::Isolated => "it is this node that is cut off",
            Self::StartingUp => "this node is still starting up",
            Self::NothingAtStake => {
                "the other node ran no group that would start here, can start none by itself, and no answer waits for its end"
            }
        })
    }
}

/// The first line that applies decides.
///
/// The owner of a group stops the other at once, for it is the owner that a stop from the other side
/// would hurt. Were both to act at the same time, both would be down: so with both an owner, the second
/// node gives the first a head start of `fence_delay`; with neither, each waits, the second twice as long,
/// because a group that started just before the link went may be known to one side only.
pub fn plan(situation: &Situation, fence_delay: Duration) -> Plan {
    let Situation {
        configured,
        peer,
        peer_down,
        peer_group_fails_over,
        peer_could_start,
        answers_wait,
        starting_up,
        owns_group,
        isolated,
        is_first_node,
    } = *situation;
    match peer {
        Peer::Up => return Plan::Never(WhyNot::PeerUp),
        Peer::Left => return Plan::Never(WhyNot::PeerLeft),
        Peer::Unknown => return Plan::Never(WhyNot::PeerNeverHeard),
        Peer::Lost => {}
    }
    if peer_down {
        return Plan::Never(WhyNot::PeerDown);
    }
    if !configured {
        return Plan::Never(WhyNot::NotConfigured);
    }
    if isolated {
        return Plan::Never(WhyNot::Isolated);
    }
    if starting_up {
        return Plan::Never(WhyNot::StartingUp);
    }
    if !peer_group_fails_over && !peer_could_start && !answers_wait {
        return Plan::Never(WhyNot::NothingAtStake);
    }
    match (owns_group, peer_group_fails_over, is_first_node) {
        (true, false, _) | (true, true, true) => Plan::Now,
        (true, true, false) | (false, true, _) | (false, false, true) => Plan::After(fence_delay),
        (false, false, false) => Plan::After(fence_delay.saturating_mul(2)),
    }
}

/// The longest delay of [`plan`], in units of `fence_delay`, and one for the stop to hit.
const ROUND_DELAYS: u32 = 3;

/// The plan of a node that could not act on it in time, because it was cut off or stood still after the
/// other fell silent. Its head start is over: the other may be about to act by now. It comes back to its
/// turn in the next round, counted from the beginning of the silence, so that two late nodes keep their
/// distance too.
pub fn in_next_round(plan: Plan, silence: Duration, fence_delay: Duration) -> Plan {
    let turn = match plan {
        Plan::Now => Duration::ZERO,
        Plan::After(delay) => delay,
        Plan::Never(_) => return plan,
    };
    let round = fence_delay.saturating_mul(ROUND_DELAYS);
    if round.is_zero() {
        return plan;
    }
    let mut at = turn + round;
    if at < silence {
        let rounds = (silence - at)
            .as_millis()
            .div_ceil(round.as_millis().max(1));
        at += round.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
    }
    Plan::After(at.saturating_sub(silence))
}
