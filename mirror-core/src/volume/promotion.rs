//! Becoming primary: with the peer's leave, on the operator's word, or by force; and giving leave to
//! the peer. What a refusal names is part of the contract.

use super::commands::Promoting;
use super::effect::Effect;
use super::event::Grant;
use super::lease::WORD_MS;
use super::notice::Notice;
use super::store::After;
use super::{Sent, Volume};
use crate::control::SyncKind;
use crate::link::handshake::Strategy;
use crate::units::{CommandId, Epoch, FullSyncId, LinkId, Sequence, Uuid};
use crate::wire::message::{DiskState, Message, Mode, Role};

/// Within this time the kernel sends again what was under way when the process died. It looks for it every 1.3 s.
const CLIENTS_RETURN_MS: u64 = 2_000;
/// The rule by which a reinstatement is refused for good.
pub const NOT_REINSTATED: &str = "not-reinstated";

impl Volume {
    pub(super) fn promote(
        &mut self,
        id: CommandId,
        peer_down: bool,
        force: bool,
        grant: Option<Grant>,
    ) {
        if self.role == Role::Primary {
            match grant {
                Some(grant) if self.has_arbiter() => self.take_later_grant(id, grant),
                _ if peer_down && !self.has_greeted() => {
                    self.on_peer_confirmed_down();
                    self.finish_command(id, Ok("already primary; the peer counts as down".into()));
                }
                _ => self.finish_command(id, Ok("already primary".into())),
            }
            return;
        }
        if self.refuse_grant(id, grant) {
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
        if grant.is_some() && !self.superblock.flags.outdated {
            // The arbiter's record confirms what a lost superblock copy left in doubt (D9).
            self.superblock.flags.doubtful = false;
        }
        if self.link_ready() {
            self.promote_connected(id, force, grant);
        } else {
            self.promote_alone(id, peer_down, force, grant);
        }
    }

    /// Primary again in the epoch that this side held when its process died, so that the kernel device of then can go
    /// on. Its page cache is worth nothing once anybody else was primary, so it takes proof that nobody was: the
    /// peer's leave, or an arbiter, without whose lease of this very epoch nothing will be answered.
    pub(super) fn reinstate(&mut self, id: CommandId, alone: bool) {
        if self.role == Role::Primary {
            self.finish_command(id, Ok("already primary".into()));
        } else if self.commands.promoting.is_some() || self.commands.leaving.is_some() {
            self.refuse_busy(id);
        } else if self.reinstatable.is_none() {
            self.refuse(
                id,
                NOT_REINSTATED,
                "this side was not primary when it stopped, or was overruled since",
                "promote it",
            );
        } else if self.reinstatable != Some(self.superblock.epoch) {
            self.refuse(
                id,
                NOT_REINSTATED,
                format!(
                    "{} may have been primary since: its epoch is later",
                    self.config.peer_name
                ),
                "promote this side",
            );
        } else if self.disk_state() == DiskState::Failed {
            self.refuse(
                id,
                NOT_REINSTATED,
                "the disk of this side failed",
                "promote the other side",
            );
        } else if self.disk_state() != DiskState::UpToDate || self.target.is_some() {
            // The peer kept what this side may have lost when it died, and gives it back first.
            self.refuse(
                id,
                "resync-target",
                format!("{} brings this side up to date", self.config.peer_name),
                "wait for the resync to end",
            );
        } else if self.link_ready() {
            self.expect_clients();
            self.ask_leave(id, false, None, true);
        } else if alone && self.has_arbiter() {
            self.expect_clients();
            self.record_promotion(id, false, None, true);
        } else {
            self.refuse(
                id,
                "peer-not-seen",
                format!(
                    "{} has not said that it was not primary since",
                    self.config.peer_name
                ),
                "wait for it",
            );
        }
    }

    /// The clients of a kernel device are there, though nothing of theirs is: they find no heap of steps that have to end
    /// before theirs.
    fn expect_clients(&mut self) {
        self.clients_return_ms = Some(self.now.monotonic_ms + CLIENTS_RETURN_MS);
    }

    /// With an arbiter nobody is primary without its grant, whoever insists. True if it refused.
    fn refuse_grant(&mut self, id: CommandId, grant: Option<Grant>) -> bool {
        let own = self.superblock.epoch.0;
        match (grant, self.has_arbiter()) {
            (None, false) => return false,
            (Some(grant), true) if grant.deadline_ms <= self.now.monotonic_ms => self.refuse(
                id,
                "grant-is-over",
                format!("the lease of epoch {} ran out before this side was promoted: another may be granted by now", grant.epoch),
                "ask the arbiter again",
            ),
            (Some(grant), true) if grant.epoch > own => return false,
            (Some(grant), true)
                if grant.epoch == own && self.commands.unused_grant == Some(own) =>
            {
                return false;
            }
            (Some(grant), true) => self.refuse(
                id,
                "grant-is-old",
                format!("epoch {} was granted, and this side has seen epoch {own}", grant.epoch),
                "ask the arbiter again",
            ),
            (None, true) => self.refuse(
                id,
                "no-grant",
                "an arbiter decides who may be primary, and it has granted this node nothing",
                "start the group (mirrorctl group start, with --force where its data here is to count whatever the peer has) or switch it over: the agent asks the arbiter",
            ),
            (Some(_), false) => self.refuse(
                id,
                "no-arbiter",
                "this mirror runs without an arbiter, so nobody's grant counts",
                "configure the arbiter on both nodes and restart mirrord",
            ),
        }
        true
    }

    /// A primary whose agent asked anew goes on in the epoch that it was given.
    fn take_later_grant(&mut self, id: CommandId, grant: Grant) {
        if self.commands.promoting.is_some() || self.commands.leaving.is_some() {
            self.refuse_busy(id);
            return;
        }
        if self.refuse_grant(id, Some(grant)) {
            return;
        }
        // The peer follows the new epoch from its next hello on.
        self.renegotiate();
        self.record_promotion(id, false, Some(grant), false);
    }

    /// With a grant this side takes over from whatever primary it follows: it stops acknowledging
    /// before it is one itself.
    pub(super) fn leave_primary(&mut self) {
        let now = self.now.monotonic_ms;
        let follows = self.link().is_some_and(|link| {
            link.peer_role == Role::Primary || !link.is_ready() && link.is_older_than(WORD_MS, now)
        });
        if follows && self.role != Role::Primary && self.commands.promoting.is_none() {
            self.break_link("this side was granted a later epoch");
        }
    }

    /// A lost primary may no longer answer on what this side acknowledged to it.
    pub(super) fn may_overrule(&self) -> bool {
        self.role == Role::Primary
            || self.link_ready()
            || self.gate.word_is_over(self.now.monotonic_ms)
    }

    pub(super) fn peer_down(&mut self, id: CommandId) {
        if self.role != Role::Primary {
            self.refuse(
                id,
                "not-primary",
                "only a primary goes on without its peer",
                "promote this side first",
            );
        } else if self.has_greeted() {
            self.finish_command(id, Ok("the peer is connected".into()));
        } else {
            self.on_peer_confirmed_down();
            self.finish_command(id, Ok("the peer counts as down".into()));
        }
    }

    fn promote_connected(&mut self, id: CommandId, force: bool, grant: Option<Grant>) {
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
        self.ask_leave(id, force, grant, false);
    }

    fn ask_leave(&mut self, id: CommandId, force: bool, grant: Option<Grant>, again: bool) {
        if self
            .link()
            .is_some_and(|link| link.peer_role == Role::Primary)
        {
            self.refuse(
                id,
                NOT_REINSTATED,
                format!("{} is primary", self.config.peer_name),
                "promote this side when it is demoted",
            );
            return;
        }
        self.commands.promoting = Some(Promoting {
            id,
            force,
            grant,
            again,
            recording: false,
        });
        let sequence = self.next_sequence(Sent::Promote);
        let epoch = self.next_epoch(grant, again);
        self.send(Message::PromoteRequest { sequence, epoch });
    }

    fn next_epoch(&self, grant: Option<Grant>, again: bool) -> Epoch {
        if again {
            return self.superblock.epoch;
        }
        grant.map_or(Epoch(self.superblock.epoch.0 + 1), |grant| {
            Epoch(grant.epoch)
        })
    }

    fn promote_alone(&mut self, id: CommandId, peer_down: bool, force: bool, grant: Option<Grant>) {
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
            // An arbiter's record says it.
            if grant.is_none() && !self.peering.peer_seen {
                self.refuse(
                    id,
                    "peer-not-seen",
                    format!("this node has not seen {peer} since it started: {peer} may be ahead"),
                    format!("bring {peer} back; --force accepts the loss of what only {peer} has"),
                );
                return;
            }
            if grant.is_none() && !peer_down && !self.superblock.peer.stopped_cleanly {
                self.refuse(
                    id,
                    "peer-may-be-ahead",
                    format!("{peer} was lost and may have gone on alone"),
                    format!("bring {peer} back, or promote with --peer-down if it is really down and did not go on"),
                );
                return;
            }
        }
        if (peer_down || force) && !self.has_greeted() {
            self.superblock.peer.confirmed_down = true;
        }
        self.record_promotion(id, force, grant, false);
    }

    pub(super) fn on_promote_request(&mut self, link: LinkId, sequence: Sequence, epoch: Epoch) {
        let racing = self
            .commands
            .promoting
            .is_some_and(|promoting| promoting.recording || self.config.first);
        let copying = self
            .walk
            .as_ref()
            .is_some_and(|walk| matches!(walk.kind, SyncKind::Resync | SyncKind::Full));
        let own = self.superblock.epoch;
        // The same epoch is the asker's own, from before it died, unless it was this side's.
        let same = epoch == own && !self.superblock.flags.last_primary;
        let old = self.has_arbiter() && epoch <= own && !same;
        // A flush that is on its way to the peer would reach a primary, which takes none.
        let refuse = old
            || self.role == Role::Primary
            || racing
            || copying
            || self.is_fetching()
            || self.flushing.awaits_peer()
            || self.commands.leaving.is_some();
        if refuse {
            self.send(Message::PromoteReply {
                sequence,
                granted: false,
            });
            return;
        }
        // Nothing of the peer is being overwritten: see above.
        if self.walk.is_some() {
            self.abort_walk("the peer's promotion");
        }
        self.forget_recheck();
        // From here on the peer is as good as primary: a promotion asked for here meanwhile, and a
        // resync toward it, must not begin.
        if let Some(link) = &mut self.peering.link {
            link.peer_role = Role::Primary;
            link.is_source = false;
            // What this side is asked to flush from now on is its own.
            link.replicating = false;
            link.behind = false;
        }
        self.superblock.epoch = self.superblock.epoch.max(epoch);
        self.superblock.flags.primary = false;
        self.superblock.flags.last_primary = false;
        self.reinstatable = None;
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
            let Promoting {
                id,
                force,
                grant,
                again,
                ..
            } = promoting;
            self.record_promotion(id, force, grant, again);
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

    fn record_promotion(&mut self, id: CommandId, force: bool, grant: Option<Grant>, again: bool) {
        self.commands.promoting = Some(Promoting {
            id,
            force,
            grant,
            again,
            recording: true,
        });
        self.commands.unused_grant = None;
        if force {
            self.force_truth();
        }
        let epoch = self.next_epoch(grant, again);
        let alone = !self.link_ready() && self.role != Role::Primary;
        let superblock = &mut self.superblock;
        if alone {
            // From here on this side decides: whoever comes back was not there, had it lost nothing.
            superblock.peer.incarnation = Uuid::default();
        }
        superblock.epoch = epoch;
        // What is answered from now on was not spoken of when this side's data was given up.
        superblock.flags.discard_local = false;
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
        self.begin_authority(promoting.grant.map(|grant| grant.deadline_ms));
        if self.role == Role::Primary {
            self.on_later_grant(id);
            return;
        }
        self.role = Role::Primary;
        self.serving = true;
        self.end_alone();
        if self.reinstatable.is_some() && !self.link_ready() && !self.bitmap.is_clean() {
            self.note_old_tail();
        }
        self.fx.push(Effect::Serve { serving: true });
        let tail = match self.config.mode {
            Mode::Async if !self.link_ready() => format!(
                "; what {} answered last and had not sent here is not part of this side",
                self.config.peer_name
            ),
            _ => String::new(),
        };
        self.report(Notice::info(
            "promoted",
            format!("primary from epoch {} on{tail}", self.superblock.epoch.0),
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
        if self.recheck.is_none() || !self.is_replicating() {
            // Nobody else is to be asked.
            self.give_up_recheck();
        }
        self.finish_command(
            id,
            Ok(format!("primary, epoch {}", self.superblock.epoch.0)),
        );
    }

    fn on_later_grant(&mut self, id: CommandId) {
        let epoch = self.superblock.epoch.0;
        self.report(Notice::info(
            "promoted",
            format!("primary still, from epoch {epoch} on"),
        ));
        self.finish_command(id, Ok(format!("primary still, epoch {epoch}")));
    }
}
