//! Sends what waits in an outbox: as many frames in one system call as there are, heads and small
//! payload gathered in one buffer, bulk payload from where it lies.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::rc::Rc;

use rustls::Connection;
use tokio_uring::buf::IoBuf;
use tokio_uring::net::TcpStream;

use super::error::LinkError;
use super::outbox::Outbox;
use crate::buffer::Buffer;
use crate::wire::frame;

/// A batch is sent when it has this much, or this many pieces.
const BATCH_BYTES: usize = 1 << 20;
const PIECES_MAX: usize = 256;
/// Payload up to this size is cheaper to copy than to send as a piece of its own.
const INLINE_BYTES: usize = 1024;

/// The sending half of a connection.
pub(super) struct Sink {
    pub stream: Rc<TcpStream>,
    pub tls: Option<Rc<RefCell<Connection>>>,
    pub sent: Rc<Cell<u64>>,
}

/// Sends until the outbox is finished and empty.
pub(super) async fn run(sink: Sink, outbox: Rc<Outbox>) -> Result<(), LinkError> {
    let mut records = Vec::new();
    while outbox.wait().await {
        let pieces = gather(&outbox);
        match &sink.tls {
            None => sink.send(pieces).await,
            Some(tls) => {
                let sealed = seal(&mut tls.borrow_mut(), &pieces, &mut records);
                drop(pieces);
                match sealed {
                    Ok(()) => {
                        sink.sent.set(sink.sent.get() + records.len() as u64);
                        let result;
                        (result, records) = sink.stream.write_all(records).await;
                        records.clear();
                        result
                    }
                    Err(error) => Err(error),
                }
            }
        }
        .map_err(LinkError::Broken)?;
    }
    Ok(())
}

fn gather(outbox: &Outbox) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut heads = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES
        && pieces.len() + 2 < PIECES_MAX
        && let Some(envelope) = outbox.pop()
    {
        let (head, data) = frame::encode(&envelope);
        bytes += head.len() + data.as_ref().map_or(0, |data| data.len());
        if heads.is_empty() {
            heads = head;
        } else {
            heads.extend_from_slice(&head);
        }
        match data {
            Some(data) if data.len() > INLINE_BYTES => {
                pieces.push(Piece::new(Bytes::Own(std::mem::take(&mut heads))));
                pieces.push(Piece::new(Bytes::Shared(data)));
            }
            Some(data) => heads.extend_from_slice(&data),
            None => {}
        }
    }
    if !heads.is_empty() {
        pieces.push(Piece::new(Bytes::Own(heads)));
    }
    pieces
}

fn seal(tls: &mut Connection, pieces: &[Piece], records: &mut Vec<u8>) -> io::Result<()> {
    for piece in pieces {
        tls.writer().write_all(piece.rest())?;
    }
    while tls.wants_write() {
        tls.write_tls(records)?;
    }
    Ok(())
}

impl Sink {
    async fn send(&self, mut pieces: Vec<Piece>) -> io::Result<()> {
        while !pieces.is_empty() {
            let result;
            (result, pieces) = self.stream.writev(pieces).await;
            let mut written = match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => written,
            };
            self.sent.set(self.sent.get() + written as u64);
            let whole = pieces
                .iter()
                .take_while(|piece| {
                    let fits = piece.rest().len() <= written;
                    if fits {
                        written -= piece.rest().len();
                    }
                    fits
                })
                .count();
            pieces.drain(..whole);
            if let Some(first) = pieces.first_mut() {
                first.start += written;
            }
        }
        Ok(())
    }
}

enum Bytes {
    Own(Vec<u8>),
    Shared(Buffer),
}

/// What is left to send of one stretch of bytes.
struct Piece {
    bytes: Bytes,
    start: usize,
}

impl Piece {
    fn new(bytes: Bytes) -> Self {
        Self { bytes, start: 0 }
    }

    fn rest(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(bytes) => &bytes[self.start..],
            Bytes::Shared(bytes) => &bytes[self.start..],
        }
    }
}

// SAFETY: the bytes lie in a vector's heap memory or behind a shared buffer's reference count;
// neither moves when the piece does, nothing changes them while the piece exists, and all that
// `rest` covers is initialised.
unsafe impl IoBuf for Piece {
    fn stable_ptr(&self) -> *const u8 {
        self.rest().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.rest().len()
    }

    fn bytes_total(&self) -> usize {
        self.rest().len()
    }
}
