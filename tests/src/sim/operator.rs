//! The operator: promotes, swaps roles, verifies, mends what was switched off, resolves a split brain.
//!
//! It is honest: it says `--peer-down` only of a node that is down, and only where that loses nothing
//! that was promised. In worlds with a split brain it lies once, while the nodes are apart.

use mirror_core::control::{Connection, MirrorStatus};
use mirror_core::units::ByteRange;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::DiskState;

use crate::sim::disk::Crash;
use crate::sim::network::{NodeIndex, other};
use crate::sim::oracle::Promise;
use crate::sim::settings::Percent;
use crate::sim::world::{Happening, World};

/// How far a deliberate split brain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Split {
    #[default]
    Together,
    Apart {
        since_ms: u64,
    },
    Promoted {
        since_ms: u64,
    },
    Healed,
}

#[derive(Debug, Default)]
pub struct Operator {
    /// This node's next promotion starts a history of its own.
    pub(super) diverging: Option<NodeIndex>,
    /// Range of the resync data that arrived last and is not on the disk yet.
    pub(super) resync_writes: [Option<ByteRange>; 2],
    split: Split,
    /// Some node has served.
    pub(super) founded: bool,
}

impl World {
    pub fn status(&self, node: NodeIndex) -> Option<MirrorStatus> {
        self.nodes[node]
            .volume
            .as_ref()
            .map(|volume| volume.status())
    }

    pub fn serving(&self) -> Option<NodeIndex> {
        [0, 1]
            .into_iter()
            .find(|node| self.nodes[*node].is_up() && self.nodes[*node].serving)
    }

    pub(super) fn on_operator_turn(&mut self) {
        if self.clock_us >= self.faults_end_us {
            return;
        }
        let pause_us = self.random.between(10_000, 120_000);
        self.schedule(pause_us, Happening::Operator);
        self.check_settled();
        if !self.outstanding.is_empty() && self.violation.is_none() {
            self.race();
            return;
        }
        if self.violation.is_some() {
            return;
        }
        if self.settings.split_brain && self.split_further() {
            return;
        }
        if self.mend() {
            return;
        }
        match self.serving() {
            // A kernel device that is still there asks for its mirror back.
            None if self.chance(30) => self.reinstate_someone(),
            // The agents do, with the arbiter's grant.
            None if self.has_arbiter() => {}
            None => self.promote_someone(),
            Some(node) => self.tinker(node),
        }
    }

    /// A second operator, or the agent of the other node, does not wait for the first command.
    fn race(&mut self) {
        if self.has_arbiter() {
            return;
        }
        let node = self.random.below(2) as usize;
        if self.chance(10) && self.nodes[node].is_up() {
            let (peer_down, force) = (false, false);
            self.give(
                node,
                Command::Promote {
                    peer_down,
                    force,
                    grant: None,
                },
            );
        }
    }

    fn chance(&mut self, percent: Percent) -> bool {
        self.random.percent(percent)
    }

    /// Undoes what was switched off and replaces what failed. True if there was something to do.
    fn mend(&mut self) -> bool {
        for node in [0, 1] {
            let Some(status) = self.status(node).filter(|_| !self.is_paused(node)) else {
                continue;
            };
            if self.arbiter.agents[node].ordered && self.chance(30) {
                self.arbiter.agents[node].ordered = false;
                self.give(node, Command::Thaw);
                return true;
            }
            if status.disk == DiskState::Failed && self.chance(20) {
                // The replaced disk is the old one that works again.
                self.crash(node, Crash::Kill);
                let down_us = self.random.between(5_000, 300_000);
                self.schedule(down_us, Happening::Restart { node });
                return true;
            }
            if status.connection == Connection::Standalone && self.chance(30) {
                self.give(node, Command::Connect);
                return true;
            }
            if status.sync.is_some_and(|sync| sync.paused) && self.chance(30) {
                self.give(node, Command::Resume);
                return true;
            }
        }
        false
    }

    pub(super) fn is_fresh(&mut self) -> bool {
        self.nodes.iter_mut().all(|node| {
            node.durable()
                .is_some_and(|view| view.superblock.generations.current.is_none())
        })
    }

    /// Both sides hold data of one generation: forcing either makes no second line.
    fn are_of_one_line(&mut self) -> bool {
        let [a, b] = [0, 1].map(|node| {
            self.nodes[node]
                .durable()
                .map(|view| view.superblock.generations.current)
        });
        a == b && a.is_some_and(|generation| !generation.is_none())
    }

    /// The peer is down, and this node has all that was promised.
    pub(super) fn may_be_told_down(&mut self, node: NodeIndex) -> bool {
        let peer = other(node);
        if self.nodes[peer].is_up() {
            return false;
        }
        let went_on = self.nodes[peer]
            .durable()
            .is_none_or(|view| view.superblock.peer.outdated);
        if went_on {
            return false;
        }
        let lost = self.excused_before(node);
        let whole = self.nodes[node]
            .durable()
            .is_some_and(|view| !view.is_stale());
        if self.runs_ahead() && self.nodes[node].broken == 0 && whole {
            // It followed to the end: what it holds is judged when it serves.
            return true;
        }
        let truth = &self.truths[self.line[node]];
        let disk = &self.nodes[node].data;
        truth
            .units()
            .all(|unit| truth.is_legal(unit, disk.current(unit), Promise::Survivor { lost }))
    }

    fn promote_someone(&mut self) {
        let node = self.random.below(2) as usize;
        let node = if self.nodes[node].is_up() {
            node
        } else {
            other(node)
        };
        if !self.nodes[node].is_up() || self.chance(30) {
            return;
        }
        let may_go_on = self.may_be_told_down(node);
        let force = self.is_fresh() || (may_go_on && self.are_of_one_line() && self.chance(20));
        let peer_down = !force && may_go_on && self.chance(60);
        self.give(
            node,
            Command::Promote {
                peer_down,
                force,
                grant: None,
            },
        );
    }

    fn reinstate_someone(&mut self) {
        let node = self.random.below(2) as usize;
        let alone = self.random.coin();
        if self.nodes[node].is_up() && !self.is_paused(node) {
            self.give(node, Command::Reinstate { alone });
        }
    }

    fn tinker(&mut self, node: NodeIndex) {
        if self.is_paused(0) || self.is_paused(1) {
            return;
        }
        let arbitrated = self.has_arbiter();
        let suspended = !arbitrated && self.status(node).is_some_and(|status| status.io_suspended);
        let peer = other(node);
        if suspended && self.chance(50) {
            if self.nodes[peer].is_up() && self.chance(30) {
                // A forced stop, and then the word that it was done.
                self.crash(peer, Crash::PowerLoss);
                let down_us = self.random.between(300_000, 900_000);
                self.schedule(down_us, Happening::Restart { node: peer });
            }
            if !self.nodes[peer].is_up() {
                self.give(
                    node,
                    Command::Promote {
                        peer_down: true,
                        force: false,
                        grant: None,
                    },
                );
            }
            return;
        }
        let either = self.random.below(2) as usize;
        let either = if self.nodes[either].is_up() {
            either
        } else {
            node
        };
        match self.random.below(100) {
            0..=3 => {
                self.give(node, Command::Demote);
            }
            4..=5 => {
                let repair = self.random.coin();
                self.give(either, Command::Verify { repair });
            }
            6..=8 => {
                self.give(node, Command::Pause);
            }
            9 => {
                self.give(either, Command::Disconnect);
            }
            10 => {
                let discard_local = false;
                self.give(
                    either,
                    Command::Resync {
                        full: true,
                        discard_local,
                    },
                );
            }
            12 if self.settings.room_bytes > 0 => {
                for node in [0, 1] {
                    if self.chance(80) {
                        self.grow(node);
                    }
                }
                self.give(either, Command::Resize);
            }
            13..=14 if arbitrated => {
                let command = if self.chance(50) {
                    Command::Freeze
                } else {
                    Command::FailIo
                };
                self.arbiter.agents[node].ordered = true;
                self.give(node, command);
            }
            15 if arbitrated && self.nodes[other(node)].is_up() => {
                self.give(other(node), Command::Outdate);
            }
            11 => {
                // A clean stop and a start.
                self.give(either, Command::Stop);
            }
            _ => {}
        }
    }

    /// Drives the nodes into a split brain. True while that keeps the operator busy.
    fn split_further(&mut self) -> bool {
        let now_ms = self.now_ms();
        match self.operator.split {
            Split::Together => {
                let settled = self.is_settled() && self.serving().is_some();
                if settled && self.chance(20) {
                    self.cut(&[0, 1], None);
                    self.operator.split = Split::Apart { since_ms: now_ms };
                }
                settled
            }
            Split::Apart { since_ms } => {
                if now_ms > since_ms + 100
                    && let Some(primary) = self.serving()
                    && self.chance(20)
                {
                    let node = other(primary);
                    self.operator.diverging = Some(node);
                    self.give(
                        node,
                        Command::Promote {
                            peer_down: true,
                            force: false,
                            grant: None,
                        },
                    );
                    self.operator_split(Split::Promoted { since_ms: now_ms });
                }
                true
            }
            Split::Promoted { since_ms } => {
                if now_ms > since_ms + 200 && self.chance(20) {
                    self.operator_split(Split::Healed);
                    self.heal();
                }
                true
            }
            Split::Healed => true,
        }
    }

    fn operator_split(&mut self, split: Split) {
        self.operator.split = split;
    }
}
