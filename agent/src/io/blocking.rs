//! Calls into the kernel that may never return: a mount, a read from a failing disk, `/proc` of a process
//! that is stuck.
//!
//! A [`Slot`] runs one such call at a time on a thread of its own, and gives up on it when its time is over.
//! The thread then stays with the kernel; until it comes back, the slot takes no other call, so that not more
//! than one thread a slot is ever lost that way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub struct Slot {
    busy: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    #[error("{what} did not return within {}: the kernel holds it", humantime::format_duration(*limit))]
    Now { what: &'static str, limit: Duration },
    #[error("an earlier call has still not returned from the kernel, so {what} was not tried")]
    Before { what: &'static str },
    #[error("{what} was not done: {source}")]
    Thread {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("{what} broke off; this is a fault of the agent")]
    Panicked { what: &'static str },
}

/// Frees the slot when the call returned, also by a panic.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Slot {
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(Stuck::Before { what });
        }
        let busy = Busy(Arc::clone(&self.busy));
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Not one of the runtime's threads: those are waited for at the end.
        std::thread::Builder::new()
            .name("blocking".into())
            .spawn(move || {
                let result = call();
                drop(busy);
                let _ = answer.send(result);
            })
            .map_err(|source| Stuck::Thread { what, source })?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Stuck::Panicked { what }),
            Err(_) => Err(Stuck::Now { what, limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_call_that_does_not_return_is_given_up_and_keeps_its_slot() {
        let slot = Slot::default();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let stuck = slot
            .run("the test", Duration::from_millis(10), move || held.recv())
            .await;
        assert!(matches!(stuck, Err(Stuck::Now { .. })));
        let refused = slot.run("the next", LIMIT, || ()).await;
        assert!(matches!(refused, Err(Stuck::Before { .. })));
        release.send(()).unwrap();
        let free = async {
            while slot.run("the last", LIMIT, || ()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, free).await.unwrap();
    }
}
