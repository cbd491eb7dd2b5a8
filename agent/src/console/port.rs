//! The way from the console to the agent's own task: a bounded queue of questions, each with the place
//! for its answer.

use mirror_core::control::Refusal;
use nbd_frontend::control::port::{Gone, Port};
use tokio::sync::{mpsc, oneshot};

use crate::control::{ClusterStatus, CommandReply, CommandRequest};

/// What the console asks of the agent. An answer that nobody waits for any more is dropped.
#[derive(Debug)]
pub enum Ask {
    Status(oneshot::Sender<ClusterStatus>),
    /// Answered when the command is done or refused, not when it has begun.
    Command {
        request: CommandRequest,
        reply: oneshot::Sender<Result<CommandReply, Refusal>>,
    },
}

/// The console's end.
#[derive(Debug, Clone)]
pub struct AgentPort(Port<Ask>);

impl AgentPort {
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (port, asks) = Port::new();
        (Self(port), asks)
    }

    pub async fn status(&self) -> Result<ClusterStatus, Gone> {
        self.0.ask(Ask::Status).await
    }

    pub async fn command(
        &self,
        request: CommandRequest,
    ) -> Result<Result<CommandReply, Refusal>, Gone> {
        self.0.ask(|reply| Ask::Command { request, reply }).await
    }
}
