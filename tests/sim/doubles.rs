//! Two things fail, or both nodes serve: whose data counts, and who must not guess.

use mirror_core::control::Connection;
use mirror_core::request::{Answer, Failure};
use mirror_core::volume::config::PeerLoss;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::DiskState;
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

fn pair(seed: u64) -> World {
    World::pair(seed, Settings::quiet())
}

fn until_found(world: &mut World) {
    world.until("both sides see the split brain", |world| {
        [0, 1].iter().all(|node| {
            world
                .status(*node)
                .is_some_and(|status| status.connection == Connection::SplitBrain)
        })
    });
}

fn demote(world: &mut World, node: usize) {
    let demoted = world.command(node, Command::Demote);
    demoted.expect("an end").expect("done");
}

fn give_up(world: &mut World, node: usize) {
    let discard = Command::Resync {
        full: false,
        discard_local: true,
    };
    let given_up = world.command(node, discard);
    given_up.expect("an end").expect("done");
}

/// Both nodes were promoted and have written while they were apart, and have met again.
fn split() -> World {
    let mut world = pair(7);
    world.write(0, 0..8);
    world.cut(&[0, 1], None);
    world.write(0, 4..6);
    world.until("the loss is noticed", |world| !world.is_connected(1));
    world.promote_apart(1);
    world.write(1, 5..9);
    world.heal();
    until_found(&mut world);
    world
}

#[test]
fn a_split_brain_is_found_and_nothing_is_discarded() {
    let mut world = split();
    world.run_for(3_000);
    assert!(world.nodes[0].serving && world.nodes[1].serving);
    let [a, b] = [0, 1].map(|node| world.read(node, 5));
    assert_ne!(a, b, "each side still has its own");
}

fn check_resolution(loser: usize) {
    let winner = 1 - loser;
    let mut world = split();
    let kept = world.read(winner, 5);
    demote(&mut world, loser);
    give_up(&mut world, loser);
    world.give_up_line(loser, winner);
    world.until("both sides are in sync", |world| world.is_settled());
    for node in [0, 1] {
        assert_eq!(world.nodes[node].data.current(5), kept);
    }
    let view = world.nodes[loser].durable().expect("readable metadata");
    assert!(
        view.superblock.last_discard.bytes > 0,
        "what was given up is on record"
    );
    world.end_well();
}

#[test]
fn a_split_brain_is_resolved_for_the_first_node() {
    check_resolution(1);
}

#[test]
fn a_split_brain_is_resolved_for_the_second_node() {
    check_resolution(0);
}

/// What it answers after that, nobody has given up.
#[test]
fn a_side_that_is_promoted_after_all_is_not_given_up_any_more() {
    let mut world = split();
    world.cut(&[0, 1], None);
    demote(&mut world, 1);
    give_up(&mut world, 1);
    world.promote_apart(1);
    world.write(1, 6..8);
    let newest = world.read(1, 7);
    demote(&mut world, 1);
    world.heal();
    until_found(&mut world);
    world.run_for(3_000);
    assert_eq!(world.nodes[1].data.current(7), newest);
}

#[test]
fn nobody_takes_over_silently_from_a_primary_that_went_on_alone_and_died() {
    let mut world = pair(8);
    world.write(0, 0..8);
    world.cut(&[0, 1], None);
    world.write(0, 4..6);
    world.crash(0, Crash::PowerLoss);
    world.until("the loss is noticed", |world| !world.is_connected(1));
    let refusal = world
        .promote(1, false, false)
        .expect_err("it may be behind");
    assert_eq!(refusal.rule, "peer-may-be-ahead");
    assert!(refusal.remedy.contains("--peer-down"), "{refusal}");
    assert_eq!(world.serving(), None);
    world.start(0);
    world.end_well();
}

#[test]
fn a_held_write_is_not_answered_before_the_peer_is_known_to_be_down() {
    let settings = Settings {
        peer_loss: PeerLoss::Hold,
        ..Settings::quiet()
    };
    let mut world = World::pair(8, settings);
    world.crash(1, Crash::PowerLoss);
    let id = world.submit(0, Asked::write(0..4));
    world.run_for(10_000);
    assert_eq!(world.answers.get(&id), None, "answered alone, unasked");
    assert!(world.status(0).is_some_and(|status| status.io_suspended));
    world
        .promote(0, true, false)
        .expect("the operator's word is taken");
    assert_eq!(world.answer_to(id), Some(Answer::Done));
    world.start(1);
    world.end_well();
}

#[test]
fn a_detached_primary_serves_from_its_peer_and_never_from_its_own_stale_disk() {
    let mut world = pair(9);
    world.write(0, 0..8);
    world.nodes[0].fail_next_write = true;
    world.write(0, 2..4);
    assert!(
        world
            .status(0)
            .is_some_and(|status| status.disk == DiskState::Failed)
    );
    let view = world.nodes[1].durable().expect("readable metadata");
    assert!(
        view.superblock.peer.detached,
        "recorded on the surviving side"
    );
    world.write(0, 3..7);
    let newest = world.nodes[1].data.current(3);
    assert_eq!(world.read(0, 3), newest);

    world.crash(1, Crash::Kill);
    let answer = world.asked(0, Asked::read(3..4));
    assert_eq!(answer, Answer::Failed(Failure::Io), "nobody has the data");
    world.crash(0, Crash::Kill);
    world.start(0);
    let refusal = world.promote(0, false, false).expect_err("its data is old");
    assert_eq!(refusal.rule, "outdated");
    world.start(1);
    world.until("the old side got everything back", |world| {
        world.is_settled()
    });
    assert_eq!(world.nodes[0].data.current(3), newest);
    world.end_well();
}

#[test]
fn of_two_nodes_that_went_down_the_older_one_refuses_to_become_primary_and_says_why() {
    let mut world = pair(10);
    world.write(0, 0..8);
    world.crash(1, Crash::PowerLoss);
    world.write(0, 4..6);
    world.crash(0, Crash::PowerLoss);
    world.start(1);
    world.run_for(2_000);
    for peer_down in [false, true] {
        let refusal = world
            .promote(1, peer_down, false)
            .expect_err("the other one may be ahead");
        assert_eq!(refusal.rule, "peer-not-seen");
        assert!(refusal.reason.contains("alpha may be ahead"), "{refusal}");
        assert!(refusal.remedy.contains("bring alpha back"), "{refusal}");
        assert!(refusal.remedy.contains("--force"), "{refusal}");
    }
    assert_eq!(world.serving(), None);
    world.start(0);
    world.end_well();
}

#[test]
fn a_side_that_is_forced_to_be_the_truth_takes_a_new_generation_at_once() {
    let mut world = pair(11);
    world.write(0, 0..8);
    world.crash(0, Crash::Kill);
    world.crash(1, Crash::Kill);
    let before = world.nodes[0]
        .durable()
        .expect("metadata")
        .superblock
        .generations;
    world.start(1);
    world.promote(1, false, true).expect("the operator's word");
    let after = world.nodes[1]
        .durable()
        .expect("metadata")
        .superblock
        .generations;
    assert_ne!(after.current, before.current);
    assert_eq!(after.base, before.current);
    world.start(0);
    world.end_well();
}
