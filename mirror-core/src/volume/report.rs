//! The status of a volume, for machines and for `mdstat`.

use super::Volume;
use crate::control::{Connection, Direction, MirrorStatus, PeerStatus, SyncKind, SyncStatus};
use crate::wire::message::{DiskState, Role};

impl Volume {
    pub fn status(&self) -> MirrorStatus {
        let link = self
            .link()
            .filter(|_| self.peering.connection == Connection::Connected);
        let (lag_bytes, lag_ms) = self.lag();
        MirrorStatus {
            name: self.config.name.clone(),
            role: self.role,
            mode: self.config.mode,
            connection: self.peering.connection,
            disk: self.disk_state(),
            peer: PeerStatus {
                node: self.config.peer_name.clone(),
                role: link.map_or(Role::Unknown, |link| link.peer_role),
                disk: link.map_or(DiskState::Unknown, |link| link.peer_disk),
            },
            size_bytes: self.superblock.size_bytes,
            out_of_sync_bytes: self.bitmap.dirty_bytes(),
            sync: self.sync_status(),
            lag_bytes,
            lag_ms,
            frozen: self.is_frozen(),
            lease: self.lease_status(),
            confirm_wanted: self.gate.ticket(),
            // Whoever may go alone may have done so by the time this is read.
            peer_outdated: self.superblock.peer.outdated || self.superblock.peer.confirmed_down,
            peer_heard_ms: link.map(|link| link.silent_ms(self.now.monotonic_ms)),
            io_suspended: self.is_suspended()
                && (self.requests.has_held() || self.requests.has_parked()),
            generation: self.superblock.generations.current.to_string(),
            epoch: self.superblock.epoch.0,
            device: None,
            device_waits: false,
            exports: Vec::new(),
            counters: self.counters,
            compression_ratio: None,
            last_sync_copied_bytes: self.last_sync_copied_bytes,
            last_verify_mismatch_bytes: self.last_verify_mismatch_bytes,
            statistics: None,
        }
    }

    fn sync_status(&self) -> Option<SyncStatus> {
        if let Some(walk) = self
            .walk
            .as_ref()
            .filter(|walk| walk.total_bytes > 0 || walk.is_paused())
        {
            let rate = walk.pace().rate_bytes_per_s();
            let left = walk.total_bytes.saturating_sub(walk.done_bytes);
            return Some(SyncStatus {
                kind: walk.kind,
                direction: Direction::Source,
                done_bytes: walk.done_bytes.min(walk.total_bytes),
                total_bytes: walk.total_bytes,
                rate_bytes_per_s: rate,
                eta_s: left.checked_div(rate),
                paused: walk.is_paused(),
            });
        }
        let target = self.target.as_ref().filter(|target| target.started)?;
        let rate = target.meter.rate_bytes_per_s();
        let left = target.total_bytes.saturating_sub(target.done_bytes);
        Some(SyncStatus {
            kind: if target.full {
                SyncKind::Full
            } else {
                SyncKind::Resync
            },
            direction: Direction::Target,
            done_bytes: target.done_bytes,
            total_bytes: target.total_bytes,
            rate_bytes_per_s: rate,
            eta_s: left.checked_div(rate),
            paused: target.paused,
        })
    }
}
