//! Generations: who holds the newer data. Two sides that share a generation held the same data when
//! it was made; the history says which older generations a side's data has grown out of.

use crate::units::Generation;

/// How many older generations are remembered.
pub const HISTORY_LENGTH: usize = 8;

/// The generations of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GenerationSet {
    /// What the data here is. Zero: never had data.
    pub current: Generation,
    /// What the peer held when this side went on without it; this side's dirty bitmap is the
    /// difference between that and `current`. Zero: the peer missed nothing.
    pub base: Generation,
    /// Older generations, newest first.
    pub history: [Generation; HISTORY_LENGTH],
}

impl GenerationSet {
    /// Starts a new line: `new` becomes current. The old current becomes the base unless there is
    /// one already, since the bitmap then still speaks of the older base.
    pub fn advance(&mut self, new: Generation) {
        assert!(
            !new.is_none() && new != self.current,
            "a new generation must be new"
        );
        if !self.current.is_none() {
            if self.base.is_none() {
                self.base = self.current;
            }
            self.remember(self.current);
        }
        self.current = new;
    }

    /// The peer holds everything again.
    pub fn settle(&mut self) {
        self.base = Generation::NONE;
    }

    /// Takes over the source's identity at the end of a resync.
    pub fn adopt(&mut self, source: &Self) {
        *self = *source;
        self.settle();
    }

    /// True if `generation` is one this data has grown out of.
    pub fn descends_from(&self, generation: Generation) -> bool {
        !generation.is_none() && (self.base == generation || self.history.contains(&generation))
    }

    /// True if the bitmap here tells the whole difference to data of that generation: it is the base,
    /// or one made since, which the peer can only have from the end of a resync.
    pub fn bitmap_reaches(&self, generation: Generation) -> bool {
        !generation.is_none()
            && !self.base.is_none()
            && (self.base == generation
                || self
                    .history
                    .iter()
                    .take_while(|older| **older != self.base)
                    .any(|older| *older == generation)
                    && self.history.contains(&self.base))
    }

    /// True if both sides have any generation in common, at any age.
    pub fn shares_ancestor(&self, other: &Self) -> bool {
        self.line()
            .any(|mine| other.line().any(|theirs| mine == theirs))
    }

    fn line(&self) -> impl Iterator<Item = Generation> + '_ {
        std::iter::once(self.current)
            .chain(std::iter::once(self.base))
            .chain(self.history.iter().copied())
            .filter(|generation| !generation.is_none())
    }

    fn remember(&mut self, generation: Generation) {
        if self.history[0] != generation {
            self.history.rotate_right(1);
            self.history[0] = generation;
        }
    }
}
