//! Accepts the peer's connections and pairs them into links.
//!
//! Whoever connects costs at most one of [`HALF_OPEN_MAX`] places for a few seconds. When all are
//! taken the oldest one goes, strangers before the peer's own address, so that connections that
//! never say anything cannot keep the real peer out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::error::LinkError;
use super::handshake::{self, Credentials, STAGE_TIMEOUT, Trusted};
use super::{Pair, Wanted};
use crate::io::error::OpenError;
use crate::wire::message::Channel;

/// Connections that have not proved themselves yet.
pub const HALF_OPEN_MAX: usize = 16;
/// First connections of a link that wait for their second.
const WAITING_MAX: usize = 4;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where this node listens for its peer.
pub struct Listener {
    socket: TcpListener,
    shared: Rc<Shared>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

struct Shared {
    credentials: Rc<Credentials>,
    peer: IpAddr,
    wanted: Wanted,
    pairs: mpsc::Sender<Pair>,
    refused: Rc<dyn Fn(&LinkError)>,
    half_open: RefCell<VecDeque<HalfOpen>>,
    waiting: RefCell<VecDeque<(Trusted, Instant)>>,
    next: Cell<u64>,
}

struct HalfOpen {
    number: u64,
    address: IpAddr,
    task: AbortHandle,
}

impl Listener {
    /// Binds `address`. Links are delivered to `pairs`; a connection that failed to become part of
    /// one is told to `refused`.
    pub fn bind(
        address: SocketAddr,
        peer: SocketAddr,
        credentials: Rc<Credentials>,
        wanted: Wanted,
        pairs: mpsc::Sender<Pair>,
        refused: Rc<dyn Fn(&LinkError)>,
    ) -> Result<Self, OpenError> {
        let bound = bind(address).map_err(|source| OpenError::Listen { address, source })?;
        Ok(Self {
            socket: bound,
            shared: Rc::new(Shared {
                credentials,
                peer: peer.ip(),
                wanted,
                pairs,
                refused,
                half_open: RefCell::default(),
                waiting: RefCell::default(),
                next: Cell::new(0),
            }),
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts for ever; ends when dropped.
    pub async fn run(self) {
        let _half_open = AbortOnDrop(Rc::clone(&self.shared));
        loop {
            match self.socket.accept().await {
                // While no link is wanted nobody is heard.
                Ok((_, address)) if !self.shared.wanted.get() => {
                    debug!(%address, "turned away: no link is wanted");
                }
                Ok((stream, address)) => self.shared.admit(stream, address),
                Err(error) => {
                    warn!(%error, "cannot accept the peer's connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

struct AbortOnDrop(Rc<Shared>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        for half_open in self.0.half_open.borrow_mut().drain(..) {
            half_open.task.abort();
        }
        self.0.waiting.borrow_mut().clear();
    }
}

impl Shared {
    fn admit(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        self.make_room();
        let number = self.next.replace(self.next.get() + 1);
        let shared = Rc::clone(self);
        let task = tokio::task::spawn_local(async move {
            let outcome = handshake::accept(stream, &shared.credentials).await;
            shared
                .half_open
                .borrow_mut()
                .retain(|half_open| half_open.number != number);
            match outcome {
                Ok(trusted) => shared.pair(trusted),
                Err(error) => {
                    debug!(%address, %error, "connection refused");
                    (shared.refused)(&error);
                }
            }
        });
        self.half_open.borrow_mut().push_back(HalfOpen {
            number,
            address: address.ip(),
            task: task.abort_handle(),
        });
    }

    fn make_room(&self) {
        let mut half_open = self.half_open.borrow_mut();
        if half_open.len() < HALF_OPEN_MAX {
            return;
        }
        let stranger = half_open
            .iter()
            .position(|half_open| half_open.address != self.peer);
        if let Some(victim) = half_open.remove(stranger.unwrap_or(0)) {
            debug!(address = %victim.address, "dropped a connection that never proved itself");
            victim.task.abort();
        }
    }

    fn pair(&self, trusted: Trusted) {
        let mut waiting = self.waiting.borrow_mut();
        let now = Instant::now();
        waiting.retain(|(_, deadline)| *deadline > now);
        let other = waiting
            .iter()
            .position(|(first, _)| first.token == trusted.token);
        let Some((first, _)) = other.and_then(|other| waiting.remove(other)) else {
            if waiting.len() == WAITING_MAX {
                waiting.pop_front();
            }
            waiting.push_back((trusted, now + STAGE_TIMEOUT));
            return;
        };
        let pair = match (first.channel, trusted.channel) {
            (Channel::Control, Channel::Data) => Pair {
                control: first,
                data: trusted,
            },
            (Channel::Data, Channel::Control) => Pair {
                control: trusted,
                data: first,
            },
            _ => return,
        };
        if self.pairs.try_send(pair).is_err() {
            debug!("dropped a link: too many at once");
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(64)?;
    TcpListener::from_std(socket.into())
}
