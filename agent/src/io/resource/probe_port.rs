//! Tells load balancers where the group is online.
//!
//! Over TCP by being there: the port takes connections, and closes them, only while the group is online. Over HTTP by
//! a status: 200 while it is online and 503 otherwise, for `GET` and `HEAD` of any path; that listener is there as
//! soon as the agent prepares its resources.
//!
//! Online means both: the resource was started, and the agent said that the whole group is. From start to stop the
//! TCP port is held, so that a port in use fails the start and not the moment when the group is online.
//!
//! Anybody on the network may ask, so nobody may keep others from asking: where all places are taken, a newcomer gets
//! that of the oldest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nbd_frontend::config::agent::ProbePort as Config;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Presence;
use crate::io::places::Places;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// HTTP connections served at once; one more ends the oldest.
const HTTP_CONNECTIONS_MAX: usize = 64;
/// Longest that a caller may take to send the headers of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// Longest that one connection is kept.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// Most that is read ahead of a connection: the head of a request. The least that the library takes.
const BUFFER_BYTES_MAX: usize = 8 << 10;
/// Pause after an accept failed, for want of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct ProbePort {
    config: Config,
    /// What HTTP answers.
    is_online: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_started: bool,
    is_ready: bool,
    tcp: Tcp,
    http: Option<Listener>,
}

#[derive(Debug, Default)]
enum Tcp {
    #[default]
    Closed,
    /// The port is ours and refuses connections.
    Held(Socket),
    Open(Listener),
}

/// A task that accepts; its socket is closed with it.
#[derive(Debug)]
struct Listener {
    task: JoinHandle<()>,
    address: SocketAddr,
}

impl Listener {
    /// Returns when the socket is closed.
    async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProbePortError {
    #[error(
        "{address} is in use by another program; look for it with `ss -ltnp`, or choose another port"
    )]
    InUse { address: SocketAddr },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("nothing listens on {address} any more")]
    Gone { address: SocketAddr },
}

impl ProbePort {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            is_online: Arc::default(),
            state: Mutex::default(),
        }
    }

    /// Opens the HTTP listener. Done once is enough; `start` does it too.
    pub async fn prepare(&self) -> Result<(), ProbePortError> {
        let mut state = self.state.lock().await;
        if let (Some(address), None) = (self.config.http, &state.http) {
            let is_online = Arc::clone(&self.is_online);
            state.http = Some(Listener::open(bind(address)?, address, |socket| {
                serve_http(socket, is_online)
            })?);
        }
        Ok(())
    }

    pub async fn start(&self) -> Result<(), ProbePortError> {
        self.prepare().await?;
        let mut state = self.state.lock().await;
        if let (Some(address), Tcp::Closed) = (self.config.tcp, &state.tcp) {
            state.tcp = Tcp::Held(bind(address)?);
        }
        state.is_started = true;
        self.show(&mut state).await
    }

    pub async fn stop(&self) {
        let mut state = self.state.lock().await;
        state.is_started = false;
        self.is_online.store(false, Ordering::Release);
        if let Tcp::Open(listener) = std::mem::take(&mut state.tcp) {
            listener.end().await;
        }
    }

    /// The agent's word on the whole group.
    pub async fn set_ready(&self, ready: bool) -> Result<(), ProbePortError> {
        let mut state = self.state.lock().await;
        state.is_ready = ready;
        self.show(&mut state).await
    }

    async fn show(&self, state: &mut State) -> Result<(), ProbePortError> {
        let is_online = state.is_started && state.is_ready;
        self.is_online.store(is_online, Ordering::Release);
        let Some(address) = self.config.tcp else {
            return Ok(());
        };
        state.tcp = match std::mem::take(&mut state.tcp) {
            Tcp::Held(socket) if is_online => {
                Tcp::Open(Listener::open(socket, address, accept_and_close)?)
            }
            // A socket cannot stop to listen, so another one takes its place.
            Tcp::Open(listener) if !is_online => {
                let address = listener.address;
                listener.end().await;
                Tcp::Held(bind(address)?)
            }
            unchanged => unchanged,
        };
        Ok(())
    }

    pub async fn check(&self) -> Result<(), ProbePortError> {
        let state = self.state.lock().await;
        let is_lost = |listener: &Listener| listener.task.is_finished();
        let is_tcp_lost = match &state.tcp {
            Tcp::Closed => true,
            Tcp::Held(_) => false,
            Tcp::Open(listener) => is_lost(listener),
        };
        let is_http_lost = state.http.as_ref().is_none_or(is_lost);
        for (address, is_lost) in [
            (self.config.tcp, is_tcp_lost),
            (self.config.http, is_http_lost),
        ] {
            if let (Some(address), true) = (address, is_lost) {
                return Err(ProbePortError::Gone { address });
            }
        }
        Ok(())
    }

    /// A port goes with its agent, so one that has just begun has none online.
    pub async fn probe_state(&self) -> Presence {
        if self.state.lock().await.is_started {
            Presence::Online
        } else {
            Presence::Offline
        }
    }

    /// Where it listens, TCP and HTTP: the ports that the kernel chose for 0.
    pub async fn addresses(&self) -> [Option<SocketAddr>; 2] {
        let state = self.state.lock().await;
        let tcp = match &state.tcp {
            Tcp::Open(listener) => Some(listener.address),
            Tcp::Closed | Tcp::Held(_) => None,
        };
        [tcp, state.http.as_ref().map(|listener| listener.address)]
    }
}

impl Listener {
    fn open<F>(
        socket: Socket,
        address: SocketAddr,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> Result<Self, ProbePortError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listen = || {
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = listen().map_err(|source| failed(address, source))?;
        Ok(Self {
            task: tokio::spawn(serve(listener)),
            address,
        })
    }
}

fn bind(address: SocketAddr) -> Result<Socket, ProbePortError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // Connections of an earlier time are no reason to refuse the port.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|source| failed(address, source))
}

fn failed(address: SocketAddr, source: io::Error) -> ProbePortError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ProbePortError::InUse { address },
        _ => ProbePortError::Listen { address, source },
    }
}

async fn accept_and_close(socket: TcpListener) {
    loop {
        if let Err(error) = socket.accept().await {
            tracing::warn!("probe port: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn serve_http(socket: TcpListener, is_online: Arc<AtomicBool>) {
    let places = Places::new(HTTP_CONNECTIONS_MAX, 0);
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("probe port: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let is_online = Arc::clone(&is_online);
        places.admit(|place| async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, is_online.load(Ordering::Acquire));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // Balancers hang up as they please, so how it ends tells nothing.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, is_online: bool) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), is_online) {
        (&Method::GET | &Method::HEAD, true) => (StatusCode::OK, "online\n"),
        (&Method::GET | &Method::HEAD, false) => (StatusCode::SERVICE_UNAVAILABLE, "offline\n"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    fn anywhere() -> Option<SocketAddr> {
        Some(([127, 0, 0, 1], 0).into())
    }

    async fn status(method: reqwest::Method, address: SocketAddr) -> u16 {
        let url = format!("http://{address}/any/path");
        // Before any other use of TLS in this process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client
            .request(method, url)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    #[tokio::test]
    async fn http_says_where_the_group_is_online() {
        let port = ProbePort::new(Config {
            tcp: None,
            http: anywhere(),
        });
        port.prepare().await.unwrap();
        let [_, Some(address)] = port.addresses().await else {
            panic!("no address");
        };
        assert_eq!(status(reqwest::Method::GET, address).await, 503);
        port.start().await.unwrap();
        port.start().await.unwrap();
        port.check().await.unwrap();
        assert_eq!(status(reqwest::Method::GET, address).await, 503);
        port.set_ready(true).await.unwrap();
        assert_eq!(status(reqwest::Method::GET, address).await, 200);
        assert_eq!(status(reqwest::Method::HEAD, address).await, 200);
        assert_eq!(status(reqwest::Method::POST, address).await, 405);
        port.stop().await;
        port.stop().await;
        assert_eq!(status(reqwest::Method::HEAD, address).await, 503);
    }

    #[tokio::test]
    async fn callers_who_say_nothing_keep_no_balancer_out() {
        let port = ProbePort::new(Config {
            tcp: None,
            http: anywhere(),
        });
        port.prepare().await.unwrap();
        let [_, Some(address)] = port.addresses().await else {
            panic!("no address");
        };
        let mut silent = Vec::new();
        for _ in 0..HTTP_CONNECTIONS_MAX * 2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Long before the limit of the silent ones is over.
        let asked = tokio::time::timeout(HEADER_LIMIT / 2, status(reqwest::Method::GET, address));
        assert_eq!(asked.await.unwrap(), 503);
    }

    #[tokio::test]
    async fn the_tcp_port_is_open_only_while_online() {
        let port = ProbePort::new(Config {
            tcp: anywhere(),
            http: None,
        });
        port.prepare().await.unwrap();
        assert_eq!(port.addresses().await, [None, None]);
        assert!(port.check().await.is_err());
        port.start().await.unwrap();
        port.check().await.unwrap();
        assert_eq!(port.addresses().await, [None, None]);
        port.set_ready(true).await.unwrap();
        let [Some(address), _] = port.addresses().await else {
            panic!("no address");
        };
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        port.set_ready(false).await.unwrap();
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        port.set_ready(true).await.unwrap();
        TcpStream::connect(address).await.unwrap();
        port.stop().await;
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(port.probe_state().await, Presence::Offline);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = ProbePort::new(Config {
            tcp: Some(other.local_addr().unwrap()),
            http: None,
        });
        let error = port.start().await.unwrap_err().to_string();
        assert!(error.contains("is in use by another program"), "{error}");
        assert_eq!(port.probe_state().await, Presence::Offline);
    }
}
