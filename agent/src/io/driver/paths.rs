//! The heartbeat paths: one UDP socket each, bound to this node's address of the path.
//!
//! A path that cannot be bound is tried again for as long as the agent runs; the others carry the
//! heartbeats meanwhile.
//!
//! Only what was made with the cluster key and did not come before gets into the queue of the node, so that a flood of
//! noise or recordings is in nobody's way there; of either one datagram a while is let through, for the node to say that
//! there is some.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::bail;
use nbd_frontend::config::ClusterKey;
use nbd_frontend::config::agent::HeartbeatPath;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::membership::{BEAT_BYTES_MAX, Beat, BeatKey, Sieve};
use crate::node::event::Event;

/// Between two tries to bind a path.
const BIND_PAUSE: Duration = Duration::from_secs(5);
/// Between two datagrams of no use that the node hears of, on one path and of one sort.
const USELESS_PAUSE: Duration = Duration::from_secs(1);

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
        key: &ClusterKey,
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
            tokio::spawn(serve(
                Arc::clone(&socket),
                address,
                index,
                BeatKey::new(key),
                events.clone(),
            ));
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
    pub fn send(&self, path: usize, to: Option<SocketAddr>, bytes: &[u8]) {
        let Path { socket, peer } = &self.paths[path];
        let Some(socket) = socket.get() else { return };
        let to = to.unwrap_or(*peer);
        if let Err(error) = socket.try_send_to(bytes, to) {
            tracing::trace!(path, %to, "a heartbeat did not go: {error}");
        }
    }
}

async fn serve(
    socket: Arc<OnceLock<UdpSocket>>,
    address: SocketAddr,
    path: usize,
    key: BeatKey,
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
        receive(socket, path, &key, events).await;
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

async fn receive(socket: &UdpSocket, path: usize, key: &BeatKey, events: mpsc::Sender<Event>) {
    let mut sieve = Sieve::default();
    let [mut noise, mut recordings] = [Trickle::default(), Trickle::default()];
    // One more than a beat may have, so that a longer one is seen to be none.
    let mut buffer = [0; BEAT_BYTES_MAX + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let bytes = buffer[..length].to_vec();
                let passes = match Beat::decode(&bytes, key) {
                    Ok(beat) => sieve.is_new(&beat) || recordings.passes(),
                    Err(_) => noise.passes(),
                };
                if !passes {
                    continue;
                }
                let event = Event::Received { path, from, bytes };
                if events.try_send(event).is_err() && events.is_closed() {
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

/// Lets one through, and the next after a pause.
#[derive(Debug, Default)]
struct Trickle {
    passed: Option<Instant>,
}

impl Trickle {
    fn passes(&mut self) -> bool {
        let soon = self
            .passed
            .is_some_and(|passed| passed.elapsed() < USELESS_PAUSE);
        if !soon {
            self.passed = Some(Instant::now());
        }
        !soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Kind, Run};
    use mirror_core::units::Uuid;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn neither_noise_nor_recordings_crowd_out_a_beat() {
        let key = ClusterKey::new(&[7; 32]).unwrap();
        let beat = |sequence| {
            let beat = Beat {
                cluster: Uuid([1; 16]),
                node: Uuid([2; 16]),
                path: 0,
                run: Run(3),
                heard: Run(4),
                heard_sequence: 1,
                sequence,
                kind: Kind::Alive,
                body: Vec::new(),
            };
            beat.encode(&BeatKey::new(&key))
        };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..50 {
            stranger.send_to(b"noise", address).await.unwrap();
            stranger.send_to(&beat(5), address).await.unwrap();
        }
        stranger.send_to(&beat(6), address).await.unwrap();
        // Far less room than noise.
        let (sender, mut events) = mpsc::channel(4);
        let own = BeatKey::new(&key);
        tokio::spawn(async move { receive(&socket, 0, &own, sender).await });
        let mut heard = Vec::new();
        let last = stranger.local_addr().unwrap();
        while heard.len() < 4 {
            let event = tokio::time::timeout(LIMIT, events.recv()).await;
            match event.unwrap() {
                Some(Event::Received { bytes, from, .. }) => {
                    assert_eq!(from, last);
                    heard.push(bytes);
                }
                _ => panic!("nothing else comes in here"),
            }
        }
        // One of each to tell that they come, and what is new.
        let expected = [b"noise".to_vec(), beat(5), beat(5), beat(6)];
        assert_eq!(heard, expected);
    }
}
