//! A TCP proxy that hands on what it gets some milliseconds later, in both directions: the distance that the kernel
//! here cannot make, since it lacks `netem`.
//!
//! Bytes keep their order and their rate; only the time until they are there grows. What is on its way is bounded:
//! a sender that is further ahead finds its window closed, as on a real line whose buffers are full.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Each up to [`CHUNK_BYTES`]: 16 MiB on the way in each direction of a connection, 3 GB/s over 5 ms.
const CHUNKS_MAX: usize = 1024;
const CHUNK_BYTES: usize = 16 << 10;
/// A link has two at a time. More than a pair makes in all its attempts.
const CONNECTIONS_MAX: usize = 64;

/// What arrived, and when it is to be handed on.
type Chunk = (Instant, Vec<u8>);

/// Both ends of all its connections, so that its own end can end them.
type Streams = Arc<Mutex<Vec<TcpStream>>>;

/// Runs until it is dropped; its connections end with it.
#[derive(Debug)]
pub struct DelayProxy {
    listener: TcpListener,
    streams: Streams,
    accepting: Option<JoinHandle<()>>,
}

impl DelayProxy {
    /// Listens at `address` and hands on to `target`, both in the network namespace of that file, or in this one.
    pub fn start(
        namespace: Option<PathBuf>,
        address: SocketAddr,
        target: SocketAddr,
        delay: Duration,
    ) -> Result<Self> {
        let streams = Streams::default();
        let (opened, opening) = sync_channel(1);
        let shared = Arc::clone(&streams);
        // A thread can enter a namespace by itself, and its own threads are born in there.
        let accepting = thread::spawn(move || {
            let listener = listen(namespace, address);
            let accepted = listener.as_ref().ok().and_then(|own| own.try_clone().ok());
            let is_awaited = opened.send(listener).is_ok();
            if let Some(listener) = accepted.filter(|_| is_awaited) {
                accept_all(&listener, target, delay, &shared);
            }
        });
        let listener = opening.recv().context("the proxy's thread ended")??;
        Ok(Self {
            listener,
            streams,
            accepting: Some(accepting),
        })
    }

    #[cfg(test)]
    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it listens")
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        // Linux ends an `accept` that waits when its socket is shut down.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        // No connection is added any more once its thread has ended, which it does only after those that are there.
        while self
            .accepting
            .as_ref()
            .is_some_and(|own| !own.is_finished())
        {
            for stream in locked(&self.streams).drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn locked(streams: &Streams) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(namespace: Option<PathBuf>, address: SocketAddr) -> Result<TcpListener> {
    if let Some(path) = namespace {
        let name = path.display();
        let file = File::open(&path).with_context(|| format!("cannot open {name}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {name}"))?;
    }
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

fn accept_all(listener: &TcpListener, target: SocketAddr, delay: Duration, streams: &Streams) {
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS_MAX {
            let Ok((near, _)) = listener.accept() else {
                return;
            };
            scope.spawn(move || {
                // Whoever connected sees the end of the connection, and tries again or tells why not.
                let _ = relay(near, target, delay, streams);
            });
        }
    });
}

fn relay(
    near: TcpStream,
    target: SocketAddr,
    delay: Duration,
    streams: &Streams,
) -> io::Result<()> {
    let far = TcpStream::connect(target)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        locked(streams).push(stream.try_clone()?);
    }
    thread::scope(|scope| {
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (sender, receiver) = sync_channel(CHUNKS_MAX);
            scope.spawn(move || take_in(from, delay, &sender));
            scope.spawn(move || hand_on(from, to, &receiver));
        }
    });
    Ok(())
}

/// Until the sender ends the connection, or the receiver does.
fn take_in(mut from: &TcpStream, delay: Duration, sender: &SyncSender<Chunk>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let chunk = buffer[..read].to_vec();
        if sender.send((Instant::now() + delay, chunk)).is_err() {
            return;
        }
    }
}

fn hand_on(from: &TcpStream, mut to: &TcpStream, receiver: &Receiver<Chunk>) {
    for (due, chunk) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(40);
    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// A server that sends back what it gets, behind a proxy, and a connection to it.
    fn echo() -> (DelayProxy, TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind(ANY).unwrap();
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(Shutdown::Both);
        });
        let proxy = DelayProxy::start(None, ANY, target, DELAY).unwrap();
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        (proxy, stream, server)
    }

    #[test]
    fn a_round_trip_takes_the_delay_both_ways_and_what_follows_closely_does_not_take_it_again() {
        let (_proxy, mut stream, server) = echo();
        let began = Instant::now();
        const MESSAGES: u32 = 200;
        for number in 0..MESSAGES {
            stream.write_all(&number.to_le_bytes()).unwrap();
        }
        for number in 0..MESSAGES {
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(u32::from_le_bytes(back), number);
            assert!(began.elapsed() >= 2 * DELAY, "nothing is there earlier");
        }
        assert!(began.elapsed() < MESSAGES * DELAY);
        drop(stream);
        server.join().unwrap();
    }

    #[test]
    fn more_than_it_holds_comes_through_whole_and_so_does_the_end() {
        let (_proxy, mut stream, server) = echo();
        let sent: Vec<u8> = (0..3 * CHUNKS_MAX * CHUNK_BYTES)
            .map(|index| (index / 7) as u8)
            .collect();
        let mut reader = stream.try_clone().unwrap();
        let back = thread::spawn(move || {
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            back
        });
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(back.join().unwrap() == sent, "bytes changed on the way");
        server.join().unwrap();
    }

    #[test]
    fn its_connections_end_with_it() {
        let (proxy, mut stream, server) = echo();
        stream.write_all(b"here").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        drop(proxy);
        assert!(matches!(stream.read(&mut [0; 4]), Ok(0) | Err(_)));
        server.join().unwrap();
    }
}
