//! The heartbeat paths: one UDP socket each, bound to this node's address of the path.

use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use nbd_frontend::config::agent::HeartbeatPath;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::membership::BEAT_BYTES_MAX;
use crate::node::event::Event;

#[derive(Debug)]
pub struct Paths {
    paths: Vec<Path>,
}

#[derive(Debug)]
struct Path {
    socket: std::sync::Arc<UdpSocket>,
    peer: SocketAddr,
}

impl Paths {
    /// Binds every path and hands what comes in to `events`. What does not fit there is dropped: the
    /// next beat says the same.
    pub fn open(
        paths: &[HeartbeatPath],
        me: usize,
        events: &mpsc::Sender<Event>,
    ) -> anyhow::Result<Self> {
        let mut opened = Vec::with_capacity(paths.len());
        for (index, path) in paths.iter().enumerate() {
            let address = path.addresses[me];
            let socket = bind(address).with_context(|| {
                format!(
                    "cannot listen on {address} for heartbeat path {}: is another agent running here, \
                     or is the address written to the wrong node?",
                    path.name
                )
            })?;
            let socket = std::sync::Arc::new(socket);
            tokio::spawn(receive(
                std::sync::Arc::clone(&socket),
                index,
                events.clone(),
            ));
            opened.push(Path {
                socket,
                peer: path.addresses[1 - me],
            });
        }
        Ok(Self { paths: opened })
    }

    /// A beat that cannot go now is not kept: the next one is as good.
    pub fn send(&self, path: usize, bytes: &[u8]) {
        let Path { socket, peer } = &self.paths[path];
        if let Err(error) = socket.try_send_to(bytes, *peer) {
            tracing::trace!(path, %peer, "a heartbeat did not go: {error}");
        }
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

async fn receive(socket: std::sync::Arc<UdpSocket>, path: usize, events: mpsc::Sender<Event>) {
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
