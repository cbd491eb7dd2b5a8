//! Ordered metadata writes. Two kinds, each with what waits for it:
//!
//! * the superblock: a change writes both copies, one after the other, each durable, before
//!   anything that depends on it goes on (D9). Changes that come while one is being written are
//!   gathered into the next.
//! * bitmap pages: one write a page at a time, so that an older content never lands after a newer.
//!   Neighbours go in one write, and few writes are out, however many pages a full resync marks.
//!
//! A metadata write that fails cannot be undone or worked around: the volume halts, answers nothing
//! more, and its peer takes the silence for a loss.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use super::Volume;
use super::effect::Effect;
use super::event::DiskFault;
use super::notice::Notice;
use crate::layout::bitmap_page;
use crate::layout::geometry::METADATA_BLOCK_BYTES;
use crate::layout::log_record::void_ring;
use crate::request::{Answer, Failure};
use crate::units::{CommandId, IoToken, LinkId, Sequence};
use crate::wire::message::Role;

/// Pages in one write: 1 MiB.
const RUN_PAGES_MAX: usize = 256;
/// Writes of pages at once.
const RUNS_OUT_MAX: usize = 4;

/// What goes on once metadata is durable.
#[derive(Debug, Clone, Copy)]
pub(super) enum After {
    Nothing,
    RecoveredPages { void: bool },
    Recovered,
    LogCleaned,
    Alone,
    DetachedHere,
    FailedHere,
    DetachedPeer { link: LinkId, sequence: Sequence },
    DetachedPages { link: LinkId, sequence: Sequence },
    OutdatedBeforeSync { link: LinkId },
    SourcePages { link: LinkId },
    SourceRecorded { link: LinkId },
    SourceSettled { link: LinkId },
    TargetReady { link: LinkId },
    TargetDonePages { link: LinkId },
    TargetDone { link: LinkId },
    PeerPromoted { link: LinkId, sequence: Sequence },
    Promoted { id: CommandId },
    DemotePages { id: CommandId },
    Demoted { id: CommandId },
    StopPages { id: CommandId },
    Stopped { id: CommandId },
    Flagged { id: CommandId },
    Outdated { id: CommandId },
    ResizePages { size_bytes: u64 },
    Resized { size_bytes: u64 },
}

#[derive(Debug)]
enum MetadataIo {
    Superblock {
        second: bool,
    },
    Pages {
        first: usize,
        count: usize,
    },
    Log,
    /// The whole ring, emptied.
    Ring,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    io: FxHashMap<IoToken, MetadataIo>,
    /// Superblock contents asked for, being written and durable.
    wanted: u64,
    writing: u64,
    durable: u64,
    /// The superblock copy that each change reaches first: the one that was bad or older at the
    /// start, since tearing the other would leave none.
    copy_first: usize,
    bytes: Vec<u8>,
    waiters: VecDeque<(u64, After)>,
    pages: FxHashMap<usize, PageIo>,
    /// Pages to be written, none of which is being written.
    pages_waiting: BTreeSet<usize>,
    runs_out: usize,
    batches: FxHashMap<u64, Batch>,
}

#[derive(Debug, Default)]
struct PageIo {
    writing: bool,
    /// Batches that the write under way, or the next if there is none, takes care of.
    batches: Vec<u64>,
    /// Batches that came while it was being written: it is written again.
    queued: Vec<u64>,
}

#[derive(Debug)]
struct Batch {
    remaining: usize,
    after: After,
}

impl Store {
    pub(super) fn new(copy_first: usize) -> Self {
        assert!(copy_first < 2, "there are two copies");
        Self {
            copy_first,
            ..Self::default()
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.io.is_empty()
    }

    pub(super) fn is_superblock_pending(&self) -> bool {
        self.wanted != self.durable
    }

    pub(super) fn is_page_saving(&self, page: usize) -> bool {
        self.pages.contains_key(&page)
    }
}

impl Volume {
    /// Writes the superblock as it is now; `after` runs when both copies are durable.
    pub(super) fn persist(&mut self, after: After) {
        self.store.wanted += 1;
        self.store.waiters.push_back((self.store.wanted, after));
        self.pump_superblock();
    }

    /// Writes the given bitmap pages; `after` runs when all are durable, at once if there are none.
    pub(super) fn save_pages(&mut self, pages: &[usize], after: After) {
        if pages.is_empty() {
            self.go_on(after);
            return;
        }
        let batch = self.next_id();
        self.store.batches.insert(
            batch,
            Batch {
                remaining: pages.len(),
                after,
            },
        );
        for &page in pages {
            let page_io = self.store.pages.entry(page).or_default();
            if page_io.writing {
                page_io.queued.push(batch);
            } else {
                page_io.batches.push(batch);
                self.store.pages_waiting.insert(page);
            }
        }
        self.pump_pages();
    }

    /// Pages whose bits are not all on disk: unsaved ones, and those whose write may still fail.
    pub(super) fn unsaved_pages(&self) -> Vec<usize> {
        let mut pages = self.bitmap.unsaved_pages();
        self.add_pages_in_flight(&mut pages);
        pages
    }

    /// Pages that are not on disk as they are here.
    pub(super) fn changed_pages(&self) -> Vec<usize> {
        let mut pages = self.bitmap.changed_pages();
        self.add_pages_in_flight(&mut pages);
        pages
    }

    fn add_pages_in_flight(&self, pages: &mut Vec<usize>) {
        pages.extend(self.store.pages.keys().copied());
        pages.sort_unstable();
        pages.dedup();
    }

    /// Writes one activity-log transaction.
    pub(super) fn write_log(&mut self, offset: u64, bytes: Vec<u8>) {
        self.write_metadata(MetadataIo::Log, offset, bytes);
    }

    /// Empties the ring.
    pub(super) fn void_log(&mut self) {
        self.write_metadata(MetadataIo::Ring, self.geometry.log_offset(), void_ring());
    }

    pub(super) fn on_metadata_done(&mut self, io: IoToken, result: Result<(), DiskFault>) {
        let Some(purpose) = self.store.io.remove(&io) else {
            return;
        };
        if self.halted {
            return;
        }
        if result.is_err() {
            self.halt();
            return;
        }
        match purpose {
            MetadataIo::Superblock { second: false } => {
                let bytes = self.store.bytes.clone();
                self.write_metadata(
                    MetadataIo::Superblock { second: true },
                    self.geometry.superblock_offsets()[1 - self.store.copy_first],
                    bytes,
                );
            }
            MetadataIo::Superblock { second: true } => self.on_superblock_durable(),
            MetadataIo::Pages { first, count } => self.on_pages_durable(first, count),
            MetadataIo::Log => self.on_log_durable(),
            MetadataIo::Ring => self.on_log_empty(),
        }
    }

    /// Nothing can be promised without metadata: stop answering and leave the peer to notice. What answers nothing any
    /// more, whatever comes, is no primary: an agent that took it for one would keep its group from going elsewhere.
    fn halt(&mut self) {
        self.halted = true;
        self.role = Role::Secondary;
        self.report(Notice::error(
            "metadata-failed",
            "writing metadata failed: this node stops serving the mirror; replace the cluster partition and restart",
        ));
        self.close_link();
        self.set_connect(false);
        self.stop_serving();
        self.fail_all(Answer::Failed(Failure::Io));
        self.fail_commands();
    }

    fn pump_superblock(&mut self) {
        if self.store.writing != self.store.durable || self.store.wanted == self.store.durable {
            return;
        }
        self.store.writing = self.store.wanted;
        self.superblock.update += 1;
        self.store.bytes = self.superblock.encode();
        let bytes = self.store.bytes.clone();
        let offset = self.geometry.superblock_offsets()[self.store.copy_first];
        self.write_metadata(MetadataIo::Superblock { second: false }, offset, bytes);
    }

    fn on_superblock_durable(&mut self) {
        self.store.durable = self.store.writing;
        let durable = self.store.durable;
        let mut ready = Vec::new();
        while let Some((_, after)) = self
            .store
            .waiters
            .pop_front_if(|(version, _)| *version <= durable)
        {
            ready.push(after);
        }
        self.pump_superblock();
        for after in ready {
            self.go_on(after);
        }
    }

    fn pump_pages(&mut self) {
        while self.store.runs_out < RUNS_OUT_MAX
            && let Some(first) = self.store.pages_waiting.pop_first()
        {
            let mut count = 1;
            while count < RUN_PAGES_MAX && self.store.pages_waiting.remove(&(first + count)) {
                count += 1;
            }
            self.write_pages(first, count);
        }
    }

    fn write_pages(&mut self, first: usize, count: usize) {
        let mut bytes = Vec::with_capacity(count * METADATA_BLOCK_BYTES as usize);
        for page in first..first + count {
            let words = self.bitmap.begin_save(page);
            bytes.extend(bitmap_page::encode(page as u32, words));
            if let Some(page_io) = self.store.pages.get_mut(&page) {
                page_io.writing = true;
            }
        }
        self.store.runs_out += 1;
        let offset = self.geometry.page_offset(first as u32);
        self.write_metadata(MetadataIo::Pages { first, count }, offset, bytes);
    }

    fn on_pages_durable(&mut self, first: usize, count: usize) {
        self.store.runs_out -= 1;
        let mut done = Vec::new();
        for page in first..first + count {
            let Some(page_io) = self.store.pages.remove(&page) else {
                continue;
            };
            done.extend(page_io.batches);
            if !page_io.queued.is_empty() {
                let again = PageIo {
                    batches: page_io.queued,
                    ..PageIo::default()
                };
                self.store.pages.insert(page, again);
                self.store.pages_waiting.insert(page);
            }
        }
        self.pump_pages();
        for id in done {
            let Some(batch) = self.store.batches.get_mut(&id) else {
                continue;
            };
            batch.remaining -= 1;
            if batch.remaining == 0 {
                let after = batch.after;
                self.store.batches.remove(&id);
                self.go_on(after);
            }
        }
    }

    fn write_metadata(&mut self, purpose: MetadataIo, offset: u64, bytes: Vec<u8>) {
        let io = IoToken(self.next_id());
        self.store.io.insert(io, purpose);
        self.counters.metadata_writes += 1;
        self.fx.push(Effect::WriteMetadata { io, offset, bytes });
    }

    fn go_on(&mut self, after: After) {
        match after {
            After::Nothing => {}
            After::RecoveredPages { void } => self.on_recovered_pages(void),
            After::Recovered => self.on_recovered(),
            After::LogCleaned => self.on_log_cleaned(),
            After::Alone => self.on_alone_durable(),
            After::FailedHere => self.on_failed_durable(),
            After::DetachedHere => self.on_detached_durable(),
            After::DetachedPeer { link, sequence } => self.on_peer_detached_durable(link, sequence),
            After::DetachedPages { link, sequence } => self.on_detached_pages(link, sequence),
            After::OutdatedBeforeSync { link } => self.on_outdated_durable(link),
            After::SourcePages { link } => self.on_source_pages(link),
            After::SourceRecorded { link } => self.on_source_recorded(link),
            After::SourceSettled { link } => self.on_source_settled(link),
            After::TargetReady { link } => self.on_target_ready(link),
            After::TargetDonePages { link } => self.on_target_done_pages(link),
            After::TargetDone { link } => self.on_target_done(link),
            After::PeerPromoted { link, sequence } => self.on_peer_promoted_durable(link, sequence),
            After::Promoted { id } => self.on_promoted(id),
            After::DemotePages { id } => self.on_demote_pages(id),
            After::Demoted { id } => self.on_demoted(id),
            After::StopPages { id } => self.on_stop_pages(id),
            After::Stopped { id } => self.on_stopped(id),
            After::Flagged { id } => self.on_flagged(id),
            After::Outdated { id } => self.on_outdated_recorded(id),
            After::ResizePages { size_bytes } => self.on_resize_pages(size_bytes),
            After::Resized { size_bytes } => self.on_resized(size_bytes),
        }
    }
}
