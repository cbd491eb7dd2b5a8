//! Turns the bytes of one connection into messages.
//!
//! Headers and small payload come through a read-ahead buffer. Bulk payload goes from the socket
//! straight into the pooled buffer that will be written to the disk, except for the part that the
//! read-ahead already had; compressed payload is decompressed into such a buffer. A header is checked before
//! anything is allocated for its payload.
//!
//! The socket is read at once when it is ready, not through the ring: there a receive that has to wait
//! wakes the thread twice, and small messages are all about waking up.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::rc::Rc;

use rustls::Connection;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::error::LinkError;
use crate::buffer::Buffer;
use crate::io::buffers::{BufferMut, BufferPool, Reserve};
use crate::units::REQUEST_BYTES_MAX;
use crate::wire::frame;
use crate::wire::header::{HEADER_BYTES, Header};
use crate::wire::message::{Channel, Envelope};

const READ_AHEAD_BYTES: usize = 64 << 10;
const RECORDS_BYTES: usize = 64 << 10;
/// After payload of this size the next header is read alone, so that bulk which follows it need not
/// be copied out of the read-ahead.
const BULK_BYTES: usize = 32 << 10;
/// What a connection that never runs dry reads before it lets the mirror's other tasks run.
const BURST_BYTES: usize = 256 << 10;

/// Reads until the connection ends, and returns why it did.
pub(super) async fn run(
    mut source: Source,
    channel: Channel,
    pool: BufferPool,
    mut deliver: impl FnMut(Envelope),
) -> LinkError {
    let mut ahead = ReadAhead {
        buffer: pool.take(READ_AHEAD_BYTES, Reserve::Internal).await,
        start: 0,
        end: 0,
        want: READ_AHEAD_BYTES,
    };
    let packed_bytes = match channel {
        Channel::Control => 0,
        Channel::Data => REQUEST_BYTES_MAX as usize,
    };
    let mut packed = vec![0; packed_bytes].into_boxed_slice();
    loop {
        match message(&mut source, &mut ahead, &mut packed, channel, &pool).await {
            Ok(envelope) => deliver(envelope),
            Err(error) => return error,
        }
    }
}

async fn message(
    source: &mut Source,
    ahead: &mut ReadAhead,
    packed: &mut [u8],
    channel: Channel,
    pool: &BufferPool,
) -> Result<Envelope, LinkError> {
    let mut bytes = [0; HEADER_BYTES];
    ahead.fill(source, HEADER_BYTES).await?;
    ahead.take(&mut bytes);
    let header = Header::decode(&bytes)?;
    if header.kind().channel() != channel {
        return Err(LinkError::WrongChannel {
            kind: format!("{:?}", header.kind()),
            channel,
        });
    }
    let length = header.payload_bytes as usize;
    let payload = if header.kind().carries_data() {
        let content = header.content_bytes() as usize;
        let mut buffer = pool.take(content, Reserve::Internal).await;
        if header.compressed {
            let packed = &mut packed[..length];
            bulk(source, ahead, packed).await?;
            frame::decompress(&header, packed, &mut buffer)?;
            source.burst += content;
        } else {
            bulk(source, ahead, &mut buffer).await?;
        }
        buffer.freeze()
    } else {
        let mut buffer = vec![0; length];
        let mut done = ahead.take(&mut buffer);
        while done < length {
            ahead.fill(source, 1).await?;
            done += ahead.take(&mut buffer[done..]);
        }
        Buffer::from(buffer)
    };
    ahead.want = if length >= BULK_BYTES {
        HEADER_BYTES
    } else {
        READ_AHEAD_BYTES
    };
    Ok(frame::decode(&header, payload)?)
}

/// Fills `target` from the read-ahead, and from the socket without a detour.
async fn bulk(
    source: &mut Source,
    ahead: &mut ReadAhead,
    target: &mut [u8],
) -> Result<(), LinkError> {
    let mut done = ahead.take(target);
    while done < target.len() {
        done += some(source.read(&mut target[done..]).await?)?;
    }
    Ok(())
}

fn some(read: usize) -> Result<usize, LinkError> {
    match read {
        0 => Err(LinkError::Closed),
        read => Ok(read),
    }
}

struct ReadAhead {
    buffer: BufferMut,
    start: usize,
    end: usize,
    /// How much to ask for at once.
    want: usize,
}

impl ReadAhead {
    /// Reads until at least `least` bytes are at hand.
    async fn fill(&mut self, source: &mut Source, least: usize) -> Result<(), LinkError> {
        while self.end - self.start < least {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let limit = self.want.max(least);
            let read = source.read(&mut self.buffer[self.end..limit]).await?;
            self.end += some(read)?;
        }
        Ok(())
    }

    /// Moves what is at hand to `target`, as far as both go.
    fn take(&mut self, target: &mut [u8]) -> usize {
        let length = target.len().min(self.end - self.start);
        target[..length].copy_from_slice(&self.buffer[self.start..self.start + length]);
        self.start += length;
        length
    }
}

/// The receiving half of a connection.
pub(super) struct Source {
    stream: Rc<TcpStream>,
    tls: Option<Rc<RefCell<Connection>>>,
    records: Vec<u8>,
    consumed: usize,
    /// Bytes, those that were decompressed included, since this connection last let others run.
    burst: usize,
    received: Rc<Cell<u64>>,
}

impl Source {
    pub fn new(
        stream: Rc<TcpStream>,
        tls: Option<Rc<RefCell<Connection>>>,
        received: Rc<Cell<u64>>,
    ) -> Self {
        let capacity = if tls.is_some() { RECORDS_BYTES } else { 0 };
        Self {
            stream,
            tls,
            records: Vec::with_capacity(capacity),
            consumed: 0,
            burst: 0,
            received,
        }
    }

    /// Reads into `target`; zero at the end of the stream.
    async fn read(&mut self, target: &mut [u8]) -> Result<usize, LinkError> {
        let Some(tls) = self.tls.clone() else {
            return self.receive(target).await;
        };
        loop {
            match tls.borrow_mut().reader().read(target) {
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Cut off without a word of TLS, as a killed peer does.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(LinkError::Broken(error)),
            }
            if self.consumed == self.records.len() && self.receive_records().await? == 0 {
                return Ok(0);
            }
            let mut tls = tls.borrow_mut();
            let mut rest = &self.records[self.consumed..];
            self.consumed += tls.read_tls(&mut rest).map_err(LinkError::Broken)?;
            tls.process_new_packets().map_err(LinkError::Decryption)?;
        }
    }

    async fn receive_records(&mut self) -> Result<usize, LinkError> {
        let mut records = std::mem::take(&mut self.records);
        records.resize(RECORDS_BYTES, 0);
        let read = self.receive(&mut records).await?;
        records.truncate(read);
        self.records = records;
        self.consumed = 0;
        Ok(read)
    }

    /// Takes what the socket has, waiting only when it has nothing.
    async fn receive(&mut self, target: &mut [u8]) -> Result<usize, LinkError> {
        if self.burst >= BURST_BYTES {
            self.burst = 0;
            tokio::task::yield_now().await;
        }
        loop {
            match self.stream.try_read(target) {
                Ok(read) => {
                    if (1..target.len()).contains(&read) {
                        // The socket had no more, so the next call need not ask it: epoll says when there is
                        // something again.
                        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                        let _ = self.stream.try_io(Interest::READABLE, nothing);
                    }
                    self.burst += read;
                    self.received.set(self.received.get() + read as u64);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.burst = 0;
                    self.stream.readable().await.map_err(LinkError::Broken)?;
                }
                Err(error) => return Err(LinkError::Broken(error)),
            }
        }
    }
}
