//! What a volume says of itself: status for machines, explanation for people.

use super::Volume;
use crate::control::{
    Choice, Connection, Direction, Explanation, MirrorStatus, PeerStatus, SyncKind, SyncStatus,
};
use crate::generation::GenerationSet;
use crate::wire::message::{DiskState, Role};

impl Volume {
    pub fn status(&self) -> MirrorStatus {
        let link = self
            .link()
            .filter(|_| self.peering.connection == Connection::Connected);
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
            lag_bytes: 0,
            lag_ms: 0,
            io_suspended: self.is_suspended()
                && (self.requests.has_held() || self.requests.has_parked()),
            generation: self.superblock.generations.current.to_string(),
            epoch: self.superblock.epoch.0,
            device: None,
            exports: Vec::new(),
            counters: self.counters,
            last_sync_copied_bytes: self.last_sync_copied_bytes,
            last_verify_mismatch_bytes: self.last_verify_mismatch_bytes,
        }
    }

    pub fn explain(&self) -> Explanation {
        let name = &self.config.name;
        let choice = |command: String, effect: &str, loses: &str| Choice {
            command,
            effect: effect.into(),
            loses: loses.into(),
        };
        let mut choices = Vec::new();
        let peer = &self.config.peer_name;
        let summary = match self.peering.connection {
            Connection::SplitBrain => {
                let demote = match self.role {
                    Role::Primary => format!("mirrorctl demote {name}, then "),
                    _ => String::new(),
                };
                choices.push(choice(
                    format!("{demote}mirrorctl resync {name} --discard-local   (here)"),
                    "this side becomes a copy of the other",
                    &format!(
                        "what was written here alone: up to {} bytes",
                        self.bitmap.dirty_bytes()
                    ),
                ));
                choices.push(choice(
                    format!("mirrorctl resync {name} --discard-local   (on {peer}, as secondary)"),
                    "the other side becomes a copy of this one",
                    &format!("what was written on {peer} alone"),
                ));
                format!(
                    "both sides were written without each other; {peer} and this node keep their data until one is given up"
                )
            }
            Connection::Unrelated => {
                choices.push(choice(
                    format!("mirrorctl resync {name} --discard-local   (on the side to overwrite)"),
                    "that side becomes a full copy of the other",
                    "everything on that side",
                ));
                "the two sides have no generation in common: one of them belongs to another history"
                    .into()
            }
            Connection::Standalone => {
                choices.push(choice(
                    format!("mirrorctl connect {name}"),
                    "looks for the peer again",
                    "nothing",
                ));
                "this side does not look for its peer".into()
            }
            Connection::Connected if self.superblock.generations.current.is_none() => {
                choices.push(choice(
                    format!("mirrorctl promote {name} --force   (on the side with the data)"),
                    "declares that side's data the truth and copies it to the other",
                    "whatever the other side's data partition holds",
                ));
                "both sides are freshly initialised: neither has data that counts yet".into()
            }
            Connection::Connected => match (self.walk.is_some(), self.target.is_some()) {
                (false, false) => "both sides are connected".into(),
                _ => "a resync or verify is running".into(),
            },
            Connection::Connecting => {
                if self.role == Role::Primary && self.is_suspended() {
                    choices.push(choice(
                        format!("mirrorctl promote {name} --peer-down"),
                        "answers go on, on your word that the peer is really down",
                        &format!("nothing if {peer} is down; a split brain if it was promoted"),
                    ));
                } else if self.role != Role::Primary
                    && self.disk_state() == DiskState::UpToDate
                    && self.peering.peer_seen
                {
                    choices.push(choice(
                        format!("mirrorctl promote {name} --peer-down"),
                        "makes this node primary, on your word that the peer is really down",
                        &format!("nothing if {peer} is down and did not go on alone; a split brain if it did"),
                    ));
                } else if self.role != Role::Primary {
                    choices.push(choice(
                        format!("mirrorctl promote {name} --force"),
                        "declares this side's data the truth as it is",
                        &format!("whatever {peer} has that this side lacks, if {peer} has data"),
                    ));
                }
                format!("looking for {peer}")
            }
        };
        Explanation {
            mirror: name.clone(),
            rule: self.peering.last_rule.map(|rule| rule.name().to_owned()),
            summary,
            facts: self.facts(),
            choices,
        }
    }

    fn facts(&self) -> Vec<String> {
        let set = &self.superblock.generations;
        let flags = &self.superblock.flags;
        let mut facts = vec![
            format!(
                "here: {}, disk {}, epoch {}",
                role_name(self.role),
                disk_name(self.disk_state()),
                self.superblock.epoch.0
            ),
            format!("here: {}", lineage(set)),
            format!(
                "here: {} bytes may differ from the peer",
                self.bitmap.dirty_bytes()
            ),
        ];
        if flags.primary && self.role != Role::Primary {
            facts.push("here: was primary and did not stop cleanly".into());
        }
        if self.superblock.peer.outdated {
            facts.push("the peer lacks answered writes".into());
        }
        if self.is_suspended() {
            facts.push("answers wait for the word that the peer is down".into());
        }
        if let Some(problem) = &self.peering.last_problem {
            facts.push(format!("the handshake is refused: {problem}"));
        }
        if let Some(hello) = &self.peering.last_hello {
            let set = &hello.generations;
            facts.push(format!(
                "{} said: {}, disk {}",
                self.config.peer_name,
                role_name(hello.role),
                disk_name(hello.disk)
            ));
            facts.push(format!("{} said: {}", self.config.peer_name, lineage(set)));
        }
        let discard = &self.superblock.last_discard;
        if discard.bytes > 0 {
            facts.push(format!(
                "last discarded here: up to {} bytes in {} ranges of generation {}",
                discard.bytes, discard.ranges, discard.generation
            ));
        }
        facts
    }

    fn sync_status(&self) -> Option<SyncStatus> {
        if let Some(walk) = self.walk.as_ref().filter(|walk| walk.total_bytes > 0) {
            let rate = walk.rate_bytes_per_s();
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
        Some(SyncStatus {
            kind: if target.full {
                SyncKind::Full
            } else {
                SyncKind::Resync
            },
            direction: Direction::Target,
            done_bytes: target.done_bytes,
            total_bytes: target.total_bytes,
            rate_bytes_per_s: 0,
            eta_s: None,
            paused: target.paused,
        })
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Secondary => "secondary",
        Role::Unknown => "unknown role",
    }
}

fn disk_name(disk: DiskState) -> &'static str {
    match disk {
        DiskState::UpToDate => "up-to-date",
        DiskState::Outdated => "outdated",
        DiskState::Inconsistent => "inconsistent",
        DiskState::Failed => "failed",
        DiskState::Unknown => "unknown",
    }
}

fn lineage(set: &GenerationSet) -> String {
    match (set.current.is_none(), set.base.is_none()) {
        (true, _) => "no data yet".into(),
        (false, true) => format!("generation {}", set.current),
        (false, false) => format!(
            "generation {}, went on alone from {}",
            set.current, set.base
        ),
    }
}
