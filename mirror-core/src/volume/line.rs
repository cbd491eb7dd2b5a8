//! The line to a peer whose bandwidth is limited (async): writes and flushes leave it in order, as fast as
//! `bandwidth_max` allows. Resync data has a limit of its own and travels beside it.
//!
//! What is in the line counts as handed on: it is bounded by the backlog, and lost with the link. Paid for after
//! it was sent, so that any message gets through; the line is looked at with every message and every tick.

use std::collections::VecDeque;

use super::Volume;
use crate::wire::message::Message;

/// What may be sent at once after a pause: this part of a second's worth.
const BURSTS_PER_S: i128 = 10;

#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<(u32, Message)>,
    /// Bytes that may go, times 1000: below zero after a message that was larger.
    credit: i128,
    credited_ms: u64,
}

impl Volume {
    /// Sends a message that has its place among the writes.
    pub(super) fn send_in_line(&mut self, bytes: u32, message: Message) {
        if self.config.bandwidth_max == 0 {
            self.send(message);
            return;
        }
        self.line.waiting.push_back((bytes, message));
        self.pump_line();
    }

    pub(super) fn pump_line(&mut self) {
        let now_ms = self.now.monotonic_ms;
        let rate = i128::from(self.config.bandwidth_max);
        let elapsed = i128::from(now_ms.saturating_sub(self.line.credited_ms));
        self.line.credited_ms = now_ms;
        let most = rate * 1000 / BURSTS_PER_S;
        self.line.credit = (self.line.credit + rate * elapsed).min(most);
        while self.line.credit > 0
            && let Some((bytes, message)) = self.line.waiting.pop_front()
        {
            self.line.credit -= i128::from(bytes) * 1000;
            self.send(message);
        }
    }

    /// What waits has no link to go to any more.
    pub(super) fn clear_line(&mut self) {
        self.line.waiting.clear();
    }
}
