//! One call to a daemon over its control socket: connect, ask, read the answer, within a time. It knows
//! HTTP and `Refusal`, not what is asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mirror_core::control::Refusal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Daemon;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A daemon's socket. Each call opens its own connection.
#[derive(Debug, Clone)]
pub struct Caller {
    daemon: &'static Daemon,
    socket: PathBuf,
    timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no {} answers on {}: {source}; start it, or name its folder with --run-dir", daemon.name, socket.display())]
    Unreachable {
        daemon: &'static Daemon,
        socket: PathBuf,
        source: io::Error,
    },
    #[error("{} on {} broke off in the middle of an answer: {source}; see with `{}` what was done, and look at its log", daemon.name, socket.display(), daemon.status_command)]
    Broken {
        daemon: &'static Daemon,
        socket: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{} on {} did not answer within {}; give it longer with --timeout, or look at its log", daemon.name, socket.display(), humantime::format_duration(*timeout))]
    TimedOut {
        daemon: &'static Daemon,
        socket: PathBuf,
        timeout: Duration,
    },
    #[error("{0}")]
    Refused(Refusal),
}

impl Caller {
    /// `timeout` bounds each call as a whole.
    pub fn new(daemon: &'static Daemon, run_dir: &Path, timeout: Duration) -> Self {
        Self {
            daemon,
            socket: run_dir.join(daemon.socket_name),
            timeout,
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.call(Method::GET, path, Bytes::new()).await?;
        self.decode(&body)
    }

    /// An answer that is no JSON.
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.call(Method::GET, path, Bytes::new()).await?;
        String::from_utf8(body.into()).map_err(|error| self.broken(error))
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).expect("a request is plain data");
        let body = self.call(Method::POST, path, body.into()).await?;
        self.decode(&body)
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        tokio::time::timeout(self.timeout, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::TimedOut {
                    daemon: self.daemon,
                    socket: self.socket.clone(),
                    timeout: self.timeout,
                })
            })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Unreachable {
                    daemon: self.daemon,
                    socket: self.socket.clone(),
                    source,
                })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.daemon.name)
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
            self.accept(status, body)
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

    fn accept(&self, status: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
        if status == StatusCode::GATEWAY_TIMEOUT {
            return Err(ClientError::TimedOut {
                daemon: self.daemon,
                socket: self.socket.clone(),
                timeout: self.daemon.command_timeout,
            });
        }
        if !status.is_success() {
            return Err(match serde_json::from_slice(&body) {
                Ok(refusal) => ClientError::Refused(refusal),
                Err(_) => self.broken(format!("status {status}")),
            });
        }
        Ok(body)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.broken(error))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken {
            daemon: self.daemon,
            socket: self.socket.clone(),
            source: source.into(),
        }
    }
}
