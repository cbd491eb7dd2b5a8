//! Why a mirror is in its state, what each side holds, and what can be done about it, for people.

use super::Volume;
use super::walk::Walk;
use crate::control::{Choice, Connection, Explanation};
use crate::generation::GenerationSet;
use crate::link::handshake::Rule;
use crate::resync::pace::Stride;
use crate::wire::message::{DiskState, Mode, Role};

/// A summary and the ways out of it.
type Story = (String, Vec<Choice>);

impl Volume {
    pub fn explain(&self) -> Explanation {
        let (summary, choices) = match self.peering.connection {
            Connection::SplitBrain => self.explain_split_brain(),
            Connection::Unrelated => self.explain_unrelated(),
            Connection::Standalone => self.explain_standalone(),
            Connection::Connected => self.explain_connected(),
            Connection::Connecting if self.peering.last_problem.is_some() => self.explain_refused(),
            Connection::Connecting => self.explain_alone(),
        };
        let summary = match self.why_frozen() {
            Some(why) => format!("{why}; {summary}"),
            None => summary,
        };
        Explanation {
            mirror: self.config.name.clone(),
            rule: self.peering.last_rule.map(|rule| rule.name().to_owned()),
            summary,
            facts: self.facts(),
            choices,
        }
    }

    fn explain_split_brain(&self) -> Story {
        let (name, peer) = (&self.config.name, &self.config.peer_name);
        let demote = match self.role {
            Role::Primary => format!("mirrorctl demote {name}, then "),
            _ => String::new(),
        };
        let here = choice(
            format!("{demote}mirrorctl resync {name} --discard-local   (here)"),
            "this side becomes a copy of the other",
            format!(
                "what was written here alone: up to {} bytes",
                self.bitmap.dirty_bytes()
            ),
        );
        let there = choice(
            format!("mirrorctl resync {name} --discard-local   (on {peer}, as secondary)"),
            "the other side becomes a copy of this one",
            format!("what was written on {peer} alone"),
        );
        let summary = format!(
            "both sides were written without each other; {peer} and this node keep their data until one is given up"
        );
        (summary, vec![here, there])
    }

    fn explain_unrelated(&self) -> Story {
        let name = &self.config.name;
        let overwrite = choice(
            format!("mirrorctl resync {name} --discard-local   (on the side to overwrite)"),
            "that side becomes a full copy of the other",
            "everything on that side",
        );
        let summary =
            "the two sides have no generation in common: one of them belongs to another history";
        (summary.into(), vec![overwrite])
    }

    fn explain_standalone(&self) -> Story {
        let connect = choice(
            format!("mirrorctl connect {}", self.config.name),
            "looks for the peer again",
            "nothing",
        );
        let summary = "this side does not look for its peer";
        (summary.into(), vec![connect])
    }

    fn explain_connected(&self) -> Story {
        let fresh = self.superblock.generations.current.is_none();
        if self.walk.is_some() || self.target.is_some() {
            return ("a resync, recheck or verify is running".into(), Vec::new());
        }
        if fresh {
            let force = choice(
                format!(
                    "{}   (on the side with the data)",
                    self.promotion("--force")
                ),
                "declares that side's data the truth and copies it to the other",
                "whatever the other side's data partition holds",
            );
            let summary = "both sides are freshly initialised: neither has data that counts yet";
            return (summary.into(), vec![force]);
        }
        if self.peering.last_rule == Some(Rule::SameGenerationNoConsistentSide)
            && self.disk_state() != DiskState::UpToDate
        {
            let force = choice(
                format!("{}   (on the side to keep)", self.promotion("--force")),
                "declares that side's mixture of old and new blocks the truth and copies it to the other",
                "what only the other side has, and the order of the last writes on this one",
            );
            let summary =
                "a resync into each side has begun and not ended: neither holds a consistent image";
            return (summary.into(), vec![force]);
        }
        ("both sides are connected".into(), Vec::new())
    }

    /// The peer answers, and the handshake ends without a link.
    fn explain_refused(&self) -> Story {
        let (name, peer) = (&self.config.name, &self.config.peer_name);
        let problem = self.peering.last_problem.clone().unwrap_or_default();
        let Some(rule) = self.peering.refused_by else {
            let summary = format!(
                "{problem}. The link is tried again by itself once that is mended and mirrord restarted"
            );
            return (summary, Vec::new());
        };
        let demote = |node: &str, what: &str| {
            choice(
                format!("mirrorctl demote {name}   (on {node})"),
                what,
                "nothing: what uses the mirror there is stopped",
            )
        };
        match rule {
            Rule::BothPrimary => (
                "both sides are primary and neither has written without the other".into(),
                vec![
                    demote(&self.config.node_name, "this side follows the other"),
                    demote(peer, "the other side follows this one"),
                ],
            ),
            Rule::TargetIsPrimary => {
                let primary = match self.role {
                    Role::Primary => self.config.node_name.clone(),
                    _ => peer.clone(),
                };
                (
                    format!("{primary} is primary on the older data: it is not overwritten while in use"),
                    vec![demote(&primary, "its data is brought up to date from the other side")],
                )
            }
            Rule::SourceInconsistent => (
                "the side with the newer history holds a mixture of old and new blocks: a resync into it has not ended".into(),
                vec![choice(
                    format!("{}   (on the side to keep)", self.promotion("--force")),
                    "declares that side's data the truth; the other becomes a copy of it",
                    "what only the other side has",
                )],
            ),
            Rule::DiskFailed => {
                let node = match self.disk_state() {
                    DiskState::Failed => self.config.node_name.clone(),
                    _ => peer.clone(),
                };
                (
                    format!("the disk of {node} failed; the mirror has one copy left"),
                    vec![choice(
                        format!("mirrorctl init {name}   (on {node}, with a new disk; mirrord stopped)"),
                        "that side becomes a full copy of the other",
                        "nothing: its data is not used any more",
                    )],
                )
            }
            _ => (problem, Vec::new()),
        }
    }

    fn explain_alone(&self) -> Story {
        let (name, peer) = (&self.config.name, &self.config.peer_name);
        let summary = format!("looking for {peer}");
        let secondary = self.role != Role::Primary;
        let way_out = if !secondary && self.is_suspended() {
            choice(
                format!("mirrorctl promote {name} --peer-down"),
                "answers go on, on your word that the peer is really down",
                format!("nothing if {peer} is down; a split brain if it was promoted"),
            )
        } else if secondary && self.disk_state() == DiskState::UpToDate && self.peering.peer_seen {
            choice(
                self.promotion("--peer-down"),
                "makes this node primary, on your word that the peer is really down",
                match self.config.mode {
                    Mode::Async => format!(
                        "what {peer} answered last and had not sent here; a split brain if it went on alone"
                    ),
                    Mode::Sync | Mode::Semisync => format!(
                        "nothing if {peer} is down and did not go on alone; a split brain if it did"
                    ),
                },
            )
        } else if secondary {
            choice(
                self.promotion("--force"),
                "declares this side's data the truth as it is",
                format!("whatever {peer} has that this side lacks, if {peer} has data"),
            )
        } else {
            return (summary, Vec::new());
        };
        (summary, vec![way_out])
    }

    /// The command that makes this side primary: the agent's where it takes a grant.
    fn promotion(&self, option: &str) -> String {
        let name = &self.config.name;
        match self.has_arbiter() {
            true => format!("mirrorctl group start GROUP {option}   (GROUP: that of {name})"),
            false => format!("mirrorctl promote {name} {option}"),
        }
    }

    fn facts(&self) -> Vec<String> {
        let set = &self.superblock.generations;
        let flags = &self.superblock.flags;
        let mut facts = vec![
            format!(
                "here: {}, disk {}, epoch {}",
                role_name(self.role),
                self.disk_state().name(),
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
        facts.extend(self.why_frozen());
        let (lag_bytes, lag_ms) = self.lag();
        if lag_bytes > 0 {
            let loses = match self.config.mode {
                Mode::Semisync if self.is_replicating() => {
                    "a failover now, to a peer that fails before it did what it received, would lose"
                }
                _ => "a failover now would lose",
            };
            facts.push(format!(
                "{loses} up to {lag_bytes} bytes, answered in the last {lag_ms} ms (mode {})",
                self.config.mode.name()
            ));
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
                hello.disk.name()
            ));
            facts.push(format!("{} said: {}", self.config.peer_name, lineage(set)));
        }
        facts.extend(self.walk.as_ref().map(|walk| self.explain_pace(walk)));
        let discard = &self.superblock.last_discard;
        if discard.bytes > 0 {
            facts.push(format!(
                "last discarded here: up to {} bytes in {} ranges of generation {}",
                discard.bytes, discard.ranges, discard.generation
            ));
        }
        facts
    }

    fn explain_pace(&self, walk: &Walk) -> String {
        let (kind, pace) = (walk.kind.name(), walk.pace());
        let minimum = match pace.rate_min() {
            0 => "without resync_rate_min".into(),
            min => format!("resync_rate_min is {min} bytes a second"),
        };
        let why = match pace.stride(self.now.monotonic_ms) {
            _ if walk.is_paused() => "it is paused".into(),
            Stride::Free => "no client is active".into(),
            Stride::Yielding => format!("it yields to clients; {minimum}"),
            Stride::AtMinimum => format!("it is behind and does not yield to clients; {minimum}"),
        };
        format!(
            "the {kind} moves {} bytes a second: {why}",
            pace.rate_bytes_per_s()
        )
    }
}

fn choice(command: String, effect: &str, loses: impl Into<String>) -> Choice {
    Choice {
        command,
        effect: effect.into(),
        loses: loses.into(),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Secondary => "secondary",
        Role::Unknown => "unknown role",
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
