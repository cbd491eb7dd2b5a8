//! Answers that are no success, and what every call of a control API is bounded by. Every refusal, of
//! whatever cause, is a JSON `Refusal`.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mirror_core::control::Refusal;
use serde::de::DeserializeOwned;

use super::port::Gone;
use super::{Daemon, RECEIVE_TIMEOUT};

/// An answer that is no success.
#[derive(Debug)]
pub struct Failed(pub StatusCode, pub Refusal);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl Failed {
    pub fn bad_request(daemon: &Daemon, reason: &str) -> Self {
        Self(
            StatusCode::BAD_REQUEST,
            Refusal::new("bad-request", reason, same_version(daemon)),
        )
    }

    pub fn unknown_call(daemon: &Daemon) -> Self {
        Self(
            StatusCode::NOT_FOUND,
            Refusal::new(
                "unknown-call",
                "this daemon has no such call",
                same_version(daemon),
            ),
        )
    }

    /// `what` is the thing that was to answer, with its name.
    pub fn timed_out(daemon: &Daemon, what: &str, limit: Duration) -> Self {
        Self(
            StatusCode::GATEWAY_TIMEOUT,
            Refusal::new(
                "timed-out",
                format!("{what} did not answer in {} s", limit.as_secs()),
                format!(
                    "look at its state with `{}` and at the log of {}",
                    daemon.status_command, daemon.name
                ),
            ),
        )
    }
}

fn same_version(daemon: &Daemon) -> String {
    format!("use a mirrorctl of the same version as {}", daemon.name)
}

/// Reads a request's JSON body, within bounds of size and time.
pub async fn body<T: DeserializeOwned>(daemon: &Daemon, request: Request) -> Result<T, Failed> {
    let read: Result<Result<_, JsonRejection>, _> =
        tokio::time::timeout(RECEIVE_TIMEOUT, Json::from_request(request, &())).await;
    match read {
        Ok(Ok(Json(request))) => Ok(request),
        Ok(Err(rejection)) => Err(Failed::bad_request(daemon, &rejection.body_text())),
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

/// Waits for an answer within `limit`; `gone` says what it means that nobody is there to give it.
pub async fn in_time<T>(
    daemon: &Daemon,
    limit: Duration,
    what: &str,
    gone: impl FnOnce(Gone) -> Failed,
    asked: impl Future<Output = Result<T, Gone>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(gone),
        Err(_) => Err(Failed::timed_out(daemon, what, limit)),
    }
}
