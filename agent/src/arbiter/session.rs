//! Which calls of a cluster's nodes count: each once, and in order where order matters. Pure.
//!
//! A session's number is above all that were handed out before in this run of the witness, and a node's
//! later session ends its earlier ones. Handing one out changes nothing for the node that it is meant
//! for; the first call in it does. So neither a recorded hello nor a recorded call has any effect: the
//! call is of another run, of an ended session, or its sequence number counted already.
//!
//! Beats may overtake one another, because a late one only renews a lease that is still the newest.
//! Everything else counts strictly in order: a late record of who is current must not undo a newer one.

use std::collections::BTreeMap;

use super::call::Request;
use super::envelope::{Call, Session};

/// Names of nodes in one cluster. They are never forgotten, because their old calls would count again.
const NODES_MAX: usize = 16;

#[derive(Debug, Clone)]
pub struct Sessions {
    run: String,
    handed_out: u64,
    nodes: BTreeMap<String, Conversation>,
}

#[derive(Debug, Clone, Default)]
struct Conversation {
    session: u64,
    beats: Window,
    /// Last sequence number of a call that was no beat.
    deed: u64,
}

/// Whether a call counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Counts,
    /// Of another run, or never handed out.
    UnknownSession,
    /// The node has a later session.
    Displaced,
    Replayed,
    TooManyNodes,
}

impl Sessions {
    /// `run` is drawn at random at each start of the witness.
    pub fn new(run: impl Into<String>) -> Self {
        Self {
            run: run.into(),
            handed_out: 0,
            nodes: BTreeMap::new(),
        }
    }

    pub fn hand_out(&mut self) -> Session {
        self.handed_out += 1;
        Session {
            run: self.run.clone(),
            number: self.handed_out,
        }
    }

    /// A call that counts is used up by this.
    pub fn admit(&mut self, call: &Call) -> Admission {
        let number = call.session.number;
        if call.session.run != self.run || number == 0 || number > self.handed_out {
            return Admission::UnknownSession;
        }
        if !self.nodes.contains_key(&call.node) && self.nodes.len() == NODES_MAX {
            return Admission::TooManyNodes;
        }
        let conversation = self.nodes.entry(call.node.clone()).or_default();
        if number < conversation.session {
            return Admission::Displaced;
        }
        if number > conversation.session {
            *conversation = Conversation {
                session: number,
                ..Conversation::default()
            };
        }
        let fresh = match call.request {
            Request::Beat { .. } => conversation.beats.take(call.sequence),
            _ if call.sequence > conversation.deed => {
                conversation.deed = call.sequence;
                true
            }
            _ => false,
        };
        if fresh {
            Admission::Counts
        } else {
            Admission::Replayed
        }
    }
}

/// The newest number that was seen, and which of the 63 before it.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    top: u64,
    /// Bit n: `top - n` was seen.
    seen: u64,
}

impl Window {
    /// Whether `number` was not seen and is not too old. It is seen from now on.
    fn take(&mut self, number: u64) -> bool {
        if number > self.top {
            let ahead = number - self.top;
            self.seen = if ahead < 64 { self.seen << ahead } else { 0 } | 1;
            self.top = number;
            return true;
        }
        let behind = self.top - number;
        if number == 0 || behind >= 64 || self.seen & (1 << behind) != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Admission::*;
    use proptest::prelude::*;

    fn beat(node: &str, session: &Session, sequence: u64) -> Call {
        Call {
            node: node.into(),
            session: session.clone(),
            sequence,
            lease_ms: 1,
            request: Request::Beat { renew: Vec::new() },
        }
    }

    fn deed(node: &str, session: &Session, sequence: u64) -> Call {
        Call {
            request: Request::Acquire {
                mirror: "md1".into(),
                force: false,
            },
            ..beat(node, session, sequence)
        }
    }

    #[test]
    fn beats_may_overtake_one_another_and_count_once() {
        let mut sessions = Sessions::new("r");
        let session = sessions.hand_out();
        for (sequence, expected) in [
            (0, Replayed),
            (3, Counts),
            (1, Counts),
            (1, Replayed),
            (3, Replayed),
            (80, Counts),
            (2, Replayed),
            (17, Counts),
            (16, Replayed),
        ] {
            let admission = sessions.admit(&beat("a", &session, sequence));
            assert_eq!(admission, expected, "{sequence}");
        }
    }

    #[test]
    fn deeds_count_in_order_and_no_beat_holds_them_up() {
        let mut sessions = Sessions::new("r");
        let session = sessions.hand_out();
        assert_eq!(sessions.admit(&beat("a", &session, 5)), Counts);
        assert_eq!(sessions.admit(&deed("a", &session, 2)), Counts);
        assert_eq!(sessions.admit(&deed("a", &session, 4)), Counts);
        assert_eq!(sessions.admit(&deed("a", &session, 3)), Replayed);
        assert_eq!(
            sessions.admit(&deed("b", &session, 3)),
            Counts,
            "another node"
        );
    }

    #[test]
    fn a_later_session_ends_the_earlier_ones_once_it_is_used() {
        let mut sessions = Sessions::new("r");
        let (first, second) = (sessions.hand_out(), sessions.hand_out());
        assert_eq!(sessions.admit(&deed("a", &first, 1)), Counts);
        let replayed_hello = sessions.hand_out();
        assert_eq!(sessions.admit(&deed("a", &first, 2)), Counts);
        assert_eq!(sessions.admit(&deed("a", &second, 1)), Counts);
        assert_eq!(sessions.admit(&deed("a", &first, 3)), Displaced);
        assert_eq!(sessions.admit(&deed("a", &replayed_hello, 1)), Counts);
    }

    #[test]
    fn a_session_of_another_run_is_unknown() {
        let old = Sessions::new("old").hand_out();
        let mut sessions = Sessions::new("new");
        sessions.hand_out();
        assert_eq!(sessions.admit(&deed("a", &old, 1)), UnknownSession);
        let never = Session {
            run: "new".into(),
            number: 2,
        };
        assert_eq!(sessions.admit(&deed("a", &never, 1)), UnknownSession);
    }

    #[test]
    fn node_names_are_limited_in_number_and_known_ones_go_on() {
        let mut sessions = Sessions::new("r");
        let session = sessions.hand_out();
        for node in 0..NODES_MAX {
            let call = deed(&node.to_string(), &session, 1);
            assert_eq!(sessions.admit(&call), Counts);
        }
        assert_eq!(sessions.admit(&deed("one more", &session, 1)), TooManyNodes);
        assert_eq!(sessions.admit(&deed("0", &session, 2)), Counts);
    }

    proptest! {
        #[test]
        fn nothing_that_was_sent_counts_twice(
            sent in prop::collection::vec((0..2u64, 0..2usize, 1..100u64, any::<bool>()), 1..200),
        ) {
            let mut sessions = Sessions::new("r");
            let handed = [sessions.hand_out(), sessions.hand_out()];
            let mut counted = std::collections::HashSet::new();
            for (session, node, sequence, is_beat) in sent {
                let make = if is_beat { beat } else { deed };
                let call = make(["a", "b"][node], &handed[session as usize], sequence);
                if sessions.admit(&call) == Counts {
                    prop_assert!(counted.insert((session, node, sequence, is_beat)));
                }
            }
        }
    }
}
