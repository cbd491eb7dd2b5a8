//! The mistakes that the gate before every answer stands or falls with (A3), each in the scene that shows it:
//! with the mistake a checker sees it, and without it the same scenes break nothing.

use mirror_core::volume::config::LeaseCheck;
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::mutation::Mutation;
use mirror_tests::sim::network::{NodeIndex, other};
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Each scene is played in as many worlds, which differ in every delay.
const WORLDS: std::ops::Range<u64> = 0..40;
/// Virtual time within which the other node must have taken over.
const TAKEN_MS_MAX: u64 = 20_000;
/// Longer than a word of the peer counts, so that only the lease decides who may answer.
const LEASE_MS: u64 = 3_000;

fn pair(seed: u64, check: LeaseCheck, mutation: Option<Mutation>) -> (World, NodeIndex) {
    let mut settings = Settings::arbitrated(check);
    settings.mutation = mutation;
    if let Some(plan) = &mut settings.arbiter {
        plan.lease_ms = LEASE_MS;
    }
    World::arbitrated_pair(seed, settings)
}

/// The nodes lose each other, and the first its arbiter.
fn isolate(world: &mut World, node: NodeIndex) {
    world.cut(&[0, 1], Some(10));
    world.arbiter.cut[node] = true;
}

/// To the moment at which a renewal of the lease is on its way to its holder.
fn until_renewal_is_on_its_way(world: &mut World) {
    let before = world.arbiter.counted_us();
    world.until("the arbiter renews", |world| {
        world.arbiter.counted_us() > before
    });
}

/// Clients of both nodes read, one request after the other, until a rule is broken or the time is over.
fn both_read(world: &mut World, span_ms: u64) {
    let mut open = [None; 2];
    for _ in 0..span_ms {
        if world.violation.is_some() {
            return;
        }
        for (node, open) in open.iter_mut().enumerate() {
            let waits = open.is_some_and(|id| !world.answers.contains_key(&id));
            if world.nodes[node].serving && !waits {
                *open = Some(world.submit(node, Asked::read(0..1)));
            }
        }
        world.run_for(1);
    }
}

fn other_takes_over(world: &mut World, node: NodeIndex) -> bool {
    let peer = other(node);
    world.run_until(TAKEN_MS_MAX, |world| world.nodes[peer].serving)
}

fn is_caught(mutation: Mutation, scene: impl Fn(u64, Option<Mutation>) -> World) {
    for seed in WORLDS {
        scene(seed, None).assert_sound();
    }
    let caught = WORLDS
        .filter_map(|seed| scene(seed, Some(mutation)).violation)
        .inspect(|violation| assert_eq!(violation.rule, "A3", "{}", violation.message))
        .count();
    assert!(caught > 0, "{mutation:?} passes in every world");
}

#[test]
fn reads_that_ask_for_no_lease() {
    for check in [LeaseCheck::Clock, LeaseCheck::RoundTrip] {
        is_caught(Mutation::UngatedReads, |seed, mutation| {
            let (mut world, node) = pair(seed, check, mutation);
            isolate(&mut world, node);
            assert!(other_takes_over(&mut world, node));
            both_read(&mut world, 100);
            world
        });
    }
}

#[test]
fn an_arbiter_that_counts_from_before_the_renewal() {
    is_caught(Mutation::LeaseCountedFromBefore, |seed, mutation| {
        let (mut world, node) = pair(seed, LeaseCheck::Clock, mutation);
        world.run_for(2 * LEASE_MS);
        isolate(&mut world, node);
        both_read(&mut world, 2 * LEASE_MS);
        world
    });
}

#[test]
fn a_lease_counted_from_the_reply() {
    is_caught(Mutation::LeaseCountedFromReply, |seed, mutation| {
        let (mut world, node) = pair(seed, LeaseCheck::Clock, mutation);
        until_renewal_is_on_its_way(&mut world);
        isolate(&mut world, node);
        world.pause(node, false);
        world.run_for(LEASE_MS * 9 / 10);
        world.wake(node);
        both_read(&mut world, 2 * LEASE_MS);
        world
    });
}

#[test]
fn a_confirmation_asked_for_before_the_work_was_done() {
    is_caught(Mutation::ConfirmedTooLate, |seed, mutation| {
        let (mut world, node) = pair(seed, LeaseCheck::RoundTrip, mutation);
        world.cut(&[0, 1], Some(10));
        world.until("the link is lost", |world| !world.is_connected(node));
        until_renewal_is_on_its_way(&mut world);
        world.arbiter.cut[node] = true;
        world.pause(node, true);
        assert!(other_takes_over(&mut world, node));
        world.read(other(node), 0);
        // It is there when the node wakes, and done before the agent hears of what was asked earlier.
        world.submit(node, Asked::read(0..1));
        world.wake(node);
        world.run_for(100);
        world
    });
}
