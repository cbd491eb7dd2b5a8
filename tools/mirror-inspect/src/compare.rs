//! The rule a handshake between two areas would apply, if both daemons started from them now.

use anyhow::{Context, Result, bail};
use mirror_core::link::handshake::{Rule, Scope, Side, Strategy, decide};
use mirror_core::wire::message::{DiskState, InitialSync, Mode, Role};

use crate::inspection::Inspection;

pub struct Outcome {
    pub rule: Rule,
    pub strategy: Strategy,
}

/// Decides for `mine` against `theirs`. `first`: mine comes first in the order of the configuration.
pub fn verdict(
    mine: &Inspection,
    theirs: &Inspection,
    first: bool,
    initial_sync: InitialSync,
) -> Result<Outcome> {
    let me = side(mine, first)?;
    let peer = side(theirs, !first)?;
    if let (Ok(a), Ok(b)) = (&mine.loaded, &theirs.loaded) {
        let (a, b) = (&a.superblock, &b.superblock);
        for (what, same) in [
            ("clusters", a.cluster == b.cluster),
            ("mirrors", a.mirror == b.mirror),
        ] {
            if !same {
                bail!(
                    "{} and {} belong to different {what}; their handshake is refused",
                    mine.area.path.display(),
                    theirs.area.path.display()
                );
            }
        }
        if a.node == b.node {
            bail!(
                "{} and {} are of the same node; one of them is a copy or both nodes were \
                 initialised under one name",
                mine.area.path.display(),
                theirs.area.path.display()
            );
        }
    }
    // By what the disks hold: whether an arbiter overrules that is in the configuration, not in here.
    let arbitrated = false;
    let verdict = decide(&me, &peer, initial_sync, arbitrated);
    Ok(Outcome {
        rule: verdict.rule,
        strategy: verdict.strategy,
    })
}

/// A node just started: secondary, whatever it was before.
fn side(inspection: &Inspection, first: bool) -> Result<Side> {
    let loaded = inspection.loaded.as_ref().ok().with_context(|| {
        format!(
            "{} has no metadata that a daemon would start from",
            inspection.area.path.display()
        )
    })?;
    let superblock = &loaded.superblock;
    let flags = superblock.flags;
    let disk = if flags.inconsistent {
        DiskState::Inconsistent
    } else if flags.failed || flags.outdated || flags.doubtful || loaded.fell_back {
        DiskState::Outdated
    } else {
        DiskState::UpToDate
    };
    Ok(Side {
        generations: superblock.generations,
        role: Role::Secondary,
        disk,
        epoch: superblock.epoch,
        crashed_primary: flags.primary,
        last_primary: flags.last_primary,
        had_copy: superblock.peer.had_copy,
        full_sync: superblock.peer.full_sync,
        discard_local: flags.discard_local,
        full_resync: flags.full_resync,
        // Both have just started.
        unbroken: false,
        // As with the arbiter: the mode is in the configuration. In others a later epoch counts for more.
        mode: Mode::Sync,
        first,
    })
}

/// What the strategy means for the first of the two areas.
pub fn meaning(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Source(Scope::Bitmap) => "source: the other node copies what the bitmaps name",
        Strategy::Source(Scope::Full) => "source: the other node copies everything",
        Strategy::Source(Scope::Remainder) => {
            "source: the other node copies what is left of a full copy"
        }
        Strategy::Source(Scope::Nothing) => "source: both are declared equal, nothing is copied",
        Strategy::Target(Scope::Bitmap) => "target: this node copies what the bitmaps name",
        Strategy::Target(Scope::Full) => "target: this node copies everything",
        Strategy::Target(Scope::Remainder) => {
            "target: this node copies what is left of a full copy"
        }
        Strategy::Target(Scope::Nothing) => "target: both are declared equal, nothing is copied",
        Strategy::Idle => "idle: neither has data that counts; one must be promoted by force",
        Strategy::SplitBrain => {
            "split brain: both went on without the other; choose the one whose changes are given up \
             (`mirrorctl resync MIRROR --discard-local` on that node)"
        }
        Strategy::Unrelated => {
            "unrelated: the two have no data history in common; choose the one to be overwritten \
             (`mirrorctl resync MIRROR --discard-local` on that node)"
        }
        Strategy::Refuse => "refused: the link stays down and both stay as they are",
    }
}
