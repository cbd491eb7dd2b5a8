//! Writes to a disk in memory, which never waits: a copy each, made right here.
//!
//! All that a batch of requests brings is written by one task, which is less for the thread to do than one each. It
//! begins after what the same batch sends, so that the peer has its part to do meanwhile. No write has to come before
//! or after another one that is under way: the volume waits for the first where they overlap, and a flush covers only what
//! is complete. The disks of the simulator hold it to both: they end operations in any order, and a flush of theirs makes
//! nothing durable that ended after it began.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::{BreakGuard, Driver};
use crate::buffer::Buffer;
use crate::io::metrics::Begun;
use crate::io::turns::{TURN_BYTES, let_others_run};
use crate::units::{ByteRange, IoToken};

/// Room in line that is taken at the start. The line is bounded by the requests that clients and peer have under way.
const WRITES: usize = 1024;
/// What a write counts for in a turn at least: the step that follows it takes as long as the copy of so much.
const WRITE_BYTES_MIN: usize = 4096;

pub(super) struct MemoryWrite {
    pub io: IoToken,
    pub range: ByteRange,
    pub data: Buffer,
    pub fua: bool,
    pub begun: Begun,
}

/// Those that are not done, in the order in which they came.
pub(super) struct MemoryWrites {
    line: RefCell<VecDeque<MemoryWrite>>,
    /// There is a task that does them.
    running: Cell<bool>,
}

impl MemoryWrites {
    pub fn new() -> Self {
        Self {
            line: RefCell::new(VecDeque::with_capacity(WRITES)),
            running: Cell::new(false),
        }
    }

    /// Puts a write in line. Whoever gets true runs [`Self::work_off`] in a task of its own.
    fn push(&self, write: MemoryWrite) -> bool {
        self.line.borrow_mut().push_back(write);
        !self.running.replace(true)
    }

    /// Does all that is in line, and what comes meanwhile. Others of the thread run before it begins, and after so much
    /// as makes a turn.
    async fn work_off(&self, mut carry_out: impl FnMut(MemoryWrite)) {
        let_others_run().await;
        let mut turn_bytes = 0;
        loop {
            let first = self.line.borrow_mut().pop_front();
            let Some(write) = first else { break };
            turn_bytes += write.data.len().max(WRITE_BYTES_MIN);
            carry_out(write);
            if turn_bytes >= TURN_BYTES {
                turn_bytes = 0;
                let_others_run().await;
            }
        }
        self.running.set(false);
    }
}

impl Driver {
    pub(super) fn write_in_memory(self: &Rc<Self>, write: MemoryWrite) {
        self.in_flight.set(self.in_flight.get() + 1);
        if !self.memory_writes.push(write) {
            return;
        }
        let driver = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let guard = BreakGuard(&driver);
            let writes = &driver.memory_writes;
            writes.work_off(|write| driver.carry_out_write(write)).await;
            drop(guard);
        });
    }

    fn carry_out_write(self: &Rc<Self>, write: MemoryWrite) {
        let MemoryWrite {
            io,
            range,
            data,
            fua,
            begun,
        } = write;
        let result = self.resources.data.write_in_memory(range, &data, fua);
        // Nobody needs it for the answer.
        drop(data);
        self.ended(self.local_done(io, Some(begun), result));
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::io::metrics::Metrics;

    fn write(io: u64, bytes: usize) -> MemoryWrite {
        MemoryWrite {
            io: IoToken(io),
            range: ByteRange::new(0, bytes as u32),
            data: vec![0; bytes].into(),
            fua: false,
            begun: Metrics::new(0).begin_local_write(ByteRange::new(0, bytes as u32)),
        }
    }

    #[tokio::test]
    async fn others_run_before_the_first_and_after_each_turn_and_the_order_stays() {
        let writes = Rc::new(MemoryWrites::new());
        let log = Rc::new(RefCell::new(String::new()));
        for io in 1..=6 {
            assert_eq!(writes.push(write(io, TURN_BYTES / 2)), io == 1);
        }
        let (line, done) = (Rc::clone(&writes), Rc::clone(&log));
        let work_off = async move {
            let carry_out = |write: MemoryWrite| {
                done.borrow_mut().push_str(&write.io.0.to_string());
                if write.io.0 == 2 {
                    assert!(!line.push(self::write(7, 512)), "the task does it as well");
                }
            };
            line.work_off(carry_out).await;
        };
        let others_log = Rc::clone(&log);
        let others = async move {
            for _ in 0..4 {
                others_log.borrow_mut().push('|');
                let_others_run().await;
            }
        };
        let run = async {
            let work_off = tokio::task::spawn_local(work_off);
            tokio::task::spawn_local(others).await.unwrap();
            work_off.await.unwrap();
        };
        LocalSet::new().run_until(run).await;
        assert_eq!(*log.borrow(), "|12|34|56|7");
        assert!(writes.push(write(8, 512)), "the task has ended");
    }
}
