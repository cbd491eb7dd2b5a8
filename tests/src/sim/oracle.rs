//! What the clients of one mirror may see: the history of every unit, as the clients know it.
//!
//! Each write is *open* from its submission to its answer. An answered write is *firm*: whoever
//! serves afterwards must show it or something newer. A write that was never answered (its node died,
//! or it failed) is a *maybe*: its content may show or not. A value is legal where it comes from a
//! write that no firm write has replaced, and a write replaces another only if it was submitted after
//! the other was closed; concurrent ones may land in any order.
//!
//! A firm write that was never flushed becomes a maybe when every disk that held it lost power.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::content::{Tag, ZEROES};
use crate::sim::disk::Unit;

/// Steps of a world, counted: a total order over everything that happens in it.
pub type Order = u64;

const OPEN: Order = Order::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Firm,
    Maybe,
}

/// One write's part in one unit.
#[derive(Debug, Clone)]
struct Version {
    write: u64,
    tag: Tag,
    submitted: Order,
    closed: Order,
    outcome: Outcome,
    flushed: bool,
}

#[derive(Debug, Clone)]
struct History {
    /// Before every version here.
    base: Vec<Tag>,
    versions: Vec<Version>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            base: vec![ZEROES],
            versions: Vec::new(),
        }
    }
}

/// Which answers a reader may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Every write answered before that step.
    Answered(Order),
    /// Every write that a flush covered or that asked for it.
    Flushed,
    /// Every answered write, but unflushed ones only if they were submitted after a disk lost its
    /// cache: what was on its way by then may be answered later and be lost with it.
    Survivor { lost: Order },
}

impl History {
    fn firm(version: &Version, promise: Promise) -> bool {
        version.outcome == Outcome::Firm
            && match promise {
                Promise::Answered(by) => version.closed < by,
                Promise::Flushed => version.flushed,
                Promise::Survivor { lost } => version.flushed || version.submitted >= lost,
            }
    }

    fn newest_firm(&self, promise: Promise) -> Order {
        // What counts is the latest submission: it replaces most.
        self.versions
            .iter()
            .filter(|version| Self::firm(version, promise))
            .map(|version| version.submitted)
            .max()
            .unwrap_or(0)
    }

    fn is_legal(&self, tag: Tag, promise: Promise) -> bool {
        let replaced_before = self.newest_firm(promise);
        (replaced_before == 0 && self.base.contains(&tag))
            || self
                .versions
                .iter()
                .any(|version| version.tag == tag && version.closed >= replaced_before)
    }

    /// Forgets what no reader submitted at `horizon` or later can see, not even after a loss of every
    /// cache.
    fn prune(&mut self, horizon: Order) {
        let replaced_before = self
            .versions
            .iter()
            .filter(|version| version.outcome == Outcome::Firm && version.flushed)
            .filter(|version| version.closed < horizon)
            .map(|version| version.submitted)
            .max();
        if let Some(replaced_before) = replaced_before {
            self.base.clear();
            self.versions
                .retain(|version| version.closed >= replaced_before);
        }
    }
}

/// The last answered writes that an image lacks.
#[derive(Debug, Clone)]
pub struct Tail {
    pub lost: BTreeSet<u64>,
    /// Units of them that show something older.
    pub units: u64,
    /// When the first of them was answered.
    pub first_answered: Order,
    /// When the newest write that shows was submitted.
    pub newest_shown: Order,
    /// A unit with content that nobody wrote.
    pub unknown: Option<Unit>,
}

#[derive(Debug, Clone, Default)]
pub struct Oracle {
    units: BTreeMap<Unit, History>,
    /// Units of each write that is open or not yet flushed.
    writes: BTreeMap<u64, std::ops::Range<Unit>>,
    /// When the oldest read that waits was submitted: what it may see is kept.
    pub horizon: Order,
    /// Nothing is forgotten: flushed writes may be lost, and older content shows again.
    keeps_all: bool,
}

impl Oracle {
    pub fn new(keeps_all: bool) -> Self {
        Self {
            keeps_all,
            ..Self::default()
        }
    }

    /// Content that was there before the first write.
    pub fn place(&mut self, unit: Unit, tags: &[Tag]) {
        self.units.entry(unit).or_default().base = tags.to_vec();
    }

    pub fn submit(&mut self, write: u64, units: std::ops::Range<Unit>, tag: Tag, now: Order) {
        for unit in units.clone() {
            self.units.entry(unit).or_default().versions.push(Version {
                write,
                tag,
                submitted: now,
                closed: OPEN,
                outcome: Outcome::Open,
                flushed: false,
            });
        }
        self.writes.insert(write, units);
    }

    fn each_version(&mut self, write: u64, mut change: impl FnMut(&mut Version)) {
        let Some(units) = self.writes.get(&write) else {
            return;
        };
        for unit in units.clone() {
            if let Some(history) = self.units.get_mut(&unit) {
                history
                    .versions
                    .iter_mut()
                    .filter(|version| version.write == write)
                    .for_each(&mut change);
            }
        }
    }

    /// The write was answered. `flushed`: it asked to be durable.
    pub fn answer(&mut self, write: u64, flushed: bool, now: Order) {
        self.each_version(write, |version| {
            version.closed = now;
            version.outcome = Outcome::Firm;
            version.flushed = flushed;
        });
        if flushed {
            self.forget(write);
        }
    }

    /// The write failed or will never be answered.
    pub fn abandon(&mut self, write: u64, now: Order) {
        self.each_version(write, |version| {
            version.closed = now;
            version.outcome = Outcome::Maybe;
        });
        self.writes.remove(&write);
    }

    /// Nobody answers open writes any more.
    pub fn abandon_open(&mut self, now: Order) {
        for write in self.pick(|version| version.outcome == Outcome::Open) {
            self.abandon(write, now);
        }
    }

    fn forget(&mut self, write: u64) {
        if let Some(units) = self.writes.remove(&write)
            && !self.keeps_all
        {
            for unit in units {
                if let Some(history) = self.units.get_mut(&unit) {
                    history.prune(self.horizon);
                }
            }
        }
    }

    fn pick(&self, which: impl Fn(&Version) -> bool) -> Vec<u64> {
        self.writes
            .iter()
            .filter(|(write, units)| {
                // Some of its units may have forgotten it.
                self.units.range((*units).clone()).any(|(_, history)| {
                    history
                        .versions
                        .iter()
                        .any(|version| version.write == **write && which(version))
                })
            })
            .map(|(write, _)| *write)
            .collect()
    }

    /// A flush that was submitted at `since` was answered. Returns the units it vouches for.
    pub fn flush(&mut self, since: Order) -> Vec<Unit> {
        let mut units = Vec::new();
        for write in self.pick(|version| version.outcome == Outcome::Firm && version.closed < since)
        {
            self.each_version(write, |version| version.flushed = true);
            if let Some(range) = self.writes.get(&write) {
                units.extend(range.clone());
            }
            self.forget(write);
        }
        units.sort_unstable();
        units.dedup();
        units
    }

    /// Every disk that held unflushed writes submitted before `before` lost its cache.
    pub fn excuse_unflushed(&mut self, before: Order) {
        for write in
            self.pick(|version| version.outcome == Outcome::Firm && version.submitted < before)
        {
            self.each_version(write, |version| version.outcome = Outcome::Maybe);
            self.writes.remove(&write);
        }
    }

    /// What an image lacks of what was answered. Unflushed writes submitted before `excused` do not count, and
    /// where zeroes could be of several writes, they are of the one that excuses most.
    pub fn tail(&self, shows: impl Fn(Unit) -> Tag, excused: Order) -> Tail {
        let mut tail = Tail {
            lost: BTreeSet::new(),
            units: 0,
            first_answered: OPEN,
            newest_shown: 0,
            unknown: None,
        };
        for (unit, history) in &self.units {
            let tag = shows(*unit);
            let of_tag = || history.versions.iter().filter(|version| version.tag == tag);
            let in_base = history.base.contains(&tag);
            if !in_base && of_tag().next().is_none() {
                tail.unknown = Some(*unit);
                continue;
            }
            let closed = of_tag().map(|version| version.closed).max().unwrap_or(0);
            if !in_base {
                let submitted = of_tag().map(|version| version.submitted).min();
                tail.newest_shown = tail.newest_shown.max(submitted.unwrap_or(0));
            }
            let lost = history.versions.iter().filter(|version| {
                version.outcome == Outcome::Firm
                    && version.submitted > closed
                    && (version.flushed || version.submitted >= excused)
            });
            let mut any = false;
            for version in lost {
                any = true;
                tail.first_answered = tail.first_answered.min(version.closed);
                tail.lost.insert(version.write);
            }
            tail.units += u64::from(any);
        }
        tail
    }

    /// No flush that was answered covers these writes on the disk that counts.
    pub fn unflush(&mut self, writes: &BTreeSet<u64>) {
        for (unit, history) in &mut self.units {
            for version in &mut history.versions {
                if version.flushed && writes.contains(&version.write) {
                    version.flushed = false;
                    let units = self.writes.entry(version.write).or_insert(*unit..*unit);
                    units.end = *unit + 1;
                }
            }
        }
    }

    /// These writes may be missing from now on.
    pub fn give_up(&mut self, lost: &BTreeSet<u64>) {
        for history in self.units.values_mut() {
            for version in &mut history.versions {
                if lost.contains(&version.write) {
                    version.outcome = Outcome::Maybe;
                }
            }
        }
        self.writes.retain(|write, _| !lost.contains(write));
    }

    pub fn is_legal(&self, unit: Unit, tag: Tag, promise: Promise) -> bool {
        match self.units.get(&unit) {
            Some(history) => history.is_legal(tag, promise),
            None => tag == ZEROES,
        }
    }

    /// What a unit went through, for a report.
    pub fn describe(&self, unit: Unit) -> String {
        let Some(history) = self.units.get(&unit) else {
            return "never written".into();
        };
        let mut text = format!("base {:x?}", history.base);
        for version in &history.versions {
            let closed = match version.closed {
                OPEN => "open".into(),
                at => format!("{:?} at {at}", version.outcome),
            };
            let flushed = if version.flushed { ", flushed" } else { "" };
            text += &format!(
                "; write {} tag {:x} submitted {} {closed}{flushed}",
                version.write, version.tag, version.submitted
            );
        }
        text
    }

    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.units.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Promise = Promise::Answered(100);

    fn written(writes: &[(u64, Order, Option<Order>)]) -> Oracle {
        let mut oracle = Oracle::default();
        for (tag, submitted, answered) in writes {
            oracle.submit(*tag, 5..6, *tag, *submitted);
            if let Some(answered) = answered {
                oracle.answer(*tag, false, *answered);
            }
        }
        oracle
    }

    #[test]
    fn an_answered_write_hides_what_was_closed_before_it() {
        let oracle = written(&[(1, 1, Some(2)), (2, 3, Some(4))]);
        assert!(oracle.is_legal(5, 2, NOW));
        assert!(!oracle.is_legal(5, 1, NOW));
        assert!(!oracle.is_legal(5, ZEROES, NOW));
        assert!(
            oracle.is_legal(5, 1, Promise::Answered(4)),
            "the reader came first"
        );
    }

    #[test]
    fn concurrent_writes_may_land_in_any_order() {
        let oracle = written(&[(1, 1, Some(5)), (2, 3, Some(4))]);
        assert!(oracle.is_legal(5, 1, NOW) && oracle.is_legal(5, 2, NOW));
        assert!(!oracle.is_legal(5, ZEROES, NOW));
    }

    #[test]
    fn an_unanswered_write_may_show_until_something_replaces_it() {
        let mut oracle = written(&[(1, 1, Some(2)), (2, 3, None)]);
        oracle.abandon_open(6);
        assert!(oracle.is_legal(5, 1, NOW) && oracle.is_legal(5, 2, NOW));
        oracle.submit(3, 5..6, 3, 7);
        oracle.answer(3, false, 8);
        assert!(!oracle.is_legal(5, 2, NOW));
    }

    #[test]
    fn what_was_flushed_survives_the_loss_of_every_cache() {
        let mut oracle = written(&[(1, 1, Some(2)), (2, 3, Some(4))]);
        assert_eq!(oracle.flush(3), vec![5]);
        assert!(oracle.is_legal(5, 1, Promise::Flushed));
        assert!(!oracle.is_legal(5, ZEROES, Promise::Flushed));
        oracle.excuse_unflushed(50);
        assert!(oracle.is_legal(5, 1, NOW) && oracle.is_legal(5, 2, NOW));
        assert!(!oracle.is_legal(5, ZEROES, NOW));
    }
}
