//! What a client asks of a mirror and what it gets back. The front end turns protocol bytes into
//! these values and nothing else; the engine never sees a protocol.

use crate::buffer::Buffer;
use crate::units::{ByteRange, RequestId};

/// One client request. `range` lies inside one extent and inside the mirror; writes carry exactly
/// `range.length` bytes, and reads and writes are at most `REQUEST_BYTES_MAX` long. For
/// [`Operation::Flush`] the range is ignored.
#[derive(Debug)]
pub struct Request {
    pub id: RequestId,
    pub range: ByteRange,
    pub operation: Operation,
}

#[derive(Debug, Clone)]
pub enum Operation {
    Read,
    /// `fua`: answered only when the data itself is durable on both sides.
    Write {
        data: Buffer,
        fua: bool,
    },
    /// Covers every request answered before it, on whatever connection it came.
    Flush,
    /// After it, the range reads as zeroes on both sides.
    Trim {
        fua: bool,
    },
    /// `no_hole`: keep the range allocated. `fast`: fail rather than write zeroes one by one.
    WriteZeroes {
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    Data(Buffer),
    Failed(Failure),
}

/// Why a request failed, in terms that every front end can map to its own error numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The disk failed here and no peer could serve it (EIO).
    Io,
    /// The backing store is full (ENOSPC).
    NoSpace,
    /// This node is not, or no longer, primary (ESHUTDOWN).
    NotPrimary,
    /// Fast zeroing was asked for and cannot be promised (ENOTSUP).
    NotSupported,
    /// Out of range, unaligned or too large (EINVAL).
    Invalid,
}
