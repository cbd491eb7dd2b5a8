//! The clients of a mirror: what they ask, and what they make of the answers.

use std::ops::Range;

use mirror_core::units::{EXTENT_BYTES, REQUEST_BYTES_MAX};

use crate::sim::disk::Unit;
use crate::sim::network::NodeIndex;
use crate::sim::oracle::Order;
use crate::sim::world::{Happening, World};

/// A request in units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Read {
        units: Range<Unit>,
    },
    Write {
        units: Range<Unit>,
        fua: bool,
    },
    Trim {
        units: Range<Unit>,
        fua: bool,
    },
    WriteZeroes {
        units: Range<Unit>,
        fua: bool,
        no_hole: bool,
    },
    Flush,
}

impl Asked {
    pub fn read(units: Range<Unit>) -> Self {
        Self::Read { units }
    }

    pub fn write(units: Range<Unit>) -> Self {
        Self::Write { units, fua: false }
    }

    pub fn units(&self) -> Range<Unit> {
        match self {
            Self::Read { units }
            | Self::Write { units, .. }
            | Self::Trim { units, .. }
            | Self::WriteZeroes { units, .. } => units.clone(),
            Self::Flush => 0..0,
        }
    }

    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. }
        )
    }

    pub fn is_durable(&self) -> bool {
        matches!(
            self,
            Self::Write { fua: true, .. }
                | Self::Trim { fua: true, .. }
                | Self::WriteZeroes { fua: true, .. }
        )
    }
}

/// A request that was not answered yet.
#[derive(Debug, Clone)]
pub struct Pending {
    pub node: NodeIndex,
    pub asked: Asked,
    pub tag: u64,
    pub submitted: Order,
}

impl World {
    pub(super) fn draw_hot_spots(&mut self) {
        let units = self.units();
        for _ in 0..self.settings.client.hot_spots {
            let unit = self.random.below(units);
            self.hot_spots.push(unit);
        }
    }

    pub fn units(&self) -> u64 {
        self.settings.size_bytes / u64::from(self.settings.unit_bytes)
    }

    /// Submits a few requests to whoever serves, and plans the next turn.
    pub(super) fn on_client_turn(&mut self) {
        if self.clock_us >= self.faults_end_us {
            return;
        }
        let mut pause_us = self
            .random
            .skewed(50, self.settings.client.pause_us_max.max(50));
        if self.random.percent(1) {
            // A quiet moment, in which both sides can be compared.
            pause_us += self.random.between(100_000, 400_000);
        }
        self.schedule(pause_us, Happening::Client);
        if self.clock_us < self.client_paused_until_us {
            return;
        }
        for node in [0, 1] {
            let burst = self.random.between(1, 4);
            for _ in 0..burst {
                let waiting = self
                    .pending
                    .values()
                    .filter(|pending| pending.node == node)
                    .count();
                let serving = self.nodes[node].is_up() && self.nodes[node].serving;
                if serving && waiting < self.settings.client.in_flight_max {
                    let asked = self.draw_request();
                    self.submit(node, asked);
                }
            }
        }
    }

    fn draw_request(&mut self) -> Asked {
        let plan = self.settings.client.clone();
        if self.random.percent(plan.flush) {
            return Asked::Flush;
        }
        let fua = self.random.percent(plan.fua);
        if self.random.percent(plan.read) {
            return Asked::Read {
                units: self.draw_units(u64::from(REQUEST_BYTES_MAX)),
            };
        }
        if self.random.percent(plan.trim) {
            let units = self.draw_units(EXTENT_BYTES);
            return if self.random.coin() {
                Asked::Trim { units, fua }
            } else {
                let no_hole = self.random.coin();
                Asked::WriteZeroes {
                    units,
                    fua,
                    no_hole,
                }
            };
        }
        let units = self.draw_units(u64::from(REQUEST_BYTES_MAX));
        Asked::Write { units, fua }
    }

    /// A range near a hot spot, within one extent.
    fn draw_units(&mut self, bytes_max: u64) -> Range<Unit> {
        let unit_bytes = u64::from(self.settings.unit_bytes);
        let spot = *self.random.pick(&self.hot_spots);
        let start = (spot + self.random.below(12)).min(self.units() - 1);
        let large = self.random.percent(self.settings.client.large);
        let length = if large && self.settings.unit_bytes == 4096 {
            self.random.skewed(16, bytes_max / unit_bytes)
        } else {
            self.random.between(1, 8)
        };
        let per_extent = EXTENT_BYTES / unit_bytes;
        let extent_end = (start / per_extent + 1) * per_extent;
        start..(start + length).min(extent_end).min(self.units())
    }
}
