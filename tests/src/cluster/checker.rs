//! What must never be, looked at from above: by true time, and by what was really answered.

use std::fmt;

use super::data::Writes;
use super::mirror::{Answer, What};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// An answer by a right that another node's later right had ended.
    TwoAnswer {
        node: usize,
        promotion: u64,
        newer: u64,
    },
    /// A node answers without a write that was answered before.
    Lost {
        node: usize,
        write: usize,
    },
    /// A read was answered that had not seen a write answered before it.
    Stale {
        node: usize,
        write: usize,
    },
    /// Something of the group starts here and runs, or may run, on the other node, which was to be stopped first.
    BothRun {
        node: usize,
    },
    /// Each stopped the other.
    StoppedEachOther,
    /// A forced stop that was called off hit a node, or nothing was wrong at all.
    WithoutNeed {
        what: String,
    },
    OutOfService {
        for_ms: u64,
        state: String,
    },
    /// Both were active and nobody said so.
    Unannounced,
    /// The agent's own rules.
    Broken {
        node: usize,
        what: String,
    },
    /// A command was never answered.
    Unanswered {
        node: usize,
        command: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoAnswer {
                node,
                promotion,
                newer,
            } => write!(
                f,
                "node {node} answers by promotion {promotion}, and promotion {newer} of the other has answered"
            ),
            Self::Lost { node, write } => {
                write!(
                    f,
                    "node {node} serves without write {write}, which was answered"
                )
            }
            Self::Stale { node, write } => {
                write!(
                    f,
                    "node {node} answers a read that did not see write {write}, which was answered"
                )
            }
            Self::BothRun { node } => write!(
                f,
                "the group starts on node {node}, and still runs on the other, wholly or in part"
            ),
            Self::StoppedEachOther => f.write_str("the nodes stopped each other"),
            Self::WithoutNeed { what } => write!(f, "without need: {what}"),
            Self::OutOfService { for_ms, state } => {
                write!(
                    f,
                    "nothing answered for {for_ms} ms after the last fault: {state}"
                )
            }
            Self::Unannounced => {
                f.write_str("both nodes answered and no alert said that they might")
            }
            Self::Broken { node, what } => write!(f, "node {node} broke its own rule: {what}"),
            Self::Unanswered { node, command } => {
                write!(f, "command {command} on node {node} was never answered")
            }
        }
    }
}

/// One forced stop that took effect on a live node.
#[derive(Debug, Clone, Copy)]
struct Stop {
    by: usize,
    asked_ms: u64,
    at_ms: u64,
}

#[derive(Debug, Default)]
pub struct Checker {
    /// Two may never be active.
    exclusive: bool,
    /// Two may be active since somebody said so.
    pub announced: bool,
    answered: Writes,
    /// Newest promotion that has answered on each node, and when it was proved first.
    newest: [(u64, u64); 2],
    pub last_answer_ms: Option<u64>,
    pub answers: u64,
    pub overlaps: u64,
    stops: Vec<Stop>,
    pub failovers: u64,
    pub forced_stops: u64,
    violation: Option<Violation>,
}

impl Checker {
    pub fn new(exclusive: bool) -> Self {
        Self {
            exclusive,
            ..Self::default()
        }
    }

    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub fn report(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    pub fn on_answer(&mut self, now_ms: u64, node: usize, answer: &Answer, holds: &Writes) {
        if !answer.ok {
            return;
        }
        self.answers += 1;
        self.last_answer_ms = Some(now_ms);
        if let What::Read { stale: Some(write) } = answer.what
            && self.exclusive
        {
            self.report(Violation::Stale { node, write });
        }
        let (newer, since_ms) = self.newest[1 - node];
        if newer > answer.promotion && answer.proved_ms > since_ms {
            self.overlaps += 1;
            if self.exclusive {
                self.report(Violation::TwoAnswer {
                    node,
                    promotion: answer.promotion,
                    newer,
                });
            } else if !self.announced {
                self.report(Violation::Unannounced);
            }
        }
        if self.newest[node].0 < answer.promotion {
            self.newest[node] = (answer.promotion, answer.proved_ms);
            if let Some(write) = self.answered.first_missing_in(holds)
                && self.exclusive
            {
                self.report(Violation::Lost { node, write });
            }
        }
        if let What::Write(number) = answer.what {
            self.answered.insert(number);
        }
    }

    /// An operator gave up what is not there.
    pub fn give_up_beyond(&mut self, holds: &Writes) {
        self.answered.retain_in(holds);
    }

    /// An answered write that is not there.
    pub fn first_missing_in(&self, holds: &Writes) -> Option<usize> {
        self.answered.first_missing_in(holds)
    }

    /// At the end, where somebody serves.
    pub fn check_holds(&mut self, node: usize, holds: &Writes) {
        if let Some(write) = self.answered.first_missing_in(holds)
            && self.exclusive
        {
            self.report(Violation::Lost { node, write });
        }
    }

    /// A forced stop that `by` asked for took the other node down.
    pub fn on_stopped(&mut self, by: usize, asked_ms: u64, at_ms: u64) {
        self.forced_stops += 1;
        // Asked for before the stop of the one who asked.
        let mutual = self
            .stops
            .iter()
            .any(|stop| stop.by != by && stop.at_ms >= asked_ms && stop.asked_ms <= at_ms);
        if mutual {
            self.report(Violation::StoppedEachOther);
        }
        self.stops.push(Stop {
            by,
            asked_ms,
            at_ms,
        });
    }
}
