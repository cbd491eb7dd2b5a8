//! Going on without the peer, or without the own disk.
//!
//! Before the first answer that the peer does not have, "peer outdated, new generation" is durable
//! here (D5): a peer that comes back is then told that it is behind, and a crash here cannot forget
//! it. The generation is made lazily, by the first answer that waits for it. With
//! `peer_loss = "hold"` the answer waits further, for the word that the peer is down.
//!
//! A disk that fails here while the peer is connected leaves the peer as the only holder of what is
//! written from then on; the peer records that before the first such answer (D13).

use super::config::PeerLoss;
use super::notice::Notice;
use super::store::After;
use super::{Sent, Volume};
use crate::control::SyncKind;
use crate::request::{Answer, Failure};
use crate::units::{ExtentIndex, LinkId, Sequence};
use crate::wire::message::{DiskState, Message, Role};

#[derive(Debug, Default)]
pub(super) struct Alone {
    /// "Peer outdated, new generation" is on its way to disk.
    persisting: bool,
    /// It is durable: answers that the peer lacks may go.
    durable: bool,
    detach: Detach,
    /// Extents that the failed disk had not flushed. The peer is told; until it has recorded them,
    /// they are known only here.
    lost: Vec<ExtentIndex>,
    suspended_reported: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Detach {
    #[default]
    Attached,
    /// The own record and the peer's are under way.
    Waiting { here: bool, there: bool },
    /// The peer has recorded that this side's disk is out.
    ServingFromPeer,
}

impl Volume {
    /// An answer that one side lacks may be released.
    pub(super) fn may_answer_now(&self) -> bool {
        if !self.disk_usable() {
            return self.alone.detach == Detach::ServingFromPeer;
        }
        self.is_replicating() || self.alone.durable
    }

    /// Answers wait for someone's word: `hold`, no peer, and nobody has said that it is down.
    pub(super) fn is_suspended(&self) -> bool {
        self.role == Role::Primary
            && self.config.peer_loss == PeerLoss::Hold
            && self.disk_usable()
            && !self.is_replicating()
            && !self.alone.durable
            && !self.may_go_alone()
    }

    /// Client requests need no link: what the peer lacks is on record, and no link changes that
    /// before both sides have said hello.
    pub(super) fn is_alone_durable(&self) -> bool {
        self.alone.durable
    }

    /// Starts what a held answer waits for.
    pub(super) fn want_alone(&mut self) {
        if !self.disk_usable() || self.is_replicating() || self.in_handshake() {
            return;
        }
        if self.alone.durable || self.alone.persisting {
            return;
        }
        if !self.may_go_alone() {
            if !self.alone.suspended_reported {
                self.alone.suspended_reported = true;
                self.report(Notice::warning(
                    "io-suspended",
                    "the peer is lost and peer_loss is hold: answers wait until it is back or its stop is confirmed (promote --peer-down)",
                ));
            }
            return;
        }
        self.alone.persisting = true;
        self.go_alone();
        self.persist(After::Alone);
    }

    pub(super) fn on_alone_durable(&mut self) {
        if !std::mem::take(&mut self.alone.persisting) {
            return;
        }
        self.alone.durable = true;
        self.backlog.note_alone(self.now.monotonic_ms);
        // A peer that is being copied to has been told of already.
        if !self.on_behind_recorded() && !self.has_follower() {
            self.report(Notice::warning(
                "went-alone",
                format!(
                    "answering without {}: it is outdated from generation {} on",
                    self.config.peer_name, self.superblock.generations.current
                ),
            ));
        }
        self.release_held();
        self.unpark();
    }

    /// The same for a peer that is connected and knows that it is inconsistent: no further word is needed.
    pub(super) fn record_behind(&mut self) {
        if !self.alone.durable && !self.alone.persisting {
            self.alone.persisting = true;
            self.go_alone();
            self.persist(After::Alone);
        }
    }

    /// The operator's or the arbiter's word that the lost peer is down.
    pub(super) fn on_peer_confirmed_down(&mut self) {
        self.superblock.peer.confirmed_down = true;
        if self.requests.has_held() || self.flushing.has_held() || self.requests.has_parked() {
            self.want_alone();
        }
        self.unpark();
    }

    /// A link is up and both sides hold everything: nobody is alone.
    pub(super) fn end_alone(&mut self) {
        self.alone.durable = false;
        self.alone.persisting = false;
        self.alone.suspended_reported = false;
        // Writes that go without the peer rest on that record.
        self.end_behind();
    }

    /// The peer refused an operation: its disk is failed, and this side goes on alone although the
    /// link stands.
    pub(super) fn on_peer_disk_failed(&mut self) {
        let Some(link) = &mut self.peering.link else {
            return;
        };
        if link.peer_disk == DiskState::Failed {
            return;
        }
        link.peer_disk = DiskState::Failed;
        link.replicating = false;
        self.report(Notice::error(
            "peer-disk-failed",
            format!(
                "the disk of {} failed; going on without it",
                self.config.peer_name
            ),
        ));
        // A connected peer with a failed disk cannot serve: that is as good as its stop.
        self.superblock.peer.confirmed_down = true;
        self.abort_walk("the peer's disk failed");
        self.on_peer_gone();
        self.on_link_lost_commands();
        self.unpark();
    }

    /// Open legs toward the peer are lost; what hangs on them goes on.
    pub(super) fn on_peer_gone(&mut self) {
        self.sent.clear();
        // First of all: what only the failed disk had done may not be answered on the word of the peer
        // that served.
        let served_from_peer = std::mem::take(&mut self.alone.detach) != Detach::Attached;
        self.release_strays();
        if self.role == Role::Primary {
            self.give_up_recheck();
        }
        self.on_writes_lost_peer();
        self.on_flush_lost_peer();
        if served_from_peer {
            self.save_lost();
            self.fail_all(Answer::Failed(Failure::Io));
        }
    }

    /// The local disk is written off (D3, D13).
    pub(super) fn on_local_disk_failed(&mut self, what: &str) {
        if self.superblock.flags.failed {
            return;
        }
        self.alone.lost = self.log.locally_unflushed();
        self.superblock.flags.failed = true;
        self.report(Notice::error(
            "disk-failed",
            format!(
                "{what} on the data partition of {}: it is not used any more",
                self.config.node_name
            ),
        ));
        // Until it has acknowledged the end of a resync, the peer may still be taking this side's
        // generation over, and would forget what it records now.
        let handed_over = self
            .walk
            .as_ref()
            .is_none_or(|walk| matches!(walk.kind, SyncKind::Verify | SyncKind::Recheck));
        self.abort_walk("the local disk failed");
        match self.role {
            Role::Primary if handed_over && self.can_serve_from_peer() => self.detach(),
            Role::Primary => {
                self.save_lost();
                self.persist(After::Nothing);
                // What the peer still works on is ordered before anything new only by a new hello.
                self.break_link("the local disk failed");
                self.fail_all(Answer::Failed(Failure::Io));
            }
            // The peer goes on alone on this word, so it is durable before it is given (D5).
            _ => self.persist(After::FailedHere),
        }
    }

    pub(super) fn on_failed_durable(&mut self) {
        self.replica.failure_durable = true;
        self.send_state();
        self.refuse_operation(Sequence(0));
    }

    fn can_serve_from_peer(&self) -> bool {
        self.is_replicating()
            && self.peer_lacks_nothing()
            && self
                .link()
                .is_some_and(|link| link.peer_disk == DiskState::UpToDate)
    }

    fn save_lost(&mut self) {
        self.mark_lost();
        let pages = self.unsaved_pages();
        self.save_pages(&pages, After::Nothing);
    }

    /// Nobody else knows what this disk has lost: bits outlive the log.
    pub(super) fn mark_lost(&mut self) {
        for extent in std::mem::take(&mut self.alone.lost) {
            if let Some(range) = self.bitmap.extent_range(extent) {
                self.mark_dirty(range);
            }
        }
    }

    fn detach(&mut self) {
        self.alone.detach = Detach::Waiting {
            here: false,
            there: false,
        };
        let sequence = self.next_sequence(Sent::Detached);
        let extents = self.alone.lost.iter().map(|extent| extent.0).collect();
        self.send(Message::Detached { sequence, extents });
        self.persist(After::DetachedHere);
        self.report(Notice::warning(
            "detached",
            format!("serving from the disk of {}", self.config.peer_name),
        ));
    }

    pub(super) fn on_detached_durable(&mut self) {
        self.note_detach(true, false);
    }

    pub(super) fn on_detach_acknowledged(&mut self) {
        self.note_detach(false, true);
    }

    fn note_detach(&mut self, here_now: bool, there_now: bool) {
        if let Detach::Waiting { here, there } = self.alone.detach {
            let (here, there) = (here || here_now, there || there_now);
            self.alone.detach = if here && there {
                Detach::ServingFromPeer
            } else {
                Detach::Waiting { here, there }
            };
            if here && there {
                self.release_held();
                self.pump_log();
            }
        }
    }

    /// The peer's primary lost its disk and serves from this one.
    pub(super) fn on_peer_detached(&mut self, link: LinkId, sequence: Sequence, extents: &[u32]) {
        if self.role == Role::Primary || self.disk_state() != DiskState::UpToDate {
            self.send(Message::Refused { sequence });
            return;
        }
        self.report(Notice::error(
            "peer-disk-failed",
            format!(
                "the disk of {} failed; it serves from this one",
                self.config.peer_name
            ),
        ));
        let generation = self.draw_generation();
        self.superblock.generations.advance(generation);
        self.superblock.peer.outdated = true;
        self.superblock.peer.detached = true;
        self.superblock.flags.log_active = true;
        for extent in extents {
            if let Some(range) = self.bitmap.extent_range(ExtentIndex(*extent)) {
                self.mark_dirty(range);
            }
        }
        let pages = self.unsaved_pages();
        // Once acknowledged, the sender lets go of what it knows: the bits are on disk first.
        self.save_pages(&pages, After::DetachedPages { link, sequence });
    }

    pub(super) fn on_detached_pages(&mut self, link: LinkId, sequence: Sequence) {
        self.persist(After::DetachedPeer { link, sequence });
    }

    /// The local disk is out and the peer has not recorded it (yet). Until then the log must keep
    /// every extent: it alone says where the lost disk differs (D1).
    pub(super) fn is_log_frozen(&self) -> bool {
        !self.disk_usable() && self.alone.detach != Detach::ServingFromPeer
    }

    /// Neither this side's disk nor the peer's can take a write.
    pub(super) fn has_no_disk(&self) -> bool {
        !self.disk_usable() && self.alone.detach == Detach::Attached
    }

    pub(super) fn on_peer_detached_durable(&mut self, link: LinkId, sequence: Sequence) {
        if self.is_current(link) {
            self.send(Message::Ack {
                sequences: vec![sequence],
            });
        }
    }

    /// A primary that leaves while the peer lacks what was answered says so of itself: it has a history of its
    /// own, and no handshake may take the two for equal (D10). Without its disk it has nothing of its own.
    pub(super) fn own_tail(&mut self) {
        let has_tail = self.backlog.is_behind() && self.disk_usable();
        if has_tail && !self.is_replicating() && !self.alone.durable {
            self.go_alone();
        }
    }

    /// What this side answered before it died, the peer may lack, and where answers run ahead nobody knows more.
    pub(super) fn note_old_tail(&mut self) {
        if self.runs_ahead() {
            self.backlog.note_alone(self.now.monotonic_ms);
        }
    }

    fn may_go_alone(&self) -> bool {
        let peer = &self.superblock.peer;
        self.config.peer_loss == PeerLoss::Continue
            || peer.confirmed_down
            // It said itself that it will not go on alone, to this run. Where an arbiter may grant it the
            // role when it is back, that is no word for ever.
            || (peer.stopped_cleanly && self.peering.peer_seen && !self.has_arbiter())
    }

    /// The facts of D5, in memory; the caller makes them durable. The generation is always a new one:
    /// at the end of a resync the peer may have taken over the current one before it was lost.
    fn go_alone(&mut self) {
        self.superblock.peer.outdated = true;
        let generation = self.draw_generation();
        self.superblock.generations.advance(generation);
    }
}
