//! Replies on their way to the socket: small headers in one run of bytes, payload as handles.
//!
//! A batch is filled while the one before it is being sent, then the two change places, so that
//! many answers go out in one system call and payload is never copied.

use mirror_core::buffer::Buffer;

use super::info::Extent;
use super::protocol::*;

/// Replies in the order in which they go out.
#[derive(Debug, Default)]
pub struct Output {
    heads: Vec<u8>,
    /// Each part: the end of its bytes in `heads` and the payload that follows them.
    parts: Vec<(usize, Buffer)>,
    payload_bytes: usize,
}

impl Output {
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.parts.is_empty()
    }

    /// Bytes of payload in it.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Bytes beside the payload.
    pub fn head_bytes(&self) -> usize {
        self.heads.len()
    }

    pub fn clear(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.payload_bytes = 0;
    }

    /// The bytes in order, headers and payload as they alternate.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> + Clone {
        let mut start = 0;
        let parts = self.parts.iter().flat_map(move |(end, payload)| {
            let head = &self.heads[start..*end];
            start = *end;
            [Piece::Head(head), Piece::Payload(payload)]
        });
        let tail = self.parts.last().map_or(0, |(end, _)| *end);
        parts
            .chain([Piece::Head(&self.heads[tail..])])
            .filter(|piece| !piece.bytes().is_empty())
    }

    pub(super) fn simple(&mut self, cookie: u64, error: Option<Errno>) {
        self.heads.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.heads
            .extend(error.map_or(0, |errno| errno as u32).to_be_bytes());
        self.heads.extend(cookie.to_be_bytes());
    }

    pub(super) fn payload(&mut self, data: Buffer) {
        self.payload_bytes += data.len();
        self.parts.push((self.heads.len(), data));
    }

    /// Moves the bytes of `other`, which has no payload, to the end of this one.
    pub(super) fn append_heads(&mut self, other: &mut Self) {
        assert_eq!(other.payload_bytes, 0, "payload behind an exclusive reply");
        self.heads.append(&mut other.heads);
    }

    /// Head of a chunk whose `length` bytes of data follow as payload.
    pub(super) fn offset_data(&mut self, cookie: u64, last: bool, offset: u64, length: u32) {
        self.chunk(cookie, last, REPLY_OFFSET_DATA, 8 + length);
        self.heads.extend(offset.to_be_bytes());
    }

    pub(super) fn error(&mut self, cookie: u64, errno: Errno) {
        let message = errno.message();
        self.chunk(cookie, true, REPLY_ERROR, 6 + message.len() as u32);
        self.heads.extend((errno as u32).to_be_bytes());
        self.heads.extend((message.len() as u16).to_be_bytes());
        self.heads.extend(message.as_bytes());
    }

    pub(super) fn block_status(&mut self, cookie: u64, extents: &[Extent]) {
        let length = 4 + 8 * extents.len() as u32;
        self.chunk(cookie, true, REPLY_BLOCK_STATUS, length);
        self.heads.extend(CONTEXT_ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            let state = if extent.hole {
                STATE_HOLE | STATE_ZERO
            } else {
                0
            };
            self.heads.extend((extent.length as u32).to_be_bytes());
            self.heads.extend(state.to_be_bytes());
        }
    }

    fn chunk(&mut self, cookie: u64, last: bool, kind: u16, length: u32) {
        let flags = if last { REPLY_FLAG_DONE } else { 0 };
        self.heads.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.heads.extend(flags.to_be_bytes());
        self.heads.extend(kind.to_be_bytes());
        self.heads.extend(cookie.to_be_bytes());
        self.heads.extend(length.to_be_bytes());
    }
}

/// A run of bytes of an [`Output`].
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    Head(&'a [u8]),
    Payload(&'a Buffer),
}

impl<'a> Piece<'a> {
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Head(bytes) => bytes,
            Self::Payload(buffer) => buffer,
        }
    }
}
