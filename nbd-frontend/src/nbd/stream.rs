//! One client's socket: Unix, TCP, or TCP with TLS behind one face, and the buffer in front of it.
//!
//! The socket is used at once when it is ready, not through the ring: there a receive that has to wait
//! wakes the thread twice, and small requests are all about waking up. On a busy connection one call moves
//! many requests or replies. Small payloads arrive together with their headers; of a large one only the
//! first bytes do, and the rest goes from the socket straight into its place. How that is with TLS,
//! `tls_stream` says.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mirror_core::io::buffers::BufferMut;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, recvmsg, sendmsg};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::reply::Output;
use super::tls::ServerTls;
use super::tls_stream::TlsStream;

/// What is read at once where requests are small.
const READ_BYTES: usize = 64 << 10;
/// What is read behind a large payload: the next headers.
const READ_AHEAD_BYTES: usize = 512;
/// Payloads up to here are read together with what follows them.
const SMALL_PAYLOAD_BYTES: usize = 16 << 10;
/// Reads in a row that found something before others get their turn, so that a client that never pauses
/// cannot keep the thread from its other work.
const READS_IN_A_ROW_MAX: u32 = 16;
/// Pieces of one vectored send.
const SEND_PIECES_MAX: usize = 128;

pub(super) enum Stream {
    Plain(Plain),
    /// The client has to begin TLS before anything else.
    Tls(TlsStream),
}

impl Stream {
    /// Takes over an accepted connection.
    pub fn from_unix(socket: UnixStream) -> Self {
        Self::Plain(Plain::Unix(socket))
    }

    /// Takes over one end of a pair.
    pub fn adopt(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Plain(Plain::Unix(UnixStream::from_std(socket)?)))
    }

    /// Takes over an accepted connection; with `tls`, the client has to begin TLS.
    pub fn from_tcp(socket: TcpStream, tls: Option<&ServerTls>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        SockRef::from(&socket).set_keepalive(true)?;
        Ok(match tls {
            Some(tls) => Self::Tls(TlsStream::new(socket, tls.clone())),
            None => Self::Plain(Plain::Tcp(socket)),
        })
    }

    /// Ends both directions; everyone who waits on the socket wakes up.
    pub fn shutdown(&self) {
        match self {
            Self::Plain(plain) => plain.shutdown(),
            Self::Tls(tls) => tls.shutdown(),
        }
    }

    /// Sends a few bytes, as in a handshake.
    pub async fn send_bytes(&self, bytes: Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self {
            Self::Plain(plain) => plain.send_all(&bytes).await,
            Self::Tls(tls) => tls.send_bytes(&bytes).await,
        }
    }

    /// Sends a batch of replies. A piece that the client does not take within `stall` is an error.
    pub async fn send(&self, output: &Output, stall: Duration) -> io::Result<()> {
        let mut pieces = output.pieces().peekable();
        // Bytes of the first piece that have left already.
        let mut sent = 0;
        while let Some(&first) = pieces.peek() {
            let mut slices = [IoSlice::new(&[]); SEND_PIECES_MAX];
            let mut count = 0;
            for piece in pieces.clone() {
                if count == SEND_PIECES_MAX {
                    break;
                }
                let skip = if count == 0 { sent } else { 0 };
                slices[count] = IoSlice::new(&piece.bytes()[skip..]);
                count += 1;
            }
            sent += match self {
                Self::Plain(plain) => match plain.try_send(&slices[..count]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let rest = &first.bytes()[sent..];
                        within(stall, plain.send_all(rest)).await?;
                        rest.len()
                    }
                    sent => sent?,
                },
                Self::Tls(tls) => {
                    let sealed = tls.seal(&slices[..count])?;
                    within(stall, tls.flush()).await?;
                    sealed
                }
            };
            while let Some(piece) = pieces.peek()
                && sent >= piece.bytes().len()
            {
                sent -= piece.bytes().len();
                pieces.next();
            }
        }
        Ok(())
    }
}

/// A socket that carries bytes as they are.
pub(super) enum Plain {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Plain {
    fn shutdown(&self) {
        // Already gone is as good.
        let _ = match self {
            Self::Unix(socket) => SockRef::from(socket).shutdown(Shutdown::Both),
            Self::Tcp(socket) => SockRef::from(socket).shutdown(Shutdown::Both),
        };
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Unix(socket) => socket.as_raw_fd(),
            Self::Tcp(socket) => socket.as_raw_fd(),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.ready(interest).await,
            Self::Tcp(socket) => socket.ready(interest).await,
        }
        .map(drop)
    }

    /// One call on the socket, unless it is known not to be ready.
    fn attempt<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(RawFd) -> nix::Result<T>,
    ) -> io::Result<T> {
        let fd = self.fd();
        let call = || call(fd).map_err(io::Error::from);
        match self {
            Self::Unix(socket) => socket.try_io(interest, call),
            Self::Tcp(socket) => socket.try_io(interest, call),
        }
    }

    fn try_receive(&self, target: &mut [u8]) -> io::Result<usize> {
        let wanted = target.len();
        self.receive(wanted, |fd| recv(fd, target, MsgFlags::MSG_DONTWAIT))
    }

    /// Fills `first`, then `second`.
    fn try_receive_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let wanted = first.len() + second.len();
        self.receive(wanted, |fd| {
            let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
            recvmsg::<()>(fd, &mut slices, None, MsgFlags::MSG_DONTWAIT)
                .map(|message| message.bytes)
        })
    }

    fn receive(
        &self,
        wanted: usize,
        call: impl FnMut(RawFd) -> nix::Result<usize>,
    ) -> io::Result<usize> {
        let received = self.attempt(Interest::READABLE, call)?;
        if (1..wanted).contains(&received) {
            // The socket had no more, so the next call need not ask it: epoll says when there is something again.
            let _ = self.attempt(Interest::READABLE, |_| Err::<(), _>(Errno::EAGAIN));
        }
        Ok(received)
    }

    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.attempt(Interest::WRITABLE, |fd| {
            sendmsg::<()>(fd, slices, &[], flags, None)
        })
    }

    async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_send(&[IoSlice::new(bytes)]) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready(Interest::WRITABLE).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            ErrorKind::TimedOut,
            format!("the client made no progress for {limit:?}"),
        )),
    }
}

/// What was read from a client and not yet looked at.
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Most that the next read may take in.
    ahead_bytes: usize,
    reads_in_a_row: u32,
    /// Longest wait in the middle of a request.
    stall: Duration,
}

impl Input {
    pub fn new(stall: Duration) -> Self {
        Self {
            bytes: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            ahead_bytes: READ_BYTES,
            reads_in_a_row: 0,
            stall,
        }
    }

    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
    }

    /// Reads more behind what is unread. False at the end of the stream. Waits without limit
    /// between requests, but not inside of one.
    pub async fn refill(&mut self, stream: &Stream) -> io::Result<bool> {
        self.compact();
        let limit = (self.end + self.ahead_bytes).min(self.bytes.len());
        let stream = match stream {
            Stream::Plain(plain) => plain,
            Stream::Tls(tls) => {
                let inside = self.end > 0;
                let space = &mut self.bytes[self.end..limit];
                let length = tls.read(space, inside, self.stall).await?;
                self.end += length;
                return Ok(length > 0);
            }
        };
        let inside = self.end > 0;
        loop {
            self.let_others_run().await;
            match stream.try_receive(&mut self.bytes[self.end..limit]) {
                Ok(length) => {
                    self.end += length;
                    return Ok(length > 0);
                }
                Err(error) => self.wait(stream, error, inside).await?,
            }
        }
    }

    /// A connection that never runs dry does not keep the thread to itself.
    async fn let_others_run(&mut self) {
        self.reads_in_a_row += 1;
        if self.reads_in_a_row > READS_IN_A_ROW_MAX {
            self.reads_in_a_row = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Until there is something to read, if that is what `error` is about.
    async fn wait(&mut self, plain: &Plain, error: io::Error, inside: bool) -> io::Result<()> {
        if error.kind() != ErrorKind::WouldBlock {
            return Err(error);
        }
        self.reads_in_a_row = 0;
        let ready = plain.ready(Interest::READABLE);
        match inside {
            true => within(self.stall, ready).await,
            false => ready.await,
        }
    }

    /// Fills all of `buffer`: with what is unread, then from the stream.
    pub async fn fill(&mut self, stream: &Stream, mut buffer: BufferMut) -> io::Result<BufferMut> {
        let mut filled = buffer.len().min(self.end - self.start);
        buffer[..filled].copy_from_slice(&self.unread()[..filled]);
        self.consume(filled);
        self.ahead_bytes = if buffer.len() > SMALL_PAYLOAD_BYTES {
            READ_AHEAD_BYTES
        } else {
            READ_BYTES
        };
        while filled < buffer.len() {
            self.compact();
            let stream = match stream {
                Stream::Plain(plain) => plain,
                Stream::Tls(tls) => {
                    let length = tls.read(&mut buffer[filled..], true, self.stall).await?;
                    if length == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    filled += length;
                    continue;
                }
            };
            self.let_others_run().await;
            let wanted = buffer.len() - filled;
            let ahead = &mut self.bytes[..self.ahead_bytes];
            match stream.try_receive_two(&mut buffer[filled..], ahead) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    filled += length.min(wanted);
                    self.end = length.saturating_sub(wanted);
                }
                Err(error) => self.wait(stream, error, true).await?,
            }
        }
        Ok(buffer)
    }

    /// Moves what is unread to the front.
    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }
}
