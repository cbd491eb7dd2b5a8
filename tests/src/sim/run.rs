//! A whole world, from its seed to its verdict: an eventful part, then everything is healed, both sides
//! must come to rest, be equal, and hold what was promised.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mirror_core::control::{Connection, SyncKind};
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{DiskState, Mode};

use crate::random::Random;
use crate::sim::disk::Crash;
use crate::sim::mutation::Mutation;
use crate::sim::network::other;
use crate::sim::settings::Settings;
use crate::sim::world::{Happening, Tally, Violation, World};

/// Virtual time within which a healed mirror must come to rest.
const REST_MS_MAX: u64 = 60_000;
/// Virtual time in which two healed nodes have met.
const MEETING_US: u64 = 3_000_000;
/// Virtual time between two looks at a mirror that is healing.
const LOOK_MS: u64 = 50;

/// What kind of world a seed is to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// An arbiter decides who is primary.
    pub arbitrated: bool,
    pub mode: Mode,
}

impl Kind {
    pub const PLAIN: Self = Self {
        arbitrated: false,
        mode: Mode::Sync,
    };

    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::PLAIN
        }
    }
}

#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub kind: Kind,
    pub tally: Tally,
    pub violation: Option<Violation>,
    /// What happened last, if it was asked for.
    pub trace: Vec<String>,
}

impl Report {
    /// What to print about a broken rule.
    pub fn describe(&self) -> String {
        match &self.violation {
            None => format!("seed {}: no rule was broken", self.seed),
            Some(violation) => format!(
                "seed {} breaks {}: {}\nreplay: cargo xtask sim --seed {} --verbose{}{}",
                self.seed,
                violation.rule,
                violation.message,
                self.seed,
                match self.kind.mode {
                    Mode::Sync => String::new(),
                    mode => format!(" --mode {}", mode.name()),
                },
                if self.kind.arbitrated {
                    " --arbiter"
                } else {
                    ""
                }
            ),
        }
    }
}

/// Runs the world of a seed.
pub fn run_seed(seed: u64, kind: Kind, mutation: Option<Mutation>, traced: bool) -> Report {
    let drawn = match kind.arbitrated {
        false => Settings::draw(&mut Random::new(seed ^ 0x5eed)),
        true => Settings::draw_arbitrated(&mut Random::new(seed ^ 0xa3)),
    };
    let mut settings = drawn.in_mode(kind.mode, &mut Random::new(seed ^ 0xa51c));
    settings.mutation = mutation;
    run(seed, settings, traced)
}

pub fn run(seed: u64, settings: Settings, traced: bool) -> Report {
    let mut world = World::new(seed, settings, traced);
    let finished = catch_unwind(AssertUnwindSafe(|| {
        world.live();
        if world.violation.is_none() {
            world.end();
        }
    }));
    let mut violation = world.violation.clone();
    if let Err(panic) = finished
        && violation.is_none()
    {
        violation = Some(Violation {
            rule: "an assertion",
            message: panic_message(panic.as_ref()),
        });
    }
    Report {
        seed,
        kind: Kind {
            arbitrated: world.has_arbiter(),
            mode: world.settings.mode,
        },
        tally: world.tally,
        violation,
        trace: world.take_trace(),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a message".into())
}

impl World {
    /// The eventful part.
    fn live(&mut self) {
        self.faults_end_us = self.clock_us + self.settings.duration_ms * 1000;
        let first = self.random.below(2) as usize;
        self.start(first);
        let late_us = self.random.below(20_000);
        self.schedule(late_us, Happening::Restart { node: other(first) });
        self.schedule(5_000, Happening::Operator);
        self.schedule(10_000, Happening::Client);
        let quiet_us = self.random.between(50_000, 300_000);
        self.schedule(quiet_us, Happening::Fault);
        let duration_ms = self.settings.duration_ms;
        self.run_for(duration_ms);
    }

    /// Faults end, everything is mended, and the mirror has to come to rest.
    pub fn end(&mut self) {
        self.trace(|| "--- the end: everything is healed".into());
        self.faults_end_us = self.clock_us;
        self.network.hold = None;
        self.network.cut_at = None;
        for node in &mut self.nodes {
            node.fail_next_write = false;
            node.fail_next_flush = false;
            node.fail_next_metadata = false;
            node.full_next_write = false;
            node.data.mend();
        }
        self.heal();
        if self.has_arbiter() {
            self.arbiter.cut = [false; 2];
            let now_us = self.arbiter_us();
            self.arbiter.restart(now_us);
            for node in [0, 1] {
                self.wake(node);
                let ordered = std::mem::take(&mut self.arbiter.agents[node].ordered);
                if ordered && self.nodes[node].is_up() {
                    self.give(node, Command::Thaw);
                }
            }
        }
        let until_ms = self.now_ms() + REST_MS_MAX;
        while !self.is_at_rest() {
            if self.violation.is_some() {
                return;
            }
            if self.now_ms() > until_ms {
                let sides = [0, 1].map(|node| self.status(node));
                self.violate(
                    "the end",
                    format!(
                        "no rest within {REST_MS_MAX} ms of virtual time: {} requests and {} commands open; {sides:#?}",
                        self.pending.len(),
                        self.outstanding.len()
                    ),
                );
                return;
            }
            self.set_right();
            self.run_for(LOOK_MS);
        }
        self.check_settled();
        self.check_end();
        self.check_service();
    }

    /// Settled, and somebody serves.
    fn is_at_rest(&self) -> bool {
        self.serving().is_some() && self.is_settled()
    }

    /// Both were promoted, and at most one has answered anything that the other lacks: one that has
    /// not steps down.
    fn settle_for_one_primary(&mut self) -> bool {
        let both =
            self.nodes.iter().all(|node| node.is_up() && node.serving) && !self.has_arbiter();
        let met = self.clock_us > self.faults_end_us + MEETING_US;
        if !both || !met || !self.outstanding.is_empty() {
            return false;
        }
        let [Some(a), Some(b)] = [0, 1].map(|node| self.status(node)) else {
            return false;
        };
        let loser = match (a.out_of_sync_bytes, b.out_of_sync_bytes) {
            _ if a.generation == b.generation => self.random.below(2) as usize,
            (0, 1..) => 0,
            (1.., 0) => 1,
            _ => return false,
        };
        if let Some(Ok(_)) = self.command(loser, Command::Demote) {
            self.line[loser] = self.line[other(loser)];
        }
        true
    }

    /// One step of what an operator does after an accident.
    fn set_right(&mut self) {
        if self.settle_for_one_primary() {
            return;
        }
        for node in [0, 1] {
            if !self.nodes[node].is_up() {
                self.start(node);
            }
            let Some(status) = self.status(node) else {
                continue;
            };
            let busy = self.outstanding.values().any(|(at, _)| *at == node);
            let peer_serves = self.nodes[other(node)].serving;
            if busy {
                continue;
            }
            if status.disk == DiskState::Failed {
                self.crash(node, Crash::Kill);
            } else if status.connection == Connection::SplitBrain {
                self.resolve_split_brain();
                return;
            } else if status.connection == Connection::Standalone {
                self.give(node, Command::Connect);
            } else if status.connection == Connection::Unrelated {
                self.violate("D7", "the sides call each other unrelated".into());
            } else if status.sync.as_ref().is_some_and(|sync| sync.paused) {
                self.give(node, Command::Resume);
            } else if self.nodes[node].serving
                && status.connection == Connection::Connected
                && status.sync.is_none()
                && status.out_of_sync_bytes > 0
            {
                // A verify found what differs; it is copied when somebody asks for it.
                let full = false;
                self.give(
                    node,
                    Command::Resync {
                        full,
                        discard_local: false,
                    },
                );
            } else if status.connection == Connection::Connected
                && !self.nodes[node].serving
                && !peer_serves
                && status.disk == DiskState::UpToDate
                && self.outstanding.is_empty()
                && !self.has_arbiter()
            {
                self.give(
                    node,
                    Command::Promote {
                        peer_down: false,
                        force: false,
                        grant: None,
                    },
                );
            } else if self.outstanding.is_empty() && !self.has_arbiter() && self.is_fresh() {
                self.give(
                    node,
                    Command::Promote {
                        peer_down: false,
                        force: true,
                        grant: None,
                    },
                );
            }
        }
    }

    /// One side gives its data up; which one is chance.
    fn resolve_split_brain(&mut self) {
        if self.line[0] == self.line[1] && self.truths.len() > 1 {
            // Given up already; the sides have not met since.
            return;
        }
        if self.line[0] == self.line[1] {
            self.violate(
                "D7",
                "a split brain, although nobody promoted both sides".into(),
            );
            return;
        }
        let loser = (self.random.below(2)) as usize;
        self.trace(|| format!("operator: node {loser} gives up its data"));
        if self.nodes[loser].serving {
            self.command(loser, Command::Demote);
        }
        let discard = Command::Resync {
            full: false,
            discard_local: true,
        };
        match self.command(loser, discard) {
            Some(Ok(_)) => self.line[loser] = self.line[other(loser)],
            Some(Err(_)) => {}
            None => self.violate("D12", "resync --discard-local never ended".into()),
        }
    }

    fn check_end(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let verifying = [0, 1].iter().any(|node| {
            self.status(*node).is_some_and(|status| {
                status
                    .sync
                    .is_some_and(|sync| sync.kind == SyncKind::Verify)
            })
        });
        if verifying {
            return;
        }
        let lost = self.excused_before(0);
        let lines: Vec<usize> = if self.line[0] == self.line[1] {
            vec![self.line[0]]
        } else {
            // Nobody had to choose: one side had written nothing of its own.
            vec![self.line[0], self.line[1]]
        };
        // They are equal; each is judged by the line that it served.
        let wrong: Vec<String> = lines
            .iter()
            .filter_map(|line| {
                let node = [0, 1].into_iter().find(|node| self.line[*node] == *line)?;
                self.judge_survivor(node, lost)
            })
            .collect();
        if wrong.len() == lines.len() {
            self.violate(
                "the end",
                format!("answered writes are lost: {}", wrong.join(" / ")),
            );
        }
    }
}
