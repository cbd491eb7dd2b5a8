//! Asks `mirrord` over its control socket. Used by `mirrorctl`, the agent and the tests.

use std::path::Path;
use std::time::Duration;

use mirror_core::control::{
    CommandReply, CommandRequest, ConfirmWanted, DeviceRequest, EventPage, Explanation, NodeStatus,
};

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

    /// Each mirror with its statistics.
    pub async fn status_with_statistics(&self) -> Result<NodeStatus, ClientError> {
        self.0.get("/v1/status?statistics=true").await
    }

    /// The same as OpenMetrics text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.0.get_text("/metrics").await
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

    /// Attaches or detaches the mirror's device.
    pub async fn device(
        &self,
        mirror: &str,
        request: &DeviceRequest,
    ) -> Result<CommandReply, ClientError> {
        let path = format!("/v1/mirrors/{mirror}/device");
        self.0.post(&path, request).await
    }

    /// The newest ticket of an answer that waits for a confirmed lease, if it is above `after`; waits up to
    /// `wait` for one, and returns `after` if none comes.
    pub async fn confirm_wanted(
        &self,
        mirror: &str,
        after: u64,
        wait: Duration,
    ) -> Result<ConfirmWanted, ClientError> {
        let wait_ms = wait.as_millis();
        let path = format!("/v1/mirrors/{mirror}/confirm?after={after}&wait_ms={wait_ms}");
        self.0.get(&path).await
    }

    /// Events after number `after`; waits up to `wait` if there are none.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventPage, ClientError> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.0.get(&path).await
    }
}
