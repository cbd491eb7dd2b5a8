//! One node or the link fails, at the worst moment. Each case is one that some mirror out there has got
//! wrong.

use mirror_core::request::Answer;
use mirror_core::volume::event::Command;
use mirror_core::volume::promotion::NOT_REINSTATED;
use mirror_core::volume::refusal::Refusal;
use mirror_core::wire::message::{Message, Role};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::{Crash, Unit};
use mirror_tests::sim::metadata_disk::{InFlightFate, Region};
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

const FATES: [InFlightFate; 3] = [InFlightFate::Lost, InFlightFate::Torn, InFlightFate::Landed];

fn pair(seed: u64) -> World {
    World::pair(seed, Settings::quiet())
}

/// Writes each unit and answers nothing: the caller decides what happens meanwhile.
fn write_many(world: &mut World, units: impl Iterator<Item = Unit>) {
    for unit in units {
        world.submit(0, Asked::write(unit..unit + 1));
    }
}

// --- the link is cut between send and acknowledgement ------------------------------------------

/// The request reaches the peer and its acknowledgement does not come back, or it gets lost itself.
fn check_lost_leg(asked: impl Fn() -> Asked) {
    for lose_request in [true, false] {
        let mut world = pair(1);
        world.write(0, 8..16);
        world.network.cut_at = Some(Box::new(move |from, message: &Message| {
            let request = matches!(
                message,
                Message::Write { .. } | Message::Trim { .. } | Message::WriteZeroes { .. }
            );
            let acknowledgement = matches!(message, Message::Ack { .. });
            if lose_request {
                from == 0 && request
            } else {
                from == 1 && acknowledgement
            }
        }));
        assert_eq!(world.asked(0, asked()), Answer::Done);
        let view = world.nodes[0].durable().expect("readable metadata");
        assert!(view.covers(8 * 4096), "the range is dirty or in doubt");
        assert!(
            view.superblock.peer.outdated,
            "the peer is known to be behind"
        );
        world.end_well();
    }
}

#[test]
fn a_write_whose_link_is_cut_before_its_acknowledgement_is_dirty_before_it_is_answered() {
    check_lost_leg(|| Asked::write(8..16));
}

#[test]
fn a_trim_whose_link_is_cut_before_its_acknowledgement_is_dirty_before_it_is_answered() {
    check_lost_leg(|| Asked::Trim {
        units: 8..16,
        fua: false,
    });
}

#[test]
fn a_write_zeroes_whose_link_is_cut_before_its_acknowledgement_is_dirty_before_it_is_answered() {
    check_lost_leg(|| Asked::WriteZeroes {
        units: 8..16,
        fua: false,
        no_hole: true,
    });
}

// --- power loss --------------------------------------------------------------------------------

#[test]
fn a_peer_that_loses_power_gets_back_what_it_acknowledged_and_had_not_flushed() {
    for seed in 0..10 {
        let mut world = pair(seed);
        for unit in 0..20 {
            world.write(0, unit * 3..unit * 3 + 2);
        }
        world.crash(1, Crash::PowerLoss);
        world.start(1);
        world.until("both sides are in sync again", |world| world.is_settled());
        world.end_well();
    }
}

#[test]
fn a_primary_that_loses_power_gets_its_unflushed_answers_back_from_the_peer_that_ran_on() {
    for seed in 0..10 {
        let mut world = pair(seed);
        for unit in 0..20 {
            world.write(0, unit..unit + 1);
        }
        world.crash(0, Crash::PowerLoss);
        world.start(0);
        world.until("both sides are in sync again", |world| world.is_settled());
        world.end_well();
    }
}

// --- activity log, bitmap, superblock ----------------------------------------------------------

#[test]
fn a_primary_that_crashes_with_a_full_activity_log_loses_nothing() {
    for seed in 0..10 {
        let mut world = pair(seed);
        let slots = u64::from(world.settings.log_slots);
        for extent in 0..slots {
            let unit = world.extent(extent);
            world.write(0, unit..unit + 4);
        }
        let view = world.nodes[0].durable().expect("readable metadata");
        assert_eq!(view.hot_extents() as u64, slots, "the log is full");
        let units: Vec<Unit> = (0..8).map(|extent| world.extent(extent) + 1).collect();
        write_many(&mut world, units.into_iter());
        world.crash(0, Crash::PowerLoss);
        world.start(0);
        world.end_well();
    }
}

fn reinstate(world: &mut World) -> Result<String, Refusal> {
    let command = Command::Reinstate { alone: false };
    let done = world.command(0, command).expect("it ends");
    world.assert_sound();
    done
}

#[test]
fn a_kernel_device_is_gone_on_with_unless_the_other_side_was_primary_meanwhile() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut world = pair(3);
        world.write(0, 0..8);
        world.crash(0, crash);
        world.start(0);
        world.until("a mirror that is primary again", |world| {
            reinstate(world).is_ok()
        });
        assert!(world.nodes[0].goes_on, "the checkers look at it as such");
        world.write(0, 4..6);
        // Primary for a moment, and nothing is written.
        world.crash(0, crash);
        world.until("the loss", |world| !world.is_connected(1));
        world.promote(1, true, false).expect("the peer is down");
        world.command(1, Command::Demote).expect("it ends").unwrap();
        world.start(0);
        world.until("the link", |world| world.is_connected(0));
        let refusal = reinstate(&mut world).expect_err("its cache is of the past");
        assert_eq!(refusal.rule, NOT_REINSTATED);
        let notices = &world.nodes[0].notices;
        let survived = notices
            .iter()
            .any(|(_, said)| said.contains("same-generation-survivor decides: Target"));
        assert!(survived, "its data is of the past, too: {notices:?}");
        world.end_well();
    }
}

/// It has heard of the later epoch, and its record says that it was primary.
#[test]
fn a_primary_that_died_is_not_reinstated_in_the_epoch_of_the_other_side() {
    let mut world = pair(4);
    world.write(0, 0..8);
    world.crash(0, Crash::Kill);
    world.until("the loss", |world| !world.is_connected(1));
    world.promote(1, true, false).expect("the peer is down");
    world.write(1, 4..12);
    world.start(0);
    world.until("it is told to be the target", |world| {
        world.nodes[0].has_noticed("resync-started")
    });
    world.crash(0, Crash::Kill);
    world.crash(1, Crash::Kill);
    world.start(0);
    world.start(1);
    world.until("both are in sync", |world| world.is_settled());
    let refusal = reinstate(&mut world).expect_err("the other side was primary since");
    assert_eq!(refusal.rule, NOT_REINSTATED);
    world.end_well();
}

/// Without an arbiter each side counts by itself, and both may come to the same epoch.
#[test]
fn a_primary_that_died_is_not_reinstated_after_the_other_side_in_an_epoch_of_the_same_number() {
    let mut world = pair(6);
    world.write(0, 0..8);
    world.command(0, Command::Stop).expect("it ends").unwrap();
    world.crash(0, Crash::Kill);
    world.until("the loss", |world| !world.is_connected(1));
    world.promote(1, false, false).expect("the peer left");
    world.crash(1, Crash::Kill);
    world.start(0);
    world.promote(0, false, true).expect("it is forced");
    world.write(0, 4..12);
    world.start(1);
    world.until("both are in sync", |world| world.is_settled());
    world.command(0, Command::Demote).expect("it ends").unwrap();
    world.until("the other side knows", |world| {
        world
            .status(1)
            .is_some_and(|status| status.peer.role == Role::Secondary)
    });
    let epochs = [0, 1].map(|node| world.status(node).map(|status| status.epoch));
    assert_eq!(epochs[0], epochs[1], "they say nothing");
    let command = Command::Reinstate { alone: false };
    let refusal = world.command(1, command).expect("it ends");
    let refusal = refusal.expect_err("the other side was primary since");
    assert_eq!(refusal.rule, NOT_REINSTATED);
    world.end_well();
}

/// The primary crashes while a write to that part of its metadata is under way.
fn check_crash_during(region: Region, mut bring_about: impl FnMut(&mut World)) {
    for fate in FATES {
        for crash in [Crash::Kill, Crash::PowerLoss] {
            let mut world = pair(5);
            world.metadata_fate = fate;
            bring_about(&mut world);
            world.until("metadata is being written", |world| {
                world.nodes[0].metadata.writes_to(region)
            });
            world.crash(0, crash);
            world.start(0);
            world.end_well();
        }
    }
}

#[test]
fn a_crash_during_an_activity_log_commit_loses_nothing() {
    check_crash_during(Region::Log, |world| {
        world.write(0, 0..4);
        let units = [world.extent(3), world.extent(5), 2];
        write_many(world, units.into_iter());
    });
}

#[test]
fn a_crash_during_bitmap_write_back_loses_nothing() {
    check_crash_during(Region::Bitmap, |world| {
        world.crash(1, Crash::Kill);
        for extent in 0..4 {
            let unit = world.extent(extent);
            world.write(0, unit..unit + 2);
        }
        // The log is full: the next extent puts the bits of another one on disk first.
        let units: Vec<Unit> = (4..7).map(|extent| world.extent(extent)).collect();
        write_many(world, units.into_iter());
    });
}

#[test]
fn a_crash_during_a_superblock_update_loses_nothing() {
    for copy in [Region::SuperblockA, Region::SuperblockB] {
        check_crash_during(copy, |world| {
            world.write(0, 0..4);
            world.crash(1, Crash::Kill);
            // The first answer that the peer lacks waits for a change of the superblock.
            world.submit(0, Asked::write(1..3));
        });
    }
}

#[test]
fn an_extent_evicted_while_its_write_is_volatile_survives_a_power_loss() {
    for seed in 0..10 {
        let settings = Settings {
            log_slots: 1,
            ..Settings::quiet()
        };
        let mut world = World::pair(seed, settings);
        for round in 0..3 {
            for extent in 0..6 {
                let unit = world.extent(extent) + round;
                world.write(0, unit..unit + 1);
                let view = world.nodes[0].durable().expect("readable metadata");
                assert_eq!(view.hot_extents(), 1, "the one before was evicted");
                assert!(view.covers(unit * 4096));
            }
        }
        for node in [1, 0] {
            world.crash(node, Crash::PowerLoss);
        }
        world.start(1);
        world.start(0);
        world.end_well();
    }
}
