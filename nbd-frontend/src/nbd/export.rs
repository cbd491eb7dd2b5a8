//! What the NBD server needs to know of a mirror, and nothing more.
//!
//! The mirror's driver implements [`Export`]; the server never sees a volume. Requests go in as
//! the engine takes them (inside one extent, at most `REQUEST_BYTES_MAX` for data), each with a
//! [`Completion`] that is finished once, in any order, at any time, on the same thread.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use mirror_core::io::buffers::BufferPool;
use mirror_core::request::{Answer, Failure, Operation};
use mirror_core::units::ByteRange;

pub use super::info::{ExportInfo, Extent};
pub use super::session::Tag;

pub type StatusFuture = Pin<Box<dyn Future<Output = Result<Vec<Extent>, Failure>>>>;

pub trait Export {
    /// Asked at each handshake and at the start of each connection; `serving`, `size_bytes` and the
    /// rest are as of now.
    fn info(&self) -> ExportInfo;

    /// The pool that write payload is received into.
    fn pool(&self) -> &BufferPool;

    /// Takes a request. May finish `done` before it returns.
    fn submit(&self, range: ByteRange, operation: Operation, done: Completion);

    /// Allocation of `range` from its start on; may cover less than all of it, but at least one
    /// extent. More than [`super::session::STATUS_EXTENTS_MAX`] extents are cut off.
    fn block_status(&self, range: ByteRange) -> StatusFuture;
}

/// Where answers go; `tag` is the sink's own.
pub trait Sink {
    fn complete(&self, tag: Tag, answer: Answer);
}

/// The duty to answer one request. Dropped unfinished it answers that the node no longer serves,
/// so that no client waits for ever on a mirror that was torn down.
pub struct Completion {
    sink: Option<Rc<dyn Sink>>,
    tag: Tag,
}

impl Completion {
    pub(super) fn new(sink: Rc<dyn Sink>, tag: Tag) -> Self {
        Self {
            sink: Some(sink),
            tag,
        }
    }

    pub fn finish(mut self, answer: Answer) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.tag, answer);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.tag, Answer::Failed(Failure::NotPrimary));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completion({:?})", self.tag)
    }
}
