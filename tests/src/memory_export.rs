//! A mirror that is only memory, for tests and measurements of the NBD server itself.

use std::cell::{Cell, RefCell};
use std::future::ready;
use std::rc::Rc;

use mirror_core::io::buffers::{BufferMut, BufferPool, Reserve};
use mirror_core::request::{Answer, Failure, Operation};
use mirror_core::units::ByteRange;
use nbd_frontend::nbd::export::{Completion, Export, ExportInfo, Extent, StatusFuture};

const BLOCK: usize = 4096;

/// Memory behind an [`Export`], with the faults that tests ask for.
pub struct MemoryExport {
    shared: Rc<Shared>,
}

struct Shared {
    info: RefCell<ExportInfo>,
    pool: BufferPool,
    bytes: RefCell<Vec<u8>>,
    /// One per 4 KiB: ever written and not trimmed since.
    allocated: RefCell<Vec<bool>>,
    /// Reads and writes that touch this byte fail.
    bad_byte: Cell<Option<u64>>,
    /// Requests are kept unanswered while set.
    frozen: Cell<bool>,
    kept: RefCell<Vec<(ByteRange, Operation, Completion)>>,
}

impl MemoryExport {
    pub fn new(name: &str, size_bytes: u64, logical_block_bytes: u32, pool: BufferPool) -> Self {
        let info = ExportInfo {
            name: name.into(),
            description: "memory".into(),
            size_bytes,
            logical_block_bytes,
            fast_zero: true,
            serving: Ok(()),
        };
        let size = usize::try_from(size_bytes).expect("a size that fits into memory");
        Self {
            shared: Rc::new(Shared {
                info: RefCell::new(info),
                pool,
                bytes: RefCell::new(vec![0; size]),
                allocated: RefCell::new(vec![false; size.div_ceil(BLOCK)]),
                bad_byte: Cell::new(None),
                frozen: Cell::new(false),
                kept: RefCell::default(),
            }),
        }
    }

    /// Refuses clients from here on, or serves them again.
    pub fn set_serving(&self, serving: Result<(), String>) {
        self.shared.info.borrow_mut().serving = serving;
    }

    /// Makes requests that touch the byte at `offset` fail.
    pub fn set_bad_byte(&self, offset: Option<u64>) {
        self.shared.bad_byte.set(offset);
    }

    /// Keeps requests unanswered, or answers those that were kept.
    pub fn set_frozen(&self, frozen: bool) {
        self.shared.frozen.set(frozen);
        if !frozen {
            let kept = std::mem::take(&mut *self.shared.kept.borrow_mut());
            for (range, operation, done) in kept {
                self.submit(range, operation, done);
            }
        }
    }

    /// Requests that are kept.
    pub fn kept(&self) -> usize {
        self.shared.kept.borrow().len()
    }
}

impl Shared {
    fn fails(&self, range: ByteRange) -> bool {
        self.bad_byte
            .get()
            .is_some_and(|bad| range.offset <= bad && bad < range.end())
    }

    fn read_into(&self, range: ByteRange, mut buffer: BufferMut) -> Answer {
        buffer.copy_from_slice(&self.bytes.borrow()[indices(range)]);
        Answer::Data(buffer.freeze())
    }

    fn change(&self, range: ByteRange, data: Option<&[u8]>) -> Answer {
        let target = &mut self.bytes.borrow_mut()[indices(range)];
        match data {
            Some(data) => target.copy_from_slice(data),
            None => target.fill(0),
        }
        let mut allocated = self.allocated.borrow_mut();
        let bytes = indices(range);
        let blocks = match data {
            Some(_) => bytes.start / BLOCK..bytes.end.div_ceil(BLOCK),
            None => bytes.start.div_ceil(BLOCK)..bytes.end / BLOCK,
        };
        if !blocks.is_empty() {
            allocated[blocks].fill(data.is_some());
        }
        Answer::Done
    }
}

fn indices(range: ByteRange) -> std::ops::Range<usize> {
    range.offset as usize..range.end() as usize
}

impl Export for MemoryExport {
    fn info(&self) -> ExportInfo {
        self.shared.info.borrow().clone()
    }

    fn pool(&self) -> &BufferPool {
        &self.shared.pool
    }

    fn submit(&self, range: ByteRange, operation: Operation, done: Completion) {
        if self.shared.frozen.get() {
            self.shared.kept.borrow_mut().push((range, operation, done));
            return;
        }
        if !matches!(operation, Operation::Flush) {
            assert!(range.within_one_extent(), "request straddles extents");
        }
        if self.shared.fails(range) {
            return done.finish(Answer::Failed(Failure::Io));
        }
        match operation {
            Operation::Read => {
                let length = range.length as usize;
                if let Some(buffer) = self.shared.pool.try_take(length, Reserve::Normal) {
                    return done.finish(self.shared.read_into(range, buffer));
                }
                let shared = Rc::clone(&self.shared);
                tokio::task::spawn_local(async move {
                    let buffer = shared.pool.take(length, Reserve::Normal).await;
                    done.finish(shared.read_into(range, buffer));
                });
            }
            Operation::Write { data, .. } => {
                done.finish(self.shared.change(range, Some(&data)));
            }
            Operation::Flush => done.finish(Answer::Done),
            Operation::Trim { .. } | Operation::WriteZeroes { no_hole: false, .. } => {
                done.finish(self.shared.change(range, None));
            }
            Operation::WriteZeroes { no_hole: true, .. } => {
                let zeroes = vec![0; range.length as usize];
                done.finish(self.shared.change(range, Some(&zeroes)));
            }
        }
    }

    fn block_status(&self, range: ByteRange) -> StatusFuture {
        let allocated = self.shared.allocated.borrow();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.offset;
        while at < range.end() {
            let block = at / BLOCK as u64;
            let end = ((block + 1) * BLOCK as u64).min(range.end());
            let (length, hole) = (end - at, !allocated[block as usize]);
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.length += length,
                _ => extents.push(Extent { length, hole }),
            }
            at = end;
        }
        Box::pin(ready(Ok(extents)))
    }
}

impl std::fmt::Debug for MemoryExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryExport({:?})", self.shared.info.borrow().name)
    }
}
