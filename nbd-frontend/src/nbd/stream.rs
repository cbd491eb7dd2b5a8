//! One client's socket: Unix, TCP, or TCP with TLS behind one face, and the buffer in front of it.
//!
//! Each direction first tries a plain non-blocking call, which on a busy connection moves many
//! requests or replies at once without a turn through the ring, and waits on the ring where that
//! would block. Small payloads arrive together with their headers; of a large one only the first
//! bytes do, and the rest goes from the socket straight into its place. How that is with TLS,
//! `tls_stream` says.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mirror_core::io::buffers::{BufferMut, IoBuffer};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, recvmsg, sendmsg};
use tokio_uring::BufResult;
use tokio_uring::buf::{BoundedBuf, BoundedBufMut};
use tokio_uring::net::{TcpStream, UnixStream};

use super::reply::{Output, Piece};
use super::tls::ServerTls;
use super::tls_stream::TlsStream;

/// What is read at once where requests are small.
const READ_BYTES: usize = 64 << 10;
/// What is read behind a large payload: the next headers.
const READ_AHEAD_BYTES: usize = 512;
/// Payloads up to here are read together with what follows them.
const SMALL_PAYLOAD_BYTES: usize = 16 << 10;
/// Non-blocking reads in a row before one goes through the ring, so that a client that never
/// pauses cannot keep the thread from submitting other work.
const DIRECT_READS_MAX: u32 = 16;
/// Pieces of one vectored send.
const SEND_PIECES_MAX: usize = 128;

pub(super) enum Stream {
    Plain(Plain),
    /// The client has to begin TLS before anything else.
    Tls(TlsStream),
}

impl Stream {
    /// Takes over an accepted connection.
    pub fn from_unix(socket: tokio::net::UnixStream) -> io::Result<Self> {
        let socket = socket.into_std()?;
        // The ring waits in the kernel; a non-blocking socket would make it return at once.
        socket.set_nonblocking(false)?;
        Ok(Self::Plain(Plain::Unix(UnixStream::from_std(socket))))
    }

    /// Takes over one end of a pair.
    pub fn adopt(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        Ok(Self::Plain(Plain::Unix(UnixStream::from_std(socket))))
    }

    /// Takes over an accepted connection; with `tls`, the client has to begin TLS.
    pub fn from_tcp(socket: tokio::net::TcpStream, tls: Option<&ServerTls>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket2::SockRef::from(&socket).set_keepalive(true)?;
        if let Some(tls) = tls {
            return Ok(Self::Tls(TlsStream::new(socket, tls.clone())));
        }
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok(Self::Plain(Plain::Tcp(TcpStream::from_std(socket))))
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
            Self::Plain(plain) => plain.write_all(bytes).await.0,
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
                Self::Plain(plain) => {
                    let rest = (first, sent);
                    plain.send(&slices[..count], rest, stall).await?
                }
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
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
        };
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Unix(socket) => socket.as_raw_fd(),
            Self::Tcp(socket) => socket.as_raw_fd(),
        }
    }

    async fn read<T: BoundedBufMut>(&self, buffer: T) -> BufResult<usize, T> {
        match self {
            Self::Unix(socket) => socket.read(buffer).await,
            Self::Tcp(socket) => socket.read(buffer).await,
        }
    }

    async fn write_all<T: BoundedBuf>(&self, buffer: T) -> BufResult<(), T> {
        match self {
            Self::Unix(socket) => socket.write_all(buffer).await,
            Self::Tcp(socket) => socket.write_all(buffer).await,
        }
    }

    /// Sends what the socket takes of `slices` at once, or else the rest of the first piece, from
    /// the byte given with it on. Returns how many bytes have left.
    async fn send(
        &self,
        slices: &[IoSlice<'_>],
        (first, start): (Piece<'_>, usize),
        stall: Duration,
    ) -> io::Result<usize> {
        match try_send(self.fd(), slices) {
            Ok(length) => Ok(length),
            Err(Errno::EINTR) => Ok(0),
            Err(Errno::EAGAIN) => {
                let rest = async {
                    match first {
                        Piece::Head(bytes) => self.write_all(bytes[start..].to_vec()).await.0,
                        Piece::Payload(buffer) => {
                            let rest = buffer.slice(start, buffer.len() - start);
                            self.write_all(IoBuffer(rest)).await.0
                        }
                    }
                };
                within(stall, rest).await?;
                Ok(first.bytes().len() - start)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

fn try_send(fd: RawFd, slices: &[IoSlice<'_>]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(fd, slices, &[], flags, None)
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
    direct_reads: u32,
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
            direct_reads: 0,
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
        if self.direct_reads < DIRECT_READS_MAX {
            let space = &mut self.bytes[self.end..limit];
            match recv(stream.fd(), space, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    self.direct_reads += 1;
                    self.end += length;
                    return Ok(length > 0);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.direct_reads = 0;
        let inside = self.end > 0;
        let space = std::mem::take(&mut self.bytes).slice(self.end..limit);
        let read = async {
            let (result, space) = stream.read(space).await;
            Ok((result, space.into_inner()))
        };
        let (result, bytes) = if inside {
            within(self.stall, read).await?
        } else {
            read.await?
        };
        self.bytes = bytes;
        let length = result?;
        self.end += length;
        Ok(length > 0)
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
            if self.direct_reads < DIRECT_READS_MAX {
                let wanted = buffer.len() - filled;
                let mut slices = [
                    IoSliceMut::new(&mut buffer[filled..]),
                    IoSliceMut::new(&mut self.bytes[..self.ahead_bytes]),
                ];
                let received =
                    recvmsg::<()>(stream.fd(), &mut slices, None, MsgFlags::MSG_DONTWAIT)
                        .map(|message| message.bytes);
                match received {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(length) => {
                        self.direct_reads += 1;
                        filled += length.min(wanted);
                        self.end = length.saturating_sub(wanted);
                        continue;
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            self.direct_reads = 0;
            let read = async {
                let (result, space) = stream.read(buffer.slice(filled..)).await;
                Ok((result?, space.into_inner()))
            };
            let (length, back) = within(self.stall, read).await?;
            buffer = back;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += length;
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
