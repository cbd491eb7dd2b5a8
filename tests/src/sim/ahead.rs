//! Semisync and async, judged from outside: answers run ahead of the peer, so a failover may lose the last of
//! them. What the survivor holds must be a prefix of what was answered, and what it lacks no more than the old
//! primary said at its end.

use mirror_core::units::{ByteRange, LinkId};
use mirror_core::wire::message::{Message, Mode};

use crate::sim::client::Pending;
use crate::sim::content::{self, Tag, ZEROES};
use crate::sim::disk::Unit;
use crate::sim::network::{NodeIndex, other};
use crate::sim::oracle::Promise;
use crate::sim::world::World;

/// What a primary said of its lag when it ceased to be one.
#[derive(Debug, Clone, Copy)]
pub struct Fall {
    pub lag_bytes: u64,
    /// When the oldest write that the peer lacked was answered, by the world's clock.
    pub since_us: u64,
}

/// A change as it travels: who sent it on which link, and what it does.
pub type Travelling = (NodeIndex, LinkId, u64, u32, Tag);

fn travelling(
    from: NodeIndex,
    link: LinkId,
    unit_bytes: u32,
    message: &Message,
) -> Option<Travelling> {
    let (range, tag) = match message {
        Message::Write { range, data, .. } => (range, *content::decode(unit_bytes, data)?.first()?),
        Message::Trim { range, .. } | Message::WriteZeroes { range, .. } => (range, ZEROES),
        _ => return None,
    };
    Some((from, link, range.offset, range.length, tag))
}

impl World {
    /// Answers may run ahead of the peer.
    pub(super) fn runs_ahead(&self) -> bool {
        self.settings.mode.runs_ahead()
    }

    pub(super) fn note_handed(&mut self, from: NodeIndex, link: LinkId, message: &Message) {
        if self.settings.mode == Mode::Async {
            self.on_its_way
                .extend(travelling(from, link, self.settings.unit_bytes, message));
        }
    }

    /// `link`: as its sender calls it.
    pub(super) fn note_arrived(&mut self, from: NodeIndex, link: LinkId, message: &Message) {
        if self.settings.mode == Mode::Semisync {
            self.on_its_way
                .extend(travelling(from, link, self.settings.unit_bytes, message));
        }
    }

    /// The write was handed on (async) or has arrived (semisync), on the link that stands.
    pub(super) fn is_on_its_way(&self, node: NodeIndex, pending: &Pending) -> bool {
        let units = pending.asked.units();
        let unit_bytes = u64::from(self.settings.unit_bytes);
        let range = ByteRange::new(
            units.start * unit_bytes,
            ((units.end - units.start) * unit_bytes) as u32,
        );
        // With a limit the line is inside of the volume.
        let limited = self.settings.bandwidth_max > 0;
        self.network.current(node).is_some_and(|link| {
            limited
                || self
                    .on_its_way
                    .contains(&(node, link, range.offset, range.length, pending.tag))
        })
    }

    /// A primary is about to end, or has stopped serving: what it says of its lag now is what counts.
    pub(super) fn note_fall(&mut self, node: NodeIndex) {
        if !self.runs_ahead() {
            return;
        }
        let Some(status) = self.status(node) else {
            return;
        };
        // Its clock may be slow by as much as any is, and may have stood still.
        let slow_us = status.lag_ms * 1000 / 20;
        let stopped_us = self.nodes[node].stopped_us;
        let age_us = (status.lag_ms + 1) * 1000 + slow_us + stopped_us;
        let since_us = self.nodes[node].stepped_us.saturating_sub(age_us);
        let fall = self.fall.unwrap_or(Fall {
            lag_bytes: 0,
            since_us,
        });
        self.fall = Some(Fall {
            lag_bytes: fall.lag_bytes.max(status.lag_bytes),
            since_us: fall.since_us.min(since_us),
        });
    }

    /// What is wrong with a node's data, if it became or is to become what counts. `excused`: unflushed
    /// writes submitted before that may be missing.
    pub(super) fn judge_survivor(&self, node: NodeIndex, excused: u64) -> Option<String> {
        let truth = &self.truths[self.line[node]];
        let disk = &self.nodes[node].data;
        let promise = Promise::Survivor { lost: excused };
        let unit_bytes = u64::from(self.settings.unit_bytes);
        let view = self.nodes[node].view.as_ref();
        let theirs = &self.nodes[other(node)].data;
        // What a recheck fetches before anybody reads it; answers that run ahead leave nothing to it.
        let comes_yet = |unit: Unit| {
            !self.runs_ahead()
                && self.network.connected()
                && view.is_some_and(|view| view.has_bit(unit * unit_bytes))
                && truth.is_legal(unit, theirs.current(unit), promise)
        };
        let unit = truth.units().find(|unit| {
            !truth.is_legal(*unit, disk.current(*unit), promise) && !comes_yet(*unit)
        })?;
        let missing = format!(
            "{:x} at unit {unit}: {}",
            disk.current(unit),
            truth.describe(unit)
        );
        let Some(fall) = self.fall.filter(|_| self.may_lack_a_tail(node)) else {
            return Some(missing);
        };
        let tail = truth.tail(|unit| disk.current(unit), excused);
        if let Some(unit) = tail.unknown {
            return Some(format!(
                "what nobody wrote at unit {unit}: {}",
                truth.describe(unit)
            ));
        }
        if tail.newest_shown > tail.first_answered {
            return Some(format!(
                "no prefix: a write submitted at {} shows, and one answered at {} does not; {missing}",
                tail.newest_shown, tail.first_answered
            ));
        }
        let lost_bytes = tail.units * u64::from(self.settings.unit_bytes);
        if lost_bytes > fall.lag_bytes {
            return Some(format!(
                "{lost_bytes} answered bytes are lost, and the lag was {}; {missing}",
                fall.lag_bytes
            ));
        }
        let oldest_us = tail
            .lost
            .iter()
            .filter_map(|write| self.answered_us.get(write))
            .min();
        if oldest_us.is_some_and(|answered_us| *answered_us < fall.since_us) {
            return Some(format!(
                "a write answered at {} us is lost, and the lag went back to {} us; {missing}",
                oldest_us.unwrap_or(&0),
                fall.since_us
            ));
        }
        None
    }

    /// A side that was not the last to answer has a prefix. One that was has everything, unless its disk
    /// or its metadata failed it and the other side was taken for the truth.
    fn may_lack_a_tail(&self, node: NodeIndex) -> bool {
        let faults = &self.settings.faults;
        let disks_fail = faults.corruption
            || faults.write_errors
            || faults.flush_errors
            || faults.metadata_errors
            || faults.no_space;
        self.runs_ahead() && (self.last_served != Some(node) || disks_fail)
    }

    /// What is lost now stays lost, or may turn up again: nobody relies on it any more.
    pub(super) fn forget_tail(&mut self, node: NodeIndex, excused: u64) {
        if !self.runs_ahead() {
            return;
        }
        let line = self.line[node];
        let disk = &self.nodes[node].data;
        let tail = self.truths[line].tail(|unit| disk.current(unit), excused);
        self.truths[line].give_up(&tail.lost);
        if self.last_served != Some(node) {
            self.fall = None;
        }
    }
}
