//! The resync target: durably inconsistent before the first overwrite, and holder of the source's
//! generation only after its own flush (D13). What is overwritten for good is recorded first (D10).

use super::Volume;
use super::notice::Notice;
use super::store::After;
use crate::generation::GenerationSet;
use crate::layout::superblock::Discard;
use crate::link::handshake::{Rule, Scope};
use crate::resync::meter::Meter;
use crate::units::{ByteRange, FullSyncId, LinkId};
use crate::wire::message::{DiskState, Message, Role};

/// Ranges that an event about discarded data names; the rest only counts.
const RANGES_NAMED: u64 = 8;

#[derive(Debug)]
pub(super) struct Target {
    scope: Scope,
    pub(super) full: bool,
    pub(super) started: bool,
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    pub(super) copied_bytes: u64,
    pub(super) paused: bool,
    /// How fast data comes in.
    pub(super) meter: Meter,
    generations: Option<GenerationSet>,
}

impl Target {
    pub(super) fn note(&mut self, range: ByteRange, copied: bool) {
        self.meter.done(u64::from(range.length));
        self.done_bytes = (self.done_bytes + u64::from(range.length)).min(self.total_bytes);
        if copied {
            self.copied_bytes += u64::from(range.length);
        }
    }
}

impl Volume {
    pub(super) fn prepare_target(&mut self, scope: Scope) {
        self.forget_recheck();
        let Some(link) = self.link().map(super::peering::Link::id) else {
            return;
        };
        if self.peering.last_rule == Some(Rule::SelfSuperseded) {
            // The epoch of the other side is this side's from here on, and no longer tells them apart.
            self.superblock.flags.discard_local |= !self.superblock.generations.base.is_none();
        }
        self.record_discard(scope);
        let incarnation = self.incarnation;
        let current = self.superblock.generations.current;
        let hello = self.peering.last_hello.as_ref();
        let same_generation = hello.is_some_and(|hello| hello.generations.current == current);
        let same_line = same_generation
            && hello.is_some_and(|hello| hello.peer_incarnation_seen == incarnation);
        // A side that restarted may lack what it acknowledged and had not flushed. Once the source
        // has met this run of it, nothing else would say so.
        if !same_line || self.superblock.flags.primary {
            self.superblock.flags.outdated = true;
        }
        if !same_generation {
            // The other side was primary since, whatever its epoch says: without an arbiter two may be alike.
            self.superblock.flags.primary = false;
            self.reinstatable = None;
        }
        let meter = Meter::new(self.now.monotonic_ms);
        self.target = Some(Target {
            scope,
            full: matches!(scope, Scope::Full | Scope::Remainder),
            started: false,
            total_bytes: 0,
            done_bytes: 0,
            copied_bytes: 0,
            paused: false,
            meter,
            generations: None,
        });
        self.meet_peer();
        self.persist(After::OutdatedBeforeSync { link });
    }

    pub(super) fn on_outdated_durable(&mut self, link: LinkId) {
        if !self.is_current(link) {
            return;
        }
        match self.target.as_ref().map(|target| target.scope) {
            Some(Scope::Bitmap | Scope::Remainder) => self.send_bitmap(),
            // Every block is copied, or none: this side's bits change nothing.
            Some(Scope::Full | Scope::Nothing) => self.send(Message::BitmapEnd),
            None => {}
        }
    }

    pub(super) fn on_resync_start(
        &mut self,
        link: LinkId,
        total_bytes: u64,
        full_sync: FullSyncId,
    ) {
        if self.role == Role::Primary {
            self.break_link("a primary is never a resync target");
            return;
        }
        if self.walk.is_some() {
            self.break_link("both sides began a resync");
            return;
        }
        if self.target.is_none() && !self.bitmap.is_clean() {
            // The source knows nothing of these bits, and the end of a resync clears them (D2).
            self.renegotiate();
            return;
        }
        let full = !full_sync.is_none();
        let meter = Meter::new(self.now.monotonic_ms);
        let target = self.target.get_or_insert(Target {
            scope: Scope::Bitmap,
            full,
            started: true,
            total_bytes,
            done_bytes: 0,
            copied_bytes: 0,
            paused: false,
            meter,
            generations: None,
        });
        target.started = true;
        target.paused |= self.resync_paused;
        target.full = full;
        target.total_bytes = total_bytes;
        self.superblock.flags.inconsistent = true;
        self.superblock.peer.full_sync = full_sync;
        self.superblock.peer.had_copy = true;
        if full {
            // The source's bits say it now, and they are on its disk.
            self.superblock.flags.full_resync = false;
        }
        self.persist(After::TargetReady { link });
    }

    pub(super) fn on_target_ready(&mut self, link: LinkId) {
        if !self.is_current(link) || self.target.is_none() {
            return;
        }
        self.report(Notice::info(
            "resync-started",
            format!("receiving from {}", self.config.peer_name),
        ));
        self.send(Message::ResyncReady);
        self.repeat_pause();
        self.set_ready(false);
        self.send_state();
    }

    pub(super) fn on_resync_done(&mut self, link: LinkId, generations: GenerationSet) {
        if let Some(target) = &mut self.target
            && self.role != Role::Primary
        {
            target.generations = Some(generations);
            self.last_flush(link);
        } else {
            self.break_link("the end of a resync that never began");
        }
    }

    pub(super) fn on_target_flushed(&mut self, link: LinkId) {
        if !self.is_current(link) || self.target.is_none() {
            return;
        }
        self.bitmap.clear_all();
        self.weak.clear();
        let pages = self.changed_pages();
        self.save_pages(&pages, After::TargetDonePages { link });
    }

    pub(super) fn on_target_done_pages(&mut self, link: LinkId) {
        let generations = self.target.as_ref().and_then(|target| target.generations);
        let Some(generations) = generations.filter(|_| self.is_current(link)) else {
            return;
        };
        self.superblock.generations.adopt(&generations);
        let flags = &mut self.superblock.flags;
        flags.inconsistent = false;
        flags.outdated = false;
        flags.primary = false;
        flags.last_primary = false;
        flags.discard_local = false;
        self.superblock.peer.full_sync = FullSyncId::NONE;
        self.superblock.peer.had_copy = true;
        self.superblock.peer.outdated = false;
        self.superblock.peer.detached = false;
        self.persist(After::TargetDone { link });
    }

    pub(super) fn on_target_done(&mut self, link: LinkId) {
        if !self.is_current(link) {
            return;
        }
        self.backlog.note_caught_up();
        if let Some(target) = self.target.take()
            && target.started
        {
            self.last_sync_copied_bytes = target.copied_bytes;
            self.report(Notice::info(
                "resync-finished",
                format!(
                    "up to date with {}, {} bytes received",
                    self.config.peer_name, target.copied_bytes
                ),
            ));
        }
        self.set_ready(self.link().is_some_and(|link| link.replicating));
        self.send(Message::ResyncDoneAck);
        self.send_state();
    }

    /// What this side holds alone and is about to lose: a given-up side after a split brain, or the
    /// tail that an old primary wrote and never answered.
    fn record_discard(&mut self, scope: Scope) {
        let flags = &self.superblock.flags;
        let alone = flags.discard_local || flags.primary;
        if !alone || self.disk_state() == DiskState::Inconsistent {
            return;
        }
        let (bytes, ranges, named) = match scope {
            // The bitmap does not reach back to what the two have in common.
            Scope::Full => (self.superblock.size_bytes, 1, "the whole mirror".into()),
            _ => self.dirty_ranges(),
        };
        if bytes == 0 {
            return;
        }
        let generation = self.superblock.generations.current;
        self.superblock.last_discard = Discard {
            generation,
            bytes,
            ranges,
            unix_s: self.now.unix_s,
        };
        self.report(Notice::warning(
            "discarded",
            format!(
                "up to {bytes} bytes in {ranges} ranges of generation {generation} may be overwritten by {}: {named}",
                self.config.peer_name,
            ),
        ));
    }

    /// Bytes, ranges and the first few of these by name.
    fn dirty_ranges(&self) -> (u64, u64, String) {
        let mut ranges = 0;
        let mut from = 0;
        let mut named = Vec::new();
        while let Some(block) = self.bitmap.next_dirty(from) {
            let run = self.bitmap.run_at(block, u32::MAX);
            ranges += 1;
            match ranges {
                ..=RANGES_NAMED => named.push(format!("{run:?}")),
                _ if named.len() == RANGES_NAMED as usize => named.push("…".into()),
                _ => {}
            }
            from = run.end().div_ceil(self.bitmap.block_bytes());
        }
        (self.bitmap.dirty_bytes(), ranges, named.join(", "))
    }
}
