//! What waits to be sent on one connection, in order, with acknowledgements merged.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use tokio::sync::Notify;

use crate::link::compression::Compressor;
use crate::wire::header::ACKS_MAX;
use crate::wire::message::{Envelope, Message};

/// Messages that may wait on one connection. Far more than requests that can be in flight; a peer
/// that lets this many pile up is not reading.
pub const OUTBOX_MESSAGES_MAX: usize = 65_536;

/// The queue between the driver and one writer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: RefCell<VecDeque<Envelope>>,
    filled: Notify,
    finished: Cell<bool>,
    compressor: RefCell<Option<Compressor>>,
}

impl Outbox {
    /// Puts a message in line; false if the line is full.
    pub fn push(&self, envelope: Envelope) -> bool {
        let mut queue = self.queue.borrow_mut();
        if self.finished.get() {
            return true;
        }
        let Some(envelope) = merge(queue.back_mut(), envelope) else {
            return true;
        };
        if queue.len() == OUTBOX_MESSAGES_MAX {
            return false;
        }
        queue.push_back(envelope);
        self.filled.notify_one();
        true
    }

    /// What is sent from now on goes through it.
    pub fn compress(&self, compressor: Compressor) {
        *self.compressor.borrow_mut() = Some(compressor);
    }

    /// A compressor that the writer has not yet taken up.
    pub fn take_compressor(&self) -> Option<Compressor> {
        self.compressor.borrow_mut().take()
    }

    /// Nothing more comes; the writer ends when what waits is sent.
    pub fn finish(&self) {
        self.finished.set(true);
        self.filled.notify_one();
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.queue.borrow().len()
    }

    pub fn clear(&self) {
        self.queue.borrow_mut().clear();
    }

    pub fn pop(&self) -> Option<Envelope> {
        self.queue.borrow_mut().pop_front()
    }

    /// Returns when there is something to send; false when nothing more will come.
    pub async fn wait(&self) -> bool {
        loop {
            if !self.queue.borrow().is_empty() {
                return true;
            }
            if self.finished.get() {
                return false;
            }
            self.filled.notified().await;
        }
    }
}

/// Adds acknowledgements to the ones that wait last, if they are of the same epoch and fit; gives
/// back what has to wait by itself.
fn merge(last: Option<&mut Envelope>, envelope: Envelope) -> Option<Envelope> {
    if let Some(last) = last
        && last.epoch == envelope.epoch
        && let (Message::Ack { sequences: waiting }, Message::Ack { sequences })
        | (Message::Received { sequences: waiting }, Message::Received { sequences }) =
            (&mut last.message, &envelope.message)
        && waiting.len() + sequences.len() <= ACKS_MAX
    {
        waiting.extend_from_slice(sequences);
        return None;
    }
    Some(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, Sequence};

    fn ack(epoch: u64, sequences: std::ops::Range<u64>) -> Envelope {
        Envelope {
            epoch: Epoch(epoch),
            message: Message::Ack {
                sequences: sequences.map(Sequence).collect(),
            },
        }
    }

    fn ping() -> Envelope {
        Envelope {
            epoch: Epoch(1),
            message: Message::Ping { stamp_ms: 1 },
        }
    }

    fn check(sent: Vec<Envelope>, expected: Vec<Envelope>) {
        let outbox = Outbox::default();
        assert!(sent.into_iter().all(|envelope| outbox.push(envelope)));
        let queued: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(queued, expected);
    }

    #[test]
    fn neighbouring_acknowledgements_travel_together() {
        check(vec![ack(1, 0..2), ack(1, 2..5)], vec![ack(1, 0..5)]);
    }

    #[test]
    fn acknowledgements_keep_their_place_and_their_epoch() {
        let apart = vec![ack(1, 0..2), ping(), ack(1, 2..3), ack(2, 3..4)];
        check(apart.clone(), apart);
    }

    #[test]
    fn one_frame_of_acknowledgements_stays_within_its_limit() {
        let full = ACKS_MAX as u64;
        check(
            vec![ack(1, 0..full), ack(1, full..full + 1)],
            vec![ack(1, 0..full), ack(1, full..full + 1)],
        );
    }

    #[test]
    fn a_full_outbox_says_so() {
        let outbox = Outbox::default();
        assert!((0..OUTBOX_MESSAGES_MAX).all(|_| outbox.push(ping())));
        assert!(!outbox.push(ping()));
    }
}
