//! Listening sockets of one export, and the life of its connections.
//!
//! [`Server::start`] binds everything or nothing. Connections are limited in number and, until they
//! have agreed, in time. Clients from the network and clients of this host have places of their own, and where
//! all are taken, whoever is longest in the handshake makes room: strangers keep no client out. [`Server::drain`] lets connections end after the answers in flight and
//! keeps listening (new clients are told why they are refused); [`Server::stop`] ends everything
//! and removes the socket file. Nothing outlives the server: dropping it closes what is left.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::connection::{Connection, ConnectionError, shake_hands};
use super::export::{Export, ExportInfo};
use super::handshake::Agreed;
use super::stream::{Input, Stream};
use super::tls::ServerTls;
use crate::seldom::Seldom;

/// Where an export is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file, mode 0600.
    Unix(PathBuf),
    /// Port 0 takes a free one; see [`Server::addresses`].
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// What clients may take of a server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, those in the handshake included; as many again over TCP. A further one takes the
    /// place of the one that is longest in the handshake, and is closed at once where there is none.
    pub connections_max: usize,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For a client that stops in the middle of a request or does not take its replies.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// One connection's share of the buffer pool for reads.
    pub(super) fn read_bytes_max(&self, pool_bytes: usize) -> usize {
        (pool_bytes / 8).clamp(1 << 20, 16 << 20)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "another process is listening on {path}; stop it, or choose another run directory",
        path = .0.display()
    )]
    InUse(PathBuf),
    #[error("{path} exists and is not a socket; move it away", path = .0.display())]
    NotASocket(PathBuf),
    #[error("cannot listen on {address}; check the address and the rights on it")]
    Bind {
        address: Address,
        #[source]
        source: io::Error,
    },
}

/// A running server for one export. Lives on one thread of a ring.
pub struct Server {
    shared: Rc<Shared>,
    addresses: Vec<Address>,
    acceptors: Vec<JoinHandle<()>>,
    /// Removed at the end.
    socket_files: Vec<SocketFile>,
}

impl Server {
    /// Binds all addresses and begins to accept. With `tls`, clients over TCP have to begin TLS
    /// before anything else. Must be called in a task of a ring's runtime.
    pub fn start(
        export: Rc<dyn Export>,
        addresses: &[Address],
        tls: Option<ServerTls>,
        limits: Limits,
    ) -> Result<Self, ListenError> {
        let mut listeners = Vec::new();
        let mut socket_files = Vec::new();
        for address in addresses {
            let bind = |source| ListenError::Bind {
                address: address.clone(),
                source,
            };
            match address {
                Address::Unix(path) => {
                    let (listener, file) = bind_unix(path)?;
                    socket_files.push(file);
                    listeners.push(Listener::Unix(listener));
                }
                Address::Tcp(address) => {
                    listeners.push(Listener::Tcp(bind_tcp(*address).map_err(bind)?));
                }
            }
        }
        let mut bound = Vec::new();
        for (listener, address) in listeners.iter().zip(addresses) {
            bound.push(match (listener, address) {
                (Listener::Tcp(listener), Address::Tcp(_)) => {
                    let local = listener.local_addr();
                    Address::Tcp(local.map_err(|source| ListenError::Bind {
                        address: address.clone(),
                        source,
                    })?)
                }
                _ => address.clone(),
            });
        }
        let shared = Rc::new(Shared {
            export,
            tls,
            limits,
            connections: RefCell::default(),
            next_number: Cell::new(0),
            ended: Notify::new(),
            seldom: Seldom::default(),
        });
        let acceptors = listeners
            .into_iter()
            .map(|listener| tokio::task::spawn_local(accept(Rc::clone(&shared), listener)))
            .collect();
        Ok(Self {
            shared,
            addresses: bound,
            acceptors,
            socket_files,
        })
    }

    /// Where it listens, with real port numbers.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.connections.borrow().len()
    }

    /// Ends every connection: after the answers in flight, or by force after `limit`. Requests that
    /// still come are refused with ESHUTDOWN. New clients may come meanwhile and are handled as
    /// [`super::export::ExportInfo::serving`] says; call it when the mirror no longer serves.
    pub async fn drain(&self, limit: Duration) {
        self.shared.drain(limit).await;
    }

    /// Stops listening, ends every connection as [`Server::drain`] does, removes the socket files.
    pub async fn stop(mut self, limit: Duration) {
        self.stop_accepting();
        self.shared.drain(limit).await;
    }

    /// Serves a client that needs no handshake: it was told all about the export in another way, as the kernel is.
    /// `ended` is called when the connection is gone.
    pub fn adopt(&self, socket: UnixStream, ended: impl FnOnce() + 'static) -> io::Result<()> {
        let stream = Rc::new(Stream::adopt(socket)?);
        let number = self.shared.enter(Origin::Adopted, &stream);
        let shared = Rc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            let input = Input::new(shared.limits.stall_timeout);
            let info = shared.export.info();
            let connection = shared.transmit(number, &stream, Agreed::PLAIN, &info);
            if let Some(entry) = shared.connections.borrow_mut().get_mut(&number) {
                entry.follows_size = true;
            }
            let served = connection.run(input).await;
            shared.leave(number, &stream, "the kernel", served);
            ended();
        });
        Ok(())
    }

    /// The export has grown. Only who was adopted is served beyond what was agreed.
    pub fn resize(&self, size_bytes: u64) {
        for entry in self.shared.connections.borrow().values() {
            if let Some(connection) = entry.connection.as_ref().filter(|_| entry.follows_size) {
                connection.resize(size_bytes);
            }
        }
    }

    fn stop_accepting(&mut self) {
        for acceptor in self.acceptors.drain(..) {
            acceptor.abort();
        }
        self.socket_files.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        self.shared.close_all();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

struct Shared {
    export: Rc<dyn Export>,
    /// Of TCP clients.
    tls: Option<ServerTls>,
    limits: Limits,
    connections: RefCell<HashMap<u64, Entry>>,
    next_number: Cell<u64>,
    /// A connection ended.
    ended: Notify,
    /// For what strangers can bring into the log.
    seldom: Seldom,
}

/// A connection as the server knows it: until it has agreed, only a socket.
struct Entry {
    origin: Origin,
    stream: Rc<Stream>,
    connection: Option<Rc<Connection>>,
    follows_size: bool,
}

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Unix,
    Tcp,
    /// Never accepted, so it takes nobody's place and nobody takes its own.
    Adopted,
}

impl Shared {
    async fn drain(&self, limit: Duration) {
        for entry in self.connections.borrow().values() {
            match &entry.connection {
                Some(connection) => connection.drain(),
                None => entry.stream.shutdown(),
            }
        }
        let numbers: Vec<u64> = self.connections.borrow().keys().copied().collect();
        let all_ended = async {
            loop {
                let ended = self.ended.notified();
                if !self.has_any(&numbers) {
                    return;
                }
                ended.await;
            }
        };
        tokio::pin!(all_ended);
        if tokio::time::timeout(limit, &mut all_ended).await.is_err() {
            tracing::warn!(?limit, "closing NBD connections with unanswered requests");
            self.close(&numbers);
            all_ended.await;
        }
    }

    fn has_any(&self, numbers: &[u64]) -> bool {
        let connections = self.connections.borrow();
        numbers
            .iter()
            .any(|number| connections.contains_key(number))
    }

    fn close(&self, numbers: &[u64]) {
        for number in numbers {
            // Taken out of the map first: closing calls back into the connection.
            let found = self
                .connections
                .borrow()
                .get(number)
                .map(|entry| (Rc::clone(&entry.stream), entry.connection.clone()));
            if let Some((stream, connection)) = found {
                stream.shutdown();
                if let Some(connection) = connection {
                    connection.close();
                }
            }
        }
    }

    fn close_all(&self) {
        let numbers: Vec<u64> = self.connections.borrow().keys().copied().collect();
        self.close(&numbers);
    }

    fn admit(self: &Rc<Self>, stream: Stream, origin: Origin, client: String) {
        if !self.make_room(origin) {
            if let Some(left_out) = self.seldom.turn() {
                tracing::warn!(
                    client,
                    limit = self.limits.connections_max,
                    left_out,
                    "too many NBD connections"
                );
            }
            return;
        }
        let stream = Rc::new(stream);
        let number = self.enter(origin, &stream);
        let shared = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let served = shared.serve(number, &stream).await;
            shared.leave(number, &stream, &client, served);
        });
    }

    fn enter(&self, origin: Origin, stream: &Rc<Stream>) -> u64 {
        let number = self.next_number.replace(self.next_number.get() + 1);
        let entry = Entry {
            origin,
            stream: Rc::clone(stream),
            connection: None,
            follows_size: false,
        };
        self.connections.borrow_mut().insert(number, entry);
        number
    }

    fn leave(
        &self,
        number: u64,
        stream: &Stream,
        client: &str,
        served: Result<(), ConnectionError>,
    ) {
        match served {
            Ok(()) => tracing::debug!(client, number, "NBD client left"),
            Err(error) => {
                if let Some(left_out) = self.seldom.turn() {
                    tracing::warn!(client, number, left_out, %error, "NBD connection closed");
                }
            }
        }
        stream.shutdown();
        self.connections.borrow_mut().remove(&number);
        self.ended.notify_waiters();
    }

    /// Whether there is a place for one more, if need be that of the longest in the handshake.
    fn make_room(&self, origin: Origin) -> bool {
        let mut connections = self.connections.borrow_mut();
        let alike = |entry: &&Entry| entry.origin == origin;
        if connections.values().filter(alike).count() < self.limits.connections_max {
            return true;
        }
        let slowest = connections
            .iter()
            .filter(|(_, entry)| entry.origin == origin && entry.connection.is_none())
            .map(|(number, _)| *number)
            .min();
        let Some(entry) = slowest.and_then(|number| connections.remove(&number)) else {
            return false;
        };
        drop(connections);
        entry.stream.shutdown();
        true
    }

    async fn serve(&self, number: u64, stream: &Rc<Stream>) -> Result<(), ConnectionError> {
        let mut input = Input::new(self.limits.stall_timeout);
        let limit = self.limits.handshake_timeout;
        let handshake = shake_hands(stream, &mut input, &*self.export);
        let agreed = tokio::time::timeout(limit, handshake)
            .await
            .unwrap_or(Err(ConnectionError::HandshakeTimeout(limit)))?;
        let Some((agreed, info)) = agreed else {
            return Ok(());
        };
        let connection = self.transmit(number, stream, agreed, &info);
        connection.run(input).await
    }

    fn transmit(
        &self,
        number: u64,
        stream: &Rc<Stream>,
        agreed: Agreed,
        info: &ExportInfo,
    ) -> Rc<Connection> {
        let (stream, export) = (Rc::clone(stream), Rc::clone(&self.export));
        let connection = Connection::new(stream, export, self.limits.clone(), agreed, info);
        if let Some(entry) = self.connections.borrow_mut().get_mut(&number) {
            entry.connection = Some(Rc::clone(&connection));
        }
        connection
    }
}

enum Listener {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

async fn accept(shared: Rc<Shared>, listener: Listener) {
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener
                .accept()
                .await
                .map(|(socket, _)| (Stream::from_unix(socket), Origin::Unix, "unix".to_owned())),
            Listener::Tcp(listener) => listener.accept().await.and_then(|(socket, peer)| {
                let stream = Stream::from_tcp(socket, shared.tls.as_ref())?;
                Ok((stream, Origin::Tcp, peer.to_string()))
            }),
        };
        match accepted {
            Ok((stream, origin, client)) => shared.admit(stream, origin, client),
            Err(error) => {
                // Out of descriptors, most likely. Trying at once again would only spin.
                tracing::warn!(%error, "cannot accept an NBD connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Binds under a temporary name and moves it over `path`, so that whoever sees the file can connect
/// to it, and a file left by a dead process is replaced without a gap.
fn bind_unix(path: &Path) -> Result<(tokio::net::UnixListener, SocketFile), ListenError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ListenError::InUse(path.to_owned()));
        }
        _ => {}
    }
    let bind = || -> io::Result<_> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(temporary);
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        // Linux gives the file the mode of the socket: at no moment can anyone else connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&socket2::SockAddr::unix(&temporary)?)?;
        let renamed = socket
            .listen(128)
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = renamed {
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        let metadata = std::fs::symlink_metadata(path)?;
        let file = SocketFile {
            path: path.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
        };
        let listener = tokio::net::UnixListener::from_std(socket.into())?;
        tracing::debug!(path = %path.display(), fd = listener.as_raw_fd(), "listening");
        Ok((listener, file))
    };
    bind().map_err(|source| ListenError::Bind {
        address: Address::Unix(path.to_owned()),
        source,
    })
}

/// Our socket file, removed when dropped unless someone else's has taken its place.
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}
