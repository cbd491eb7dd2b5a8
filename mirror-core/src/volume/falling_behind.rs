//! Async with `queue_full = "degrade"`: a peer that does not keep up costs no waiting. Once the queue is full,
//! writes only set dirty bits, and a resync beside them brings the peer what it misses.
//!
//! ```text
//!  in step ─ queue full ─► telling ─ peer durably inconsistent ─► recording ─ durable here ─► behind
//!     ▲                   (writes wait for room)                                              │
//!     └─ generation handed over ◄─ the last of the walk ◄─ in line again ◄─ a quarter left ───┘
//! ```
//!
//! Before the first answer that is not in line, the peer has recorded that it is inconsistent, and this side
//! that the peer is outdated, under a new generation (D5): that is why this is a resync like any other, and
//! needs nobody's word. The peer stays a prefix until the walk sends its first block.
//!
//! Out at a full queue, back at a quarter of it in bits and in line: a peer that is a little too slow goes
//! through this seldom, and one that is much too slow stays behind.

use super::Volume;
use super::config::QueueFull;
use super::notice::Notice;
use super::walk::Stage;
use crate::control::SyncKind;
use crate::wire::message::{DiskState, Mode};

/// Share of the queue from which on a peer is in line again.
const BACK_SHARE: u64 = 4;

impl Volume {
    /// The queue is full: true if the write need not wait.
    pub(super) fn falls_behind(&mut self) -> bool {
        let degrades =
            self.config.mode == Mode::Async && self.config.queue_full == QueueFull::Degrade;
        if !degrades {
            return false;
        }
        if self.is_alone_durable() && self.is_walking() {
            // A resync that followed something else; both sides have recorded what it takes.
            self.set_behind();
            return true;
        }
        self.begin_degrading();
        false
    }

    fn is_walking(&self) -> bool {
        self.walk
            .as_ref()
            .is_some_and(|walk| walk.kind != SyncKind::Verify && walk.stage == Stage::Walking)
    }

    fn begin_degrading(&mut self) {
        let in_step = self.link().is_some_and(|link| {
            link.is_ready()
                && link.is_source
                && link.replicating
                && link.peer_disk == DiskState::UpToDate
        });
        let busy = self.walk.is_some() || self.target.is_some() || self.commands.is_changing_role();
        if self.backlog.degrading || !in_step || busy || !self.disk_usable() {
            return;
        }
        self.backlog.degrading = true;
        self.begin_walk(Stage::Starting, self.superblock.peer.full_sync);
    }

    /// The peer of a walk that begins has recorded that it is inconsistent. Answers that the last line was cut
    /// under need not wait for the end of the walk either.
    pub(super) fn on_peer_inconsistent(&mut self) {
        if self.backlog.degrading || self.requests.has_overtaken() {
            self.record_behind();
        }
    }

    /// True if that was what the record was for.
    pub(super) fn on_behind_recorded(&mut self) -> bool {
        if !std::mem::take(&mut self.backlog.degrading) || !self.has_follower() {
            return false;
        }
        self.report(Notice::warning(
            "fell-behind",
            format!(
                "the queue for {} is full ({} bytes): it is inconsistent until a resync has caught up, and writes do not wait for it",
                self.config.peer_name, self.config.queue_bytes
            ),
        ));
        self.set_behind();
        true
    }

    fn set_behind(&mut self) {
        if let Some(link) = &mut self.peering.link {
            link.behind = true;
        }
        self.run_waiting();
    }

    fn is_peer_behind(&self) -> bool {
        self.link().is_some_and(|link| link.behind)
    }

    /// Writes go to the peer again once what it lacks is little.
    pub(super) fn tick_behind(&mut self) {
        let little = self.config.queue_bytes / BACK_SHARE;
        let near = self.backlog.footprint_bytes() <= little && self.bitmap.dirty_bytes() <= little;
        if near {
            self.end_behind();
        }
    }

    /// Writes go to the peer again.
    pub(super) fn end_behind(&mut self) {
        if let Some(link) = &mut self.peering.link {
            link.behind = false;
        }
    }

    /// Both sides hold everything but what is in line.
    pub(super) fn may_hand_over(&mut self) -> bool {
        self.tick_behind();
        !self.is_peer_behind() && !self.backlog.degrading
    }
}
