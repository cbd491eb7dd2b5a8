//! The checker sees: each of these breaks one promise on purpose, and some cluster shows it.

use mirror_tests::cluster::checker::Violation;
use mirror_tests::cluster::run::run_with;
use mirror_tests::cluster::settings::Profile;
use mirror_tests::cluster::world::Mistakes;

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
        Violation::TwoAnswer { .. } | Violation::Lost { .. }
    )
}

#[test]
fn a_forced_stop_that_lies() {
    let mistakes = Mistakes {
        stop_lies: true,
        ..Mistakes::default()
    };
    is_seen(Profile::Classic, mistakes, two_or_lost);
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
