//! The checker sees: each of these breaks one promise on purpose, and some cluster shows it.

use mirror_tests::cluster::checker::Violation;
use mirror_tests::cluster::faults::{Fault, Trouble};
use mirror_tests::cluster::network::Line;
use mirror_tests::cluster::run::run_with;
use mirror_tests::cluster::settings::{Profile, Settings};
use mirror_tests::cluster::world::{Mistakes, World};

const SEEDS: std::ops::Range<u64> = 0..150;

fn is_seen(profile: Profile, mistakes: Mistakes, kind: impl Fn(&Violation) -> bool) {
    let seen = SEEDS
        .filter_map(|seed| run_with(seed, Some(profile), mistakes, false).violation)
        .any(|violation| kind(&violation));
    assert!(seen, "{mistakes:?} went unseen");
}

fn two_or_lost(violation: &Violation) -> bool {
    matches!(
        violation,
        Violation::TwoAnswer { .. } | Violation::Lost { .. } | Violation::Stale { .. }
    )
}

#[test]
fn a_forced_stop_that_lies() {
    let cut = |stop_lies| {
        let settings = Settings {
            // The application may run twice then, which would be seen first.
            failover_on_failure: true,
            ..Settings::new(Profile::Classic)
        };
        let mistakes = Mistakes {
            stop_lies,
            ..Mistakes::default()
        };
        seen_after_cut(settings, mistakes, |_| Line::between_nodes(), 20_000)
    };
    assert_eq!(cut(false), None);
    let seen = cut(true);
    assert!(seen.as_ref().is_some_and(two_or_lost), "{seen:?}");
}

#[test]
fn a_forced_stop_that_lies_lets_the_application_run_twice() {
    let mistakes = Mistakes {
        stop_lies: true,
        ..Mistakes::default()
    };
    is_seen(Profile::Classic, mistakes, |violation| {
        matches!(violation, Violation::BothRun { .. })
    });
}

/// What is seen within this time after lines of the owner were cut.
fn seen_after_cut(
    settings: Settings,
    mistakes: Mistakes,
    lines: impl Fn(usize) -> Vec<Line>,
    within_ms: u64,
) -> Option<Violation> {
    let mut world = World::new(settings, 7, mistakes);
    let served = |world: &World| world.serves(0) || world.serves(1);
    assert!(world.run_until_so(60_000, served), "{}", world.describe());
    world.run_until(world.now_ms + 10_000);
    let owner = usize::from(world.serves(1));
    world.begin(&Trouble {
        at_ms: 0,
        for_ms: 0,
        fault: Fault::Cut(lines(owner)),
    });
    world.run_until(world.now_ms + within_ms);
    world.checker.violation().cloned()
}

/// The owner is cut off from the other node and from the arbiter; its lease outlives the heartbeat time-out.
fn cut_off_with_a_long_lease(arbiter_forgets_leases: bool) -> Option<Violation> {
    let settings = Settings {
        lease_ms: 10_000,
        ..Settings::new(Profile::Witness)
    };
    let mistakes = Mistakes {
        arbiter_forgets_leases,
        ..Mistakes::default()
    };
    let lines = |owner| [Line::between_nodes(), Line::witness(owner)].concat();
    seen_after_cut(settings, mistakes, lines, 9_000)
}

#[test]
fn an_arbiter_that_forgets_the_leases_it_gave() {
    assert_eq!(cut_off_with_a_long_lease(false), None);
    let seen = cut_off_with_a_long_lease(true);
    assert!(seen.as_ref().is_some_and(two_or_lost), "{seen:?}");
}

#[test]
fn a_mirror_that_answers_reads_without_a_lease() {
    let mistakes = Mistakes {
        no_gate: true,
        ..Mistakes::default()
    };
    is_seen(Profile::Witness, mistakes, |violation| {
        matches!(violation, Violation::Stale { .. })
    });
}

#[test]
fn a_mirror_that_answers_without_a_lease() {
    let mistakes = Mistakes {
        no_gate: true,
        ..Mistakes::default()
    };
    is_seen(Profile::Witness, mistakes, two_or_lost);
}

#[test]
fn two_nodes_without_a_head_start_for_the_owner() {
    let mistakes = Mistakes {
        no_fence_delay: true,
        ..Mistakes::default()
    };
    is_seen(Profile::Classic, mistakes, |violation| {
        *violation == Violation::StoppedEachOther
    });
}
