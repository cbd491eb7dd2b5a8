//! Serves a router on a control socket: bounded in connections, and in the time that a caller
//! may take to say what it wants.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Callers served at once; more wait in the backlog of the socket.
const CONNECTIONS_MAX: usize = 64;
/// Longest time a connection may live where nothing else is said.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs until its task is dropped.
pub async fn serve(listener: UnixListener, router: Router) {
    serve_for(listener, router, CONNECTION_TIMEOUT).await;
}

/// As [`serve`], for calls that may take longer: no connection lives longer than `connection_timeout`,
/// which is to be well above the bound of every call.
pub async fn serve_for(listener: UnixListener, router: Router, connection_timeout: Duration) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    let served = serve_connection(stream, router);
                    if tokio::time::timeout(connection_timeout, served)
                        .await
                        .is_err()
                    {
                        tracing::debug!("a control connection lived too long and was closed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept on the control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counted from the end of the request before, so that it bounds idleness as well.
        .header_read_timeout(super::RECEIVE_TIMEOUT)
        .max_buf_size(super::BODY_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!("a control connection broke: {error}");
    }
}
