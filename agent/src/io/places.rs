//! Places for connections that anybody may open, bounded without letting anybody shut others out.
//!
//! Each connection is a task. One that nobody has vouched for is a stranger's: when all places for strangers are
//! taken, the newcomer gets that of the one who has been there longest, which is ended. So whoever connects and
//! says nothing, or says it slowly, is in nobody's way for long. A connection that has earned its place
//! ([`Place::earn`]) keeps it. It does not know what a connection must do to earn it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// All places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    strangers_max: usize,
    earned_max: usize,
    taken: Mutex<Taken>,
    /// How many are taken.
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// The oldest first.
    strangers: VecDeque<(u64, AbortHandle)>,
    earned: HashSet<u64>,
}

/// The place of one connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    shared: Arc<Shared>,
}

impl Places {
    /// Up to `strangers_max` places at once that are not earned, and `earned_max` that are.
    pub fn new(strangers_max: usize, earned_max: usize) -> Self {
        assert!(strangers_max > 0, "a newcomer needs a place");
        Self(Arc::new(Shared {
            strangers_max,
            earned_max,
            taken: Mutex::default(),
            count: watch::Sender::new(0),
        }))
    }

    /// Serves a new connection in a task of its own.
    pub fn admit<F>(&self, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut taken = self.0.taken();
        if taken.strangers.len() == self.0.strangers_max
            && let Some((_, oldest)) = taken.strangers.pop_front()
        {
            oldest.abort();
        }
        let number = taken.next;
        taken.next += 1;
        let place = Place {
            number,
            shared: Arc::clone(&self.0),
        };
        // The task finds itself on the list when it ends, however soon: the lock is held until then.
        let task = tokio::spawn(serve(place));
        taken.strangers.push_back((number, task.abort_handle()));
        self.0.tell(&taken);
    }

    /// Returns when no connection is left.
    pub async fn wait_until_empty(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Each change of it is whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, taken: &Taken) {
        self.count
            .send_replace(taken.strangers.len() + taken.earned.len());
    }
}

impl Place {
    /// Nobody takes it away any more, as long as there is room for those who earned theirs.
    pub fn earn(&self) {
        let mut taken = self.shared.taken();
        if taken.earned.len() == self.shared.earned_max {
            return;
        }
        let strangers = &mut taken.strangers;
        let found = strangers
            .iter()
            .position(|(number, _)| *number == self.number);
        if found.and_then(|index| strangers.remove(index)).is_some() {
            taken.earned.insert(self.number);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shared.taken();
        taken.strangers.retain(|(number, _)| *number != self.number);
        taken.earned.remove(&self.number);
        self.shared.tell(&taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Says its number when its connection ends.
    struct Farewell(u64, mpsc::UnboundedSender<u64>);

    impl Drop for Farewell {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    /// Connections that stay for ever; the last one of them earns its place and says so.
    async fn crowd(
        places: &Places,
        numbers: std::ops::Range<u64>,
        ended: &mpsc::UnboundedSender<u64>,
    ) {
        let (earned, mut heard) = mpsc::unbounded_channel();
        for number in numbers.clone() {
            let farewell = Farewell(number, ended.clone());
            let earned = earned.clone();
            let earns = number + 1 == numbers.end;
            places.admit(move |place| async move {
                if earns {
                    place.earn();
                    let _ = earned.send(());
                }
                let _kept = (farewell, place);
                std::future::pending::<()>().await;
            });
        }
        tokio::time::timeout(LIMIT, heard.recv()).await.unwrap();
    }

    async fn next(ended: &mut mpsc::UnboundedReceiver<u64>) -> u64 {
        let ended = tokio::time::timeout(LIMIT, ended.recv()).await;
        ended.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_the_oldest_stranger_and_no_other() {
        let places = Places::new(3, 1);
        let (sender, mut ended) = mpsc::unbounded_channel();
        // 2 earns its place; there is no other to earn for 7.
        crowd(&places, 0..3, &sender).await;
        crowd(&places, 3..8, &sender).await;
        let mut gone = Vec::new();
        for _ in 0..4 {
            gone.push(next(&mut ended).await);
        }
        gone.sort_unstable();
        assert_eq!(gone, [0, 1, 3, 4]);
        assert!(ended.try_recv().is_err());
        assert_eq!(*places.0.count.borrow(), 4);
    }

    #[tokio::test]
    async fn what_ends_gives_its_place_back() {
        let places = Places::new(2, 2);
        for _ in 0..10 {
            places.admit(|place| async move { place.earn() });
            places.admit(|place| async move { drop(place) });
        }
        tokio::time::timeout(LIMIT, places.wait_until_empty())
            .await
            .unwrap();
    }
}
