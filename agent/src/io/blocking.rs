//! Calls into the kernel that may never return: a mount, a read from a failing disk, `/proc` of a process
//! that is stuck.
//!
//! A [`Slot`] runs one such call at a time on a thread of its own, and gives up on it when its time is over.
//! The thread then stays with the kernel; until it comes back, the slot takes no other call, so that not more
//! than one thread a slot is ever lost that way. Who finds the slot taken waits for it as long as the call itself
//! might take: mostly someone else is just looking.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

#[derive(Debug, Clone, Default)]
pub struct Slot {
    taken: Arc<Mutex<()>>,
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

impl Slot {
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let turn = Arc::clone(&self.taken).lock_owned();
        let turn: OwnedMutexGuard<()> = tokio::time::timeout(limit, turn)
            .await
            .map_err(|_| Stuck::Before { what })?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Not one of the runtime's threads: those are waited for at the end.
        std::thread::Builder::new()
            .name("blocking".into())
            .spawn(move || {
                let result = call();
                drop(turn);
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
        let refused = slot.run("the next", Duration::from_millis(10), || ()).await;
        assert!(matches!(refused, Err(Stuck::Before { .. })));
        release.send(()).unwrap();
        slot.run("the last", LIMIT, || ()).await.unwrap();
    }

    #[tokio::test]
    async fn two_calls_at_once_take_turns() {
        let slot = Slot::default();
        let (begun, beginning) = tokio::sync::oneshot::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let first = slot.run("the first", LIMIT, move || {
            let _ = begun.send(());
            held.recv()
        });
        let second = async {
            beginning.await.unwrap();
            let second = slot.run("the second", LIMIT, || ());
            let release = async { release.send(()).unwrap() };
            tokio::join!(second, release).0
        };
        let (first, second) = tokio::join!(first, second);
        first.unwrap().unwrap();
        second.unwrap();
    }
}
