//! Who copies to whom: a pure function over what both sides say of themselves (D7).
//!
//! The rules are tried in order and the first that applies decides. Both sides run the same
//! function with the roles swapped and must come to mirror images; the order of the nodes in the
//! configuration breaks ties. `docs/resync.md` has the rules in words.

use std::cmp::Ordering;
use std::fmt;

use crate::generation::GenerationSet;
use crate::units::{Epoch, FullSyncId, Uuid};
use crate::wire::message::{DiskState, Hello, InitialSync, Mode, Role};

/// What one side brings to the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    pub generations: GenerationSet,
    pub role: Role,
    pub disk: DiskState,
    pub epoch: Epoch,
    pub crashed_primary: bool,
    pub last_primary: bool,
    pub had_copy: bool,
    pub full_sync: FullSyncId,
    pub discard_local: bool,
    pub full_resync: bool,
    /// Has run without a break since the other side last exchanged data with it, so it still holds
    /// all that it acknowledged, flushed or not.
    pub unbroken: bool,
    /// The same on both sides.
    pub mode: Mode,
    /// First in the order of the configuration; true on exactly one side.
    pub first: bool,
}

impl Side {
    /// `hello` speaks of this side, `other` of the opposite one.
    pub fn of(hello: &Hello, other: &Hello, epoch: Epoch, first: bool) -> Self {
        let seen = other.peer_incarnation_seen;
        Self {
            unbroken: seen != Uuid::default() && seen == hello.incarnation,
            mode: hello.mode,
            generations: hello.generations,
            role: hello.role,
            disk: hello.disk,
            epoch,
            crashed_primary: hello.crashed_primary,
            last_primary: hello.last_primary,
            had_copy: hello.had_copy,
            full_sync: hello.full_sync,
            discard_local: hello.discard_local,
            full_resync: hello.full_resync,
            first,
        }
    }

    fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    fn is_fresh(&self) -> bool {
        self.generations.current.is_none()
    }

    /// Can be the source of a resync: a consistent image on a working disk.
    fn can_serve(&self) -> bool {
        matches!(self.disk, DiskState::UpToDate | DiskState::Outdated)
    }
}

/// How much the source sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// What either side's bitmap names.
    Bitmap,
    /// Every block.
    Full,
    /// What is left of a full copy that was cut: the source's bitmap names it.
    Remainder,
    /// Nothing: both sides are declared equal (`initial_sync = "skip"`).
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    Source(Scope),
    Target(Scope),
    /// Connected, but neither side has data that counts: an operator must promote one by force.
    Idle,
    SplitBrain,
    Unrelated,
    /// The link is refused for now; both stay as they are.
    Refuse,
}

impl Strategy {
    /// The same decision as the other side sees it.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Source(scope) => Self::Target(scope),
            Self::Target(scope) => Self::Source(scope),
            other => other,
        }
    }

    /// Number on the wire (`Message::Verdict`).
    pub fn code(self) -> u8 {
        match self {
            Self::Source(Scope::Bitmap) => 0,
            Self::Source(Scope::Full) => 1,
            Self::Source(Scope::Nothing) => 2,
            Self::Target(Scope::Bitmap) => 3,
            Self::Target(Scope::Full) => 4,
            Self::Target(Scope::Nothing) => 5,
            Self::Idle => 6,
            Self::SplitBrain => 7,
            Self::Unrelated => 8,
            Self::Refuse => 9,
            Self::Source(Scope::Remainder) => 10,
            Self::Target(Scope::Remainder) => 11,
        }
    }
}

/// The rule that decided. Names are stable: logs, `explain` and the wire carry them. A rule that
/// names a side means the side that evaluates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    BothFresh,
    SelfFresh,
    PeerFresh,
    BothPrimary,
    DiskFailed,
    DiscardSelf,
    DiscardPeer,
    SameGenerationNoConsistentSide,
    SameGenerationOneInconsistent,
    SameGenerationPrimary,
    SameGenerationOneOutdated,
    SameGenerationSurvivor,
    SameGenerationCrashedPrimary,
    SameGenerationLastPrimary,
    SameGenerationTie,
    SelfWentOnAlone,
    PeerWentOnAlone,
    SplitBrain,
    PeerInSelfHistory,
    SelfInPeerHistory,
    SplitBrainLongAgo,
    Unrelated,
    SourceInconsistent,
    TargetIsPrimary,
    /// An arbiter granted the peer a later epoch than any that this side has seen.
    SelfSuperseded,
    PeerSuperseded,
    SameGenerationLaterEpoch,
}

impl Rule {
    const ALL: [(Self, &'static str); 27] = [
        (Self::BothFresh, "both-fresh"),
        (Self::SelfFresh, "fresh-side"),
        (Self::PeerFresh, "fresh-side"),
        (Self::BothPrimary, "both-primary-nobody-wrote"),
        (Self::DiskFailed, "disk-failed"),
        (Self::DiscardSelf, "discarded-side"),
        (Self::DiscardPeer, "discarded-side"),
        (
            Self::SameGenerationNoConsistentSide,
            "same-generation-no-consistent-side",
        ),
        (
            Self::SameGenerationOneInconsistent,
            "same-generation-one-inconsistent",
        ),
        (Self::SameGenerationPrimary, "same-generation-primary"),
        (
            Self::SameGenerationCrashedPrimary,
            "same-generation-crashed-primary",
        ),
        (
            Self::SameGenerationLastPrimary,
            "same-generation-last-primary",
        ),
        (Self::SameGenerationTie, "same-generation-tie"),
        (Self::SelfWentOnAlone, "went-on-alone"),
        (Self::PeerWentOnAlone, "went-on-alone"),
        (Self::SplitBrain, "split-brain"),
        (Self::PeerInSelfHistory, "old-generation"),
        (Self::SelfInPeerHistory, "old-generation"),
        (Self::SplitBrainLongAgo, "split-brain-long-ago"),
        (Self::Unrelated, "unrelated"),
        (Self::SourceInconsistent, "source-inconsistent"),
        (Self::TargetIsPrimary, "target-is-primary"),
        (
            Self::SameGenerationOneOutdated,
            "same-generation-one-outdated",
        ),
        (Self::SameGenerationSurvivor, "same-generation-survivor"),
        (Self::SelfSuperseded, "later-epoch"),
        (Self::PeerSuperseded, "later-epoch"),
        (
            Self::SameGenerationLaterEpoch,
            "same-generation-later-epoch",
        ),
    ];

    /// The name both sides log.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(rule, _)| *rule == self)
            .map_or("", |(_, name)| name)
    }

    /// Number on the wire: equal for a rule and its mirror image.
    pub fn code(self) -> u16 {
        let name = self.name();
        Self::ALL
            .iter()
            .position(|(_, other)| *other == name)
            .unwrap_or(0) as u16
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub rule: Rule,
    pub strategy: Strategy,
}

/// Decides for `me` against `peer`. `initial_sync` is the shared setting for the first sync.
/// `arbitrated`: epochs come from an arbiter, and so does their authority (D8).
pub fn decide(me: &Side, peer: &Side, initial_sync: InitialSync, arbitrated: bool) -> Verdict {
    let later = decide_epoch(me, peer).filter(|_| arbitrated);
    let mut verdict = later.unwrap_or_else(|| decide_lineage(me, peer, initial_sync));
    verdict.strategy = match verdict.strategy {
        Strategy::Source(scope) => Strategy::Source(rescope(scope, me, peer)),
        Strategy::Target(scope) => Strategy::Target(rescope(scope, peer, me)),
        other => other,
    };
    guard(verdict, me, peer)
}

/// An order to copy everything widens the scope; a full copy that was cut narrows it to what is left.
fn rescope(scope: Scope, source: &Side, target: &Side) -> Scope {
    if source.full_resync || target.full_resync {
        Scope::Full
    } else if is_continued(source, target) {
        Scope::Remainder
    } else {
        scope
    }
}

/// Both sides recorded the same full copy, and its target has not been anything else since: every way
/// out of it (promotion by force, another resync, new metadata) clears the record on that side.
fn is_continued(source: &Side, target: &Side) -> bool {
    !source.full_sync.is_none()
        && source.full_sync == target.full_sync
        && target.disk == DiskState::Inconsistent
}

/// Where the data of two sides has grown apart and an arbiter granted one a later epoch than the other has seen,
/// that one holds everything that was answered, or it would not have been granted; what the other wrote
/// meanwhile it answered to nobody. A side that is itself in doubt has no such claim.
fn decide_epoch(me: &Side, peer: &Side) -> Option<Verdict> {
    let verdict = |rule, strategy| Some(Verdict { rule, strategy });
    let (later, earlier) = match me.epoch.cmp(&peer.epoch) {
        Ordering::Greater => (me, peer),
        Ordering::Less => (peer, me),
        Ordering::Equal => return None,
    };
    let failed = DiskState::Failed;
    let fresh = later.is_fresh() || earlier.is_fresh();
    if fresh || later.disk != DiskState::UpToDate || later.discard_local || earlier.disk == failed {
        return None;
    }
    let (ahead, behind) = (&later.generations, &earlier.generations);
    if ahead.current == behind.current || !ahead.shares_ancestor(behind) {
        return None;
    }
    let same_base = !ahead.base.is_none() && ahead.base == behind.base;
    let reached =
        ahead.bitmap_reaches(behind.current) || behind.bitmap_reaches(ahead.current) || same_base;
    let scope = if reached { Scope::Bitmap } else { Scope::Full };
    if me.epoch > peer.epoch {
        verdict(Rule::PeerSuperseded, Strategy::Source(scope))
    } else {
        verdict(Rule::SelfSuperseded, Strategy::Target(scope))
    }
}

fn decide_lineage(me: &Side, peer: &Side, initial_sync: InitialSync) -> Verdict {
    use Scope::{Bitmap, Full, Nothing};
    use Strategy::{Idle, Refuse, Source, Target, Unrelated};
    let verdict = |rule, strategy| Verdict { rule, strategy };
    // The operator's word that both are equal is about the first meeting. Once a copy has begun, a
    // fresh side that does not know of it is a new or a re-made disk.
    let first_scope = |source: &Side| match initial_sync {
        InitialSync::Skip if !source.had_copy => Nothing,
        _ => Full,
    };
    let mine = &me.generations;
    let theirs = &peer.generations;

    if me.disk == DiskState::Failed || peer.disk == DiskState::Failed {
        return verdict(Rule::DiskFailed, Refuse);
    }
    match (me.is_fresh(), peer.is_fresh()) {
        (true, true) => return verdict(Rule::BothFresh, Idle),
        (true, false) => return verdict(Rule::SelfFresh, Target(first_scope(peer))),
        (false, true) => return verdict(Rule::PeerFresh, Source(first_scope(me))),
        (false, false) => {}
    }
    if mine.current == theirs.current {
        return same_generation(me, peer);
    }
    if mine.bitmap_reaches(theirs.current) {
        return verdict(Rule::SelfWentOnAlone, Source(Bitmap));
    }
    if theirs.bitmap_reaches(mine.current) {
        return verdict(Rule::PeerWentOnAlone, Target(Bitmap));
    }
    // From here on the bitmaps do not describe the whole difference, with one exception: both went
    // on alone from the same generation.
    let same_base = !mine.base.is_none() && mine.base == theirs.base;
    let discard_scope = if same_base { Bitmap } else { Full };
    let diverged = !mine.descends_from(theirs.current) && !theirs.descends_from(mine.current);
    if diverged && me.discard_local != peer.discard_local {
        return if me.discard_local {
            verdict(Rule::DiscardSelf, Target(discard_scope))
        } else {
            verdict(Rule::DiscardPeer, Source(discard_scope))
        };
    }
    if same_base {
        return verdict(Rule::SplitBrain, Strategy::SplitBrain);
    }
    match (
        mine.descends_from(theirs.current),
        theirs.descends_from(mine.current),
    ) {
        (true, false) => verdict(Rule::PeerInSelfHistory, Source(Full)),
        (false, true) => verdict(Rule::SelfInPeerHistory, Target(Full)),
        _ if mine.shares_ancestor(theirs) => verdict(Rule::SplitBrainLongAgo, Strategy::SplitBrain),
        _ => verdict(Rule::Unrelated, Unrelated),
    }
}

/// Both hold the same line of data; only what was in flight or unflushed may differ.
fn same_generation(me: &Side, peer: &Side) -> Verdict {
    let toward = |rule, source: bool| {
        let scope = Scope::Bitmap;
        let strategy = if source {
            Strategy::Source(scope)
        } else {
            Strategy::Target(scope)
        };
        Verdict { rule, strategy }
    };
    if me.is_primary() && peer.is_primary() {
        return Verdict {
            rule: Rule::BothPrimary,
            strategy: Strategy::Refuse,
        };
    }
    match (me.can_serve(), peer.can_serve()) {
        (false, false) => {
            return Verdict {
                rule: Rule::SameGenerationNoConsistentSide,
                strategy: Strategy::Idle,
            };
        }
        (mine, theirs) if mine != theirs => {
            return toward(Rule::SameGenerationOneInconsistent, mine);
        }
        _ => {}
    }
    if me.is_primary() != peer.is_primary() {
        return toward(Rule::SameGenerationPrimary, me.is_primary());
    }
    let current = |side: &Side| side.disk == DiskState::UpToDate;
    if current(me) != current(peer) {
        return toward(Rule::SameGenerationOneOutdated, current(me));
    }
    // Where answers run ahead and one side was promoted since, clients were shown what it holds, and go on
    // from there, whatever else the other has.
    if me.mode.runs_ahead() && me.epoch != peer.epoch {
        return toward(Rule::SameGenerationLaterEpoch, me.epoch > peer.epoch);
    }
    // In async an answer goes out without the other side: a primary that crashed has at least what was flushed.
    if me.mode == Mode::Async && me.crashed_primary != peer.crashed_primary {
        return toward(Rule::SameGenerationCrashedPrimary, me.crashed_primary);
    }
    // A side that restarted may have lost what it had not flushed; one that did not has everything
    // that was answered, since no answer went out without it.
    if me.unbroken != peer.unbroken {
        return toward(Rule::SameGenerationSurvivor, me.unbroken);
    }
    if me.crashed_primary != peer.crashed_primary {
        return toward(Rule::SameGenerationCrashedPrimary, me.crashed_primary);
    }
    if me.last_primary != peer.last_primary {
        return toward(Rule::SameGenerationLastPrimary, me.last_primary);
    }
    let source = if me.epoch == peer.epoch {
        me.first
    } else {
        me.epoch > peer.epoch
    };
    toward(Rule::SameGenerationTie, source)
}

/// No rule may make an inconsistent image the source, and none may overwrite a primary, except one
/// that a newer promotion has left behind: it has answered nothing that the newer side lacks, or
/// the generations would have shown a split brain, so it steps down (D8).
fn guard(verdict: Verdict, me: &Side, peer: &Side) -> Verdict {
    let (source, target) = match verdict.strategy {
        Strategy::Source(_) => (me, peer),
        Strategy::Target(_) => (peer, me),
        _ => return verdict,
    };
    if !source.can_serve() {
        return Verdict {
            rule: Rule::SourceInconsistent,
            strategy: Strategy::Refuse,
        };
    }
    if target.is_primary() && source.epoch <= target.epoch {
        return Verdict {
            rule: Rule::TargetIsPrimary,
            strategy: Strategy::Refuse,
        };
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Generation;

    fn set(current: u64, base: u64, history: &[u64]) -> GenerationSet {
        let mut set = GenerationSet {
            current: Generation(current),
            base: Generation(base),
            ..GenerationSet::default()
        };
        for (slot, generation) in set.history.iter_mut().zip(history) {
            *slot = Generation(*generation);
        }
        set
    }

    fn side(generations: GenerationSet, first: bool) -> Side {
        Side {
            generations,
            role: Role::Secondary,
            disk: if generations.current.is_none() {
                DiskState::Inconsistent
            } else {
                DiskState::UpToDate
            },
            epoch: Epoch(1),
            crashed_primary: false,
            last_primary: false,
            had_copy: false,
            full_sync: FullSyncId::NONE,
            discard_local: false,
            full_resync: false,
            unbroken: false,
            mode: Mode::Sync,
            first,
        }
    }

    fn check(me: &Side, peer: &Side, rule: &str, strategy: Strategy) {
        let mine = decide(me, peer, InitialSync::Full, false);
        let theirs = decide(peer, me, InitialSync::Full, false);
        assert_eq!((mine.rule.name(), mine.strategy), (rule, strategy));
        assert_eq!(
            (theirs.rule.code(), theirs.strategy),
            (mine.rule.code(), strategy.mirrored())
        );
    }

    #[test]
    fn lineages_decide_in_order() {
        use Scope::{Bitmap, Full};
        use Strategy::{Idle, Source, SplitBrain, Unrelated};
        let lineage = |mine, theirs| (side(mine, true), side(theirs, false));
        let cases = [
            (set(0, 0, &[]), set(0, 0, &[]), "both-fresh", Idle),
            (set(5, 0, &[]), set(0, 0, &[]), "fresh-side", Source(Full)),
            (
                set(6, 5, &[5]),
                set(5, 0, &[]),
                "went-on-alone",
                Source(Bitmap),
            ),
            (set(6, 5, &[5]), set(7, 5, &[5]), "split-brain", SplitBrain),
            (
                set(8, 7, &[7, 5]),
                set(5, 0, &[]),
                "old-generation",
                Source(Full),
            ),
            (
                set(8, 7, &[7, 5]),
                set(9, 6, &[6, 5]),
                "split-brain-long-ago",
                SplitBrain,
            ),
            (set(8, 7, &[7]), set(9, 6, &[6]), "unrelated", Unrelated),
            (
                set(5, 0, &[]),
                set(5, 0, &[]),
                "same-generation-tie",
                Source(Bitmap),
            ),
        ];
        for (mine, theirs, rule, strategy) in cases {
            let (me, peer) = lineage(mine, theirs);
            check(&me, &peer, rule, strategy);
        }
    }

    #[test]
    fn a_given_up_side_becomes_the_target() {
        let mut me = side(set(6, 5, &[5]), true);
        let peer = side(set(7, 5, &[5]), false);
        me.discard_local = true;
        check(
            &me,
            &peer,
            "discarded-side",
            Strategy::Target(Scope::Bitmap),
        );
        let peer = side(set(9, 3, &[3]), false);
        check(&me, &peer, "discarded-side", Strategy::Target(Scope::Full));
    }

    #[test]
    fn a_primary_is_overwritten_only_by_a_later_promotion() {
        let mut old = side(set(5, 0, &[]), true);
        old.role = Role::Primary;
        let mut new = side(set(6, 5, &[5]), false);
        check(&new, &old, "target-is-primary", Strategy::Refuse);
        new.epoch = Epoch(2);
        check(&new, &old, "went-on-alone", Strategy::Source(Scope::Bitmap));
    }

    #[test]
    fn a_later_epoch_of_an_arbiter_decides_what_generations_cannot() {
        use Scope::{Bitmap, Full};
        let cases = [
            // What the earlier side wrote alone it answered to nobody.
            (set(5, 0, &[]), set(6, 5, &[5]), Bitmap),
            (set(7, 5, &[5]), set(6, 5, &[5]), Bitmap),
            (set(9, 6, &[6, 5]), set(8, 7, &[7, 5]), Full),
            (set(7, 5, &[5]), set(5, 0, &[]), Bitmap),
        ];
        for (later, earlier, scope) in cases {
            let mut later = side(later, true);
            let mut earlier = side(earlier, false);
            later.epoch = Epoch(2);
            later.role = Role::Primary;
            earlier.role = Role::Primary;
            let mine = decide(&later, &earlier, InitialSync::Full, true);
            let theirs = decide(&earlier, &later, InitialSync::Full, true);
            assert_eq!(mine.rule, Rule::PeerSuperseded);
            assert_eq!(mine.strategy, Strategy::Source(scope));
            assert_eq!(theirs.rule, Rule::SelfSuperseded);
            assert_eq!(theirs.strategy, Strategy::Target(scope));
            // One that was itself overtaken has no say.
            later.disk = DiskState::Outdated;
            let without = decide(&later, &earlier, InitialSync::Full, false);
            assert_eq!(decide(&later, &earlier, InitialSync::Full, true), without);
        }
    }

    #[test]
    fn the_side_that_ran_on_is_the_source_for_a_primary_that_lost_power() {
        let mut crashed = side(set(5, 0, &[]), true);
        crashed.crashed_primary = true;
        crashed.last_primary = true;
        let mut survivor = side(set(5, 0, &[]), false);
        survivor.unbroken = true;
        check(
            &crashed,
            &survivor,
            "same-generation-survivor",
            Strategy::Target(Scope::Bitmap),
        );
        survivor.unbroken = false;
        check(
            &crashed,
            &survivor,
            "same-generation-crashed-primary",
            Strategy::Source(Scope::Bitmap),
        );
    }

    #[test]
    fn a_full_copy_that_was_cut_goes_on_with_what_is_left() {
        use Scope::{Full, Remainder};
        let copy = FullSyncId(77);
        let mut source = side(set(5, 0, &[]), true);
        source.full_sync = copy;
        let targets = [set(0, 0, &[]), set(5, 0, &[]), set(4, 0, &[])];
        for (target, rule) in targets.into_iter().zip([
            "fresh-side",
            "same-generation-one-inconsistent",
            "old-generation",
        ]) {
            let mut source = source;
            source.generations.history[0] = Generation(4);
            let mut target = side(target, false);
            target.disk = DiskState::Inconsistent;
            target.full_sync = copy;
            check(&source, &target, rule, Strategy::Source(Remainder));
            target.full_resync = true;
            check(&source, &target, rule, Strategy::Source(Full));
            target.full_resync = false;
            target.full_sync = FullSyncId(78);
            let anew = match rule {
                "same-generation-one-inconsistent" => Scope::Bitmap,
                _ => Full,
            };
            check(&source, &target, rule, Strategy::Source(anew));
        }
        // Promoted by force since, or healed in another way: what it holds is its own again.
        let mut target = side(set(4, 0, &[]), false);
        target.full_sync = copy;
        source.generations.history[0] = Generation(4);
        check(&source, &target, "old-generation", Strategy::Source(Full));
    }

    #[test]
    fn once_a_copy_has_begun_nothing_is_declared_equal_any_more() {
        let mut source = side(set(5, 0, &[]), true);
        let fresh = side(set(0, 0, &[]), false);
        let scope = |source: &Side| decide(source, &fresh, InitialSync::Skip, false).strategy;
        assert_eq!(scope(&source), Strategy::Source(Scope::Nothing));
        source.had_copy = true;
        assert_eq!(scope(&source), Strategy::Source(Scope::Full));
    }

    /// Every combination of lineage and flags: the two sides always agree, a source is always
    /// consistent, and a target is never a primary of the same or a later epoch.
    #[test]
    fn every_combination_gives_mirror_images_and_no_unsafe_direction() {
        let sets = [
            set(0, 0, &[]),
            set(5, 0, &[]),
            set(5, 0, &[4]),
            set(6, 5, &[5]),
            set(7, 5, &[5]),
            set(8, 7, &[7, 5]),
            set(9, 6, &[6, 5]),
            set(20, 19, &[19]),
        ];
        let disks = [
            DiskState::UpToDate,
            DiskState::Outdated,
            DiskState::Inconsistent,
            DiskState::Failed,
        ];
        let mut sides = Vec::new();
        for generations in sets {
            for disk in disks {
                for bits in 0..128_u32 {
                    let mut one = side(generations, true);
                    if !generations.current.is_none() {
                        one.disk = disk;
                    }
                    one.role = if bits & 1 == 1 {
                        Role::Primary
                    } else {
                        Role::Secondary
                    };
                    one.crashed_primary = bits & 2 != 0;
                    one.last_primary = bits & 4 != 0;
                    one.discard_local = bits & 8 != 0;
                    one.full_resync = bits & 16 != 0;
                    one.epoch = Epoch(u64::from(bits & 32 != 0));
                    one.unbroken = bits & 64 != 0;
                    sides.push(one);
                }
            }
        }
        for me in &sides {
            for peer in &sides {
                let peer = Side {
                    first: false,
                    ..*peer
                };
                let settings = [InitialSync::Full, InitialSync::Skip]
                    .into_iter()
                    .flat_map(|initial| [(initial, false), (initial, true)]);
                for (initial, arbitrated) in settings {
                    let mine = decide(me, &peer, initial, arbitrated);
                    let theirs = decide(&peer, me, initial, arbitrated);
                    assert_eq!(mine.strategy, theirs.strategy.mirrored(), "{me:?} {peer:?}");
                    assert_eq!(mine.rule.code(), theirs.rule.code(), "{me:?} {peer:?}");
                    if let Strategy::Source(_) = mine.strategy {
                        assert!(me.can_serve(), "{me:?} {peer:?}");
                        let later = peer.epoch > me.epoch && peer.disk == DiskState::UpToDate;
                        let apart = me.generations.current != peer.generations.current;
                        let granted = later && apart && !peer.discard_local;
                        assert!(
                            !arbitrated || !granted || peer.is_fresh(),
                            "the later epoch is overwritten: {me:?} {peer:?}"
                        );
                        assert!(
                            peer.role != Role::Primary || me.epoch > peer.epoch,
                            "{me:?} {peer:?}"
                        );
                    }
                }
            }
        }
    }
}
