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
    let mut batch = Batch::default();
    while outbox.wait().await {
        compressor = outbox.take_compressor().or(compressor);
        batch.gather(&outbox, compressor.as_mut());
        let blocks = compressor.as_ref().map_or(&[][..], Compressor::blocks);
        match &sink.tls {
            None => sink.send(&mut batch, blocks).await,
            Some(tls) => {
                let encrypted = encrypt(&mut tls.borrow_mut(), &batch, blocks);
                // The records hold it all: payload goes back to the pool before the socket is waited for.
                batch.clear();
                match encrypted {
                    Ok(()) => sink.send_records(tls).await,
                    Err(error) => Err(error),
                }
            }
        }
        .map_err(LinkError::Broken)?;
        batch.clear();
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

/// What is sent at once. The memory for heads and pieces is used again for the next.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    /// Heads and small payload of all pieces, one after the other.
    heads: Vec<u8>,
    /// Up to there they belong to a piece.
    heads_end: usize,
    /// Of the pieces beside the heads.
    bytes: usize,
}

impl Batch {
    fn clear(&mut self) {
        self.pieces.clear();
        self.heads.clear();
        self.heads_end = 0;
        self.bytes = 0;
    }

    /// Fills an empty batch.
    fn gather(&mut self, outbox: &Outbox, mut compressor: Option<&mut Compressor>) {
        while self.bytes + self.heads.len() < BATCH_BYTES
            && self.pieces.len() + 2 < PIECES_MAX
            && compressor
                .as_ref()
                .is_none_or(|compressor| !compressor.is_full())
            && let Some(envelope) = outbox.pop()
        {
            let block = compressor
                .as_mut()
                .and_then(|compressor| compressor.compress(&envelope.message));
            match (block, &compressor) {
                (Some(block), Some(compressor)) => {
                    self.add_compressed(&envelope, block, compressor.blocks());
                }
                _ => self.add(&envelope),
            }
        }
        self.end_heads();
    }

    fn add(&mut self, envelope: &Envelope) {
        match frame::append(envelope, &mut self.heads) {
            Some(data) if data.len() > INLINE_BYTES => self.add_piece(Piece::Data(data)),
            Some(data) => self.heads.extend_from_slice(&data),
            None => {}
        }
    }

    fn add_compressed(&mut self, envelope: &Envelope, block: Range<usize>, blocks: &[u8]) {
        let head = frame::encode_compressed(envelope, block.len());
        self.heads.extend_from_slice(&head);
        if block.len() > INLINE_BYTES {
            self.add_piece(Piece::Compressed(block));
        } else {
            self.heads.extend_from_slice(&blocks[block]);
        }
    }

    fn add_piece(&mut self, piece: Piece) {
        self.end_heads();
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    /// What was added to the heads since the last piece is a piece.
    fn end_heads(&mut self) {
        let end = self.heads.len();
        if self.heads_end < end {
            self.pieces.push(Piece::Head(self.heads_end..end));
            self.heads_end = end;
        }
    }

    /// The pieces as they lie in memory.
    fn slices<'a>(&'a self, blocks: &'a [u8]) -> Vec<IoSlice<'a>> {
        let slice = |piece: &'a Piece| IoSlice::new(piece.bytes(&self.heads, blocks));
        self.pieces.iter().map(slice).collect()
    }

    /// So many bytes of it are sent.
    fn advance(&mut self, mut sent: usize) {
        let mut whole = 0;
        for piece in &mut self.pieces {
            if sent < piece.len() {
                piece.skip(sent);
                break;
            }
            sent -= piece.len();
            whole += 1;
        }
        self.pieces.drain(..whole);
    }
}

/// Makes records of all pieces, heads and payload together, from where they lie.
fn encrypt(tls: &mut Connection, batch: &Batch, blocks: &[u8]) -> io::Result<()> {
    let slices = batch.slices(blocks);
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
    async fn send(&self, batch: &mut Batch, blocks: &[u8]) -> io::Result<()> {
        while !batch.pieces.is_empty() {
            let written = self.write(batch, blocks).await?;
            self.sent.set(self.sent.get() + written as u64);
            batch.advance(written);
        }
        Ok(())
    }

    /// Hands over what the socket takes at once, waiting only when it takes nothing.
    async fn write(&self, batch: &Batch, blocks: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.try_write_vectored(&batch.slices(blocks)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                other => return other,
            }
        }
    }
}

/// What is left to send of one stretch of bytes.
enum Piece {
    /// Where it lies among the batch's heads.
    Head(Range<usize>),
    Data(Buffer),
    /// Where it lies among the compressor's blocks.
    Compressed(Range<usize>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Head(range) | Self::Compressed(range) => range.len(),
            Self::Data(data) => data.len(),
        }
    }

    fn skip(&mut self, length: usize) {
        match self {
            Self::Head(range) | Self::Compressed(range) => range.start += length,
            Self::Data(data) => *data = data.slice(length, data.len() - length),
        }
    }

    fn bytes<'a>(&'a self, heads: &'a [u8], blocks: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Head(range) => &heads[range.clone()],
            Self::Data(data) => data,
            Self::Compressed(range) => &blocks[range.clone()],
        }
    }
}
