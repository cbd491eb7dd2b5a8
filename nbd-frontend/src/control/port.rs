//! The way from the control API to a mirror's own thread: a bounded queue of questions, each with
//! the place for its answer. The thread owns the mirror; nobody else touches it.

use mirror_core::control::{Explanation, MirrorStatus, Refusal};
use mirror_core::volume::event::Command;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for a mirror's thread.
pub const ASKS_MAX: usize = 64;

/// What the control plane asks of a mirror. An answer that nobody waits for any more is dropped.
#[derive(Debug)]
pub enum Ask {
    Command {
        command: Command,
        reply: oneshot::Sender<Result<String, Refusal>>,
    },
    Status(oneshot::Sender<MirrorStatus>),
    Explain(oneshot::Sender<Explanation>),
}

/// The mirror's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mirror's thread has ended")]
pub struct Gone;

/// The control plane's end.
#[derive(Debug, Clone)]
pub struct MirrorPort {
    pub name: String,
    asks: mpsc::Sender<Ask>,
}

impl MirrorPort {
    /// The two ends for the mirror called `name`.
    pub fn new(name: &str) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(ASKS_MAX);
        let port = Self {
            name: name.into(),
            asks,
        };
        (port, receiver)
    }

    pub async fn command(&self, command: Command) -> Result<Result<String, Refusal>, Gone> {
        self.ask(|reply| Ask::Command { command, reply }).await
    }

    pub async fn status(&self) -> Result<MirrorStatus, Gone> {
        self.ask(Ask::Status).await
    }

    pub async fn explain(&self) -> Result<Explanation, Gone> {
        self.ask(Ask::Explain).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
