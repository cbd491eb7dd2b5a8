//! Asks an agent over its control socket. Used by `mirrorctl` and the tests.

use std::path::Path;
use std::time::Duration;

use nbd_frontend::control::caller::Caller;
pub use nbd_frontend::control::caller::ClientError;

use super::AGENT;
use crate::control::{AlertPage, ClusterStatus, CommandReply, CommandRequest};

/// An agent's socket. Each call opens its own connection.
#[derive(Debug, Clone)]
pub struct AgentClient(Caller);

impl AgentClient {
    /// `timeout` bounds each call as a whole.
    pub fn new(run_dir: &Path, timeout: Duration) -> Self {
        Self(Caller::new(&AGENT, run_dir, timeout))
    }

    pub async fn status(&self) -> Result<ClusterStatus, ClientError> {
        self.0.get("/v1/status").await
    }

    /// Returns when the command is done or refused.
    pub async fn command(&self, request: &CommandRequest) -> Result<CommandReply, ClientError> {
        self.0.post("/v1/command", request).await
    }

    /// Alerts after number `after`; waits up to `wait` if there are none.
    pub async fn alerts(&self, after: u64, wait: Duration) -> Result<AlertPage, ClientError> {
        let path = format!("/v1/alerts?after={after}&wait_ms={}", wait.as_millis());
        self.0.get(&path).await
    }
}
