//! The heartbeat paths: one UDP socket each, bound to this node's address of the path.
//!
//! A path that cannot be bound is tried again for as long as the agent runs; the others carry the
//! heartbeats meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::bail;
use nbd_frontend::config::agent::HeartbeatPath;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::membership::BEAT_BYTES_MAX;
use crate::node::event::Event;

/// Between two tries to bind a path.
const BIND_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Paths {
    paths: Vec<Path>,
}

#[derive(Debug)]
struct Path {
    /// Empty until it could be bound.
    socket: Arc<OnceLock<UdpSocket>>,
    peer: SocketAddr,
}

impl Paths {
    /// Binds every path and hands what comes in to `events`. What does not fit there is dropped: the
    /// next beat says the same. What cannot be bound yet is named in `complaints`; that is an error only
    /// where no path could be.
    pub fn open(
        paths: &[HeartbeatPath],
        me: usize,
        events: &mpsc::Sender<Event>,
        complaints: &mut Vec<String>,
    ) -> anyhow::Result<Self> {
        let mut opened = Vec::with_capacity(paths.len());
        let mut failures = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let address = path.addresses[me];
            let socket = Arc::new(OnceLock::new());
            match bind(address) {
                Ok(bound) => {
                    let _ = socket.set(bound);
                }
                Err(error) => failures.push(format!(
                    "cannot listen on {address} for heartbeat path {}: {error}; look for the \
                     program that does with `ss -ulpn sport = :{}`, or mend the address",
                    path.name,
                    address.port()
                )),
            }
            tokio::spawn(serve(Arc::clone(&socket), address, index, events.clone()));
            opened.push(Path {
                socket,
                peer: path.addresses[1 - me],
            });
        }
        if failures.len() == paths.len() {
            bail!("{}", failures.join("\n"));
        }
        complaints.append(&mut failures);
        Ok(Self { paths: opened })
    }

    /// A beat that cannot go now is not kept: the next one is as good.
    pub fn send(&self, path: usize, bytes: &[u8]) {
        let Path { socket, peer } = &self.paths[path];
        let Some(socket) = socket.get() else { return };
        if let Err(error) = socket.try_send_to(bytes, *peer) {
            tracing::trace!(path, %peer, "a heartbeat did not go: {error}");
        }
    }
}

async fn serve(
    socket: Arc<OnceLock<UdpSocket>>,
    address: SocketAddr,
    path: usize,
    events: mpsc::Sender<Event>,
) {
    while socket.get().is_none() {
        tokio::time::sleep(BIND_PAUSE).await;
        match bind(address) {
            Ok(bound) => {
                let _ = socket.set(bound);
            }
            Err(error) => tracing::debug!(path, "cannot listen on {address}: {error}"),
        }
    }
    if let Some(socket) = socket.get() {
        receive(socket, path, events).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // The interface may come up later than the agent.
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn receive(socket: &UdpSocket, path: usize, events: mpsc::Sender<Event>) {
    // One more than a beat may have, so that a longer one is seen to be none.
    let mut buffer = [0; BEAT_BYTES_MAX + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => {
                let bytes = buffer[..length].to_vec();
                if events.try_send(Event::Received { path, bytes }).is_err() && events.is_closed() {
                    return;
                }
            }
            Err(error) => {
                // An ICMP answer to an earlier beat: the other end does not listen.
                tracing::trace!(path, "heartbeat socket: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}
