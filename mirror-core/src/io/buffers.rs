//! Pooled, page-aligned payload memory, all of it taken at start.
//!
//! One anonymous mapping is cut into power-of-two pieces of 4 KiB to 1 MiB by a buddy allocator.
//! A piece is exclusive while it is filled ([`BufferMut`]), then shared and read-only
//! ([`crate::buffer::Buffer`]), and goes back to the pool with its last handle, wherever that is.
//!
//! Invariants:
//! - Two live pieces never overlap; a piece is aligned to [`BUFFER_BYTES_MIN`] at least.
//! - The last quarter is for [`Reserve::Internal`] (link and resync): client requests that wait for
//!   memory can never keep the replies away that would free it.
//! - Waiters of one kind are served in the order in which they came.
//! - After [`BufferPool::new`] the pool itself takes no memory, except one small cell per waiter.
//!
//! Contents are whatever the last user left: whoever takes a piece fills all of it before it
//! shows it to anyone.

mod buddies;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::buffer::{Buffer, Memory};
use buddies::Buddies;

/// Smallest piece, and the alignment of every piece.
pub const BUFFER_BYTES_MIN: usize = 4096;
/// Largest piece: one request's worth of payload.
pub const BUFFER_BYTES_MAX: usize = 1 << 20;
/// The smallest pool: a largest piece for clients and one for the link.
pub const POOL_BYTES_MIN: usize = 4 * BUFFER_BYTES_MAX;

/// Who asks for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Client requests: everything but the last quarter.
    Normal,
    /// Link and resync: the last quarter first, then the rest.
    Internal,
}

/// What a pool holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    pub total_bytes: usize,
    pub free_bytes: usize,
    /// Free bytes of the last quarter.
    pub reserve_free_bytes: usize,
    pub waiters: usize,
    /// How often someone had to wait since the start.
    pub waits: u64,
}

/// A handle to one pool. Clones share it.
#[derive(Clone)]
pub struct BufferPool {
    arena: Rc<Arena>,
}

impl BufferPool {
    /// Maps `bytes`, rounded up to whole megabytes and to [`POOL_BYTES_MIN`], and touches all of it.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes
            .max(POOL_BYTES_MIN)
            .checked_next_multiple_of(BUFFER_BYTES_MAX)
            .filter(|bytes| bytes / BUFFER_BYTES_MIN < u32::MAX as usize)
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "buffer memory too large")
            })?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no
        // existing memory; it is unmapped once, when the arena drops.
        let base = unsafe {
            mmap_anonymous(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE,
            )
        }
        .map_err(io::Error::from)?;
        Ok(Self {
            arena: Rc::new(Arena {
                base: base.cast(),
                bytes: bytes.get(),
                buddies: RefCell::new(Buddies::new(bytes.get() / BUFFER_BYTES_MIN)),
                waiters: RefCell::default(),
                waits: Cell::new(0),
            }),
        })
    }

    /// A piece of `length` bytes if one is free and nobody waits for one. Panics if `length` is
    /// over [`BUFFER_BYTES_MAX`].
    pub fn try_take(&self, length: usize, reserve: Reserve) -> Option<BufferMut> {
        let order = order_of(length);
        if !self.arena.waiters.borrow().queue(reserve).is_empty() {
            return None;
        }
        let page = self.arena.buddies.borrow_mut().take(order, reserve)?;
        Some(BufferMut::new(&self.arena, page, order, length))
    }

    /// A piece of `length` bytes, waiting in line for it. Bounded by what the others hold; a
    /// dropped future leaves the line. Panics if `length` is over [`BUFFER_BYTES_MAX`].
    pub fn take(&self, length: usize, reserve: Reserve) -> Take {
        Take {
            arena: Rc::clone(&self.arena),
            length,
            reserve,
            waiter: None,
        }
    }

    pub fn stats(&self) -> PoolStats {
        let buddies = self.arena.buddies.borrow();
        let waiters = self.arena.waiters.borrow();
        PoolStats {
            total_bytes: self.arena.bytes,
            free_bytes: (buddies.free_pages[0] + buddies.free_pages[1]) * BUFFER_BYTES_MIN,
            reserve_free_bytes: buddies.free_pages[1] * BUFFER_BYTES_MIN,
            waiters: waiters.normal.len() + waiters.internal.len(),
            waits: self.arena.waits.get(),
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

/// An exclusive piece of pool memory of a fixed length, all of it initialised.
pub struct BufferMut {
    arena: Rc<Arena>,
    page: u32,
    order: u8,
    length: usize,
}

impl BufferMut {
    fn new(arena: &Rc<Arena>, page: u32, order: u8, length: usize) -> Self {
        Self {
            arena: Rc::clone(arena),
            page,
            order,
            length,
        }
    }

    /// Makes the piece shorter. It keeps its memory.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Ends exclusive use: from here on the bytes are shared and never change.
    pub fn freeze(self) -> Buffer {
        Buffer::new(Rc::new(Frozen(self)))
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: `page` is a page of the arena, so the offset stays inside its mapping.
        unsafe { self.arena.base.add(self.page as usize * BUFFER_BYTES_MIN) }
    }
}

impl Deref for BufferMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece lies inside the mapping, which the Rc keeps alive; it is initialised
        // (zeroed by the kernel) and belongs to this value alone until it drops.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.length) }
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.length) }
    }
}

impl Drop for BufferMut {
    fn drop(&mut self) {
        self.arena.give_back(self.page, self.order);
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.length)
    }
}

struct Frozen(BufferMut);

impl Memory for Frozen {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Waiting for a piece of memory; see [`BufferPool::take`].
pub struct Take {
    arena: Rc<Arena>,
    length: usize,
    reserve: Reserve,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Take {
    type Output = BufferMut;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<BufferMut> {
        let this = &mut *self;
        let order = order_of(this.length);
        if let Some(waiter) = &this.waiter {
            return match waiter.granted.take() {
                Some(page) => {
                    this.waiter = None;
                    Poll::Ready(BufferMut::new(&this.arena, page, order, this.length))
                }
                None => {
                    waiter.waker.borrow_mut().clone_from(context.waker());
                    Poll::Pending
                }
            };
        }
        let mut waiters = this.arena.waiters.borrow_mut();
        let queue = waiters.queue_mut(this.reserve);
        if queue.is_empty()
            && let Some(page) = this.arena.buddies.borrow_mut().take(order, this.reserve)
        {
            return Poll::Ready(BufferMut::new(&this.arena, page, order, this.length));
        }
        let waiter = Rc::new(Waiter {
            order,
            granted: Cell::new(None),
            waker: RefCell::new(context.waker().clone()),
        });
        queue.push_back(Rc::clone(&waiter));
        this.arena.waits.set(this.arena.waits.get() + 1);
        this.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        match waiter.granted.take() {
            Some(page) => self.arena.give_back(page, waiter.order),
            None => {
                self.arena
                    .waiters
                    .borrow_mut()
                    .queue_mut(self.reserve)
                    .retain(|other| !Rc::ptr_eq(other, &waiter));
                // Whoever stood behind may fit where this one did not.
                self.arena.serve_waiters();
            }
        }
    }
}

impl fmt::Debug for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Take({} bytes, {:?})", self.length, self.reserve)
    }
}

struct Waiter {
    order: u8,
    /// First page of the piece that was set aside for this waiter.
    granted: Cell<Option<u32>>,
    waker: RefCell<Waker>,
}

#[derive(Default)]
struct Waiters {
    normal: VecDeque<Rc<Waiter>>,
    internal: VecDeque<Rc<Waiter>>,
}

impl Waiters {
    fn queue(&self, reserve: Reserve) -> &VecDeque<Rc<Waiter>> {
        match reserve {
            Reserve::Normal => &self.normal,
            Reserve::Internal => &self.internal,
        }
    }

    fn queue_mut(&mut self, reserve: Reserve) -> &mut VecDeque<Rc<Waiter>> {
        match reserve {
            Reserve::Normal => &mut self.normal,
            Reserve::Internal => &mut self.internal,
        }
    }
}

struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    buddies: RefCell<Buddies>,
    waiters: RefCell<Waiters>,
    waits: Cell<u64>,
}

impl Arena {
    fn give_back(&self, page: u32, order: u8) {
        self.buddies.borrow_mut().give_back(page, order);
        self.serve_waiters();
    }

    /// Sets pieces aside for those at the heads of the lines, as far as memory goes.
    fn serve_waiters(&self) {
        for reserve in [Reserve::Internal, Reserve::Normal] {
            loop {
                let waiter = {
                    let mut waiters = self.waiters.borrow_mut();
                    let queue = waiters.queue_mut(reserve);
                    let Some(first) = queue.front() else { break };
                    let taken = self.buddies.borrow_mut().take(first.order, reserve);
                    let Some(page) = taken else { break };
                    first.granted.set(Some(page));
                    queue.pop_front()
                };
                if let Some(waiter) = waiter {
                    waiter.waker.borrow().wake_by_ref();
                }
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `BufferPool::new`; every piece holds an Rc on the
        // arena, so none is left.
        let unmapped = unsafe { munmap(self.base.cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmap of the buffer arena failed");
    }
}

fn order_of(length: usize) -> u8 {
    assert!(
        length <= BUFFER_BYTES_MAX,
        "buffer of {length} bytes asked for, over the limit of {BUFFER_BYTES_MAX}"
    );
    let pages = length.div_ceil(BUFFER_BYTES_MIN).max(1);
    pages.next_power_of_two().ilog2() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::Wake;

    const MIB: usize = 1 << 20;

    struct Woken(std::sync::atomic::AtomicBool);

    impl Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn waker() -> (std::sync::Arc<Woken>, Waker) {
        let woken = std::sync::Arc::new(Woken(false.into()));
        (woken.clone(), woken.into())
    }

    fn is_woken(woken: &Woken) -> bool {
        woken.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn poll(take: &mut Take, waker: &Waker) -> Option<BufferMut> {
        match Pin::new(take).poll(&mut Context::from_waker(waker)) {
            Poll::Ready(buffer) => Some(buffer),
            Poll::Pending => None,
        }
    }

    #[test]
    fn pieces_have_the_length_asked_for_and_page_alignment() {
        let pool = BufferPool::new(0).unwrap();
        for length in [0, 1, 512, 4096, 4097, 65536, MIB] {
            let buffer = pool.try_take(length, Reserve::Normal).unwrap();
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr() as usize % BUFFER_BYTES_MIN, 0);
        }
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN);
    }

    #[test]
    fn client_requests_leave_the_last_quarter_to_the_link() {
        let pool = BufferPool::new(8 * MIB).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| pool.try_take(MIB, Reserve::Normal)).collect();
        assert_eq!(held.len(), 6);
        let link: Vec<_> = std::iter::from_fn(|| pool.try_take(MIB, Reserve::Internal)).collect();
        assert_eq!(link.len(), 2);
    }

    #[test]
    fn the_link_may_use_everything() {
        let pool = BufferPool::new(8 * MIB).unwrap();
        let link: Vec<_> = std::iter::from_fn(|| pool.try_take(4096, Reserve::Internal)).collect();
        assert_eq!(link.len(), 8 * MIB / 4096);
    }

    #[test]
    fn waiters_are_woken_in_the_order_they_came() {
        let pool = BufferPool::new(0).unwrap();
        let mut held: Vec<_> = std::iter::from_fn(|| pool.try_take(MIB, Reserve::Normal)).collect();
        let ((first_woken, first_waker), (second_woken, second_waker)) = (waker(), waker());
        let mut first = pool.take(MIB, Reserve::Normal);
        let mut second = pool.take(4096, Reserve::Normal);
        assert!(poll(&mut first, &first_waker).is_none());
        assert!(poll(&mut second, &second_waker).is_none());
        assert!(pool.try_take(4096, Reserve::Normal).is_none());
        held.pop();
        assert!(is_woken(&first_woken) && !is_woken(&second_woken));
        let taken = poll(&mut first, &first_waker).unwrap();
        drop(taken);
        assert!(is_woken(&second_woken));
        drop(poll(&mut second, &second_waker).unwrap());
        drop(held);
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN);
        assert_eq!(pool.stats().waiters, 0);
    }

    #[test]
    fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let pool = BufferPool::new(0).unwrap();
        let mut held: Vec<_> = std::iter::from_fn(|| pool.try_take(MIB, Reserve::Normal)).collect();
        let (_, first_waker) = waker();
        let (second_woken, second_waker) = waker();
        let mut granted = pool.take(MIB, Reserve::Normal);
        let mut waiting = pool.take(MIB, Reserve::Normal);
        assert!(poll(&mut granted, &first_waker).is_none());
        assert!(poll(&mut waiting, &second_waker).is_none());
        held.pop();
        drop(granted);
        assert!(is_woken(&second_woken));
        drop(waiting);
        drop(held);
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN);
    }

    #[test]
    fn a_frozen_buffer_returns_with_its_last_clone() {
        let pool = BufferPool::new(0).unwrap();
        let mut buffer = pool.try_take(8192, Reserve::Normal).unwrap();
        buffer.fill(7);
        let frozen = buffer.freeze();
        let part = frozen.slice(4096, 4096);
        drop(frozen);
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN - 8192);
        assert!(part.iter().all(|&byte| byte == 7));
        drop(part);
        assert_eq!(pool.stats().free_bytes, POOL_BYTES_MIN);
    }

    #[test]
    fn memory_outlives_the_pool_handle() {
        let pool = BufferPool::new(0).unwrap();
        let mut buffer = pool.try_take(4096, Reserve::Normal).unwrap();
        drop(pool);
        buffer.fill(1);
        assert_eq!(buffer[4095], 1);
    }

    proptest! {
        #[test]
        fn live_pieces_never_overlap_and_all_memory_comes_back(
            steps in prop::collection::vec((0usize..=MIB, any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let pool = BufferPool::new(8 * MIB).unwrap();
            let mut held: Vec<(BufferMut, u8)> = Vec::new();
            for (number, (length, internal, index)) in steps.into_iter().enumerate() {
                let reserve = if internal { Reserve::Internal } else { Reserve::Normal };
                if let Some(mut buffer) = pool.try_take(length, reserve) {
                    let mark = number as u8;
                    buffer.fill(mark);
                    held.push((buffer, mark));
                }
                if number % 3 == 2 && !held.is_empty() {
                    held.swap_remove(index.index(held.len()));
                }
                for (buffer, mark) in &held {
                    prop_assert!(buffer.first().is_none_or(|byte| byte == mark));
                    prop_assert!(buffer.last().is_none_or(|byte| byte == mark));
                }
            }
            held.clear();
            prop_assert_eq!(pool.stats().free_bytes, 8 * MIB);
            // Everything merged again: largest pieces can be had from all of it.
            let whole: Vec<_> = std::iter::from_fn(|| pool.try_take(MIB, Reserve::Internal)).collect();
            prop_assert_eq!(whole.len(), 8);
        }
    }
}
