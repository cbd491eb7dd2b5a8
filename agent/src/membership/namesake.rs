//! Two machines under one name: a clone that was booted, or the same `--node` twice.
//!
//! The one that was heard first stays believed for as long as it is heard. So the word of the second,
//! "nothing runs here", never stands for that of a node whose groups run. The second is told so, by an answer
//! to what it said, so that no recording makes a node believe that it is a second one.
//!
//! A restarted agent looks the same at first; but its old run has fallen silent.

use super::Run;

/// The old run must have been silent for so many intervals before a new one takes its place.
pub const SILENT_INTERVALS: u64 = 2;
/// The other node is given so many intervals to take up a new run. More than [`SILENT_INTERVALS`].
pub const TAKEN_UP_INTERVALS: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Mine,
    Peers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomer {
    /// The old run is silent: the peer was restarted.
    Follows,
    /// Not believed yet.
    Waits,
    /// Both speak on, which is news.
    Namesake,
}

#[derive(Debug)]
pub struct Namesakes {
    interval_ms: u64,
    timeout_ms: u64,
    /// A run under the peer's name that is not believed yet, and when it was heard first.
    newcomer: Option<(Run, u64)>,
    /// Since when the peer has taken another machine for this node.
    overlooked_since_ms: Option<u64>,
    /// When another machine under the name was last noticed.
    mine_ms: Option<u64>,
    peers_ms: Option<u64>,
}

impl Namesakes {
    pub fn new(interval_ms: u64, timeout_ms: u64) -> Self {
        Self {
            interval_ms,
            timeout_ms,
            newcomer: None,
            overlooked_since_ms: None,
            mine_ms: None,
            peers_ms: None,
        }
    }

    /// Another machine under that name was noticed within the heartbeat time-out.
    pub fn is_seen(&self, whose: Whose, now_ms: u64) -> bool {
        let seen_ms = match whose {
            Whose::Mine => self.mine_ms,
            Whose::Peers => self.peers_ms,
        };
        seen_ms.is_some_and(|seen_ms| now_ms.saturating_sub(seen_ms) < self.timeout_ms)
    }

    /// Another machine spoke under that name. True if that is news.
    #[must_use]
    pub fn notice(&mut self, whose: Whose, now_ms: u64) -> bool {
        let known = self.is_seen(whose, now_ms);
        let seen_ms = match whose {
            Whose::Mine => &mut self.mine_ms,
            Whose::Peers => &mut self.peers_ms,
        };
        *seen_ms = Some(now_ms);
        !known
    }

    /// The peer's run that was last heard then may have ended.
    pub fn is_silent(&self, heard_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(heard_ms) >= self.silence_ms()
    }

    fn silence_ms(&self) -> u64 {
        SILENT_INTERVALS * self.interval_ms
    }

    /// Another run under the peer's name, beside the one that was last heard at `heard_ms`.
    pub fn on_newcomer(&mut self, run: Run, heard_ms: u64, now_ms: u64) -> Newcomer {
        let first_ms = match self.newcomer {
            Some((known, first_ms)) if known == run => first_ms,
            _ => now_ms,
        };
        self.newcomer = Some((run, first_ms));
        if self.is_silent(heard_ms, now_ms) {
            self.newcomer = None;
            return Newcomer::Follows;
        }
        let both = heard_ms >= first_ms.saturating_add(self.silence_ms());
        if both && self.notice(Whose::Peers, now_ms) {
            Newcomer::Namesake
        } else {
            Newcomer::Waits
        }
    }

    /// The peer said that it knows another machine under this node's name. True if that is news.
    #[must_use]
    pub fn on_overlooked(&mut self, now_ms: u64) -> bool {
        let since_ms = *self.overlooked_since_ms.get_or_insert(now_ms);
        let lasting = now_ms.saturating_sub(since_ms) >= TAKEN_UP_INTERVALS * self.interval_ms;
        lasting && self.notice(Whose::Mine, now_ms)
    }

    /// The peer named the present run.
    pub fn on_named(&mut self) {
        self.overlooked_since_ms = None;
    }
}
