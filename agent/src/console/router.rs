//! The calls of the agent's control API. Every refusal, of whatever cause, is a JSON `Refusal`.
//!
//! | status | meaning |
//! |---|---|
//! | 200 | done |
//! | 400 | the body or the query makes no sense |
//! | 404 | no such call |
//! | 408 | the body did not come in time |
//! | 409 | the agent refused the command, or it failed |
//! | 503 | the agent is about to end |
//! | 504 | not done in time; a command goes on |

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use mirror_core::control::Refusal;
use nbd_frontend::control::failed::{self, Failed};
use nbd_frontend::control::port::Gone;
use nbd_frontend::control::ring::PageQuery;
use nbd_frontend::control::{BODY_BYTES_MAX, QUERY_TIMEOUT};

use super::{AGENT, AgentPort, COMMAND_TIMEOUT};
use crate::alert_log::AlertRing;
use crate::control::{AlertPage, ClusterStatus, CommandReply, CommandRequest};

pub fn router(port: AgentPort, alerts: AlertRing) -> Router {
    let asking = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/command", post(command))
        .with_state(port);
    Router::new()
        .route("/v1/alerts", get(page))
        .with_state(alerts)
        .merge(asking)
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

async fn status(State(port): State<AgentPort>) -> Result<Json<ClusterStatus>, Failed> {
    failed::in_time(&AGENT, QUERY_TIMEOUT, "the agent", ended, port.status())
        .await
        .map(Json)
}

async fn command(
    State(port): State<AgentPort>,
    request: Request,
) -> Result<Json<CommandReply>, Failed> {
    let request: CommandRequest = failed::body(&AGENT, request).await?;
    tracing::info!(?request, "command");
    let asked = port.command(request.clone());
    match failed::in_time(&AGENT, COMMAND_TIMEOUT, "the agent", ended, asked).await? {
        Ok(reply) => Ok(Json(reply)),
        Err(refusal) => {
            tracing::info!(?request, "refused: {refusal}");
            Err(Failed(StatusCode::CONFLICT, refusal))
        }
    }
}

async fn page(
    State(alerts): State<AlertRing>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<AlertPage>, Failed> {
    let Query(query) =
        query.map_err(|rejection| Failed::bad_request(&AGENT, &rejection.body_text()))?;
    Ok(Json(alerts.page(query.after, query.wait()).await))
}

async fn no_such_call() -> Failed {
    Failed::unknown_call(&AGENT)
}

/// The agent's task went away with the question.
fn ended(_: Gone) -> Failed {
    Failed(
        StatusCode::SERVICE_UNAVAILABLE,
        Refusal::new(
            "agent-ending",
            "the agent of this node is ending and answers no more",
            "see in its log why, and start it again",
        ),
    )
}
