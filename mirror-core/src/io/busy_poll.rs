//! Busy polling: looking for the next event for a moment before the thread sleeps, because mostly it comes soon.
//!
//! Whoever sleeps on an idle processor is woken by an interrupt, and that takes longer, and more of the processors on
//! both sides, than all the rest that a lone small write costs a mirror: it waits for its peer's acknowledgement and then
//! for the client's next request, each for some tens of microseconds. The figures are in
//! `docs/decisions/2026-11-30-busy-poll.md`.
//!
//! How long to look, it learns from the waits. They are short while clients wait for each answer before they ask again;
//! then looking pays. After one that was longer than the limit the thread sleeps at once, so an idle mirror costs nothing
//! more, and one with an event now and then a few microseconds for each. Under load there is nothing to wait for. And
//! between two looks everybody else gets the processor who wants it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// First look after waits that were too long, or unknown.
const FIRST_NS: u64 = 8_000;

/// How long the next look is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    ns: u64,
    /// Waits that are longer are not worth it.
    longest_ns: u64,
}

impl Window {
    /// A wait is over that took so long.
    fn learn(&mut self, waited_ns: u64) {
        self.ns = match waited_ns {
            waited if waited > self.longest_ns => 0,
            waited if waited <= self.ns => self.ns,
            _ => (self.ns * 2).max(FIRST_NS).min(self.longest_ns),
        };
    }
}

/// The looks of one mirror's thread.
#[derive(Debug)]
pub(super) struct BusyPoll {
    window: Cell<Window>,
    /// When the last event came.
    last_ns: Cell<u64>,
    looking: Cell<bool>,
}

impl BusyPoll {
    /// At most `longest` at a time; zero never.
    pub fn new(longest: Duration) -> Rc<Self> {
        let longest_ns = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Rc::new(Self {
            window: Cell::new(Window { ns: 0, longest_ns }),
            last_ns: Cell::new(0),
            looking: Cell::new(false),
        })
    }

    /// An event came. Whoever gets true runs [`Self::look`] in a task of its own.
    pub fn begin(&self, now_ns: u64) -> bool {
        let waited_ns = now_ns.saturating_sub(self.last_ns.replace(now_ns));
        let mut window = self.window.get();
        window.learn(waited_ns);
        self.window.set(window);
        window.ns > 0 && !self.looking.replace(true)
    }

    /// Lets everything run that is ready, over and over, until nothing came for the length of the window.
    pub async fn look(self: Rc<Self>, clock_ns: impl Fn() -> u64) {
        loop {
            tokio::task::yield_now().await;
            if clock_ns().saturating_sub(self.last_ns.get()) >= self.window.get().ns {
                break;
            }
            // Nobody is kept from work by somebody who only looks.
            std::thread::yield_now();
        }
        self.looking.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    #[test]
    fn short_waits_lengthen_the_look_and_a_long_one_ends_it() {
        let mut window = Window {
            ns: 0,
            longest_ns: 50 * US,
        };
        let mut after = |waited_us: u64| {
            window.learn(waited_us * US);
            window.ns / US
        };
        assert_eq!([after(20), after(20), after(20)], [8, 16, 32]);
        assert_eq!(after(20), 32, "it was long enough");
        assert_eq!([after(40), after(40)], [50, 50], "no longer than the limit");
        assert_eq!(after(51), 0);
        assert_eq!(after(20), 8);
    }

    #[test]
    fn with_no_limit_given_it_never_looks() {
        let busy_poll = BusyPoll::new(Duration::ZERO);
        assert!(!busy_poll.begin(0) && !busy_poll.begin(0) && !busy_poll.begin(1));
    }

    #[test]
    fn one_look_at_a_time_that_ends_when_nothing_comes() {
        let busy_poll = BusyPoll::new(Duration::from_micros(100));
        assert!(!busy_poll.begin(1_000_000 * US), "after a long sleep");
        let last_ns = 1_000_020 * US;
        assert!(busy_poll.begin(last_ns));
        assert!(!busy_poll.begin(last_ns), "it looks already");
        let now_ns = Cell::new(last_ns);
        let looks = Cell::new(0);
        let clock = || {
            looks.set(looks.get() + 1);
            now_ns.replace(now_ns.get() + US)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(Rc::clone(&busy_poll).look(clock));
        assert_eq!(looks.get(), FIRST_NS / US + 1);
        assert!(busy_poll.begin(last_ns + 9 * US), "the next one");
    }
}
