//! Becoming primary: with the peer's leave, on the operator's word, or by force; and giving leave to
//! the peer. What a refusal names is part of the contract.

use super::commands::Promoting;
use super::effect::Effect;
use super::notice::Notice;
use super::store::After;
use super::{Sent, Volume};
use crate::control::SyncKind;
use crate::link::handshake::Strategy;
use crate::units::{CommandId, Epoch, FullSyncId, LinkId, Sequence};
use crate::wire::message::{DiskState, Message, Role};

impl Volume {
    pub(super) fn promote(&mut self, id: CommandId, peer_down: bool, force: bool) {
        if self.role == Role::Primary {
            if peer_down && !self.link_ready() {
                self.on_peer_confirmed_down();
                self.finish_command(id, Ok("already primary; the peer counts as down".into()));
            } else {
                self.finish_command(id, Ok("already primary".into()));
            }
            return;
        }
        if self.commands.promoting.is_some() || self.commands.leaving.is_some() {
            self.refuse_busy(id);
            return;
        }
        if self.disk_state() == DiskState::Failed {
            self.refuse(
                id,
                "disk-failed",
                "the disk of this node failed",
                "replace it, init the mirror here and let it resync",
            );
            return;
        }
        if self.link_ready() {
            self.promote_connected(id, force);
        } else {
            self.promote_alone(id, peer_down, force);
        }
    }

    fn promote_connected(&mut self, id: CommandId, force: bool) {
        let peer = self.config.peer_name.clone();
        let (peer_role, idle) = self.link().map_or((Role::Unknown, false), |link| {
            (link.peer_role, link.strategy() == Some(Strategy::Idle))
        });
        if peer_role == Role::Primary {
            self.refuse(
                id,
                "peer-is-primary",
                format!("{peer} is primary"),
                format!("demote it on {peer} first"),
            );
            return;
        }
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind == SyncKind::Verify)
        {
            self.abort_walk("a promotion");
        }
        match self.disk_state() {
            DiskState::UpToDate => {}
            _ if idle && force => {}
            _ if idle => {
                self.refuse(
                    id,
                    "no-data-yet",
                    "neither side has data that counts",
                    "promote with --force on the side whose data is to be the truth",
                );
                return;
            }
            _ => {
                self.refuse(
                    id,
                    "resync-target",
                    format!("this side is being copied from {peer} and is not up to date"),
                    format!("promote {peer}, or wait for the resync to end"),
                );
                return;
            }
        }
        self.commands.promoting = Some(Promoting {
            id,
            force,
            recording: false,
        });
        let sequence = self.next_sequence(Sent::Promote);
        let epoch = Epoch(self.superblock.epoch.0 + 1);
        self.send(Message::PromoteRequest { sequence, epoch });
    }

    fn promote_alone(&mut self, id: CommandId, peer_down: bool, force: bool) {
        let peer = self.config.peer_name.clone();
        let fresh = self.superblock.generations.current.is_none();
        if !force {
            match self.disk_state() {
                DiskState::UpToDate => {}
                DiskState::Outdated => {
                    self.refuse(
                        id,
                        "outdated",
                        format!("{peer} went on without this side, or may have: the data here is possibly old"),
                        format!("bring {peer} back; --force accepts the loss of what only {peer} has"),
                    );
                    return;
                }
                _ if fresh => {
                    self.refuse(
                        id,
                        "no-data-yet",
                        "this side was never synchronised",
                        "promote with --force if its data partition holds the truth",
                    );
                    return;
                }
                _ => {
                    self.refuse(
                        id,
                        "inconsistent",
                        "a resync into this side has begun and not ended",
                        format!("bring {peer} back; --force accepts a mixture of old and new data"),
                    );
                    return;
                }
            }
            // While this side was down the peer may have gone on, and stopped since, cleanly or not:
            // its being down says nothing about who has the newest data.
            if !self.peering.peer_seen {
                self.refuse(
                    id,
                    "peer-not-seen",
                    format!("this node has not seen {peer} since it started: {peer} may be ahead"),
                    format!("bring {peer} back; --force accepts the loss of what only {peer} has"),
                );
                return;
            }
            if !peer_down && !self.superblock.peer.stopped_cleanly {
                self.refuse(
                    id,
                    "peer-may-be-ahead",
                    format!("{peer} was lost and may have gone on alone"),
                    format!("bring {peer} back, or promote with --peer-down if it is really down and did not go on"),
                );
                return;
            }
        }
        if peer_down || force {
            self.superblock.peer.confirmed_down = true;
        }
        self.record_promotion(id, force);
    }

    pub(super) fn on_promote_request(&mut self, link: LinkId, sequence: Sequence, epoch: Epoch) {
        let racing = self
            .commands
            .promoting
            .is_some_and(|promoting| promoting.recording || self.config.first);
        let copying = self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind != SyncKind::Verify);
        let refuse =
            self.role == Role::Primary || racing || copying || self.commands.leaving.is_some();
        if refuse {
            self.send(Message::PromoteReply {
                sequence,
                granted: false,
            });
            return;
        }
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.kind == SyncKind::Verify)
        {
            self.abort_walk("the peer's promotion");
        }
        // From here on the peer is as good as primary: a promotion asked for here meanwhile, and a
        // resync toward it, must not begin.
        if let Some(link) = &mut self.peering.link {
            link.peer_role = Role::Primary;
            link.is_source = false;
        }
        self.superblock.epoch = self.superblock.epoch.max(epoch);
        self.superblock.flags.last_primary = false;
        self.persist(After::PeerPromoted { link, sequence });
    }

    pub(super) fn on_peer_promoted_durable(&mut self, link: LinkId, sequence: Sequence) {
        if self.is_current(link) {
            self.send(Message::PromoteReply {
                sequence,
                granted: true,
            });
        }
    }

    pub(super) fn on_promote_reply(&mut self, granted: bool) {
        let Some(promoting) = self
            .commands
            .promoting
            .filter(|promoting| !promoting.recording)
        else {
            return;
        };
        let still = self.disk_state() == DiskState::UpToDate
            || self
                .link()
                .is_some_and(|link| link.strategy() == Some(Strategy::Idle));
        if granted && still && self.target.is_none() {
            self.record_promotion(promoting.id, promoting.force);
        } else {
            self.commands.promoting = None;
            self.refuse(
                promoting.id,
                "peer-refused",
                format!(
                    "{} is primary, is being promoted, or copies to this side",
                    self.config.peer_name
                ),
                "look at mdstat on both nodes, and try again when a resync has ended",
            );
        }
    }

    fn record_promotion(&mut self, id: CommandId, force: bool) {
        self.commands.promoting = Some(Promoting {
            id,
            force,
            recording: true,
        });
        if force {
            self.force_truth();
        }
        let superblock = &mut self.superblock;
        superblock.epoch.0 += 1;
        superblock.flags.primary = true;
        superblock.flags.last_primary = true;
        superblock.flags.log_active = true;
        superblock.flags.clean_stop = false;
        self.persist(After::Promoted { id });
    }

    /// `--force`: this side's data becomes the truth, whatever it is.
    fn force_truth(&mut self) {
        let state = self.disk_state();
        if state == DiskState::UpToDate && self.link_ready() {
            return;
        }
        if state == DiskState::Inconsistent {
            // From here on this side is no longer what a full copy that was cut has made of it.
            self.superblock.peer.full_sync = FullSyncId::NONE;
        }
        if self.superblock.size_bytes == 0 {
            let block = u64::from(self.superblock.logical_block_bytes);
            let usable = self.superblock.usable_bytes;
            self.superblock.size_bytes = usable - usable % block;
            self.bitmap.set_size(self.superblock.size_bytes);
            self.fx.push(Effect::Resized {
                size_bytes: self.superblock.size_bytes,
            });
        }
        let fresh = self.superblock.generations.current.is_none();
        if state == DiskState::Inconsistent && !fresh {
            // Nobody knows which blocks a broken resync has mixed.
            self.bitmap.set_all();
            let pages = self.unsaved_pages();
            self.save_pages(&pages, After::Nothing);
        }
        let generation = self.draw_generation();
        self.superblock.generations.advance(generation);
        if !fresh {
            self.superblock.peer.outdated = true;
        }
        let flags = &mut self.superblock.flags;
        flags.inconsistent = false;
        flags.outdated = false;
        flags.doubtful = false;
        flags.discard_local = false;
        self.report(Notice::warning(
            "forced",
            format!("this side was {state:?} and is now the truth, as generation {generation}"),
        ));
    }

    pub(super) fn on_promoted(&mut self, id: CommandId) {
        let Some(promoting) = self.commands.promoting.take() else {
            return;
        };
        self.role = Role::Primary;
        self.serving = true;
        self.end_alone();
        self.fx.push(Effect::Serve { serving: true });
        self.report(Notice::info(
            "promoted",
            format!("primary from epoch {} on", self.superblock.epoch.0),
        ));
        let forced = promoting.force
            && self
                .link()
                .is_some_and(|link| link.strategy() == Some(Strategy::Idle));
        if forced {
            self.renegotiate();
        } else if let Some(link) = &mut self.peering.link
            && link.strategy() != Some(Strategy::Idle)
            && link.peer_disk != DiskState::Failed
            && link.is_ready()
        {
            link.replicating = true;
            link.is_source = true;
            self.send_state();
            self.want_resync();
        }
        self.finish_command(
            id,
            Ok(format!("primary, epoch {}", self.superblock.epoch.0)),
        );
    }
}
