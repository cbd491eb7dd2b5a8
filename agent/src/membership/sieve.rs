//! What of the datagrams on a path may be new, told before anything is done with them: so a flood of recordings
//! keeps no beat out of the queue of the node, as a flood of noise does not.
//!
//! Within a run every beat has a higher sequence than the one before. What has not is of no use to anybody, but that
//! somebody should know that it comes.

use std::collections::VecDeque;

use super::Beat;
use super::beat::Run;

/// Runs whose sequences are remembered. Of more, the one that is longest unheard is forgotten; it then costs as
/// much to look at as what was never seen.
const RUNS_MAX: usize = 16;

#[derive(Debug, Default)]
pub struct Sieve {
    /// Highest sequence of each run, the latest run last.
    highest: VecDeque<(Run, u64)>,
}

impl Sieve {
    /// False for what came before, or came after what was sent later.
    #[must_use]
    pub fn is_new(&mut self, beat: &Beat) -> bool {
        let found = self.highest.iter().position(|(run, _)| *run == beat.run);
        let known = found.and_then(|at| self.highest.remove(at));
        if known.is_none() && self.highest.len() == RUNS_MAX {
            self.highest.pop_front();
        }
        let (_, highest) = known.unwrap_or((beat.run, 0));
        self.highest
            .push_back((beat.run, highest.max(beat.sequence)));
        beat.sequence > highest
    }
}
