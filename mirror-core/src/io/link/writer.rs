//! Sends what waits in an outbox: as many frames in one system call as there are, heads and small
//! payload gathered in one buffer, bulk payload from where it lies. Sent at once as far as the socket
//! takes it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::rc::Rc;

use rustls::Connection;
use tokio::net::TcpStream;

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
    while outbox.wait().await {
        let pieces = gather(&outbox);
        match &sink.tls {
            None => sink.send(pieces).await,
            Some(tls) => {
                let sealed = seal(&mut tls.borrow_mut(), &pieces);
                drop(pieces);
                match sealed {
                    Ok(records) => sink.send(vec![Piece::new(Bytes::Own(records))]).await,
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

fn seal(tls: &mut Connection, pieces: &[Piece]) -> io::Result<Vec<u8>> {
    for piece in pieces {
        tls.writer().write_all(piece.rest())?;
    }
    let bytes: usize = pieces.iter().map(|piece| piece.rest().len()).sum();
    let mut records = Vec::with_capacity(bytes + bytes / 256 + 64);
    while tls.wants_write() {
        tls.write_tls(&mut records)?;
    }
    Ok(records)
}

impl Sink {
    async fn send(&self, mut pieces: Vec<Piece>) -> io::Result<()> {
        while !pieces.is_empty() {
            let mut written = self.write(&pieces).await?;
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

impl Sink {
    /// Hands over what the socket takes at once, waiting only when it takes nothing.
    async fn write(&self, pieces: &[Piece]) -> io::Result<usize> {
        loop {
            let written = {
                let slices: Vec<IoSlice> = pieces
                    .iter()
                    .map(|piece| IoSlice::new(piece.rest()))
                    .collect();
                self.stream.try_write_vectored(&slices)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                other => return other,
            }
        }
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
