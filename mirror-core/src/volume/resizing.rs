//! Growing a mirror online. Each side measures its own data partition; the smaller decides. Bitmap
//! pages for the new part are on disk before the superblock speaks of it, the receiver commits
//! before the proposer, and the new part is dirty on the proposer until it has been copied.

use super::Volume;
use super::effect::Effect;
use super::notice::Notice;
use super::refusal::Refusal;
use super::store::After;
use crate::units::{ByteRange, CommandId, EXTENT_BYTES};
use crate::wire::message::{DiskState, Message};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resizing {
    /// Waiting for the own measurement.
    Measuring { id: CommandId },
    /// Waiting for the peer's.
    Proposed { id: CommandId },
    /// Waiting for the peer to have recorded the new size.
    Committing { id: CommandId, size_bytes: u64 },
    /// Recording it here.
    Recording { id: CommandId },
    /// The peer proposed: waiting for the own measurement.
    Offering,
    /// The peer committed: recording it here.
    Following,
}

impl Volume {
    /// What the data partition can hold: as recorded, or as found when it was opened.
    pub(super) fn usable_bytes(&self) -> u64 {
        self.superblock.usable_bytes.max(self.config.usable_bytes)
    }

    pub(super) fn begin_resize(&mut self, id: CommandId) {
        if self.commands.resizing.is_some() {
            self.finish_command(
                id,
                Err(Refusal::new(
                    "busy",
                    "another resize is under way",
                    "wait for it",
                )),
            );
            return;
        }
        if self
            .link()
            .is_some_and(|link| link.is_ready() && !link.is_source)
        {
            let peer = &self.config.peer_name;
            self.finish_command(
                id,
                Err(Refusal::new(
                    "not-the-source",
                    format!("the new part is copied from {peer}"),
                    format!("run it on {peer}"),
                )),
            );
            return;
        }

        let up_to_date = self.disk_state() == DiskState::UpToDate
            && self
                .link()
                .is_some_and(|link| link.peer_disk == DiskState::UpToDate);
        if !self.link_ready() || !up_to_date || self.walk.is_some() || self.target.is_some() {
            self.finish_command(
                id,
                Err(Refusal::new(
                    "resize-needs-both",
                    "a mirror grows only while both sides are connected and up to date",
                    "connect and wait for the resync to end, then try again",
                )),
            );
            return;
        }
        self.commands.resizing = Some(Resizing::Measuring { id });
        self.fx.push(Effect::Measure);
    }

    pub(super) fn on_measured(&mut self, usable_bytes: u64) {
        let usable_bytes = usable_bytes.max(self.superblock.usable_bytes);
        match self.commands.resizing {
            Some(Resizing::Measuring { id }) => {
                self.superblock.usable_bytes = usable_bytes;
                self.commands.resizing = Some(Resizing::Proposed { id });
                self.send(Message::ResizePropose { usable_bytes });
            }
            Some(Resizing::Offering) => {
                self.superblock.usable_bytes = usable_bytes;
                self.commands.resizing = None;
                self.send(Message::ResizeOffer { usable_bytes });
            }
            _ => {}
        }
    }

    pub(super) fn on_resize_proposed(&mut self, _usable_bytes: u64) {
        if self.commands.resizing.is_none() {
            self.commands.resizing = Some(Resizing::Offering);
            self.fx.push(Effect::Measure);
        }
    }

    pub(super) fn on_resize_offer(&mut self, usable_bytes: u64) {
        let Some(Resizing::Proposed { id }) = self.commands.resizing else {
            return;
        };
        let block = u64::from(self.superblock.logical_block_bytes);
        let agreed = usable_bytes.min(self.superblock.usable_bytes);
        let size_bytes = agreed - agreed % block;
        if size_bytes <= self.superblock.size_bytes {
            self.commands.resizing = None;
            self.finish_command(
                id,
                Err(Refusal::new(
                    "nothing-grew",
                    format!(
                        "the smaller side has room for {agreed} bytes, data and metadata, and the mirror has {}",
                        self.superblock.size_bytes
                    ),
                    "enlarge the data partition on both nodes, and a metadata partition that is too small for it; internal metadata moves when mirrord is restarted; then try again",
                )),
            );
            return;
        }
        self.commands.resizing = Some(Resizing::Committing { id, size_bytes });
        self.send(Message::ResizeCommit { size_bytes });
    }

    pub(super) fn on_resize_commit(&mut self, size_bytes: u64) {
        if size_bytes > self.superblock.usable_bytes || size_bytes < self.superblock.size_bytes {
            self.break_link("a size that does not fit");
            return;
        }
        self.commands.resizing = Some(Resizing::Following);
        // The proposer's bits say what is to be copied; it has them on disk before its new size, and a
        // handshake that finds the sizes uneven marks the difference.
        self.record_size(size_bytes, false);
    }

    pub(super) fn on_resize_committed(&mut self, size_bytes: u64) {
        if let Some(Resizing::Committing {
            id,
            size_bytes: ours,
        }) = self.commands.resizing
            && ours == size_bytes
        {
            self.commands.resizing = Some(Resizing::Recording { id });
            self.record_size(size_bytes, true);
        }
    }

    pub(super) fn on_resize_pages(&mut self, size_bytes: u64) {
        self.superblock.size_bytes = size_bytes;
        self.persist(After::Resized { size_bytes });
    }

    pub(super) fn on_resized(&mut self, size_bytes: u64) {
        self.fx.push(Effect::Resized { size_bytes });
        self.report(Notice::info(
            "resized",
            format!("the mirror has {size_bytes} bytes"),
        ));
        match self.commands.resizing.take() {
            Some(Resizing::Recording { id }) => {
                self.finish_command(
                    id,
                    Ok(format!(
                        "the mirror has {size_bytes} bytes; the new part is being copied"
                    )),
                );
                self.want_resync();
            }
            Some(Resizing::Following) => self.send(Message::ResizeCommitted { size_bytes }),
            _ => {}
        }
    }

    pub(super) fn abort_resize(&mut self) {
        match self.commands.resizing.take() {
            Some(
                Resizing::Measuring { id }
                | Resizing::Proposed { id }
                | Resizing::Committing { id, .. }
                | Resizing::Recording { id },
            ) => self.finish_command(id, Err(Refusal::new(
                "peer-lost",
                "the peer was lost while the size was being agreed",
                "the next handshake takes the larger size if both partitions hold it; check mdstat",
            ))),
            Some(Resizing::Offering | Resizing::Following) | None => {}
        }
    }

    /// Marks what was added as different.
    pub(super) fn mark_growth(&mut self, old_bytes: u64, new_bytes: u64) {
        let mut offset = old_bytes;
        while offset < new_bytes {
            let end = ((offset / EXTENT_BYTES + 1) * EXTENT_BYTES).min(new_bytes);
            self.mark_dirty(ByteRange::new(offset, (end - offset) as u32));
            offset = end;
        }
    }

    fn record_size(&mut self, size_bytes: u64, mark: bool) {
        let old = self.superblock.size_bytes;
        self.grow_bitmap();
        self.bitmap.set_size(size_bytes);
        if mark {
            self.mark_growth(old, size_bytes);
        }
        let pages = self.unsaved_pages();
        self.save_pages(&pages, After::ResizePages { size_bytes });
    }

    /// Room in memory for what the data partition can hold now. The driver has made sure that the
    /// metadata area has the room on disk.
    pub(super) fn grow_bitmap(&mut self) {
        if let Ok(geometry) = self.geometry.resized(self.superblock.usable_bytes) {
            self.bitmap.grow_pages(geometry.pages() as usize);
            self.weak.grow(geometry.extents());
            self.geometry = geometry;
        }
    }
}
