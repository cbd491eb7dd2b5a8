//! The calls of the control API. Every refusal, of whatever cause, is a JSON `Refusal`.
//!
//! | status | meaning |
//! |---|---|
//! | 200 | done |
//! | 400 | the body or the query makes no sense |
//! | 404 | no such call, or no such mirror here |
//! | 408 | the body did not come in time |
//! | 409 | the mirror refused the command |
//! | 503 | the mirror does not run |
//! | 504 | not done in time; a command goes on |

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mirror_core::control::{
    CommandReply, CommandRequest, DownMirror, EventPage, Explanation, MirrorStatus, NodeStatus,
    Refusal,
};
use mirror_core::volume::event::Command;
use serde::Deserialize;

use super::events::EventRing;
use super::port::{Gone, MirrorPort};
use super::{BODY_BYTES_MAX, COMMAND_TIMEOUT, EVENT_WAIT_MAX, QUERY_TIMEOUT, RECEIVE_TIMEOUT};

/// What the API speaks for.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub mirrors: Vec<MirrorEntry>,
    pub events: EventRing,
}

/// A configured mirror: running, or not and why.
#[derive(Debug)]
pub struct MirrorEntry {
    pub name: String,
    pub state: MirrorState,
}

#[derive(Debug)]
pub enum MirrorState {
    Running {
        port: MirrorPort,
        /// What its clients connect to while it is primary.
        exports: Vec<String>,
    },
    /// It could not be opened; the rest of the node runs on.
    Down { reason: String },
}

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/mirrors/{name}/command", post(command))
        .route("/v1/mirrors/{name}/explain", get(explain))
        .route("/v1/events", get(events))
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

/// An answer that is no success.
#[derive(Debug)]
struct Failed(StatusCode, Refusal);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

async fn status(State(node): State<Arc<Node>>) -> Json<NodeStatus> {
    let mut status = NodeStatus {
        node: node.name.clone(),
        mirrors: Vec::with_capacity(node.mirrors.len()),
        down: Vec::new(),
    };
    // All are asked at once: a mirror that hangs must not keep the others from being seen.
    let asked: Vec<_> = (0..node.mirrors.len())
        .map(|index| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { mirror_status(&node.mirrors[index]).await })
        })
        .collect();
    for (entry, asked) in node.mirrors.iter().zip(asked) {
        match asked.await {
            Ok(Ok(mirror)) => status.mirrors.push(mirror),
            Ok(Err(reason)) => status.down.push(DownMirror {
                name: entry.name.clone(),
                reason,
            }),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Json(status)
}

/// The state of one mirror, or why there is none.
async fn mirror_status(entry: &MirrorEntry) -> Result<MirrorStatus, String> {
    let (port, exports) = match &entry.state {
        MirrorState::Running { port, exports } => (port, exports),
        MirrorState::Down { reason } => return Err(reason.clone()),
    };
    let mut status = in_time(QUERY_TIMEOUT, &entry.name, port.status())
        .await
        .map_err(|Failed(_, refusal)| refusal.reason)?;
    status.exports = exports.clone();
    Ok(status)
}

async fn command(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CommandReply>, Failed> {
    let request = body(request).await?;
    let port = running(find(&node, &name)?)?;
    let command = Command::from(request);
    tracing::info!(mirror = name, ?command, "command");
    match in_time(COMMAND_TIMEOUT, &name, port.command(command)).await? {
        Ok(message) => Ok(Json(CommandReply { message })),
        Err(refusal) => {
            tracing::info!(mirror = name, ?command, "refused: {refusal}");
            Err(Failed(StatusCode::CONFLICT, refusal))
        }
    }
}

/// Reads a command, within bounds of size and time.
async fn body(request: Request) -> Result<CommandRequest, Failed> {
    let read: Result<Result<_, JsonRejection>, _> =
        tokio::time::timeout(RECEIVE_TIMEOUT, Json::from_request(request, &())).await;
    match read {
        Ok(Ok(Json(request))) => Ok(request),
        Ok(Err(rejection)) => Err(bad_request(&rejection.body_text())),
        Err(_) => Err(Failed(
            StatusCode::REQUEST_TIMEOUT,
            Refusal::new(
                "too-slow",
                format!(
                    "the body did not come within {} s",
                    RECEIVE_TIMEOUT.as_secs()
                ),
                "send the whole request at once",
            ),
        )),
    }
}

async fn explain(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
) -> Result<Json<Explanation>, Failed> {
    let port = running(find(&node, &name)?)?;
    in_time(QUERY_TIMEOUT, &name, port.explain())
        .await
        .map(Json)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    #[serde(default)]
    after: u64,
    /// Longest wait for newer events; absent means the most there is.
    wait_ms: Option<u64>,
}

async fn events(
    State(node): State<Arc<Node>>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<EventPage>, Failed> {
    let Query(query) = query.map_err(|rejection| bad_request(&rejection.body_text()))?;
    let wait = query.wait_ms.map_or(EVENT_WAIT_MAX, |wait| {
        EVENT_WAIT_MAX.min(Duration::from_millis(wait))
    });
    Ok(Json(node.events.page(query.after, wait).await))
}

async fn no_such_call() -> Failed {
    Failed(
        StatusCode::NOT_FOUND,
        Refusal::new(
            "unknown-call",
            "this daemon has no such call",
            "use a mirrorctl of the same version as mirrord",
        ),
    )
}

fn find<'n>(node: &'n Node, name: &str) -> Result<&'n MirrorEntry, Failed> {
    node.mirrors
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| {
            let names: Vec<_> = node
                .mirrors
                .iter()
                .map(|entry| entry.name.as_str())
                .collect();
            Failed(
                StatusCode::NOT_FOUND,
                Refusal::new(
                    "unknown-mirror",
                    format!("{} has no mirror {name:?}", node.name),
                    format!("its mirrors are: {}", names.join(", ")),
                ),
            )
        })
}

fn running(entry: &MirrorEntry) -> Result<&MirrorPort, Failed> {
    match &entry.state {
        MirrorState::Running { port, .. } => Ok(port),
        MirrorState::Down { reason } => Err(not_running(&entry.name, reason)),
    }
}

fn not_running(name: &str, reason: &str) -> Failed {
    Failed(
        StatusCode::SERVICE_UNAVAILABLE,
        Refusal::new(
            "not-running",
            format!("the mirror {name} does not run here: {reason}"),
            "mend the cause and restart mirrord",
        ),
    )
}

fn bad_request(reason: &str) -> Failed {
    Failed(
        StatusCode::BAD_REQUEST,
        Refusal::new(
            "bad-request",
            reason,
            "use a mirrorctl of the same version as mirrord",
        ),
    )
}

async fn in_time<T>(
    limit: Duration,
    mirror: &str,
    asked: impl Future<Output = Result<T, Gone>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(gone)) => Err(not_running(mirror, &gone.to_string())),
        Err(_) => Err(Failed(
            StatusCode::GATEWAY_TIMEOUT,
            Refusal::new(
                "timed-out",
                format!(
                    "the mirror {mirror} did not answer in {} s",
                    limit.as_secs()
                ),
                "look at its state with `mirrorctl mdstat` and at the log of mirrord",
            ),
        )),
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
