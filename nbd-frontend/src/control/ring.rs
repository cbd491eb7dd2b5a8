//! The last records of a daemon, numbered, for everyone who asks. Bounded: what is older is dropped and
//! counted, and each reader learns how many it missed. It does not know what a record says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use super::EVENT_WAIT_MAX;

/// Records kept.
pub const RECORDS_KEPT_MAX: usize = 4096;
/// Records in one answer.
pub const PAGE_RECORDS_MAX: usize = 512;

/// Shared by those who push and the control API, which reads.
#[derive(Debug)]
pub struct Ring<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    kept: Mutex<VecDeque<T>>,
    /// Number of the newest record; 0 before the first.
    newest: watch::Sender<u64>,
}

/// Some of the records.
#[derive(Debug)]
pub struct Page<T> {
    pub records: Vec<T>,
    /// Pass as `after` next time.
    pub next: u64,
    /// Records between `after` and the first one here that are no longer kept.
    pub dropped: u64,
}

/// The query of a call that reads a ring.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    #[serde(default)]
    pub after: u64,
    /// Longest wait for newer records; absent means the most there is.
    wait_ms: Option<u64>,
}

impl PageQuery {
    pub fn wait(&self) -> Duration {
        self.wait_ms.map_or(EVENT_WAIT_MAX, |wait| {
            EVENT_WAIT_MAX.min(Duration::from_millis(wait))
        })
    }
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                kept: Mutex::new(VecDeque::new()),
                newest: watch::Sender::new(0),
            }),
        }
    }
}

impl<T> Clone for Ring<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T: Clone> Ring<T> {
    /// Goes on after a restart: `kept` are the records up to number `newest`, without a gap.
    pub fn restored(kept: Vec<T>, newest: u64) -> Self {
        assert!(kept.len() as u64 <= newest, "records are numbered from 1");
        let skipped = kept.len().saturating_sub(RECORDS_KEPT_MAX);
        Self {
            inner: Arc::new(Inner {
                kept: Mutex::new(kept.into_iter().skip(skipped).collect()),
                newest: watch::Sender::new(newest),
            }),
        }
    }

    /// Adds the record that `make` makes for its number.
    pub fn push(&self, make: impl FnOnce(u64) -> T) {
        let mut kept = self.kept();
        let number = *self.inner.newest.borrow() + 1;
        if kept.len() == RECORDS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(make(number));
        // Under the lock, so that numbers and contents never disagree.
        self.inner.newest.send_replace(number);
    }

    /// Records after number `after`, at once if there are any, else after at most `wait`. A number
    /// from before a restart of the daemon is answered at once with where to go on.
    pub async fn page(&self, after: u64, wait: Duration) -> Page<T> {
        let mut newest = self.inner.newest.subscribe();
        if after <= *newest.borrow() {
            let news = newest.wait_for(|newest| *newest > after);
            // The sender lives as long as `self`; the outcome of the wait is in the ring either way.
            let _ = tokio::time::timeout(wait, news).await;
        }
        self.now(after)
    }

    fn now(&self, after: u64) -> Page<T> {
        let kept = self.kept();
        let newest = *self.inner.newest.borrow();
        // Numbers are without gaps, so the place of a record follows from its number.
        let oldest = newest + 1 - kept.len() as u64;
        let skipped = after.saturating_add(1).saturating_sub(oldest);
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let records: Vec<_> = kept
            .iter()
            .skip(skipped)
            .take(PAGE_RECORDS_MAX)
            .cloned()
            .collect();
        let first = oldest + skipped as u64;
        Page {
            next: match records.len() as u64 {
                0 => newest,
                count => first + count - 1,
            },
            dropped: oldest.saturating_sub(after.saturating_add(1)),
            records,
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<T>> {
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
    async fn records_are_numbered_from_one_and_paged() {
        let ring = Ring::default();
        ring.push(|number| (number, "first"));
        ring.push(|number| (number, "second"));
        let page = ring.page(0, Duration::ZERO).await;
        assert_eq!(page.records, [(1, "first"), (2, "second")]);
        assert_eq!((page.next, page.dropped), (2, 0));
        let page = ring.page(1, Duration::ZERO).await;
        assert_eq!(
            (page.records.as_slice(), page.next),
            (&[(2, "second")][..], 2)
        );
        let page = ring.page(2, Duration::ZERO).await;
        assert_eq!((page.records.len(), page.next), (0, 2));
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_says_what_it_dropped() {
        let ring = Ring::default();
        for _ in 0..RECORDS_KEPT_MAX + 10 {
            ring.push(|number| number);
        }
        let page = ring.page(0, Duration::ZERO).await;
        assert_eq!(page.dropped, 10);
        assert_eq!(page.records[0], 11);
        assert_eq!(page.records.len(), PAGE_RECORDS_MAX);
        assert_eq!(page.next, 10 + PAGE_RECORDS_MAX as u64);
        let page = ring.page(page.next, Duration::ZERO).await;
        assert_eq!(page.records[0], 11 + PAGE_RECORDS_MAX as u64);
        assert_eq!(page.dropped, 0);
    }

    #[tokio::test]
    async fn a_restored_ring_counts_on() {
        let ring = Ring::restored(vec![6, 7], 7);
        ring.push(|number| number);
        let page = ring.page(0, Duration::ZERO).await;
        assert_eq!(
            (page.records, page.next, page.dropped),
            (vec![6, 7, 8], 8, 5)
        );
    }

    #[tokio::test]
    async fn a_reader_waits_for_news() {
        let ring = Ring::default();
        let writer = ring.clone();
        let (page, ()) = tokio::join!(ring.page(0, Duration::from_secs(10)), async move {
            writer.push(|_| "late");
        });
        assert_eq!(page.records, ["late"]);
    }

    #[tokio::test]
    async fn a_number_from_before_a_restart_is_answered_at_once() {
        let ring = Ring::default();
        ring.push(|number| number);
        for after in [900, u64::MAX] {
            let page = ring.page(after, Duration::from_secs(3600)).await;
            assert_eq!((page.next, page.records.len()), (1, 0));
        }
    }
}
