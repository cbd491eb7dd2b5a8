//! The volume: one mirror on one node, as a pure state machine.
//!
//! `step` takes one event and the time, and appends effects; it does nothing else. The driver
//! carries effects out in order and brings their completions back as events, in any order. There is
//! no clock, randomness, socket, file or thread in here, so a simulator can run two volumes against
//! each other under every fault and check the rules D1 to D13 (`docs/rules.md`) after every step.
//!
//! A write runs left to right: `requests` (range lock) → `log` (hot extent) → local disk and peer
//! at once → both acknowledged → answer. What the parts own:
//!
//! | file | owns |
//! |---|---|
//! | `requests` | client requests, from arrival to answer |
//! | `ack_policy` | when a write is enough of a success, and how far answers run ahead of the peer |
//! | `log` | heating extents, group commit, cleaning |
//! | `line` | the order and pace in which writes leave for the peer |
//! | `falling_behind` | async with a full queue: bits instead of messages, and back |
//! | `flushing` | one flush at a time over both sides, shared by all that wait for one |
//! | `lease` | the gate before every answer: who proves that this node may give it |
//! | `store` | ordered metadata writes: superblock copies and bitmap pages |
//! | `alone` | going on without the peer, or without the own disk (D5, D13) |
//! | `peering` | the life of a link, keepalive, who handles which message |
//! | `greeting` | hello, verdict, and what they bring about |
//! | `exchange` | the target's bits on their way to the source |
//! | `replica` | what the peer asks of this side |
//! | `source` | resync source: what to copy, and the end |
//! | `walk` | going over the disk for a resync, a recheck or a verify |
//! | `recheck` | serving at once after a process died on a machine that ran on |
//! | `target` | resync target |
//! | `commands` | operator commands, and those that wait for a handshake |
//! | `promotion`, `leaving` | becoming primary, ceasing to be it, stopping |
//! | `resizing` | growing online |
//! | `report`, `explain` | status for machines, explanation for people |

pub mod ack_policy;
mod alone;
mod by_extent;
mod commands;
pub mod config;
pub mod effect;
pub mod event;
mod exchange;
mod explain;
mod falling_behind;
mod flushing;
mod greeting;
mod lease;
mod leaving;
mod line;
mod log;
pub mod notice;
mod peering;
pub mod promotion;
mod range_lock;
mod recheck;
pub mod refusal;
mod replica;
mod report;
mod requests;
mod resizing;
#[cfg(test)]
mod scripted_tests;
mod source;
mod store;
mod target;
#[cfg(test)]
mod tests;
mod walk;

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::control::Counters;
use crate::dirty::activity_log::ActivityLog;
use crate::dirty::bitmap::Bitmap;
use crate::dirty::extent_set::ExtentSet;
use crate::layout::geometry::Geometry;
use crate::layout::log_record::Trust;
use crate::layout::metadata::Loaded;
use crate::layout::superblock::{FEATURE_RUN, Run, Superblock};
use crate::units::{
    ByteRange, Epoch, ExtentIndex, FullSyncId, Generation, IoToken, Now, RequestId, Sequence, Uuid,
};
use crate::wire::message::{DiskState, Mode, Role};

use ack_policy::Backlog;
use alone::Alone;
use commands::Commands;
use config::{Seed, VolumeConfig};
use effect::Effect;
use event::{DiskFault, Event, Output};
use exchange::Exchange;
use flushing::Flushing;
use lease::Gate;
use line::Line;
use log::LogQueue;
use notice::Notice;
use peering::{Link, Peering};
use range_lock::{Owner, RangeLocks};
use recheck::Recheck;
use replica::Replica;
use requests::Requests;
use store::{After, Store};
use target::Target;
use walk::Walk;

/// What a local disk operation was for.
#[derive(Debug)]
enum Io {
    Write(Owner),
    Read(RequestId),
    Flush,
    FlushAhead,
    Replica(replica::ReplicaIo),
    Walk(Owner),
    /// A write of what a recheck fetched.
    Fetched(Owner),
}

/// What a message that expects an answer was for.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Write(Owner),
    Flush,
    /// Of a client that was answered ahead of it, or will be.
    FlushAhead,
    Read(Owner),
    Walk(Owner),
    Promote,
    Detached,
    Chunk,
}

/// A message that the peer has yet to answer.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    what: Sent,
    since_ms: u64,
}

#[derive(Debug)]
pub struct Volume {
    config: VolumeConfig,
    now: Now,
    fx: Vec<Effect>,
    next_id: u64,
    entropy: u64,
    incarnation: Uuid,

    superblock: Superblock,
    /// The epoch in which this side was primary when its process died, while nobody else was primary since.
    reinstatable: Option<Epoch>,
    /// Until then clients count as active, also where nothing of theirs is under way yet.
    clients_return_ms: Option<u64>,
    geometry: Geometry,
    store: Store,
    bitmap: Bitmap,
    log: ActivityLog,
    log_queue: LogQueue,
    /// Extents whose bits are only doubt: compared by hash before anything is copied.
    weak: ExtentSet,
    locks: RangeLocks,

    role: Role,
    serving: bool,
    /// Bits and log of an unclean stop are durable; until then no peer is looked for.
    recovered: bool,
    /// Metadata can no longer be written: nothing is promised any more.
    halted: bool,
    stopped: bool,

    io: FxHashMap<IoToken, Io>,
    sent: FxHashMap<Sequence, Awaited>,
    requests: Requests,
    backlog: Backlog,
    line: Line,
    flushing: Flushing,
    gate: Gate,
    alone: Alone,
    peering: Peering,
    replica: Replica,
    walk: Option<Walk>,
    /// Nothing that the last run had written is lost, and no handshake has made anything of it yet.
    runs_on: bool,
    recheck: Option<Recheck>,
    /// The operator paused a resync here.
    resync_paused: bool,
    /// A handshake changed the size, and nobody was told yet.
    size_untold: bool,
    /// A resync stopped while the link stands: when to go on with it.
    resync_due_ms: Option<u64>,
    /// Steps of an aborted walk that the peer still works on: their ranges stay locked (D6).
    strays: FxHashMap<Owner, walk::Step>,
    target: Option<Target>,
    exchange: Option<Exchange>,
    commands: Commands,
    counters: Counters,
    last_sync_copied_bytes: u64,
    last_verify_mismatch_bytes: Option<u64>,
}

impl Volume {
    /// Opens a mirror from its metadata. After an unclean stop the log's extents become durable
    /// bits first (D4), and only then does the volume look for its peer.
    pub fn open(
        config: VolumeConfig,
        loaded: Loaded,
        seed: Seed,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Self {
        let runs_on = recheck::runs_on(&loaded, config.mode, seed.boot);
        let Loaded {
            mut superblock,
            fell_back,
            copy_first,
            geometry,
            log,
            words,
            bad_pages,
            ..
        } = loaded;
        // Whoever opened it has wiped what was left there.
        superblock.moved_from = 0;
        // A run that ended with everything flushed took nothing along, so this one has all that it acknowledged. Of two
        // superblocks the one that is left may be of before the run that acknowledged last.
        let lost_nothing = runs_on || (superblock.run.has_ended() && !fell_back);
        let incarnation = match lost_nothing {
            true => superblock.run.incarnation,
            false => seed.incarnation,
        };
        superblock.features_compatible |= FEATURE_RUN;
        // Only after a run in sync mode has the peer every answered write, whatever mode comes next.
        let boot = match config.mode {
            Mode::Sync => seed.boot,
            Mode::Semisync | Mode::Async => Uuid::default(),
        };
        superblock.run = Run { incarnation, boot };
        let size_bytes = superblock.size_bytes;
        let bitmap = Bitmap::new(words, superblock.block_shift, size_bytes);
        let slots = superblock.log_slots as u16;
        let gate = Gate::new(config.arbitration, now.monotonic_ms);
        let in_flight = config.in_flight_max();
        let mut volume = Self {
            log: ActivityLog::new(slots, log.next_number, superblock.log_epoch),
            log_queue: LogQueue::default(),
            config,
            now,
            fx: Vec::new(),
            next_id: 1,
            entropy: seed.entropy,
            incarnation,
            reinstatable: superblock.flags.primary.then_some(superblock.epoch),
            clients_return_ms: None,
            superblock,
            geometry,
            store: Store::new(copy_first),
            bitmap,
            weak: ExtentSet::new(geometry.extents()),
            locks: RangeLocks::default(),
            role: Role::Secondary,
            serving: false,
            recovered: false,
            halted: false,
            stopped: false,
            io: FxHashMap::with_capacity_and_hasher(1024, FxBuildHasher),
            sent: FxHashMap::with_capacity_and_hasher(in_flight, FxBuildHasher),
            requests: Requests::with_capacity(in_flight),
            backlog: Backlog::default(),
            line: Line::default(),
            flushing: Flushing::default(),
            gate,
            alone: Alone::default(),
            peering: Peering::default(),
            replica: Replica::default(),
            walk: None,
            runs_on,
            recheck: None,
            resync_paused: false,
            size_untold: false,
            resync_due_ms: None,
            strays: FxHashMap::default(),
            target: None,
            exchange: None,
            commands: Commands::default(),
            counters: Counters::default(),
            last_sync_copied_bytes: 0,
            last_verify_mismatch_bytes: None,
        };
        std::mem::swap(&mut volume.fx, out);
        volume.recover(fell_back, &log.slots, log.trust, &bad_pages);
        std::mem::swap(&mut volume.fx, out);
        volume
    }

    /// One event, decided.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        std::mem::swap(&mut self.fx, out);
        self.now = now;
        match event {
            Event::Request(request) => self.on_request(request),
            Event::LocalDone { io, result } => self.on_local_done(io, result),
            Event::MetadataDone { io, result } => self.on_metadata_done(io, result),
            Event::LinkUp { link } => self.on_link_up(link),
            Event::LinkDown { link } => self.on_link_down(link),
            Event::Message { link, envelope } => self.on_message(link, envelope),
            Event::Command { id, command } => self.on_command(id, command),
            Event::Measured { usable_bytes } => self.on_measured(usable_bytes),
            Event::Tick => self.on_tick(),
        }
        self.resume_walk();
        self.resume_handshake();
        self.advance_gate();
        self.advance_leaving();
        self.advance_deferred();
        std::mem::swap(&mut self.fx, out);
    }

    /// Panics when a rule that must always hold inside the volume is broken.
    pub fn check_invariants(&self) {
        self.bitmap.check_invariants();
        self.log.check_invariants();
        self.locks.check_invariants();
        self.backlog.check_invariants();
        assert!(
            !self.serving || self.role == Role::Primary,
            "only a primary serves"
        );
        assert!(
            self.role != Role::Primary || self.target.is_none(),
            "a primary is never a resync target (D13)"
        );
        assert!(
            self.is_alone_durable() || self.link().is_none_or(|link| !link.behind),
            "nobody goes without a connected peer before that is on record (D5)"
        );
        assert!(
            self.role != Role::Primary || self.recheck.is_none() || self.is_replicating(),
            "a primary in doubt needs its peer"
        );
        assert!(
            self.role != Role::Primary || !self.runs_on || self.recheck.is_some(),
            "a primary has made up its mind about the last run"
        );
        assert!(
            self.role == Role::Primary
                || self
                    .link()
                    .is_none_or(|link| link.peer_role != Role::Primary || !link.replicating),
            "nothing follows a secondary of a primary"
        );
        assert!(
            self.walk.is_none() || self.link().is_some(),
            "a walk needs its link"
        );
    }

    pub fn size_bytes(&self) -> u64 {
        self.superblock.size_bytes
    }

    pub fn logical_block_bytes(&self) -> u32 {
        self.superblock.logical_block_bytes
    }

    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// The local disk alone has it, without the peer being asked.
    pub fn holds_what_clients_see(&self) -> bool {
        self.disk_state() == DiskState::UpToDate && self.recheck.is_none()
    }

    /// Zeroing without writing can be promised on both sides.
    pub fn fast_zero(&self) -> bool {
        self.config.fast_zero && self.link().is_none_or(|link| link.peer_fast_zero())
    }

    /// Everything asked of the disks has come back. A driver may end after `Stop` only then.
    pub fn is_idle(&self) -> bool {
        self.io.is_empty() && !self.store.is_busy()
    }

    fn recover(
        &mut self,
        fell_back: bool,
        slots: &[Option<ExtentIndex>],
        trust: Trust,
        bad_pages: &[u32],
    ) {
        if fell_back {
            self.superblock.flags.doubtful = true;
            self.report(Notice::warning(
                "superblock-lost",
                "one superblock copy is unreadable; the data may be old until the peer confirms",
            ));
        }
        if !bad_pages.is_empty() {
            self.report(Notice::warning(
                "bitmap-damaged",
                format!(
                    "{} bitmap pages failed their checksum: all their blocks count as dirty",
                    bad_pages.len()
                ),
            ));
        }
        if self.superblock.flags.failed {
            // What failed was the disk of the last run; the peer knows what this side missed.
            self.superblock.flags.failed = false;
            self.superblock.flags.outdated = true;
        }
        if self.superblock.flags.log_active && self.superblock.size_bytes > 0 {
            if trust == Trust::Doubtful {
                self.report(Notice::warning(
                    "log-damaged",
                    "the activity log is damaged: every block counts as dirty",
                ));
                self.bitmap.set_all();
                self.weak.insert_all();
            }
            let mut extents = 0;
            for extent in slots.iter().flatten() {
                if let Some(range) = self.bitmap.extent_range(*extent) {
                    extents += 1;
                    self.weak.insert(*extent);
                    self.bitmap.set_range(range);
                }
            }
            self.report(Notice::info(
                "recovered",
                format!("unclean stop: {extents} extents of the activity log are in doubt"),
            ));
        }
        // Bad pages count as all dirty in memory; on disk they must become readable again.
        let mut pages = self.bitmap.unsaved_pages();
        pages.extend(bad_pages.iter().map(|page| *page as usize));
        pages.sort_unstable();
        pages.dedup();
        let void = trust == Trust::Doubtful;
        self.save_pages(&pages, After::RecoveredPages { void });
    }

    fn on_recovered_pages(&mut self, void: bool) {
        if void {
            // The bits that stand for the whole log are durable: start over with an empty ring.
            self.void_log();
        } else {
            self.on_log_empty();
        }
    }

    fn on_log_empty(&mut self) {
        self.superblock.flags.log_active = false;
        self.superblock.log_epoch += 1;
        self.log.reset(self.superblock.log_epoch);
        self.persist(After::Recovered);
    }

    fn on_recovered(&mut self) {
        self.recovered = true;
        self.set_connect(true);
        self.retry_commands();
    }

    fn on_local_done(&mut self, io: IoToken, result: Result<Output, DiskFault>) {
        let Some(purpose) = self.io.remove(&io) else {
            return;
        };
        match purpose {
            Io::Write(owner) => self.on_write_applied(owner, result),
            Io::Read(id) => self.on_read_done(id, result),
            Io::Flush => self.on_local_flush(result.map(|_| ())),
            Io::FlushAhead => self.on_local_flush_ahead(result.map(|_| ())),
            Io::Replica(io) => self.on_replica_io(io, result),
            Io::Walk(owner) => self.on_walk_read(owner, result),
            Io::Fetched(owner) => self.on_fetched_written(owner, result),
        }
    }

    fn on_tick(&mut self) {
        self.tick_link();
        self.tick_flush();
        self.pump_line();
        self.tick_behind();
        self.tick_walk();
        self.tick_commands();
        self.tick_log();
    }

    /// Local data may be read and written.
    fn disk_usable(&self) -> bool {
        !self.superblock.flags.failed && !self.halted
    }

    fn disk_state(&self) -> DiskState {
        let flags = &self.superblock.flags;
        if flags.failed || self.halted {
            DiskState::Failed
        } else if flags.inconsistent {
            DiskState::Inconsistent
        } else if flags.outdated || flags.doubtful {
            DiskState::Outdated
        } else {
            DiskState::UpToDate
        }
    }

    fn link(&self) -> Option<&Link> {
        self.peering.link.as_ref()
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn start_io(&mut self, purpose: Io) -> IoToken {
        let io = IoToken(self.next_id());
        self.io.insert(io, purpose);
        io
    }

    fn draw_generation(&mut self) -> Generation {
        Generation(self.draw())
    }

    fn draw_full_sync(&mut self) -> FullSyncId {
        FullSyncId(self.draw())
    }

    /// A number that nobody has used, never zero: SplitMix64 over the seed of this run.
    fn draw(&mut self) -> u64 {
        loop {
            self.entropy = self.entropy.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut value = self.entropy;
            value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            value ^= value >> 31;
            if value != 0 {
                return value;
            }
        }
    }

    fn report(&mut self, notice: Notice) {
        self.fx.push(Effect::Report(notice));
    }

    fn mark_dirty(&mut self, range: ByteRange) {
        self.bitmap.set_range(range);
        if let Some(walk) = &mut self.walk {
            walk.forget(range);
        }
    }
}
