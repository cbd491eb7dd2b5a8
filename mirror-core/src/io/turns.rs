//! Work that keeps all others of the mirror's thread from running takes turns: after so much of it, all who wait go
//! first. A batch of comparisons that comes in at once would otherwise be worked off as one and answered as one, and the
//! other side, which does the same with the next, would be idle meanwhile.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use tokio::task::spawn_local;

/// A turn ends when it has had this much: 50 µs or so of reading and hashing.
pub(super) const TURN_BYTES: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Turns {
    used_bytes: Rc<Cell<usize>>,
}

impl Turns {
    /// Waits until so much more may be worked on: as long as all who are in line now take, once each.
    pub(super) async fn take(&self, bytes: usize) {
        while self.used_bytes.get() >= TURN_BYTES {
            let_others_run().await;
        }
        let used_bytes = self.used_bytes.get();
        if used_bytes == 0 {
            // It runs when all have that are in line now, and so ends the turn.
            let used_bytes = Rc::clone(&self.used_bytes);
            spawn_local(async move { used_bytes.set(0) });
        }
        self.used_bytes.set(used_bytes + bytes);
    }
}

/// Until all tasks of this thread that can run have run once. Unlike `yield_now` of tokio, without a look at the sockets.
pub(super) async fn let_others_run() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::sync::Notify;
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn others_run_after_each_turn_and_nobody_waits_for_ever() {
        let log = Rc::new(RefCell::new(String::new()));
        let turns = Rc::new(Turns::default());
        let done = Rc::new(Notify::new());
        let local = LocalSet::new();
        local
            .run_until(async {
                let tasks: Vec<_> = (0..20)
                    .map(|_| {
                        let (log, turns, done) = (log.clone(), turns.clone(), done.clone());
                        spawn_local(async move {
                            turns.take(TURN_BYTES / 8).await;
                            log.borrow_mut().push('o');
                            done.notify_one();
                        })
                    })
                    .collect();
                let told = log.clone();
                let other = spawn_local(async move {
                    loop {
                        done.notified().await;
                        told.borrow_mut().push('|');
                    }
                });
                for task in tasks {
                    task.await.unwrap();
                }
                other.abort();
            })
            .await;
        let log = log.borrow();
        assert_eq!(log.matches('o').count(), 20);
        let longest = log.split('|').map(str::len).max();
        assert_eq!(longest, Some(8), "{log}");
    }

    #[tokio::test]
    async fn work_that_begins_after_others_ran_does_not_wait() {
        let turns = Turns::default();
        let at_once = async {
            for _ in 0..3 {
                // Polled once.
                assert_eq!(poll_once(turns.take(1 << 20)), Some(()));
                tokio::task::yield_now().await;
            }
            turns.take(1 << 20).await;
            assert_eq!(poll_once(turns.take(4096)), None, "the turn is used up");
        };
        LocalSet::new().run_until(at_once).await;
    }

    fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}
