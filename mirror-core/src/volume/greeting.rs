//! What the two sides say of themselves, what they decide from it, and what that brings about.
//!
//! Everything that must fit is compared before anything is decided, and the first misfit is named.

use super::Volume;
use super::config::Compression;
use super::effect::Effect;
use super::notice::Notice;
use super::peering::{Link, Phase};
use super::store::After;
use crate::control::Connection;
use crate::layout::superblock::FEATURES_SUPPORTED;
use crate::link::handshake::{Rule, Scope, Side, Strategy, Verdict, decide};
use crate::request::{Answer, Failure};
use crate::units::Epoch;
use crate::wire::message::{
    FEATURE_COMPRESSION, Hello, Message, Role, VERSION_CONFIRM, VERSION_MAX, VERSION_MIN,
    VERSION_MODES,
};

/// Features of the link and of the superblock travel in one word.
const _: () = assert!(FEATURES_SUPPORTED & FEATURE_COMPRESSION == 0);

impl Volume {
    pub(super) fn hello(&self) -> Hello {
        let flags = &self.superblock.flags;
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES_SUPPORTED | FEATURE_COMPRESSION,
            cluster: self.config.cluster,
            mirror: self.config.mirror,
            node: self.config.node,
            incarnation: self.incarnation,
            peer_incarnation_seen: self.superblock.peer.incarnation,
            mode: self.config.mode,
            size_bytes: self.superblock.size_bytes,
            usable_bytes: self.usable_bytes(),
            logical_block_bytes: self.config.logical_block_bytes,
            block_shift: self.superblock.block_shift,
            config_digest: self.config.config_digest,
            generations: self.superblock.generations,
            role: self.role,
            disk: self.disk_state(),
            crashed_primary: flags.primary && self.role != Role::Primary,
            last_primary: flags.last_primary,
            had_copy: self.superblock.peer.had_copy,
            discard_local: flags.discard_local,
            full_resync: flags.full_resync,
            initial_sync: self.config.initial_sync,
            peer_loss: self.config.peer_loss,
            first: self.config.first,
            fast_zero: self.config.fast_zero,
            full_sync: self.superblock.peer.full_sync,
        }
    }

    /// Keeps the reason for `explain` and reports it if it is a new one.
    fn refuse_handshake(&mut self, problem: String, rule: Option<Rule>) {
        self.peering.refused_by = rule;
        if self.peering.last_problem.as_ref() != Some(&problem) {
            self.report(Notice::error("handshake-refused", problem.clone()));
            self.peering.last_problem = Some(problem);
        }
    }

    pub(super) fn on_hello(&mut self, hello: Box<Hello>, epoch: Epoch) {
        if let Some(problem) = self.mismatch(&hello) {
            self.refuse_handshake(problem, None);
            self.break_link("the two sides do not fit");
            return;
        }
        // Another incarnation has lost what it acknowledged and did not flush (D4).
        if hello.incarnation != self.superblock.peer.incarnation {
            self.forget_recheck();
            let doubt = self.log.take_peer_doubt();
            for range in doubt {
                self.weak.insert(range.extent());
                self.mark_dirty(range);
            }
        }
        if let Some(link) = &mut self.peering.link {
            link.peer_role = hello.role;
            link.peer_disk = hello.disk;
            link.peer_epoch = epoch;
            link.hello = Some(hello.clone());
        }
        self.agree_compression(&hello);
        self.peering.last_hello = Some(hello);
        self.judge();
    }

    /// Everything that must be equal, or fit, before anything is decided. Names the first misfit.
    fn mismatch(&self, hello: &Hello) -> Option<String> {
        let me = &self.config;
        let peer = &me.peer_name;
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            return Some(format!(
                "{peer} speaks protocol versions {} to {}, this node {VERSION_MIN} to {VERSION_MAX}: upgrade the older one",
                hello.version_min, hello.version_max
            ));
        }
        if self.has_arbiter() && hello.version_max < VERSION_CONFIRM {
            return Some(format!(
                "{peer} does not know the questions that an arbiter makes necessary: upgrade it"
            ));
        }
        if self.runs_ahead() && hello.version_max < VERSION_MODES {
            return Some(format!(
                "{peer} serves no mode but sync, and this mirror runs in {}: upgrade it",
                me.mode.name()
            ));
        }
        if hello.cluster != me.cluster || hello.mirror != me.mirror {
            return Some(format!(
                "{peer} serves another cluster or mirror: check both configurations"
            ));
        }
        if hello.node == me.node {
            return Some("both nodes have the same identity: start one with another --node".into());
        }
        if hello.node != me.peer {
            return Some(format!(
                "the node that answered is not {peer}: check addresses and node names"
            ));
        }
        let unknown = self.superblock.features_incompatible & !hello.features;
        if unknown != 0 {
            return Some(format!(
                "this mirror uses features that {peer} does not know ({unknown:#x}): upgrade {peer}"
            ));
        }
        let settings = [
            (
                "mode",
                me.mode.name().to_owned(),
                hello.mode.name().to_owned(),
            ),
            (
                "initial_sync",
                format!("{:?}", me.initial_sync),
                format!("{:?}", hello.initial_sync),
            ),
            (
                "peer_loss",
                format!("{:?}", me.peer_loss),
                format!("{:?}", hello.peer_loss),
            ),
        ];
        for (key, ours, theirs) in settings {
            if ours != theirs {
                return Some(format!(
                    "{key} is {} here and {} on {peer}: use the same file on both",
                    ours.to_lowercase(),
                    theirs.to_lowercase()
                ));
            }
        }
        if hello.first == me.first {
            return Some(format!(
                "the nodes stand in another order in the file of {peer}: use the same file on both"
            ));
        }
        if hello.config_digest != me.config_digest {
            return Some(format!(
                "the settings that both nodes share differ from those of {peer}: use the same file on both"
            ));
        }
        // It is agreed at the first meeting. Clients, and file systems for good, count on it from then on.
        let block_bytes = self.superblock.logical_block_bytes;
        let is_settled = self.superblock.peer.had_copy || self.role == Role::Primary;
        if is_settled && hello.logical_block_bytes > block_bytes {
            return Some(format!(
                "the disk of {peer} takes nothing below {} bytes, and the mirror has logical blocks of {block_bytes}: give {peer} a disk with such blocks",
                hello.logical_block_bytes
            ));
        }
        let sizes = [self.superblock.size_bytes, hello.size_bytes];
        let needed = sizes[0].max(sizes[1]);
        for (name, usable) in [
            (&me.node_name, self.usable_bytes()),
            (peer, hello.usable_bytes),
        ] {
            if usable < needed {
                return Some(format!(
                    "the data partition of {name} holds {usable} bytes, the mirror has {needed}: enlarge it"
                ));
            }
        }
        None
    }

    /// A peer of an earlier version gets plain data; what it sends compressed, this side takes in any case.
    fn agree_compression(&mut self, hello: &Hello) {
        let compression = self.config.compression;
        let Some(link) = self.link().map(Link::id) else {
            return;
        };
        if compression == Compression::None {
            return;
        }
        if hello.features & FEATURE_COMPRESSION == 0 {
            let last = self.peering.last_hello.as_ref();
            if last.is_some_and(|last| last.features & FEATURE_COMPRESSION == 0) {
                return;
            }
            self.report(Notice::info(
                "compression-off",
                format!(
                    "{} does not know compression: data goes there as it is until it is upgraded",
                    self.config.peer_name
                ),
            ));
            return;
        }
        self.fx.push(Effect::Compress { link, compression });
    }

    /// Both hellos are known: decide, and tell the other side what.
    pub(super) fn judge(&mut self) {
        let quiet = self.is_quiet() && !self.store.is_superblock_pending();
        let Some(link) = &mut self.peering.link else {
            return;
        };
        if link.phase != Phase::Hello || !quiet {
            return;
        }
        let Some(theirs) = link.hello.clone() else {
            return;
        };
        link.phase = Phase::Verdict;
        let peer_epoch = link.peer_epoch;
        let first = self.config.first;
        let ours = self.hello();
        let me = Side::of(&ours, &theirs, self.superblock.epoch, first);
        let peer = Side::of(&theirs, &ours, peer_epoch, !first);
        let verdict = decide(&me, &peer, self.config.initial_sync, self.has_arbiter());
        if let Some(link) = &mut self.peering.link {
            link.verdict = Some(verdict);
        }
        self.send(Message::Verdict {
            rule: verdict.rule.code(),
            strategy: verdict.strategy.code(),
        });
        self.compare_verdicts();
    }

    pub(super) fn compare_verdicts(&mut self) {
        let Some(link) = &self.peering.link else {
            return;
        };
        let (Some(verdict), Some((rule, strategy))) = (link.verdict, link.their_verdict) else {
            return;
        };
        let mirrored = verdict.strategy.mirrored().code();
        if (rule, strategy) != (verdict.rule.code(), mirrored) {
            self.report(Notice::error(
                "handshake-disagreed",
                format!("the two sides judge their data differently (rule {}): both need the same version", verdict.rule),
            ));
            self.break_link("the verdicts differ");
            return;
        }
        let news = self.peering.last_rule != Some(verdict.rule)
            || self.peering.connection == Connection::Connecting;
        self.peering.last_rule = Some(verdict.rule);
        if news {
            self.report(Notice::info(
                "handshake",
                format!("rule {} decides: {:?}", verdict.rule, verdict.strategy),
            ));
        }
        self.carry_out(verdict, news);
    }

    fn carry_out(&mut self, verdict: Verdict, news: bool) {
        if let Strategy::Source(_) | Strategy::Target(_) | Strategy::Idle = verdict.strategy {
            self.agree_size();
        }
        match verdict.strategy {
            Strategy::Source(_) => self.begin_source(),
            Strategy::Target(scope) => self.begin_target(scope),
            Strategy::Idle => {
                self.meet_peer();
                self.persist(After::Nothing);
                self.set_ready(false);
            }
            Strategy::SplitBrain | Strategy::Unrelated => {
                let (connection, kind) = if verdict.strategy == Strategy::SplitBrain {
                    (Connection::SplitBrain, "split-brain")
                } else {
                    (Connection::Unrelated, "unrelated")
                };
                self.peering.connection = connection;
                if news {
                    self.report(Notice::error(
                        kind,
                        format!("rule {}: nothing is discarded; 'mirrorctl explain {}' shows the choices", verdict.rule, self.config.name),
                    ));
                }
                self.break_link("no common data");
            }
            Strategy::Refuse => {
                let problem = format!(
                    "rule {}: see 'mirrorctl explain {}'",
                    verdict.rule, self.config.name
                );
                self.refuse_handshake(problem, Some(verdict.rule));
                self.break_link("refused by rule");
            }
        }
    }

    /// Takes the larger agreed size, or the smaller usable one at the first meeting. The needs of
    /// both disks decide the logical block.
    fn agree_size(&mut self) {
        let Some(hello) = self.link().and_then(|link| link.hello.clone()) else {
            return;
        };
        let block = self
            .superblock
            .logical_block_bytes
            .max(hello.logical_block_bytes);
        self.superblock.logical_block_bytes = block;
        let agreed = match self.superblock.size_bytes.max(hello.size_bytes) {
            0 => self.usable_bytes().min(hello.usable_bytes),
            size => size,
        };
        let size_bytes = agreed - agreed % u64::from(block);
        if size_bytes != self.superblock.size_bytes {
            let old = self.superblock.size_bytes;
            self.superblock.size_bytes = size_bytes;
            self.superblock.usable_bytes = self.usable_bytes();
            self.grow_bitmap();
            self.bitmap.set_size(size_bytes);
            if old > 0 {
                self.mark_growth(old, size_bytes);
            }
            // Clients hear of it when it is on record.
            self.size_untold = true;
        }
    }

    /// The peer has been met: its incarnation is the one that acknowledges from now on.
    pub(super) fn meet_peer(&mut self) {
        let Some(hello) = self.link().and_then(|link| link.hello.clone()) else {
            return;
        };
        let peer_epoch = self.link().map_or(Epoch(0), |link| link.peer_epoch);
        self.peering.peer_seen = true;
        self.superblock.flags.doubtful = false;
        if peer_epoch > self.superblock.epoch && self.role != Role::Primary {
            // It was primary of an earlier epoch when it died. The next run would take it for the primary of this one.
            self.superblock.flags.primary = false;
        }
        self.superblock.epoch = self.superblock.epoch.max(peer_epoch);
        self.superblock.peer.node = hello.node;
        self.superblock.peer.incarnation = hello.incarnation;
        self.superblock.peer.stopped_cleanly = false;
        self.superblock.peer.confirmed_down = false;
    }

    /// The target's bits come first; `on_bitmap_end` goes on.
    fn begin_source(&mut self) {
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Settling;
            link.is_source = true;
        }
    }

    /// This side is the target. A primary that a newer promotion left behind steps down first.
    fn begin_target(&mut self, scope: Scope) {
        if let Some(link) = &mut self.peering.link {
            link.phase = Phase::Settling;
        }
        if self.role == Role::Primary {
            self.report(Notice::error(
                "stepped-down",
                format!(
                    "{} was promoted later: this node stops serving",
                    self.config.peer_name
                ),
            ));
            self.stop_serving();
            self.role = Role::Secondary;
            self.fail_all(Answer::Failed(Failure::NotPrimary));
        }
        self.prepare_target(scope);
    }
}
