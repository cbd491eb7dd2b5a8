//! A request in flight and how it is cut: one slot of a session's table.

use mirror_core::units::{EXTENT_BYTES, REQUEST_BYTES_MAX};

use crate::nbd::protocol::Errno;

/// Pieces of one large read or of one trim or zeroing that are in flight together.
pub(super) const PIECES_MAX: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With `DF` or without structured replies: one piece after the other.
    ReadInOrder,
    /// Each piece is a chunk of its own, in any order.
    ReadChunks,
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    WriteZeroes {
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    BlockStatus {
        one: bool,
    },
}

/// A request in flight: `next..end` is not yet handed out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub cookie: u64,
    pub kind: Kind,
    pub start: u64,
    pub next: u64,
    pub end: u64,
    /// Pieces handed out and not answered.
    pub outstanding: u32,
    pub failed: Option<Errno>,
    /// The head of the reply is out, and says success.
    pub begun: bool,
    pub in_use: bool,
}

impl Slot {
    pub const FREE: Self = Self {
        cookie: 0,
        kind: Kind::Flush,
        start: 0,
        next: 0,
        end: 0,
        outstanding: 0,
        failed: None,
        begun: false,
        in_use: false,
    };

    /// Length of the piece that starts at `next`.
    pub fn piece_bytes(&self) -> u32 {
        let left = self.end - self.next;
        let in_extent = EXTENT_BYTES - self.next % EXTENT_BYTES;
        let most = match self.kind {
            Kind::ReadInOrder | Kind::ReadChunks | Kind::Write { .. } => {
                u64::from(REQUEST_BYTES_MAX)
            }
            Kind::BlockStatus { .. } => return left as u32,
            Kind::Flush | Kind::Trim { .. } | Kind::WriteZeroes { .. } => EXTENT_BYTES,
        };
        left.min(in_extent).min(most) as u32
    }

    pub fn pieces_max(&self) -> u32 {
        match self.kind {
            Kind::ReadInOrder | Kind::Flush | Kind::BlockStatus { .. } => 1,
            Kind::ReadChunks | Kind::Trim { .. } | Kind::WriteZeroes { .. } => PIECES_MAX,
            Kind::Write { .. } => 0,
        }
    }

    pub fn is_read(&self) -> bool {
        matches!(self.kind, Kind::ReadInOrder | Kind::ReadChunks)
    }
}
