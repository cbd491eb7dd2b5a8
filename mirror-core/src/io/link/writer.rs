//! Sends what waits in an outbox: as many frames in one system call as there are, heads and small
//! payload gathered in one buffer, bulk payload from where it lies, or from where it was compressed. Sent at
//! once as far as the socket takes it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::rc::Rc;

use rustls::Connection;
use tokio::net::TcpStream;

use super::error::LinkError;
use super::outbox::Outbox;
use crate::buffer::Buffer;
use crate::io::outlet::Outlet;
use crate::link::compression::{Compressor, Savings};
use crate::wire::frame;
use crate::wire::message::Envelope;

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
    pub savings: Rc<Cell<Savings>>,
}

/// Sends until the outbox is finished and empty.
pub(super) async fn run(sink: Sink, outbox: Rc<Outbox>) -> Result<(), LinkError> {
    let mut compressor: Option<Compressor> = None;
    while outbox.wait().await {
        compressor = outbox.take_compressor().or(compressor);
        let pieces = gather(&outbox, compressor.as_mut());
        let blocks = compressor.as_ref().map_or(&[][..], Compressor::blocks);
        match &sink.tls {
            None => sink.send(pieces, blocks).await,
            Some(tls) => {
                let encrypted = encrypt(&mut tls.borrow_mut(), &pieces, blocks);
                drop(pieces);
                match encrypted {
                    Ok(()) => sink.send_records(tls).await,
                    Err(error) => Err(error),
                }
            }
        }
        .map_err(LinkError::Broken)?;
        if let Some(compressor) = &mut compressor {
            let has_taken_long = compressor.is_full();
            sink.note(compressor.finish_batch());
            if has_taken_long {
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(())
}

fn gather(outbox: &Outbox, mut compressor: Option<&mut Compressor>) -> Vec<Piece> {
    let mut batch = Batch::default();
    while batch.bytes < BATCH_BYTES
        && batch.pieces.len() + 2 < PIECES_MAX
        && compressor
            .as_ref()
            .is_none_or(|compressor| !compressor.is_full())
        && let Some(envelope) = outbox.pop()
    {
        match &mut compressor {
            Some(compressor) => match compressor.compress(&envelope.message) {
                Some(block) => batch.add_compressed(&envelope, block, compressor.blocks()),
                None => batch.add(&envelope),
            },
            None => batch.add(&envelope),
        }
    }
    batch.finish()
}

/// What is sent at once.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    /// Heads and small payload since the last piece.
    heads: Vec<u8>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, envelope: &Envelope) {
        let (head, data) = frame::encode(envelope);
        if self.heads.is_empty() {
            self.bytes += head.len();
            self.heads = head;
        } else {
            self.add_head(&head);
        }
        match data {
            Some(data) if data.len() > INLINE_BYTES => {
                self.add_piece(data.len(), Bytes::Shared(data))
            }
            Some(data) => self.add_head(&data),
            None => {}
        }
    }

    fn add_compressed(&mut self, envelope: &Envelope, block: Range<usize>, blocks: &[u8]) {
        self.add_head(&frame::encode_compressed(envelope, block.len()));
        if block.len() > INLINE_BYTES {
            self.add_piece(block.len(), Bytes::Compressed(block));
        } else {
            self.add_head(&blocks[block]);
        }
    }

    fn add_head(&mut self, head: &[u8]) {
        self.bytes += head.len();
        self.heads.extend_from_slice(head);
    }

    fn add_piece(&mut self, length: usize, bytes: Bytes) {
        self.bytes += length;
        let heads = std::mem::take(&mut self.heads);
        self.pieces.push(Piece::new(Bytes::Own(heads)));
        self.pieces.push(Piece::new(bytes));
    }

    fn finish(mut self) -> Vec<Piece> {
        if !self.heads.is_empty() {
            self.pieces.push(Piece::new(Bytes::Own(self.heads)));
        }
        self.pieces
    }
}

/// Makes records of all pieces, heads and payload together, from where they lie.
fn encrypt(tls: &mut Connection, pieces: &[Piece], blocks: &[u8]) -> io::Result<()> {
    let slices: Vec<IoSlice> = pieces
        .iter()
        .map(|piece| IoSlice::new(piece.rest(blocks)))
        .collect();
    let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
    // It has no limit to what it takes at once (`tls`).
    match tls.writer().write_vectored(&slices)? {
        taken if taken == bytes => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

impl Sink {
    fn note(&self, savings: Savings) {
        let mut all = self.savings.get();
        all.add(savings);
        self.savings.set(all);
    }

    /// What `tls` has in line, records that it answers its peer with included.
    async fn send_records(&self, tls: &RefCell<Connection>) -> io::Result<()> {
        while tls.borrow().wants_write() {
            let written = tls.borrow_mut().write_tls(&mut Outlet(&self.stream));
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.sent.set(self.sent.get() + written as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// `blocks` is where compressed pieces lie.
    async fn send(&self, mut pieces: Vec<Piece>, blocks: &[u8]) -> io::Result<()> {
        while !pieces.is_empty() {
            let mut written = self.write(&pieces, blocks).await?;
            self.sent.set(self.sent.get() + written as u64);
            let whole = pieces
                .iter()
                .take_while(|piece| {
                    let fits = piece.rest(blocks).len() <= written;
                    if fits {
                        written -= piece.rest(blocks).len();
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
    async fn write(&self, pieces: &[Piece], blocks: &[u8]) -> io::Result<usize> {
        loop {
            let written = {
                let slices: Vec<IoSlice> = pieces
                    .iter()
                    .map(|piece| IoSlice::new(piece.rest(blocks)))
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
    /// Where it lies among the compressor's blocks.
    Compressed(Range<usize>),
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

    fn rest<'a>(&'a self, blocks: &'a [u8]) -> &'a [u8] {
        let bytes: &[u8] = match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
            Bytes::Compressed(block) => &blocks[block.clone()],
        };
        &bytes[self.start..]
    }
}
