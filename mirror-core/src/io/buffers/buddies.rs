//! Which pages of the arena are free: a buddy allocator over page numbers that never touches the
//! memory itself.

use super::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, Reserve};

const ORDERS: usize = (BUFFER_BYTES_MAX / BUFFER_BYTES_MIN).ilog2() as usize + 1;
const PAGES_PER_MAX: usize = BUFFER_BYTES_MAX / BUFFER_BYTES_MIN;
const NONE: u32 = u32::MAX;
const NOT_FREE: u8 = u8::MAX;

/// The buddy allocator: for each of the two regions and each order a doubly linked list of free
/// pieces, linked by page number in side tables so that free memory is never touched.
pub(super) struct Buddies {
    /// First page of the reserve; a multiple of the largest piece, so no buddy pair spans it.
    reserve_start: u32,
    heads: [[u32; ORDERS]; 2],
    next: Vec<u32>,
    previous: Vec<u32>,
    /// Order of the free piece that starts at a page, or `NOT_FREE`.
    free_order: Vec<u8>,
    /// Free pages of either region.
    pub free_pages: [usize; 2],
}

impl Buddies {
    pub fn new(pages: usize) -> Self {
        let maxima = pages / PAGES_PER_MAX;
        let reserve_start = (maxima - maxima.div_ceil(4)) * PAGES_PER_MAX;
        let mut buddies = Self {
            reserve_start: reserve_start as u32,
            heads: [[NONE; ORDERS]; 2],
            next: vec![NONE; pages],
            previous: vec![NONE; pages],
            free_order: vec![NOT_FREE; pages],
            free_pages: [reserve_start, pages - reserve_start],
        };
        for page in (0..pages).step_by(PAGES_PER_MAX).rev() {
            buddies.link(page as u32, ORDERS as u8 - 1);
        }
        buddies
    }

    pub fn take(&mut self, order: u8, reserve: Reserve) -> Option<u32> {
        match reserve {
            Reserve::Normal => self.take_from(0, order),
            Reserve::Internal => self
                .take_from(1, order)
                .or_else(|| self.take_from(0, order)),
        }
    }

    fn take_from(&mut self, region: usize, order: u8) -> Option<u32> {
        let found = (order as usize..ORDERS).find(|&o| self.heads[region][o] != NONE)?;
        let page = self.heads[region][found];
        self.unlink(page);
        for half in (order as usize..found).rev() {
            self.link(page + (1 << half), half as u8);
        }
        self.free_pages[region] -= 1 << order;
        Some(page)
    }

    pub fn give_back(&mut self, page: u32, order: u8) {
        assert_eq!(
            self.free_order[page as usize], NOT_FREE,
            "buffer given back twice"
        );
        self.free_pages[self.region(page)] += 1 << order;
        let (mut page, mut order) = (page, order);
        while (order as usize) < ORDERS - 1 {
            let buddy = page ^ (1 << order);
            if self.free_order[buddy as usize] != order {
                break;
            }
            self.unlink(buddy);
            page &= !(1 << order);
            order += 1;
        }
        self.link(page, order);
    }

    fn region(&self, page: u32) -> usize {
        usize::from(page >= self.reserve_start)
    }

    fn link(&mut self, page: u32, order: u8) {
        let region = self.region(page);
        let head = std::mem::replace(&mut self.heads[region][order as usize], page);
        self.next[page as usize] = head;
        self.previous[page as usize] = NONE;
        if head != NONE {
            self.previous[head as usize] = page;
        }
        self.free_order[page as usize] = order;
    }

    fn unlink(&mut self, page: u32) {
        let order = std::mem::replace(&mut self.free_order[page as usize], NOT_FREE);
        let (previous, next) = (self.previous[page as usize], self.next[page as usize]);
        if previous == NONE {
            let region = self.region(page);
            self.heads[region][order as usize] = next;
        } else {
            self.next[previous as usize] = next;
        }
        if next != NONE {
            self.previous[next as usize] = previous;
        }
    }
}
