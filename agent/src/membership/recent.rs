//! Which of this node's own beats were sent lately: whoever names one of those has heard this node lately,
//! and cannot be a recording from before.

use std::collections::VecDeque;

/// How finely the span is told. What was sent longer ago than the span and this part of it is never recent;
/// what was sent within the span always is.
const MARKS_IN_SPAN: u64 = 8;

#[derive(Debug)]
pub struct Recent {
    span_ms: u64,
    /// Oldest first: all up to this sequence was sent by then. At most [`MARKS_IN_SPAN`] and two.
    marks: VecDeque<(u64, u64)>,
}

impl Recent {
    pub fn new(span_ms: u64) -> Self {
        Self {
            span_ms,
            marks: VecDeque::new(),
        }
    }

    /// At the beginning of a step, before anything is sent in it. `before_ms`: of the step before, by which
    /// all up to `sequence` was sent.
    pub fn pass(&mut self, before_ms: u64, now_ms: u64, sequence: u64) {
        let spacing_ms = (self.span_ms / MARKS_IN_SPAN).max(1);
        let paused = now_ms.saturating_sub(before_ms) >= spacing_ms;
        let due = self.marks.back().is_none_or(|(at_ms, marked)| {
            *marked != sequence && (paused || before_ms.saturating_sub(*at_ms) >= spacing_ms)
        });
        if due {
            self.marks.push_back((before_ms, sequence));
        }
        while self.marks.len() > 1 && self.is_past(self.marks[1].0, now_ms) {
            self.marks.pop_front();
        }
    }

    /// This sequence was sent within the span.
    pub fn has(&self, now_ms: u64, sequence: u64) -> bool {
        let past = self
            .marks
            .front()
            .filter(|(at_ms, _)| self.is_past(*at_ms, now_ms));
        past.is_none_or(|(_, marked)| sequence > *marked)
    }

    fn is_past(&self, at_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(at_ms) >= self.span_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_within_the_span_is_recent_and_what_is_older_by_a_part_of_it_is_not() {
        const SPAN_MS: u64 = 800;
        for step_ms in [1, 10, 50, 99, 150, 700, 900, 5_000] {
            let mut recent = Recent::new(SPAN_MS);
            // When each sequence was sent; the first is 1.
            let mut sent = Vec::new();
            let mut now_ms = 0;
            for _ in 0..60 {
                let before_ms = now_ms;
                now_ms += step_ms;
                recent.pass(before_ms, now_ms, sent.len() as u64);
                sent.push(now_ms);
                for (index, at_ms) in sent.iter().enumerate() {
                    let age_ms = now_ms - at_ms;
                    let is = recent.has(now_ms, index as u64 + 1);
                    if age_ms < SPAN_MS {
                        assert!(is, "{age_ms} ms old, at steps of {step_ms} ms");
                    } else if age_ms > SPAN_MS + SPAN_MS / MARKS_IN_SPAN + step_ms {
                        assert!(!is, "{age_ms} ms old, at steps of {step_ms} ms");
                    }
                }
                assert!(recent.marks.len() <= MARKS_IN_SPAN as usize + 2);
            }
        }
    }

    #[test]
    fn nothing_from_before_a_pause_is_recent_after_it() {
        let mut recent = Recent::new(800);
        recent.pass(0, 100, 0);
        recent.pass(100, 110, 1);
        recent.pass(110, 120, 2);
        assert!(recent.has(120, 2));
        recent.pass(120, 5_000, 3);
        assert!(!recent.has(5_000, 3));
        assert!(recent.has(5_000, 4));
    }
}
