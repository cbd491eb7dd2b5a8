//! The ring of a mirror's thread: how operations on disks reach the kernel, and how they come back.
//!
//! A [`Runtime`] runs the tasks of one thread as tokio does it; sockets, timers and channels are tokio's. What its tasks
//! do with files goes through an io_uring. Each operation is submitted at once: a disk that begins with the first of many
//! ends them one by one while the thread goes on, and one that gets all of them together ends them together, and rests
//! until the thread has dealt with them (`docs/decisions/2026-11-30-ring.md`). What has ended is taken from the ring after
//! each submission, and whenever its descriptor says that there is something, for which the thread sleeps as for any
//! socket.
//!
//! Invariants:
//! - Memory and file of an operation belong to it until the kernel has ended it, whoever stopped waiting for it.
//! - A runtime is gone only when all of its operations have ended: a mirror that was given up does nothing to a disk
//!   that somebody else has claimed.
//! - Operations under way are bounded by whoever enters them. What the kernel does not take at once waits in line here, and
//!   what the completion queue has no room for waits in the kernel; the thread waits for neither.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tracing::warn;

use crate::buffer::Buffer;
use crate::io::buffers::BufferMut;

/// Entries of the submission queue: most that the kernel is offered at once.
const RING_ENTRIES: u32 = 1024;
/// Before the kernel is offered again what it did not take.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// Bytes of one operation at most: what the kernel moves at once is below 2 GiB.
const LENGTH_MAX: usize = 1 << 30;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// Runs a thread's tasks, and has the thread's ring.
#[derive(Debug)]
pub struct Runtime {
    // In the order in which they have to go: tasks give up their operations, then the ring waits for them.
    tasks: LocalSet,
    tokio: tokio::runtime::Runtime,
    ring: Rc<Ring>,
}

impl Runtime {
    /// For this thread, which alone may use it. An error is the kernel's about io_uring, or the system's about epoll.
    pub fn new() -> io::Result<Self> {
        let ring = Rc::new(Ring::new()?);
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let tasks = LocalSet::new();
        let ended = {
            let _inside = tokio.enter();
            // SAFETY: the descriptor stays open, and the same, for as long as the value owns it.
            unsafe { AsyncFd::register_with_interest(ring.descriptor()?, Interest::READABLE) }?
        };
        tasks.spawn_local(Rc::clone(&ring).submit_again());
        tasks.spawn_local(Rc::clone(&ring).take_what_ends(ended));
        Ok(Self { tasks, tokio, ring })
    }

    /// Runs `work` to its end, and meanwhile all tasks that were spawned with `tokio::task::spawn_local`.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        struct Restore(Option<Rc<Ring>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(Rc::clone(&self.ring))));
        self.tokio.block_on(self.tasks.run_until(work))
    }
}

/// Fills all of `buffer` from `offset` of `file`. To be called, like all here, by a task of a [`Runtime`].
pub async fn read_exact(
    file: &Rc<File>,
    buffer: BufferMut,
    offset: u64,
) -> (io::Result<()>, BufferMut) {
    let length = buffer.len();
    let ends_early = io::ErrorKind::UnexpectedEof;
    piecewise(file, buffer, length, ends_early, |fd, buffer, done| {
        let rest = &mut buffer[done..];
        let length = rest.len().min(LENGTH_MAX) as u32;
        opcode::Read::new(fd, rest.as_mut_ptr(), length)
            .offset(offset + done as u64)
            .build()
    })
    .await
}

/// Writes all of `data` at `offset` of `file`.
pub async fn write_all(file: &Rc<File>, data: impl Payload, offset: u64) -> io::Result<()> {
    let length = data.bytes().len();
    let ends_early = io::ErrorKind::WriteZero;
    let (written, _) = piecewise(file, data, length, ends_early, |fd, data, done| {
        let rest = &data.bytes()[done..];
        let length = rest.len().min(LENGTH_MAX) as u32;
        opcode::Write::new(fd, rest.as_ptr(), length)
            .offset(offset + done as u64)
            .build()
    })
    .await;
    written
}

/// Enters one operation after the other, each for what is left, until `length` bytes of `held` are done.
async fn piecewise<T: 'static>(
    file: &Rc<File>,
    mut held: T,
    length: usize,
    ends_early: io::ErrorKind,
    entry: impl Fn(Fd, &mut T, usize) -> squeue::Entry,
) -> (io::Result<()>, T) {
    let mut done = 0;
    while done < length {
        let both = (Rc::clone(file), held);
        let (moved, both) = enter(both, |(file, held)| entry(fd(file), held, done)).await;
        held = both.1;
        match moved {
            Ok(0) => return (Err(ends_early.into()), held),
            Ok(length) => done += length as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), held),
        }
    }
    (Ok(()), held)
}

/// Makes durable what was written to `file`, and of its metadata what is needed to read it.
pub async fn sync_data(file: &Rc<File>) -> io::Result<()> {
    let synced = enter(Rc::clone(file), |file| {
        opcode::Fsync::new(fd(file))
            .flags(FsyncFlags::DATASYNC)
            .build()
    });
    synced.await.0.map(drop)
}

/// As `fallocate(2)` with this `mode`.
pub async fn fallocate(file: &Rc<File>, offset: u64, length: u64, mode: i32) -> io::Result<()> {
    let allocated = enter(Rc::clone(file), |file| {
        opcode::Fallocate::new(fd(file), length)
            .offset(offset)
            .mode(mode)
            .build()
    });
    allocated.await.0.map(drop)
}

/// What can be written to a disk while nobody looks at it.
///
/// # Safety
///
/// `bytes` are at the same place, and are the same, for as long as the value lives, wherever it is moved.
pub unsafe trait Payload: 'static {
    fn bytes(&self) -> &[u8];
}

// SAFETY: the bytes lie in the pool's mapping, and this value is the only way to change them.
unsafe impl Payload for BufferMut {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the contract of `crate::buffer::Memory`, which the handle keeps alive.
unsafe impl Payload for Buffer {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: it neither moves nor changes.
unsafe impl Payload for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

fn fd(file: &Rc<File>) -> Fd {
    Fd(file.as_raw_fd())
}

/// Enters an operation into the thread's ring. Its entry may point to what `held` owns and to nothing else; it is made
/// at once, and `held` comes back with what the kernel said.
fn enter<T: 'static>(mut held: T, entry: impl FnOnce(&mut T) -> squeue::Entry) -> Running<T> {
    let ring = CURRENT.with_borrow(Clone::clone);
    let ring = ring.expect("disks are used by tasks of a ring's runtime");
    let entry = entry(&mut held);
    let key = ring.enter(entry);
    Running {
        ring,
        key,
        held: Some(held),
    }
}

/// An operation that was entered.
struct Running<T: 'static> {
    ring: Rc<Ring>,
    key: usize,
    /// Until it has ended.
    held: Option<T>,
}

// Nothing points into the value itself, only into what it owns.
impl<T> Unpin for Running<T> {}

impl<T> Future for Running<T> {
    type Output = (io::Result<u32>, T);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(result) = self.ring.poll(self.key, context) else {
            return Poll::Pending;
        };
        let held = self.held.take().expect("polled after its end");
        let result = match result {
            0.. => Ok(result as u32),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        Poll::Ready((result, held))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.ring.abandon(self.key, held);
        }
    }
}

enum Operation {
    /// Entered; perhaps somebody waits for it.
    Running(Option<Waker>),
    /// Nobody waits any more; what it uses is kept.
    Abandoned(#[expect(dead_code, reason = "kept, not used")] Box<dyn Any>),
    /// With what the kernel said.
    Ended(i32),
}

struct Ring {
    uring: RefCell<IoUring>,
    operations: RefCell<Slab<Operation>>,
    /// Entered, and not in the submission queue yet: of operations that are not over.
    line: RefCell<VecDeque<squeue::Entry>>,
    /// The kernel did not take something that was entered.
    refused: Notify,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("operations", &self.operations.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Ring {
    fn new() -> io::Result<Self> {
        // One thread submits and takes, so the kernel need not interrupt it when something ends. Before Linux 5.19 there
        // is no such flag.
        let cooperative = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(RING_ENTRIES);
        let uring = cooperative.or_else(|_| IoUring::new(RING_ENTRIES))?;
        Ok(Self {
            uring: RefCell::new(uring),
            operations: RefCell::new(Slab::with_capacity(RING_ENTRIES as usize)),
            line: RefCell::default(),
            refused: Notify::new(),
        })
    }

    /// Ready to be read when something has ended.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        let uring = self.uring.borrow();
        // SAFETY: the descriptor is the ring's, which is borrowed here.
        unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) }.try_clone_to_owned()
    }

    fn enter(&self, entry: squeue::Entry) -> usize {
        let key = self
            .operations
            .borrow_mut()
            .insert(Operation::Running(None));
        self.line
            .borrow_mut()
            .push_back(entry.user_data(key as u64));
        if self.turn().is_err() {
            self.refused.notify_one();
        }
        key
    }

    fn poll(&self, key: usize, context: &mut Context<'_>) -> Poll<i32> {
        let mut operations = self.operations.borrow_mut();
        match &mut operations[key] {
            Operation::Running(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Operation::Ended(result) => {
                let result = *result;
                operations.remove(key);
                Poll::Ready(result)
            }
            Operation::Abandoned(_) => unreachable!("polled after it was dropped"),
        }
    }

    fn abandon(&self, key: usize, held: impl Any) {
        let mut operations = self.operations.borrow_mut();
        match &mut operations[key] {
            Operation::Ended(_) => {
                operations.remove(key);
            }
            running => *running = Operation::Abandoned(Box::new(held)),
        }
    }

    /// Offers the kernel again what it did not take for want of memory, or because too much had ended that nobody took:
    /// neither lasts. Until then it is with these operations as with those of a disk that does not answer.
    async fn submit_again(self: Rc<Self>) {
        loop {
            self.refused.notified().await;
            let mut told = false;
            while let Err(error) = self.turn() {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "the kernel takes no disk operations; they are offered again every millisecond");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    async fn take_what_ends(self: Rc<Self>, ended: AsyncFd<OwnedFd>) {
        // An error says that the runtime ends.
        while let Ok(mut ready) = ended.readable().await {
            // First, so that what ends from here on makes it ready again.
            ready.clear_ready();
            if self.turn().is_err() {
                self.refused.notify_one();
            }
        }
    }

    /// Submits what was entered and hands out what has ended.
    fn turn(&self) -> io::Result<()> {
        let submitted = self.submit();
        self.take_ended();
        submitted
    }

    fn submit(&self) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        loop {
            let mut queue = uring.submission();
            let mut line = self.line.borrow_mut();
            while let Some(first) = line.front() {
                // SAFETY: the entry points to what `Running` holds, and hands over to `Operation::Abandoned`, until the
                // kernel has ended the operation.
                if unsafe { queue.push(first) }.is_err() {
                    break;
                }
                line.pop_front();
            }
            let is_left = !line.is_empty();
            drop(line);
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
            drop(queue);
            match uring.submit() {
                // The kernel took all; or what is left will end with an error of its own.
                Ok(_) if !is_left && uring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take_ended(&self) {
        let mut uring = self.uring.borrow_mut();
        for completion in uring.completion() {
            let key = completion.user_data() as usize;
            let mut operations = self.operations.borrow_mut();
            match std::mem::replace(&mut operations[key], Operation::Ended(completion.result())) {
                Operation::Running(Some(waker)) => waker.wake(),
                Operation::Running(None) => {}
                abandoned @ Operation::Abandoned(_) => {
                    operations.remove(key);
                    drop(operations);
                    drop(abandoned);
                }
                Operation::Ended(_) => unreachable!("an operation ends once"),
            }
        }
    }

    fn is_idle(&self) -> bool {
        let operations = self.operations.borrow();
        let mut all = operations.iter();
        all.all(|(_, operation)| matches!(operation, Operation::Ended(_)))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // However long that takes, and it is the kernel that waits: see the invariants.
        while !self.is_idle() {
            let _ = self.submit();
            let _ = self.uring.borrow_mut().submit_and_wait(1);
            self.take_ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::io::buffers::{BufferPool, POOL_BYTES_MIN, Reserve};

    /// Only ends a test that hangs.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Tells when it is dropped.
    struct Tells(std::sync::mpsc::Sender<()>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    fn file() -> Rc<File> {
        Rc::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn more_operations_than_the_queue_has_entries_all_end() {
        let file = file();
        let runtime = Runtime::new().unwrap();
        let count = 3 * u64::from(RING_ENTRIES);
        runtime.block_on(async {
            let writes: Vec<_> = (0..count)
                .map(|number| {
                    let file = Rc::clone(&file);
                    tokio::task::spawn_local(async move {
                        let data = Buffer::from(vec![number as u8; 512]);
                        write_all(&file, data, number * 512).await.unwrap();
                    })
                })
                .collect();
            for write in writes {
                write.await.unwrap();
            }
            sync_data(&file).await.unwrap();
        });
        let mut bytes = vec![0; 512];
        for number in 0..count {
            file.read_exact_at(&mut bytes, number * 512).unwrap();
            assert!(bytes.iter().all(|&byte| byte == number as u8), "{number}");
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_keeps_its_memory_until_it_ends() {
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = Rc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let pool = BufferPool::new(0).unwrap();
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let buffer = pool.try_take(4096, Reserve::Normal).unwrap();
            tokio::select! {
                biased;
                _ = read_exact(&pipe, buffer, 0) => panic!("nothing was sent"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN - 4096);
            std::io::Write::write_all(&mut &writer, b"late").unwrap();
            let given_back = async {
                while pool.stats().free_bytes < POOL_BYTES_MIN {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            };
            tokio::time::timeout(PATIENCE, given_back).await.unwrap();
        });
    }

    #[test]
    fn a_runtime_ends_when_its_operations_have_ended() {
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = Rc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let pool = BufferPool::new(0).unwrap();
        let runtime = Runtime::new().unwrap();
        let (pipe_of_task, pool_of_task) = (Rc::clone(&pipe), pool.clone());
        let (give_up, given_up) = std::sync::mpsc::channel();
        runtime.block_on(async move {
            let tells = Tells(give_up);
            tokio::task::spawn_local(async move {
                let _tells = tells;
                let buffer = pool_of_task.try_take(4096, Reserve::Normal).unwrap();
                read_exact(&pipe_of_task, buffer, 0).await.0.unwrap();
            });
            // The task runs up to its read.
            tokio::task::yield_now().await;
        });
        let sender = std::thread::spawn(move || {
            // By the end of the runtime, which then has to wait for this.
            given_up.recv_timeout(PATIENCE).unwrap();
            std::io::Write::write_all(&mut &writer, &[7; 4096]).unwrap();
        });
        drop(runtime);
        sender.join().unwrap();
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN);
        let mut left = Vec::new();
        std::io::Read::read_to_end(&mut &*pipe, &mut left).unwrap();
        assert!(left.is_empty(), "the read did not end, it was given up");
    }

    #[test]
    fn the_end_of_a_file_and_an_error_of_the_kernel_are_said() {
        let file = file();
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let pool = BufferPool::new(0).unwrap();
            let buffer = pool.try_take(4096, Reserve::Normal).unwrap();
            let (read, buffer) = read_exact(&file, buffer, 0).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            write_all(&file, buffer.freeze(), 0).await.unwrap();
            let punched = fallocate(&file, 0, 0, 0).await;
            assert_eq!(punched.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        });
    }
}
