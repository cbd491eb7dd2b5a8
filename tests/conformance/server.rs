//! A server on a thread of its own, told what to do by closures that run beside it.

use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc as reply;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mirror_core::io::buffers::BufferPool;
use mirror_core::io::ring::Runtime;
use mirror_tests::memory_export::MemoryExport;
use nbd_frontend::nbd::listener::{Address, Limits, Server};
use nbd_frontend::nbd::tls::ServerTls;
use tempfile::TempDir;
use tokio::sync::mpsc;

pub const MIB: u64 = 1 << 20;
const POOL_BYTES: usize = 16 << 20;
/// For anything that should happen at once, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Look = Box<dyn FnOnce(&MemoryExport, &Server) + Send>;

enum Order {
    Look(Look),
    /// With who hears that it has begun, and who hears that it has ended.
    Drain(Duration, reply::Sender<()>, reply::Sender<()>),
    Stop(Duration),
}

pub struct TestServer {
    pub directory: TempDir,
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<usize>>,
    pub tcp_port: u16,
}

impl TestServer {
    pub fn start(size_bytes: u64) -> Self {
        Self::with(size_bytes, 512, Limits::default())
    }

    pub fn with(size_bytes: u64, logical_block_bytes: u32, limits: Limits) -> Self {
        Self::with_tls(size_bytes, logical_block_bytes, limits, None)
    }

    /// With `tls` for clients over TCP.
    pub fn with_tls(
        size_bytes: u64,
        logical_block_bytes: u32,
        limits: Limits,
        tls: Option<ServerTls>,
    ) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let socket = directory.path().join("disk.nbd");
        let (orders, incoming) = mpsc::unbounded_channel();
        let (ready, started) = reply::channel();
        let thread = std::thread::spawn(move || {
            Runtime::new().expect("io_uring").block_on(async move {
                let pool = BufferPool::new(POOL_BYTES).expect("buffer memory");
                let export =
                    MemoryExport::new("disk", size_bytes, logical_block_bytes, pool.clone());
                let export = Rc::new(export);
                let addresses = [
                    Address::Unix(socket),
                    Address::Tcp("127.0.0.1:0".parse().expect("an address")),
                ];
                let server = Server::start(Rc::clone(&export) as _, &addresses, tls, limits)
                    .expect("server starts");
                ready.send(tcp_port(&server)).expect("the test waits");
                obey(incoming, &export, server).await;
                // Everything that clients held must be back.
                drop(export);
                pool.stats().total_bytes - pool.stats().free_bytes
            })
        });
        let tcp_port = started.recv_timeout(PATIENCE).expect("server starts");
        Self {
            directory,
            orders,
            thread: Some(thread),
            tcp_port,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("disk.nbd")
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    pub fn tcp_uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/disk", self.tcp_port)
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs `look` on the server's thread.
    pub fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&MemoryExport, &Server) -> T + Send + 'static,
    ) -> T {
        let (send, receive) = reply::channel();
        let order = Order::Look(Box::new(move |export, server| {
            let _ = send.send(look(export, server));
        }));
        self.orders.send(order).expect("server runs");
        receive.recv_timeout(PATIENCE).expect("server answers")
    }

    /// Waits until `holds` on the server's thread.
    pub fn wait_until(
        &self,
        what: &str,
        holds: impl Fn(&MemoryExport, &Server) -> bool + Send + Clone + 'static,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !self.look(holds.clone()) {
            assert!(Instant::now() < deadline, "waited too long: {what}");
            std::thread::yield_now();
        }
    }

    /// Returns when it has begun: what a client asks for after that is refused.
    pub fn drain(&self, limit: Duration) -> reply::Receiver<()> {
        let (begin, begun) = reply::channel();
        let (send, receive) = reply::channel();
        self.orders
            .send(Order::Drain(limit, begin, send))
            .expect("server runs");
        begun.recv_timeout(PATIENCE).expect("the drain begins");
        receive
    }

    /// Stops the server; fails if it leaves a file or keeps memory.
    pub fn stop(mut self) {
        self.end();
        assert!(!self.socket().exists(), "socket file left behind");
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.orders.send(Order::Stop(Duration::from_secs(5)));
            let kept_bytes = thread.join().expect("server thread");
            assert_eq!(kept_bytes, 0, "buffers not given back");
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

async fn obey(
    mut incoming: mpsc::UnboundedReceiver<Order>,
    export: &Rc<MemoryExport>,
    server: Server,
) {
    let server = Rc::new(server);
    while let Some(order) = incoming.recv().await {
        match order {
            Order::Look(look) => look(export, &server),
            Order::Drain(limit, begun, done) => {
                let server = Rc::clone(&server);
                let mut drain = Box::pin(async move { server.drain(limit).await });
                let first = poll_fn(|context| Poll::Ready(drain.as_mut().poll(context))).await;
                let _ = begun.send(());
                tokio::task::spawn_local(async move {
                    if first.is_pending() {
                        drain.await;
                    }
                    let _ = done.send(());
                });
            }
            Order::Stop(limit) => {
                export.set_frozen(false);
                match Rc::try_unwrap(server) {
                    Ok(server) => server.stop(limit).await,
                    Err(_) => panic!("stopped while a drain runs"),
                }
                return;
            }
        }
    }
}

fn tcp_port(server: &Server) -> u16 {
    server
        .addresses()
        .iter()
        .find_map(|address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        })
        .expect("a TCP address")
}
