//! Heating extents before anything is written into them, and cleaning the log so that there is
//! always room.
//!
//! Group commit waits for company, and for time only as a last resort. A transaction starts when as
//! many extents wait as three quarters of the depth that the queue had lately; when the writes that
//! ran as the oldest one began to wait have gone round twice; or when a client that used to keep many
//! writes in flight has sent no more for [`WAKE_MS`](super::event::WAKE_MS). So a lone write never
//! waits, and a deep queue over cold extents costs one transaction for many writes.

use std::collections::VecDeque;

use super::Volume;
use super::effect::Effect;
use super::flushing::FlushFor;
use super::range_lock::Owner;
use super::store::After;
use crate::dirty::activity_log::Heat;
use crate::layout::log_record::LOG_UPDATES_MAX;
use crate::units::ExtentIndex;

/// Extents whose bitmap pages are saved together when slots run out while the peer is away.
const CLEAN_EXTENTS: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(super) enum LogWaiter {
    Write(Owner),
    /// A write of a peer that has no disk of its own any more: this side keeps the log for both.
    Replica(Owner),
}

#[derive(Debug, Default)]
pub(super) struct LogQueue {
    /// Bounded by the requests in flight.
    waiters: VecDeque<(LogWaiter, ExtentIndex)>,
    /// Client and replica writes past the log and not complete.
    pub(super) running: usize,
    pub(super) completed: u64,
    /// Value of `completed` at which the pending transaction starts at the latest, if writes were
    /// running when its first extent came.
    commit_at: Option<u64>,
    /// Most writes seen in flight since the last transaction, and up to it.
    depth_now: usize,
    depth_last: usize,
    woken: bool,
    wake_asked: bool,
    cleaning: bool,
}

impl LogQueue {
    fn set_limit(&mut self) {
        let running = self.running as u64;
        self.commit_at = (running > 0).then_some(self.completed + 2 * running);
        self.woken = false;
    }
}

impl Volume {
    /// Queues a write until its extent is hot.
    pub(super) fn heat(&mut self, waiter: LogWaiter, extent: ExtentIndex) {
        let queue = &mut self.log_queue;
        queue.waiters.push_back((waiter, extent));
        queue.depth_now = queue.depth_now.max(queue.waiters.len() + queue.running);
        self.pump_log();
    }

    pub(super) fn pump_log(&mut self) {
        if self.halted || self.is_log_frozen() {
            return;
        }
        let mut full = false;
        let mut hot = Vec::new();
        let before = self.log.pending();
        let Self {
            log,
            log_queue,
            bitmap,
            store,
            ..
        } = self;
        let saved = |extent| {
            let page = bitmap.page_of(extent);
            !bitmap.is_unsaved(page) && !store.is_page_saving(page)
                || bitmap
                    .extent_range(extent)
                    .is_none_or(|range| !bitmap.any_in(range))
        };
        log_queue.waiters.retain(|(waiter, extent)| {
            if full && !log.is_hot(*extent) {
                return true;
            }
            match log.acquire(*extent, saved) {
                Heat::Hot => {
                    hot.push(*waiter);
                    false
                }
                Heat::Warming => true,
                Heat::Full => {
                    full = true;
                    true
                }
            }
        });
        if before == 0 && self.log.pending() > 0 {
            self.log_queue.set_limit();
        }
        self.commit_log();
        if full {
            self.clean_log();
        }
        for waiter in hot {
            match waiter {
                LogWaiter::Write(owner) => self.on_write_hot(owner),
                LogWaiter::Replica(owner) => self.on_replica_hot(owner),
            }
        }
    }

    pub(super) fn on_log_durable(&mut self) {
        self.log.commit_done();
        self.log_queue.set_limit();
        self.pump_log();
    }

    /// A write that had passed the log is complete.
    pub(super) fn leave_log(&mut self, extent: ExtentIndex) {
        self.log.unpin(extent);
        self.leave_log_ahead();
    }

    /// A write that had passed the log is answered ahead of the peer: nobody waits for it any more, and its
    /// extent stays pinned until the peer has it (D4).
    pub(super) fn leave_log_ahead(&mut self) {
        self.log_queue.running -= 1;
        self.log_queue.completed += 1;
        self.pump_waiting_log();
    }

    /// The peer has a write that was answered before.
    pub(super) fn unpin_answered(&mut self, extent: ExtentIndex) {
        self.log.unpin(extent);
        self.pump_waiting_log();
    }

    fn pump_waiting_log(&mut self) {
        if self.log.pending() > 0 || !self.log_queue.waiters.is_empty() {
            self.pump_log();
        }
    }

    pub(super) fn on_log_cleaned(&mut self) {
        self.log_queue.cleaning = false;
        self.pump_log();
    }

    /// No waiter will be served any more.
    pub(super) fn clear_log_waiters(&mut self) {
        self.log_queue.waiters.clear();
    }

    fn commit_log(&mut self) {
        let pending = self.log.pending();
        if pending == 0 || self.log.is_committing() {
            return;
        }
        let queue = &mut self.log_queue;
        let company = (queue.depth_last * 3 / 4).min(LOG_UPDATES_MAX);
        let idle = queue.running == 0;
        let due = pending >= company.max(1)
            || queue
                .commit_at
                .is_some_and(|limit| queue.completed >= limit)
            || queue.woken;
        if !due {
            if !idle && queue.commit_at.is_none() {
                queue.set_limit();
            } else if idle && !std::mem::replace(&mut queue.wake_asked, true) {
                self.fx.push(Effect::Wake);
            }
            return;
        }
        queue.depth_last = std::mem::take(&mut queue.depth_now);
        let Some(record) = self.log.begin_commit() else {
            return;
        };
        let offset = self.geometry.log_record_offset(record.number);
        self.write_log(offset, record.encode());
    }

    pub(super) fn tick_log(&mut self) {
        self.log_queue.woken = true;
        self.log_queue.wake_asked = false;
        self.pump_log();
    }

    /// Makes old extents evictable: a flush of both sides where writes are volatile, bitmap pages
    /// where bits are not on disk.
    fn clean_log(&mut self) {
        if self.log_queue.cleaning {
            return;
        }
        if self.log.has_unflushed() {
            self.log_queue.cleaning = true;
            self.request_flush(FlushFor::LogClean);
            return;
        }
        let mut pages: Vec<usize> = self
            .log
            .oldest_extents(CLEAN_EXTENTS)
            .into_iter()
            .map(|extent| self.bitmap.page_of(extent))
            .filter(|page| self.bitmap.is_unsaved(*page))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        if !pages.is_empty() {
            self.log_queue.cleaning = true;
            self.save_pages(&pages, After::LogCleaned);
        }
    }
}
