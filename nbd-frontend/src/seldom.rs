//! Keeps strangers from filling the log: of the lines that anybody on the network can cause, only so many are
//! written in a while, and the next one says how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one [`WINDOW`].
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Seldom {
    /// Whether a line may be written, and how many were not since the last that was.
    pub fn turn(&self) -> Option<u64> {
        self.turn_at(Instant::now())
    }

    fn turn_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = window
            .begun
            .is_none_or(|begun| now.duration_since(begun) >= WINDOW);
        if is_over {
            window.begun = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES_MAX {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let seldom = Seldom::default();
        let begun = Instant::now();
        let written = (0..1000).filter(|_| seldom.turn_at(begun).is_some());
        assert_eq!(written.count(), LINES_MAX as usize);
        assert_eq!(seldom.turn_at(begun + WINDOW / 2), None);
        let left_out = 1001 - u64::from(LINES_MAX);
        assert_eq!(seldom.turn_at(begun + WINDOW), Some(left_out));
        assert_eq!(seldom.turn_at(begun + WINDOW), Some(0));
    }
}
