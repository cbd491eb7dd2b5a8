//! Each deliberate bug must be caught by a checker, or the checkers prove nothing.

use mirror_core::volume::config::PeerLoss;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::Mode;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::mutation::Mutation;
use mirror_tests::sim::run::{Kind, run_seed};
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Seeds within which a mutation must show.
const SEEDS_MAX: u64 = 60;

fn check(mutation: Mutation) {
    check_in(mutation, Mode::Sync);
}

fn check_in(mutation: Mutation, mode: Mode) {
    let caught = (0..SEEDS_MAX)
        .map(|seed| run_seed(seed, Kind::of(mode), Some(mutation), false))
        .find_map(|report| report.violation.map(|violation| (report.seed, violation)));
    match caught {
        Some((seed, violation)) => println!(
            "{mutation:?} is caught at seed {seed} by {}: {}",
            violation.rule, violation.message
        ),
        None => panic!("{mutation:?} passes {SEEDS_MAX} worlds: no checker sees it"),
    }
}

#[test]
fn an_answer_before_the_peer_has_the_write_is_caught() {
    check(Mutation::AnswerBeforePeer);
}

#[test]
fn a_skipped_metadata_flush_is_caught() {
    check(Mutation::SkipMetadataFlush);
}

#[test]
fn a_bit_cleared_before_the_target_has_the_data_is_caught() {
    check(Mutation::ClearBitEarly);
}

#[test]
fn dirty_bits_that_are_not_written_are_caught() {
    check(Mutation::ForgetDirtyBits);
}

#[test]
fn overlapping_writes_in_the_wrong_order_on_the_primary_are_caught() {
    check(Mutation::ReorderLocal);
}

#[test]
fn overlapping_writes_in_the_wrong_order_on_the_secondary_are_caught() {
    check(Mutation::ReorderPeer);
}

#[test]
fn a_skipped_flush_of_data_is_caught() {
    check(Mutation::SkipDataFlush);
}

#[test]
fn an_acknowledged_write_that_the_secondary_dropped_is_caught() {
    check(Mutation::DropReplicaWrite);
}

#[test]
fn a_kernel_device_that_outlives_another_primary_is_caught() {
    check(Mutation::KeepDevice);
}

#[test]
fn an_answer_to_a_write_that_is_in_no_line_is_caught() {
    check_in(Mutation::AnswerBeforePeer, Mode::Async);
    check_in(Mutation::AnswerBeforePeer, Mode::Semisync);
}

#[test]
fn a_write_that_is_lost_out_of_the_middle_of_the_line_is_caught() {
    // Whether a drawn world fails over before the gap is made good is a matter of luck.
    let found = |mutation| {
        let settings = Settings {
            mode: Mode::Async,
            peer_loss: PeerLoss::Hold,
            mutation,
            ..Settings::quiet()
        };
        let mut world = World::pair(21, settings);
        for unit in 0..100 {
            world.write(0, unit..unit + 1);
        }
        world.run_for(20);
        world.crash(0, Crash::Kill);
        world.until("node 1 misses its peer", |world| {
            world.nodes[1].has_noticed("peer-lost")
        });
        let promote = Command::Promote {
            peer_down: true,
            force: false,
            grant: None,
        };
        world.command(1, promote);
        world.violation
    };
    assert_eq!(found(None).map(|violation| violation.message), None);
    let violation = found(Some(Mutation::DropFromLine)).expect("a gap is seen");
    assert!(
        violation.message.contains("no prefix"),
        "{}",
        violation.message
    );
}

#[test]
fn an_extent_let_go_before_the_peer_has_its_writes_is_caught() {
    check_in(Mutation::AcknowledgedOnSending, Mode::Async);
}

#[test]
fn mistakes_that_every_mode_can_make_are_caught_in_async() {
    for mutation in [
        Mutation::SkipMetadataFlush,
        Mutation::ClearBitEarly,
        Mutation::ForgetDirtyBits,
        Mutation::ReorderPeer,
        Mutation::SkipDataFlush,
        Mutation::DropReplicaWrite,
    ] {
        check_in(mutation, Mode::Async);
    }
}
