//! The witness's calls over HTTP, with limits on everything that a caller sends.
//!
//! | call | answers |
//! |---|---|
//! | `GET /`, `GET /health`, also `HEAD` | 200 while it serves |
//! | `POST /v1/clusters/NAME` | an [`Answer`] with a proof, or a [`Denial`] |
//! | `GET /v1/status` | what it knows, to callers on this host only |

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nbd_frontend::seldom::Seldom;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::service::Service;
use crate::arbiter::envelope::{
    Answer, Ask, Denial, DenialKind, MESSAGE_BYTES_MAX, PROOF_HEADER, Proof, path_of,
};
use crate::io::places::{Place, Places};

/// Connections of nodes served at once. Each node of each cluster keeps one or two.
const CONNECTIONS_MAX: usize = 4096;
/// Connections over which no call has counted yet. One more takes the place of the oldest, so that strangers keep
/// no node out; and as many nodes may come at once when the witness was away.
const STRANGERS_MAX: usize = 1024;
/// Longest a caller may take to send the head of a request, idle time before it included; and again for
/// its body. Longer than clients keep an idle connection.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most that is read ahead of a connection.
const CONNECTION_BUFFER_BYTES_MAX: usize = 16 << 10;
/// Pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest a stop waits for calls under way. What they were told is durable in any case.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A proxy in front says with one of these for whom it asks.
const FORWARDED_HEADERS: [&str; 3] = ["forwarded", "x-forwarded-for", "via"];

#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

#[derive(Debug, Clone)]
struct Asking {
    service: Arc<Service>,
    /// For what strangers can bring into the log.
    seldom: Arc<Seldom>,
}

/// Serves until `stop` becomes true, and then what is under way.
pub async fn serve(listener: TcpListener, service: Arc<Service>, mut stop: watch::Receiver<bool>) {
    let router = router(Asking {
        service,
        seldom: Arc::default(),
    });
    let places = Places::new(STRANGERS_MAX, CONNECTIONS_MAX);
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => places.admit(|place| {
                let router = router
                    .clone()
                    .layer(Extension(Peer(peer)))
                    .layer(Extension(Arc::new(place)));
                serve_connection(stream, router, stop.clone())
            }),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(STOP_TIMEOUT, places.wait_until_empty()).await;
}

async fn serve_connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // A small answer must not wait for the next.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(RECEIVE_TIMEOUT)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        // The guard that it returns must not live on.
        () = async { drop(stop.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection broke: {error}");
    }
}

fn router(asking: Asking) -> Router {
    Router::new()
        .route("/", get(health))
        .route("/health", get(health))
        .route("/v1/status", get(status))
        .route(&path_of("{cluster}"), post(call))
        .with_state(asking)
}

async fn health() -> &'static str {
    "mirror-witness serves\n"
}

async fn status(
    State(Asking { service, .. }): State<Asking>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    let forwarded = FORWARDED_HEADERS
        .iter()
        .any(|name| headers.contains_key(*name));
    if forwarded || !is_loopback(peer.0.ip()) {
        let refusal = "the status is for this host only; ask there, on 127.0.0.1\n";
        return (StatusCode::FORBIDDEN, refusal).into_response();
    }
    match blocking(move || service.status()).await {
        Some(status) => Json(status).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

async fn call(
    State(Asking { service, seldom }): State<Asking>,
    Extension(peer): Extension<Peer>,
    Extension(place): Extension<Arc<Place>>,
    Path(cluster): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let denied = |status, denied, message: String| {
        if let Some(left_out) = seldom.turn() {
            tracing::warn!(peer = %peer.0, cluster, left_out, "turned away: {message}");
        }
        (status, Json(Denial { denied, message })).into_response()
    };
    let bad = |message: &str| {
        denied(
            StatusCode::BAD_REQUEST,
            DenialKind::BadRequest,
            message.into(),
        )
    };
    let Some(key) = service.key(&cluster).cloned() else {
        // Escaped: a stranger's words must not look like lines of our log.
        let message = format!("this witness does not know cluster {cluster:?}");
        return denied(StatusCode::NOT_FOUND, DenialKind::UnknownCluster, message);
    };
    let received = tokio::time::timeout(RECEIVE_TIMEOUT, to_bytes(body, MESSAGE_BYTES_MAX)).await;
    let body = match received {
        Ok(Ok(body)) => body,
        unread => {
            let mut refusal = match unread {
                Err(_) => bad("the request did not arrive in time"),
                Ok(_) => bad("the request is too long, or broke off"),
            };
            // The rest of it is not read, so that no other can follow on this connection.
            let close = HeaderValue::from_static("close");
            refusal.headers_mut().insert(header::CONNECTION, close);
            return refusal;
        }
    };
    let proof = headers
        .get(PROOF_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(Proof::parse);
    let Some(proof) = proof else {
        return bad("the request has no proof of the cluster key");
    };
    if !key.is_request(&body, &proof) {
        let message = format!("the request was not made with the key of cluster {cluster}");
        return denied(StatusCode::UNAUTHORIZED, DenialKind::WrongKey, message);
    }
    let answer = match serde_json::from_slice::<Ask>(&body) {
        Err(error) => Answer::BadCall {
            reason: format!("it is not understood: {error}"),
        },
        Ok(ask) => {
            let name = cluster.clone();
            match blocking(move || service.answer(&name, &ask))
                .await
                .flatten()
            {
                Some(answer) => answer,
                None => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
    };
    // A recorded call counts no second time, so no recording earns a place.
    if matches!(answer, Answer::Replied { .. }) {
        place.earn();
    }
    let body = serde_json::to_vec(&answer).expect("an answer has no map with odd keys");
    let proof = key.prove_reply(&proof, &body).to_string();
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json".to_owned()),
        (PROOF_HEADER, proof),
    ];
    (status_of(&answer), headers, body).into_response()
}

/// For the logs of proxies; nodes read the body.
fn status_of(answer: &Answer) -> StatusCode {
    match answer {
        Answer::Welcome { .. } | Answer::Replied { .. } => StatusCode::OK,
        Answer::UnknownSession | Answer::Displaced | Answer::Replayed => StatusCode::CONFLICT,
        Answer::BadCall { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Answer::NotRecorded { .. } => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Runs to its end even if the caller goes away: a change must not stop half-way.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    if let Err(error) = &done {
        tracing::error!("a call could not be carried out: {error}");
    }
    done.ok()
}
