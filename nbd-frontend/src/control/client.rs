//! Asks a daemon over its control socket. Used by `mirrorctl` and the tests.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mirror_core::control::{
    CommandReply, CommandRequest, EventPage, Explanation, NodeStatus, Refusal,
};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A daemon's socket. Each call opens its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no mirrord answers on {}: {source}; start it, or name its folder with --run-dir", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("mirrord on {} broke off in the middle of an answer: {source}; see with `mirrorctl mdstat` what was done, and look at its log", socket.display())]
    Broken {
        socket: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("mirrord on {} did not answer within {}; give it longer with --timeout, or look at its log", socket.display(), humantime::format_duration(*timeout))]
    TimedOut { socket: PathBuf, timeout: Duration },
    #[error("{0}")]
    Refused(Refusal),
}

impl Client {
    /// `timeout` bounds each call as a whole.
    pub fn new(run_dir: &Path, timeout: Duration) -> Self {
        Self {
            socket: run_dir.join(super::SOCKET_NAME),
            timeout,
        }
    }

    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.call(Method::GET, "/v1/status", Bytes::new()).await
    }

    pub async fn explain(&self, mirror: &str) -> Result<Explanation, ClientError> {
        self.call(
            Method::GET,
            &format!("/v1/mirrors/{mirror}/explain"),
            Bytes::new(),
        )
        .await
    }

    pub async fn command(
        &self,
        mirror: &str,
        command: &CommandRequest,
    ) -> Result<CommandReply, ClientError> {
        let body = serde_json::to_vec(command).expect("a command is plain data");
        self.call(
            Method::POST,
            &format!("/v1/mirrors/{mirror}/command"),
            body.into(),
        )
        .await
    }

    /// Events after number `after`; waits up to `wait` if there are none.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventPage, ClientError> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.call(Method::GET, &path, Bytes::new()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.timeout, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::TimedOut {
                    socket: self.socket.clone(),
                    timeout: self.timeout,
                })
            })
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Unreachable {
                    socket: self.socket.clone(),
                    source,
                })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "mirrord")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        // The connection moves bytes only while it is polled, so both run together.
        let exchange = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| self.broken(error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| self.broken(error))?
                .to_bytes();
            self.decode(status, &body)
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            biased;
            done = &mut exchange => done,
            ended = &mut connection => match ended {
                // The answer is complete when the connection ends well.
                Ok(()) => exchange.await,
                Err(error) => Err(self.broken(error)),
            },
        }
    }

    fn decode<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, ClientError> {
        if status == StatusCode::GATEWAY_TIMEOUT {
            return Err(ClientError::TimedOut {
                socket: self.socket.clone(),
                timeout: super::COMMAND_TIMEOUT,
            });
        }
        if !status.is_success() {
            return Err(match serde_json::from_slice(body) {
                Ok(refusal) => ClientError::Refused(refusal),
                Err(_) => self.broken(format!("status {status}")),
            });
        }
        serde_json::from_slice(body).map_err(|error| self.broken(error))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            source: source.into(),
        }
    }
}
