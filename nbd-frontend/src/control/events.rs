//! The last events of this daemon, numbered, for everyone who asks. Bounded: what is older is
//! dropped and counted, and each reader learns how many it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mirror_core::control::{EventPage, EventRecord, Notice};
use tokio::sync::watch;

/// Events kept.
pub const EVENTS_KEPT_MAX: usize = 4096;
/// Events in one answer.
const PAGE_EVENTS_MAX: usize = 512;

/// Shared by the mirrors' threads, which push, and the control API, which reads.
#[derive(Debug, Clone)]
pub struct EventRing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kept: Mutex<VecDeque<EventRecord>>,
    /// Number of the newest event; 0 before the first.
    newest: watch::Sender<u64>,
}

impl Default for EventRing {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                kept: Mutex::new(VecDeque::with_capacity(EVENTS_KEPT_MAX)),
                newest: watch::Sender::new(0),
            }),
        }
    }
}

impl EventRing {
    pub fn push(&self, mirror: &str, notice: Notice) {
        let mut kept = self.kept();
        let number = *self.inner.newest.borrow() + 1;
        if kept.len() == EVENTS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(EventRecord {
            number,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            mirror: mirror.into(),
            notice,
        });
        // Under the lock, so that numbers and contents never disagree.
        self.inner.newest.send_replace(number);
    }

    /// Events after number `after`, at once if there are any, else after at most `wait`. A number
    /// from before a restart of the daemon is answered at once with where to go on.
    pub async fn page(&self, after: u64, wait: Duration) -> EventPage {
        let mut newest = self.inner.newest.subscribe();
        if after <= *newest.borrow() {
            let news = newest.wait_for(|newest| *newest > after);
            // The sender lives as long as `self`; the outcome of the wait is in the ring either way.
            let _ = tokio::time::timeout(wait, news).await;
        }
        self.now(after)
    }

    fn now(&self, after: u64) -> EventPage {
        let kept = self.kept();
        let newest = *self.inner.newest.borrow();
        let oldest = newest + 1 - kept.len() as u64;
        let events: Vec<_> = kept
            .iter()
            .filter(|record| record.number > after)
            .take(PAGE_EVENTS_MAX)
            .cloned()
            .collect();
        EventPage {
            next: events.last().map_or(newest, |last| last.number),
            dropped: oldest.saturating_sub(after + 1),
            events,
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<EventRecord>> {
        // A panic elsewhere cannot leave the ring half-changed.
        self.inner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_numbered_from_one_and_paged() {
        let ring = EventRing::default();
        ring.push("md1", Notice::info("promoted", "now primary"));
        ring.push("md1", Notice::warning("peer-lost", "gone"));
        let page = ring.page(0, Duration::ZERO).await;
        assert_eq!((page.events.len(), page.next, page.dropped), (2, 2, 0));
        let page = ring.page(1, Duration::ZERO).await;
        assert_eq!(page.events[0].notice.kind, "peer-lost");
        let page = ring.page(2, Duration::ZERO).await;
        assert_eq!((page.events.len(), page.next), (0, 2));
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_says_what_it_dropped() {
        let ring = EventRing::default();
        for number in 0..EVENTS_KEPT_MAX + 10 {
            ring.push("md1", Notice::info("test", number.to_string()));
        }
        let page = ring.page(0, Duration::ZERO).await;
        assert_eq!(page.dropped, 10);
        assert_eq!(page.events[0].number, 11);
        assert_eq!(page.events.len(), PAGE_EVENTS_MAX);
        assert_eq!(page.next, 10 + PAGE_EVENTS_MAX as u64);
    }

    #[tokio::test]
    async fn a_reader_waits_for_news() {
        let ring = EventRing::default();
        let writer = ring.clone();
        let (page, ()) = tokio::join!(ring.page(0, Duration::from_secs(10)), async move {
            writer.push("md1", Notice::info("late", "here"));
        });
        assert_eq!(page.events[0].notice.kind, "late");
    }

    #[tokio::test]
    async fn a_number_from_before_a_restart_is_answered_at_once() {
        let ring = EventRing::default();
        ring.push("md1", Notice::info("test", ""));
        let page = ring.page(900, Duration::from_secs(3600)).await;
        assert_eq!((page.next, page.events.len()), (1, 0));
    }
}
