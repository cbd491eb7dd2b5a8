//! A client of a TCP export with TLS: plain until it has asked for TLS, sealed from then on.
//!
//! Reader and writer of a connection share one TLS state and never keep it over a wait. Ciphertext
//! is read many records at a time and opened one after the other, as plaintext is asked for, so
//! that little of it lies around; the plaintext of a payload goes from TLS to its place. Replies
//! are sealed from where they lie, headers and payload in the same records, up to
//! [`SEALED_BYTES_MAX`] at once.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::time::Duration;

use mirror_core::io::outlet::Outlet;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::stream::within;
use super::tls::ServerTls;

/// Ciphertext that is read at once; several records of the largest size.
const RECORDS_BYTES: usize = 64 << 10;
const RECORD_HEADER_BYTES: usize = 5;
/// Change of cipher, alert, handshake and data; no other begins a record here.
const RECORD_KINDS: RangeInclusive<u8> = 20..=23;
/// Largest body of a record (RFC 8446, 5.2).
const RECORD_BODY_BYTES_MAX: usize = (16 << 10) + 256;
/// Replies that are sealed and not yet in the socket.
const SEALED_BYTES_MAX: usize = 256 << 10;
/// What a client that never pauses may send before others get their turn.
const BURST_BYTES: usize = 256 << 10;

const _: () = assert!(RECORDS_BYTES >= RECORD_HEADER_BYTES + RECORD_BODY_BYTES_MAX);

/// Why no TLS came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the TLS handshake failed: {0}; {step}", step = super::tls::next_step(.0))]
    Tls(#[from] rustls::Error),
    #[error("the client hung up during the TLS handshake")]
    HungUp,
    #[error("connection lost during the TLS handshake: {0}")]
    Lost(#[from] io::Error),
}

pub(super) struct TlsStream {
    socket: TcpStream,
    settings: ServerTls,
    /// Absent until the client has asked for TLS.
    tls: RefCell<Option<Box<Tls>>>,
    /// Bytes received since others last had a turn.
    burst: Cell<usize>,
}

struct Tls {
    connection: ServerConnection,
    records: Records,
}

impl TlsStream {
    pub fn new(socket: TcpStream, settings: ServerTls) -> Self {
        Self {
            socket,
            settings,
            tls: RefCell::default(),
            burst: Cell::new(0),
        }
    }

    /// Shakes hands. The caller limits the time. Everything before it must have been read.
    pub async fn start(&self) -> Result<(), StartError> {
        let mut connection = self.settings.connection()?;
        connection.set_buffer_limit(Some(SEALED_BYTES_MAX));
        *self.tls.borrow_mut() = Some(Box::new(Tls {
            connection,
            records: Records::default(),
        }));
        loop {
            self.flush().await?;
            match self.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(StartError::Lost(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.socket.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes one step of the handshake; false when there is none left.
    fn step(&self) -> Result<bool, StartError> {
        let mut tls = self.tls.borrow_mut();
        let Some(tls) = tls.as_mut().filter(|tls| tls.connection.is_handshaking()) else {
            return Ok(false);
        };
        if !tls.records.open(&mut tls.connection)? && tls.records.receive(&self.socket)? == 0 {
            return Err(StartError::HungUp);
        }
        Ok(true)
    }

    /// Reads what there is, at least one byte; zero at the end of the stream. Waits without limit
    /// between requests, but not `inside` of one, nor in the middle of a record.
    pub async fn read(
        &self,
        target: &mut [u8],
        inside: bool,
        stall: Duration,
    ) -> io::Result<usize> {
        loop {
            if self.burst.get() >= BURST_BYTES {
                self.burst.set(0);
                tokio::task::yield_now().await;
            }
            match self.try_read(target) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.burst.set(0);
            if inside || self.is_inside_record() {
                within(stall, self.socket.readable()).await?;
            } else {
                self.socket.readable().await?;
            }
        }
    }

    fn try_read(&self, target: &mut [u8]) -> io::Result<usize> {
        let mut tls = self.tls.borrow_mut();
        let Some(tls) = tls.as_mut() else {
            return self.socket.try_read(target);
        };
        loop {
            match tls.connection.reader().read(target) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Zero where the client took its leave by close_notify.
                done => return done,
            }
            let opened = tls.records.open(&mut tls.connection);
            if opened.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))? {
                continue;
            }
            let received = tls.records.receive(&self.socket)?;
            if received == 0 {
                // Many clients hang up without a word of TLS. It cuts nothing off unnoticed:
                // requests say how long they are.
                return Ok(0);
            }
            self.burst.set(self.burst.get() + received);
        }
    }

    fn is_inside_record(&self) -> bool {
        let tls = self.tls.borrow();
        tls.as_ref().is_some_and(|tls| !tls.records.is_empty())
    }

    /// Takes as many of these bytes as may wait to be sent, perhaps none; [`TlsStream::flush`]
    /// sends them.
    pub fn seal(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls.borrow_mut().as_mut() {
            Some(tls) => tls.connection.writer().write_vectored(slices),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Sends all that is sealed.
    pub async fn flush(&self) -> io::Result<()> {
        loop {
            match self.try_flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.socket.writable().await?;
                }
                done => return done,
            }
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        let mut tls = self.tls.borrow_mut();
        let Some(tls) = tls.as_mut() else {
            return Ok(());
        };
        while tls.connection.wants_write() {
            tls.connection.write_tls(&mut Outlet(&self.socket))?;
        }
        Ok(())
    }

    /// Sends a few bytes, as in a handshake, plain or sealed.
    pub async fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let sealed = self.tls.borrow().is_some();
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = if sealed {
                let taken = self.seal(&[IoSlice::new(rest)])?;
                self.flush().await?;
                taken
            } else {
                match self.socket.try_write(rest) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(taken) => taken,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.socket.writable().await?;
                        0
                    }
                    Err(error) => return Err(error),
                }
            };
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Takes leave as far as that goes without waiting, and ends both directions.
    pub fn shutdown(&self) {
        if let Some(tls) = self.tls.borrow_mut().as_mut() {
            // Nothing, if an alert has said why already.
            tls.connection.send_close_notify();
        }
        // A client that does not listen, or is gone already, misses only the farewell.
        let _ = self.try_flush();
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

/// Ciphertext from the socket that TLS has not taken yet. Only whole records are handed over, so
/// what is left here tells whether the client stopped in the middle of one.
struct Records {
    bytes: Vec<u8>,
    start: usize,
    /// End of the last whole record.
    whole: usize,
    end: usize,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            bytes: vec![0; RECORDS_BYTES],
            start: 0,
            whole: 0,
            end: 0,
        }
    }
}

impl Records {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Hands TLS the next of what is whole; false if nothing is.
    fn open(&mut self, connection: &mut ServerConnection) -> Result<bool, rustls::Error> {
        let mut rest = &self.bytes[self.start..self.whole];
        if rest.is_empty() {
            return Ok(false);
        }
        self.start += connection
            .read_tls(&mut rest)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        connection.process_new_packets().map(|_| true)
    }

    /// Takes what the socket has. Only to be called when nothing here is whole.
    fn receive(&mut self, socket: &TcpStream) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        (self.start, self.whole) = (0, 0);
        let received = socket.try_read(&mut self.bytes[self.end..])?;
        self.end += received;
        self.whole = whole_records_bytes(&self.bytes[..self.end]);
        Ok(received)
    }
}

/// Length of the whole records at the front of `bytes`; all of it from something on that is no
/// record, so that TLS can refuse it.
fn whole_records_bytes(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(&[kind, major, _, high, low]) = bytes[whole..].first_chunk() {
        let body = usize::from(u16::from_be_bytes([high, low]));
        let is_record = RECORD_KINDS.contains(&kind) && major == 3;
        if !is_record || body > RECORD_BODY_BYTES_MAX {
            return bytes.len();
        }
        let end = whole + RECORD_HEADER_BYTES + body;
        if end > bytes.len() {
            break;
        }
        whole = end;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: usize) -> Vec<u8> {
        let mut bytes = vec![23, 3, 3];
        bytes.extend((body as u16).to_be_bytes());
        bytes.resize(RECORD_HEADER_BYTES + body, 0xee);
        bytes
    }

    #[test]
    fn only_whole_records_are_counted() {
        let bytes = [record(0), record(300), record(RECORD_BODY_BYTES_MAX)].concat();
        let ends = [5, 310, bytes.len()];
        for length in 0..=bytes.len() {
            let whole = ends.iter().rev().find(|end| **end <= length);
            assert_eq!(
                whole_records_bytes(&bytes[..length]),
                whole.copied().unwrap_or(0),
                "{length}"
            );
        }
    }

    #[test]
    fn what_is_no_record_is_left_to_tls() {
        let bytes = [record(7), record(RECORD_BODY_BYTES_MAX + 1)].concat();
        assert_eq!(whole_records_bytes(&bytes[..12 + 5]), 12 + 5);
        assert_eq!(whole_records_bytes(b"IHAVEOPT"), 8);
        assert_eq!(whole_records_bytes(b"GET / HTTP/1.1\r\n"), 16);
        assert_eq!(whole_records_bytes(&[23, 2, 0, 0, 9]), 5);
    }
}
