//! The resync source: takes the target's bits in, walks, and hands its generation over at the end.
//!
//! The union of both bitmaps is on disk before anything else (D1), and the target's record of the end
//! before this side forgets what the difference was counted from (D13).

use super::Volume;
use super::notice::Notice;
use super::peering::Link;
use super::store::After;
use super::walk::{Stage, Walk};
use crate::control::SyncKind;
use crate::link::handshake::{Scope, Strategy};
use crate::units::{FullSyncId, LinkId};
use crate::wire::message::{DiskState, Message, Role};

impl Volume {
    pub(super) fn on_bitmap_end(&mut self, link: LinkId) {
        let Some(Strategy::Source(scope)) = self.link().and_then(Link::strategy) else {
            self.break_link("a bitmap from the source");
            return;
        };
        match scope {
            Scope::Full => {
                self.bitmap.set_all();
                self.weak.clear();
            }
            // Declared equal is what was there before; what was written here since stays dirty (D2).
            Scope::Bitmap | Scope::Remainder | Scope::Nothing => {}
        }
        self.judge_recheck(scope);
        self.meet_peer();
        let pages = self.unsaved_pages();
        self.save_pages(&pages, After::SourcePages { link });
    }

    /// The union of both bitmaps is on disk here: whatever happens to the target's now, D1 holds.
    pub(super) fn on_source_pages(&mut self, link: LinkId) {
        let Some(Strategy::Source(scope)) = self
            .link()
            .filter(|link_now| link_now.id() == link)
            .and_then(Link::strategy)
        else {
            return;
        };
        let full_sync = match scope {
            // The bits say "everything" from here on, whoever asked for it.
            Scope::Full => {
                self.superblock.flags.full_resync = false;
                self.draw_full_sync()
            }
            // What was declared equal holds for this target only, and only if the two get to the end.
            Scope::Nothing => self.draw_full_sync(),
            Scope::Remainder => self.superblock.peer.full_sync,
            Scope::Bitmap => FullSyncId::NONE,
        };
        self.superblock.peer.full_sync = full_sync;
        self.persist(After::SourceRecorded { link });
    }

    pub(super) fn on_source_recorded(&mut self, link: LinkId) {
        if !self.is_current(link) {
            return;
        }
        let full_sync = self.superblock.peer.full_sync;
        if self.peer_lacks_nothing() {
            self.begin_walk(Stage::Finishing, full_sync);
            self.set_ready(true);
            self.hand_over();
        } else {
            self.begin_walk(Stage::Starting, full_sync);
        }
    }

    pub(super) fn on_resync_ready(&mut self) {
        let Some(walk) = self
            .walk
            .as_mut()
            .filter(|walk| walk.stage == Stage::Starting)
        else {
            return;
        };
        walk.stage = Stage::Walking;
        let total = walk.total_bytes;
        self.note_copy();
        self.report(Notice::info(
            "resync-started",
            format!("sending {total} bytes to {}", self.config.peer_name),
        ));
        self.set_ready(true);
        self.on_peer_inconsistent();
        self.pump_walk();
    }

    /// Bits were set while connected, or a resync stopped before it handed over: go on with it if
    /// this side is the one to copy from.
    pub(super) fn want_resync(&mut self) {
        let Some(link) = self.link().filter(|link| link.is_ready()) else {
            return;
        };
        let unfinished = matches!(
            link.peer_disk,
            DiskState::Inconsistent | DiskState::Outdated
        );
        let may_send =
            link.is_source && link.replicating && self.disk_usable() && !self.commands.is_leaving();
        let needed = unfinished || !self.bitmap.is_clean();
        if self.walk.is_some() || !may_send || !needed {
            return;
        }
        if self.recheck.is_some() && !unfinished {
            self.begin_recheck();
        } else {
            self.begin_walk(Stage::Starting, self.superblock.peer.full_sync);
        }
    }

    pub(super) fn begin_walk(&mut self, stage: Stage, full_sync: FullSyncId) {
        self.resync_due_ms = None;
        let total_bytes = match stage {
            Stage::Finishing => 0,
            Stage::Starting | Stage::Walking => self.bitmap.dirty_bytes(),
        };
        let kind = if full_sync.is_none() {
            SyncKind::Resync
        } else {
            SyncKind::Full
        };
        let pace = self.new_pace();
        let mut walk = Walk::new(kind, stage, total_bytes, pace);
        walk.paused = self.resync_paused;
        self.walk = Some(walk);
        if stage == Stage::Starting {
            self.send(Message::ResyncStart {
                total_bytes,
                full_sync,
            });
            self.repeat_pause();
        }
    }

    /// The target has recorded what it takes part in. Another one that knows nothing of it is not the
    /// disk that `initial_sync = "skip"` was said of.
    fn note_copy(&mut self) {
        if !self.superblock.peer.had_copy {
            self.superblock.peer.had_copy = true;
            self.persist(After::Nothing);
        }
    }

    pub(super) fn hand_over(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.finish(self.now.monotonic_ms);
        }
        self.note_copy();
        // From here on the peer may hold the current generation: going alone again needs a new one.
        self.end_alone();
        let generations = self.superblock.generations;
        self.send(Message::ResyncDone { generations });
    }

    pub(super) fn on_resync_done_ack(&mut self, link: LinkId) {
        if self
            .walk
            .as_ref()
            .is_none_or(|walk| walk.stage != Stage::Finishing)
        {
            return;
        }
        if let Some(link) = &mut self.peering.link {
            link.peer_disk = DiskState::UpToDate;
        }
        self.superblock.generations.settle();
        self.superblock.peer.outdated = false;
        self.superblock.peer.detached = false;
        // Whoever was primary when it died, and is asked to be it again, is so until somebody else is.
        let stays = self.role == Role::Primary
            || self.commands.is_promoting()
            || self.reinstatable.is_some();
        let flags = &mut self.superblock.flags;
        flags.primary &= stays;
        // Whatever this side may have missed: the handshake made its data the truth, and both have it.
        flags.outdated = false;
        flags.discard_local = false;
        self.superblock.peer.full_sync = FullSyncId::NONE;
        self.backlog.note_caught_up();
        self.release_overtaken();
        self.end_alone();
        self.persist(After::SourceSettled { link });
    }

    pub(super) fn on_source_settled(&mut self, link: LinkId) {
        if !self.is_current(link) {
            return;
        }
        let pages = self.changed_pages();
        self.save_pages(&pages, After::Nothing);
        self.send_state();
        if let Some(walk) = self.walk.take()
            && walk.total_bytes > 0
        {
            self.last_sync_copied_bytes = walk.copied_bytes;
            self.report(Notice::info(
                "resync-finished",
                format!(
                    "{} is up to date, {} bytes copied",
                    self.config.peer_name, walk.copied_bytes
                ),
            ));
        }
        if self.bitmap.is_clean() {
            self.weak.clear();
        }
        self.want_resync();
    }

    /// Pauses what runs here, or lets it go on. A resync stays paused over a reconnect. False if there
    /// is nothing to pause.
    pub(super) fn pause_walk(&mut self, paused: bool) -> bool {
        let mut known = std::mem::take(&mut self.resync_paused) && !paused;
        if let Some(walk) = &mut self.walk {
            walk.paused = paused;
            self.resync_paused = paused && walk.kind != SyncKind::Verify;
            known = true;
        }
        if let Some(target) = &mut self.target {
            target.paused = paused;
            self.resync_paused = paused;
            known = true;
        }
        if known {
            self.send(Message::ResyncPaused { paused });
            self.pump_walk();
        }
        known
    }

    /// Tells the peer of a resync that just began that it is paused here.
    pub(super) fn repeat_pause(&mut self) {
        if self.resync_paused {
            self.send(Message::ResyncPaused { paused: true });
        }
    }

    pub(super) fn on_peer_paused(&mut self, paused: bool) {
        // Whoever paused it, either side may let it go on.
        self.resync_paused &= paused;
        if let Some(walk) = &mut self.walk {
            walk.paused = paused;
        }
        if let Some(target) = &mut self.target {
            target.paused = paused;
        }
        self.pump_walk();
    }
}
