//! The way from a control API to the task that owns the state: a bounded queue of questions, each with
//! the place for its answer. For `mirrord` that is a mirror's own thread; nobody else touches the mirror.

use mirror_core::control::{Explanation, MirrorStatus, Refusal};
use mirror_core::volume::event::Command;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for their owner.
pub const ASKS_MAX: usize = 64;

/// Who would answer is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its thread has ended")]
pub struct Gone;

/// The asking end; the owner has the receiver.
#[derive(Debug)]
pub struct Port<A> {
    asks: mpsc::Sender<A>,
}

impl<A> Clone for Port<A> {
    fn clone(&self) -> Self {
        Self {
            asks: self.asks.clone(),
        }
    }
}

impl<A> Port<A> {
    pub fn new() -> (Self, mpsc::Receiver<A>) {
        let (asks, receiver) = mpsc::channel(ASKS_MAX);
        (Self { asks }, receiver)
    }

    /// Puts a question and waits for its answer.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> A) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// What the control plane asks of a mirror. An answer that nobody waits for any more is dropped.
#[derive(Debug)]
pub enum Ask {
    Command {
        command: Command,
        reply: oneshot::Sender<Result<String, Refusal>>,
    },
    Status {
        /// With what it did so far, which takes its thread a little longer.
        statistics: bool,
        reply: oneshot::Sender<MirrorStatus>,
    },
    Explain(oneshot::Sender<Explanation>),
    /// Answered when a ticket above that is published, be it never.
    ConfirmWanted {
        after: u64,
        reply: oneshot::Sender<u64>,
    },
}

/// The control plane's end of one mirror.
#[derive(Debug, Clone)]
pub struct MirrorPort {
    pub name: String,
    port: Port<Ask>,
}

impl MirrorPort {
    /// The two ends for the mirror called `name`.
    pub fn new(name: &str) -> (Self, mpsc::Receiver<Ask>) {
        let (port, receiver) = Port::new();
        let port = Self {
            name: name.into(),
            port,
        };
        (port, receiver)
    }

    pub async fn command(&self, command: Command) -> Result<Result<String, Refusal>, Gone> {
        self.port.ask(|reply| Ask::Command { command, reply }).await
    }

    pub async fn status(&self, statistics: bool) -> Result<MirrorStatus, Gone> {
        self.port
            .ask(|reply| Ask::Status { statistics, reply })
            .await
    }

    pub async fn explain(&self) -> Result<Explanation, Gone> {
        self.port.ask(Ask::Explain).await
    }

    /// Waits for a ticket above `after` without end; dropping the wait ends it.
    pub async fn confirm_wanted(&self, after: u64) -> Result<u64, Gone> {
        self.port
            .ask(|reply| Ask::ConfirmWanted { after, reply })
            .await
    }
}
