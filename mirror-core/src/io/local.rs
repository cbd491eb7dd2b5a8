//! A mirror as its front end sees it, on the mirror's own thread.

use std::rc::Rc;

use tokio::sync::watch;

use crate::io::buffers::BufferPool;
use crate::io::driver::Driver;
pub use crate::io::driver::ExportState;
use crate::io::store::Allocation;
use crate::request::{Answer, Failure, Operation};
use crate::units::ByteRange;

/// Runs of a block status answer at most.
pub const STATUS_RUNS_MAX: usize = 1024;

/// A handle for clients' requests. Clones share the mirror; it does not leave its thread.
#[derive(Clone)]
pub struct LocalMirror {
    driver: Rc<Driver>,
}

impl std::fmt::Debug for LocalMirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalMirror").finish_non_exhaustive()
    }
}

impl LocalMirror {
    pub(super) fn new(driver: Rc<Driver>) -> Self {
        Self { driver }
    }

    /// Takes a request as [`crate::request::Request`] describes it. `done` is called once, on this
    /// thread, perhaps before this returns; with `Failure::NotPrimary` while the mirror is not
    /// served. The caller bounds how many it has in flight.
    pub fn submit(
        &self,
        range: ByteRange,
        operation: Operation,
        done: impl FnOnce(Answer) + 'static,
    ) {
        self.driver.submit(range, operation, done);
    }

    pub fn name(&self) -> String {
        self.driver.volume().status().name
    }

    pub fn serving(&self) -> bool {
        self.driver.export().borrow().serving
    }

    pub fn size_bytes(&self) -> u64 {
        self.driver.export().borrow().size_bytes
    }

    /// 512 or 4096: what requests have to be multiples of.
    pub fn logical_block_bytes(&self) -> u32 {
        self.driver.volume().logical_block_bytes()
    }

    /// Zeroing without writing can be promised on both sides.
    pub fn fast_zero(&self) -> bool {
        self.driver.volume().fast_zero()
    }

    /// Follows whether the mirror is served, and its size.
    pub fn changes(&self) -> watch::Receiver<ExportState> {
        self.driver.export()
    }

    /// The memory that write payload is to be received into.
    pub fn pool(&self) -> &BufferPool {
        &self.driver.resources().pool
    }

    /// What is allocated from the start of the range on; at least one run, perhaps not all of it.
    /// All data where the local disk is not what clients see.
    pub fn block_status(&self, offset: u64, length: u64) -> Result<Vec<Allocation>, Failure> {
        if !self.serving() {
            return Err(Failure::NotPrimary);
        }
        let end = offset.checked_add(length);
        if length == 0 || end.is_none_or(|end| end > self.size_bytes()) {
            return Err(Failure::Invalid);
        }
        if !self.driver.disk_is_current() {
            let hole = false;
            return Ok(vec![Allocation { length, hole }]);
        }
        let data = &self.driver.resources().data;
        Ok(data.allocation(offset, length, STATUS_RUNS_MAX))
    }
}
