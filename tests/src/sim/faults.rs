//! What goes wrong by itself. Faults are granted so that the promise stays keepable: no disk is made to
//! fail while the other one does not hold everything.

use mirror_core::layout::geometry::{Geometry, METADATA_BLOCK_BYTES, SUPERBLOCK_OFFSETS};

use mirror_core::volume::config::LeaseCheck;
use mirror_core::wire::message::{DiskState, Mode};

use crate::sim::disk::Crash;
use crate::sim::network::{NodeIndex, other};
use crate::sim::world::{Happening, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    PowerLoss,
    BothDown,
    Cut,
    CutOneWay,
    ReadError,
    WriteError,
    FlushError,
    NoSpace,
    MetadataError,
    Corruption,
    Pause,
    CutArbiter,
    ArbiterRestart,
    ArbiterForgets,
}

impl World {
    fn enabled_faults(&self) -> Vec<Fault> {
        let plan = &self.settings.faults;
        [
            (plan.kill, Fault::Kill),
            (plan.power_loss, Fault::PowerLoss),
            (plan.both_down, Fault::BothDown),
            (plan.cut, Fault::Cut),
            (plan.cut_one_way, Fault::CutOneWay),
            (plan.read_errors, Fault::ReadError),
            (plan.write_errors, Fault::WriteError),
            (plan.flush_errors, Fault::FlushError),
            (plan.no_space, Fault::NoSpace),
            (plan.metadata_errors, Fault::MetadataError),
            (plan.corruption, Fault::Corruption),
            (plan.pauses, Fault::Pause),
            (plan.arbiter, Fault::CutArbiter),
            (plan.arbiter, Fault::ArbiterRestart),
            (plan.arbiter, Fault::ArbiterForgets),
        ]
        .into_iter()
        .filter_map(|(enabled, fault)| enabled.then_some(fault))
        .collect()
    }

    pub(super) fn on_fault_turn(&mut self) {
        if self.clock_us >= self.faults_end_us {
            return;
        }
        let every_us = self.settings.faults.every_ms * 1000;
        let pause_us = self.random.between(every_us / 4, every_us * 2);
        self.schedule(pause_us, Happening::Fault);
        let enabled = self.enabled_faults();
        // The first promotion is by force, and an operator does not force one side while the other may be
        // forced too.
        let founding = self.has_arbiter() && !self.operator.founded;
        if enabled.is_empty() || founding {
            return;
        }
        let fault = *self.random.pick(&enabled);
        let node = self.random.below(2) as usize;
        self.inflict(fault, node);
    }

    /// Only round trips are proof against clocks that stand still.
    fn may_stop_clocks(&self) -> bool {
        self.settings
            .arbiter
            .is_some_and(|plan| plan.check == LeaseCheck::RoundTrip)
    }

    fn inflict(&mut self, fault: Fault, node: NodeIndex) {
        self.trace(|| format!("fault: {fault:?} at {node}"));
        match fault {
            Fault::Kill => self.crash_for_a_while(node, Crash::Kill),
            Fault::PowerLoss => self.crash_for_a_while(node, Crash::PowerLoss),
            Fault::BothDown => {
                let first = if self.random.coin() {
                    Crash::Kill
                } else {
                    Crash::PowerLoss
                };
                let second = if self.random.coin() {
                    Crash::Kill
                } else {
                    Crash::PowerLoss
                };
                self.crash_for_a_while(node, first);
                self.crash_for_a_while(other(node), second);
            }
            Fault::Cut => self.cut_for_a_while(&[0, 1]),
            Fault::CutOneWay => self.cut_for_a_while(&[node]),
            Fault::ReadError => {
                let spot = *self.random.pick(&self.hot_spots);
                let unit = (spot + self.random.below(12)).min(self.units() - 1);
                if self.other_holds_everything(node) {
                    self.nodes[node].data.spoil(unit);
                }
            }
            Fault::WriteError if self.other_holds_everything(node) => {
                self.nodes[node].fail_next_write = true;
            }
            Fault::FlushError if self.other_holds_everything(node) => {
                self.nodes[node].fail_next_flush = true;
            }
            Fault::NoSpace if self.other_holds_everything(node) => {
                self.nodes[node].full_next_write = true;
            }
            Fault::MetadataError if self.other_holds_everything(node) => {
                self.nodes[node].fail_next_metadata = true;
            }
            Fault::WriteError | Fault::FlushError | Fault::NoSpace | Fault::MetadataError => {}
            Fault::Corruption => self.corrupt_while_down(node),
            Fault::Pause => {
                let stops_clock = self.random.coin() && self.may_stop_clocks();
                self.pause(node, stops_clock);
                let for_us = self.random.skewed(20_000, 3_000_000);
                self.schedule(for_us, Happening::PauseEnds { node });
            }
            Fault::CutArbiter => {
                self.arbiter.cut[node] = true;
                let for_us = self.random.skewed(50_000, 3_000_000);
                self.schedule(for_us, Happening::ArbiterHeals);
            }
            Fault::ArbiterRestart | Fault::ArbiterForgets => {
                self.arbiter.up = false;
                if fault == Fault::ArbiterForgets {
                    self.arbiter.lose_file();
                }
                let for_us = self.random.skewed(1_000, 2_000_000);
                self.schedule(for_us, Happening::ArbiterReturns);
            }
        }
    }

    /// The other node is up, connected, whole, and no fault waits for it.
    pub(super) fn other_holds_everything(&mut self, node: NodeIndex) -> bool {
        let peer = other(node);
        let connected = self.network.connected();
        let works = self
            .status(peer)
            .is_some_and(|status| status.disk == DiskState::UpToDate);
        // A resync that this side has begun makes the other inconsistent before it knows of it.
        let in_step = self
            .status(node)
            .is_some_and(|status| status.sync.is_none() && status.out_of_sync_bytes == 0);
        // A link that is being made says nothing yet: this side may have gone on alone before.
        let together = self.nodes[node]
            .durable()
            .is_some_and(|view| !view.superblock.peer.outdated);
        let state = &mut self.nodes[peer];
        let spared = !state.doomed
            && !state.fail_next_write
            && !state.fail_next_flush
            && !state.fail_next_metadata
            && !state.full_next_write;
        let whole = state
            .durable()
            .is_some_and(|view| !view.is_stale() && !view.superblock.generations.current.is_none());
        connected
            && in_step
            && together
            && works
            && spared
            && whole
            && self.nodes.iter().all(|node| node.is_up())
    }

    fn crash_for_a_while(&mut self, node: NodeIndex, crash: Crash) {
        if self.nodes[node].is_up() {
            self.crash(node, crash);
            // A process that dies is started again at once, if somebody looks after it.
            let at_once = crash == Crash::Kill && self.random.coin();
            let down_us = match at_once {
                true => self.random.between(500, 20_000),
                false => self.random.skewed(5_000, 2_000_000),
            };
            self.schedule(down_us, Happening::Restart { node });
        }
    }

    fn cut_for_a_while(&mut self, from: &[NodeIndex]) {
        let notice_ms = self.random.coin().then(|| self.random.skewed(1, 2_000));
        self.cut(from, notice_ms);
        let for_us = self.random.skewed(2_000, 2_500_000);
        self.schedule(for_us, Happening::Heal);
    }

    /// Damages one superblock copy or one bitmap page of a node that is down.
    fn corrupt_while_down(&mut self, node: NodeIndex) {
        // In async nobody else may have what was flushed here, if the other disk lost its cache.
        let sole = self.settings.mode == Mode::Async
            && self.last_served == Some(node)
            && self.nodes[other(node)].cache_lost > 0;
        if self.nodes[node].is_up() || sole {
            return;
        }
        let Ok(loaded) = crate::sim::durable::load(self.nodes[node].metadata.image()) else {
            return;
        };
        let geometry: Geometry = loaded.geometry;
        let block = if self.random.coin() && !loaded.fell_back && !loaded.uneven {
            *self.random.pick(&SUPERBLOCK_OFFSETS)
        } else {
            geometry.page_offset(self.random.below(u64::from(geometry.pages())) as u32)
        };
        let offset = block + self.random.below(METADATA_BLOCK_BYTES);
        self.trace(|| format!("node {node}: metadata byte {offset} rots"));
        self.nodes[node].metadata.corrupt(offset);
    }
}
