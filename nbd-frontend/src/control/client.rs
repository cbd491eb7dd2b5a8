//! Asks `mirrord` over its control socket. Used by `mirrorctl`, the agent and the tests.

use std::path::Path;
use std::time::Duration;

use mirror_core::control::{CommandReply, CommandRequest, EventPage, Explanation, NodeStatus};

use super::MIRRORD;
use super::caller::Caller;
pub use super::caller::ClientError;

/// A daemon's socket. Each call opens its own connection.
#[derive(Debug, Clone)]
pub struct Client(Caller);

impl Client {
    /// `timeout` bounds each call as a whole.
    pub fn new(run_dir: &Path, timeout: Duration) -> Self {
        Self(Caller::new(&MIRRORD, run_dir, timeout))
    }

    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.0.get("/v1/status").await
    }

    pub async fn explain(&self, mirror: &str) -> Result<Explanation, ClientError> {
        self.0.get(&format!("/v1/mirrors/{mirror}/explain")).await
    }

    pub async fn command(
        &self,
        mirror: &str,
        command: &CommandRequest,
    ) -> Result<CommandReply, ClientError> {
        let path = format!("/v1/mirrors/{mirror}/command");
        self.0.post(&path, command).await
    }

    /// Events after number `after`; waits up to `wait` if there are none.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventPage, ClientError> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.0.get(&path).await
    }
}
