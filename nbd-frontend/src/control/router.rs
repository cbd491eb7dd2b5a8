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

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use mirror_core::control::{
    CommandReply, CommandRequest, ConfirmWanted, DeviceRequest, DownMirror, EventPage, Explanation,
    MirrorStatus, NodeStatus, Refusal,
};
use mirror_core::io::memory;
use mirror_core::volume::event::Command;
use serde::Deserialize;

use super::events::EventRing;
use super::failed::{self, Failed};
use super::metrics;
use super::port::{Gone, MirrorPort};
use super::ring::PageQuery;
use super::{BODY_BYTES_MAX, COMMAND_TIMEOUT, MIRRORD, QUERY_TIMEOUT};
use crate::kernel::keeper::DevicePort;

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
        /// Where it has a device in the kernel.
        device: Option<DevicePort>,
    },
    /// It could not be opened; the rest of the node runs on.
    Down { reason: String },
}

#[derive(Debug, Deserialize)]
struct StatusQuery {
    #[serde(default)]
    statistics: bool,
}

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/mirrors/{name}/command", post(command))
        .route("/v1/mirrors/{name}/device", post(device))
        .route("/v1/mirrors/{name}/explain", get(explain))
        .route("/v1/mirrors/{name}/confirm", get(confirm))
        .route("/v1/events", get(events))
        .route("/metrics", get(metrics))
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

async fn status(
    State(node): State<Arc<Node>>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Json<NodeStatus>, Failed> {
    let Query(query) =
        query.map_err(|rejection| Failed::bad_request(&MIRRORD, &rejection.body_text()))?;
    Ok(Json(node_status(node, query.statistics).await))
}

async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let text = metrics::text(&node_status(node, true).await);
    ([(CONTENT_TYPE, metrics::CONTENT)], text)
}

async fn node_status(node: Arc<Node>, statistics: bool) -> NodeStatus {
    let mut status = NodeStatus {
        node: node.name.clone(),
        mirrors: Vec::with_capacity(node.mirrors.len()),
        down: Vec::new(),
        resident_bytes: statistics.then(memory::resident_bytes).flatten(),
    };
    // All are asked at once: a mirror that hangs must not keep the others from being seen.
    let asked: Vec<_> = (0..node.mirrors.len())
        .map(|index| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { mirror_status(&node.mirrors[index], statistics).await })
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
    status
}

/// The state of one mirror, or why there is none.
async fn mirror_status(entry: &MirrorEntry, statistics: bool) -> Result<MirrorStatus, String> {
    let (port, exports, device) = match &entry.state {
        MirrorState::Running {
            port,
            exports,
            device,
        } => (port, exports, device),
        MirrorState::Down { reason } => return Err(reason.clone()),
    };
    let mut status = in_time(QUERY_TIMEOUT, &entry.name, port.status(statistics))
        .await
        .map_err(|Failed(_, refusal)| refusal.reason)?;
    status.exports = exports.clone();
    status.device = device
        .as_ref()
        .and_then(DevicePort::attached)
        .map(|path| path.display().to_string());
    status.device_waits = device.as_ref().is_some_and(DevicePort::waits);
    Ok(status)
}

async fn command(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CommandReply>, Failed> {
    let request: CommandRequest = failed::body(&MIRRORD, request).await?;
    let entry = find(&node, &name)?;
    let port = running(entry)?;
    let command = Command::from(request);
    if command == Command::Demote
        && let Some(device) = device_of(entry)
    {
        // A device without its mirror is of use to nobody.
        detach(&name, device, false).await?;
    }
    if matches!(command, Command::Lease { .. }) {
        // Renewals come several times a second and are no news.
        tracing::debug!(mirror = name, ?command, "command");
    } else {
        tracing::info!(mirror = name, ?command, "command");
    }
    match in_time(COMMAND_TIMEOUT, &name, port.command(command)).await? {
        Ok(message) => Ok(Json(CommandReply { message })),
        Err(refusal) => {
            tracing::info!(mirror = name, ?command, "refused: {refusal}");
            Err(Failed(StatusCode::CONFLICT, refusal))
        }
    }
}

async fn device(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CommandReply>, Failed> {
    let request: DeviceRequest = failed::body(&MIRRORD, request).await?;
    let entry = find(&node, &name)?;
    running(entry)?;
    let Some(device) = device_of(entry) else {
        let refusal = Refusal::new(
            "no-device",
            format!("{name} has no device on this node"),
            "name one in its section of this node, device = \"/dev/nbd0\", and restart mirrord",
        );
        return Err(Failed(StatusCode::CONFLICT, refusal));
    };
    tracing::info!(mirror = name, ?request, "device");
    let message = match request {
        DeviceRequest::Attach => {
            let asked = in_time(COMMAND_TIMEOUT, &name, device.attach()).await?;
            asked.map_err(|refusal| Failed(StatusCode::CONFLICT, refusal))?
        }
        DeviceRequest::Detach { force } => detach(&name, device, force).await?,
    };
    Ok(Json(CommandReply { message }))
}

async fn detach(mirror: &str, device: &DevicePort, force: bool) -> Result<String, Failed> {
    let asked = in_time(COMMAND_TIMEOUT, mirror, device.detach(force)).await?;
    asked.map_err(|refusal| Failed(StatusCode::CONFLICT, refusal))
}

fn device_of(entry: &MirrorEntry) -> Option<&DevicePort> {
    match &entry.state {
        MirrorState::Running { device, .. } => device.as_ref(),
        MirrorState::Down { .. } => None,
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

async fn events(
    State(node): State<Arc<Node>>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<EventPage>, Failed> {
    let Query(query) =
        query.map_err(|rejection| Failed::bad_request(&MIRRORD, &rejection.body_text()))?;
    Ok(Json(node.events.page(query.after, query.wait()).await))
}

async fn confirm(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<ConfirmWanted>, Failed> {
    let Query(query) =
        query.map_err(|rejection| Failed::bad_request(&MIRRORD, &rejection.body_text()))?;
    let port = running(find(&node, &name)?)?;
    match tokio::time::timeout(query.wait(), port.confirm_wanted(query.after)).await {
        Ok(Ok(ticket)) => Ok(Json(ConfirmWanted { ticket })),
        Ok(Err(gone)) => Err(not_running(&name, &gone.to_string())),
        // Nothing newer came; the caller asks again.
        Err(_) => Ok(Json(ConfirmWanted {
            ticket: query.after,
        })),
    }
}

async fn no_such_call() -> Failed {
    Failed::unknown_call(&MIRRORD)
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

async fn in_time<T>(
    limit: Duration,
    mirror: &str,
    asked: impl Future<Output = Result<T, Gone>>,
) -> Result<T, Failed> {
    let gone = |gone: Gone| not_running(mirror, &gone.to_string());
    let what = format!("the mirror {mirror}");
    failed::in_time(&MIRRORD, limit, &what, gone, asked).await
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
