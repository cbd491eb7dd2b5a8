//! Datagrams that are taken for no sign of life, and how often that is told.

use std::collections::BTreeMap;

use super::BeatFault;

/// A reason is told again after this long at the earliest: whoever floods a path does not flood the log.
pub const TOLD_AGAIN_MS: u64 = 10 * 60 * 1_000;

/// Why a datagram counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    NoBeat(#[from] BeatFault),
    #[error("it is of another cluster")]
    OtherCluster,
    #[error("it is of a node that is not configured")]
    OtherNode,
    #[error("it was meant for path {} of the file: two addresses are mixed up, or somebody sends it on", u16::from(*.0) + 1)]
    OtherPath(u8),
    #[error("this node sent it itself, and somebody sends it back")]
    Echo,
    #[error(
        "it bears this node's own name and answers nothing that this node said: a recording, or a second machine with this name"
    )]
    OwnName,
    #[error(
        "it is of a run of the other agent that has ended: a recording, or a second machine with that name"
    )]
    Ended,
    #[error("it was taken in before, or is older than one that was: a recording")]
    Replayed,
    #[error(
        "it answers what this node said long ago: a recording, one that was held up, or this node's own heartbeats do not arrive"
    )]
    Stale,
}

/// What was refused on one path.
#[derive(Debug, Default)]
pub struct Refusals {
    seen: BTreeMap<Refusal, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    last_ms: u64,
    told_ms: Option<u64>,
    untold: u64,
}

impl Refusals {
    /// How often this was the reason since it was last told, where it is to be told now.
    #[must_use]
    pub fn add(&mut self, now_ms: u64, refusal: Refusal) -> Option<u64> {
        let seen = self.seen.entry(refusal).or_default();
        seen.last_ms = now_ms;
        seen.untold += 1;
        let soon = seen
            .told_ms
            .is_some_and(|told_ms| now_ms.saturating_sub(told_ms) < TOLD_AGAIN_MS);
        if soon {
            return None;
        }
        seen.told_ms = Some(now_ms);
        Some(std::mem::take(&mut seen.untold))
    }

    /// The latest reason, for as long as it would not be told again.
    pub fn latest(&self, now_ms: u64) -> Option<Refusal> {
        let (refusal, seen) = self.seen.iter().max_by_key(|(_, seen)| seen.last_ms)?;
        (now_ms.saturating_sub(seen.last_ms) < TOLD_AGAIN_MS).then_some(*refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_at_intervals_each_reason_for_itself() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.add(5, Refusal::Echo), Some(1));
        for _ in 0..1000 {
            assert_eq!(refusals.add(6, Refusal::Echo), None);
        }
        assert_eq!(refusals.add(7, Refusal::Replayed), Some(1));
        assert_eq!(refusals.latest(8), Some(Refusal::Replayed));
        assert_eq!(refusals.add(5 + TOLD_AGAIN_MS, Refusal::Echo), Some(1001));
        assert_eq!(refusals.latest(5 + TOLD_AGAIN_MS), Some(Refusal::Echo));
        assert_eq!(refusals.latest(5 + 2 * TOLD_AGAIN_MS), None);
    }
}
