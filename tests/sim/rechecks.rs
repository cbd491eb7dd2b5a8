//! The process of a primary dies, its machine runs on, and the primary serves again before what the process had
//! under way is known to be equal on both sides.

use mirror_core::control::SyncKind;
use mirror_core::request::Answer;
use mirror_core::volume::event::Command;
use mirror_core::volume::refusal::Refusal;
use mirror_core::wire::message::{DiskState, Message};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::content::Tag;
use mirror_tests::sim::disk::{Crash, Unit};
use mirror_tests::sim::metadata_disk::InFlightFate;
use mirror_tests::sim::mutation::Mutation;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Each scene is played in as many worlds, in which other writes are cut short.
const WORLDS: std::ops::Range<u64> = 0..12;
/// Extents of the log: so many are in doubt after a crash, and take so long to compare that a scene fits in.
const EXTENTS: u32 = 6;
/// Written in each of them.
const UNITS: u64 = 4;

fn settings() -> Settings {
    Settings {
        log_slots: EXTENTS,
        disk_us: (2_000, 4_000),
        resync_in_flight: 1,
        ..Settings::quiet()
    }
}

/// Both sides in step; node 0 has answered writes in every extent of its log.
fn written(seed: u64, settings: Settings) -> World {
    let mut world = World::pair(seed, settings);
    for unit in doubtful_units(&world) {
        world.write(0, unit..unit + 1);
    }
    world
}

/// Unit by unit, what was written before the crash.
fn doubtful_units(world: &World) -> Vec<Unit> {
    let extents = 0..u64::from(EXTENTS);
    extents
        .flat_map(|extent| (0..UNITS).map(move |unit| (extent, unit)))
        .map(|(extent, unit)| world.extent(extent) + unit)
        .collect()
}

/// Overwrites all of that, and stops in the middle.
fn kill_amid_writes(world: &mut World, crash: Crash) {
    for unit in doubtful_units(world) {
        world.submit(0, Asked::write(unit..unit + 1));
    }
    world.run_for(2);
    world.crash(0, crash);
}

fn reinstate(world: &mut World) -> Result<String, Refusal> {
    let command = Command::Reinstate { alone: false };
    let done = world.command(0, command).expect("it ends");
    world.assert_sound();
    done
}

fn return_as_primary(world: &mut World) {
    world.start(0);
    world.until("a mirror that is primary again", |world| {
        reinstate(world).is_ok()
    });
}

fn is_in_doubt(world: &World) -> bool {
    let status = world.status(0);
    status.is_some_and(|status| status.out_of_sync_bytes > 0)
}

fn is_rechecking(world: &World) -> bool {
    let sync = world.status(0).and_then(|status| status.sync);
    sync.is_some_and(|sync| sync.kind == SyncKind::Recheck)
}

/// Serving, and not yet through with what is in doubt.
fn returned(seed: u64, crash: Crash) -> World {
    let mut world = written(seed, settings());
    kill_amid_writes(&mut world, crash);
    return_as_primary(&mut world);
    assert!(is_in_doubt(&world), "{:?}", world.status(0));
    assert!(!world.nodes[0].has_noticed("resync-started"));
    world
}

fn read_all(world: &mut World) -> Vec<Tag> {
    let units = doubtful_units(world);
    units.into_iter().map(|unit| world.read(0, unit)).collect()
}

fn until_rechecked(world: &mut World) {
    world.until("the end of the recheck", |world| world.is_settled());
    assert!(world.nodes[0].has_noticed("recheck-finished"));
    assert!(!world.nodes[0].has_noticed("resync-started"));
}

#[test]
fn a_killed_primary_serves_before_its_doubt_is_resolved_and_its_peer_stays_up_to_date() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        let last = *doubtful_units(&world).last().expect("some");
        world.read(0, last);
        world.write(0, last + 8..last + 9);
        assert!(is_in_doubt(&world), "neither waited for all of it");
        let peer = world.status(1).expect("it is up");
        assert_eq!(peer.disk, DiskState::UpToDate, "it could take over");
        until_rechecked(&mut world);
        world.end_well();
    }
}

#[test]
fn what_was_under_way_has_one_outcome_from_the_first_read_on() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        let first = read_all(&mut world);
        until_rechecked(&mut world);
        assert_eq!(read_all(&mut world), first);
        world.end_well();
    }
}

#[test]
fn a_block_that_cannot_be_read_any_more_comes_from_the_peer() {
    let mut world = written(1, settings());
    kill_amid_writes(&mut world, Crash::Kill);
    let last = *doubtful_units(&world).last().expect("some");
    world.nodes[0].data.spoil(last);
    return_as_primary(&mut world);
    world.read(0, last);
    until_rechecked(&mut world);
    world.end_well();
}

#[test]
fn a_flush_that_failed_as_the_process_died_loses_nothing() {
    for seed in WORLDS {
        let mut world = written(seed, settings());
        world.nodes[0].fail_next_flush = true;
        world.metadata_fate = InFlightFate::Lost;
        world.network.cut_at = Some(Box::new(|from, message: &Message| {
            from == 0 && matches!(message, Message::Detached { .. })
        }));
        world.submit(0, Asked::Flush);
        world.until("the failure", |world| {
            world.nodes[0].has_noticed("disk-failed")
        });
        world.crash(0, Crash::Kill);
        let view = world.nodes[0].durable().expect("readable metadata");
        assert!(!view.superblock.flags.failed, "nobody knows of it");
        world.heal();
        return_as_primary(&mut world);
        // Each is judged by what clients were told.
        read_all(&mut world);
        until_rechecked(&mut world);
        world.end_well();
    }
}

#[test]
fn a_peer_that_is_lost_meanwhile_is_not_waited_for() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        let last = *doubtful_units(&world).last().expect("some");
        world.cut(&[0, 1], Some(5));
        let read = world.submit(0, Asked::read(last..last + 1));
        assert!(matches!(world.answer_to(read), Some(Answer::Data(_))));
        let first = read_all(&mut world);
        world.write(0, last + 1..last + 2);
        world.heal();
        world.until("both in sync", |world| world.is_settled());
        assert_eq!(read_all(&mut world), first, "this side's outcome holds");
        world.end_well();
    }
}

#[test]
fn a_second_crash_before_the_first_is_mended_costs_no_longer_pause() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        // Not while its metadata is being written, of which a copy might be torn.
        world.until("a recheck", |world| is_rechecking(world));
        kill_amid_writes(&mut world, Crash::Kill);
        return_as_primary(&mut world);
        assert!(is_in_doubt(&world), "{:?}", world.status(0));
        read_all(&mut world);
        until_rechecked(&mut world);
        world.end_well();
    }
}

#[test]
fn a_disk_that_fails_meanwhile_leaves_the_peer_to_serve_from() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        world.until("a recheck", |world| is_rechecking(world));
        let units = doubtful_units(&world);
        let waits = world.submit(0, Asked::read(units[20]..units[20] + 1));
        world.nodes[0].fail_next_write = true;
        world.write(0, units[3]..units[3] + 1);
        assert_eq!(
            world.status(0).map(|status| status.disk),
            Some(DiskState::Failed)
        );
        assert!(matches!(world.answer_to(waits), Some(Answer::Data(_))));
        read_all(&mut world);
        world.write(0, units[9]..units[9] + 1);
        world.end_well();
    }
}

#[test]
fn roles_change_amid_a_recheck() {
    for seed in WORLDS {
        let mut world = returned(seed, Crash::Kill);
        let last = *doubtful_units(&world).last().expect("some");
        let read = world.submit(0, Asked::read(last..last + 1));
        let done = world.command(0, Command::Demote).expect("it ends");
        assert!(done.is_ok(), "{done:?}");
        assert!(matches!(world.answer_to(read), Some(Answer::Data(_))));
        world.until("the other primary", |world| {
            world.promote(1, false, false).is_ok()
        });
        world.write(1, last..last + 1);
        world.end_well();
    }
}

#[test]
fn the_peer_is_promoted_in_the_place_of_a_primary_that_came_back() {
    for seed in WORLDS {
        let mut world = written(seed, settings());
        kill_amid_writes(&mut world, Crash::Kill);
        world.start(0);
        world.until("a recheck", |world| is_rechecking(world));
        world.until("the other primary", |world| {
            world.promote(1, false, false).is_ok()
        });
        let units = doubtful_units(&world);
        for unit in &units[..8] {
            world.write(1, *unit..*unit + 1);
        }
        world.until("both in sync", |world| world.is_settled());
        let refused = reinstate(&mut world);
        assert!(refused.is_err(), "{refused:?}");
        world.end_well();
    }
}

#[test]
fn after_a_power_loss_the_peer_gives_everything_back_first() {
    for seed in WORLDS {
        let mut world = written(seed, settings());
        kill_amid_writes(&mut world, Crash::PowerLoss);
        return_as_primary(&mut world);
        assert!(!world.nodes[0].has_noticed("recheck-started"));
        assert!(world.nodes[0].has_noticed("resync-started"));
        read_all(&mut world);
        world.end_well();
    }
}

/// A node that lost power and takes it for a killed process.
fn forgetful(seed: u64) -> World {
    let settings = Settings {
        mutation: Some(Mutation::ForgetReboot),
        ..settings()
    };
    let mut world = written(seed, settings);
    world.crash(0, Crash::PowerLoss);
    return_as_primary(&mut world);
    world
}

#[test]
fn a_forgotten_reboot_is_caught_once_the_peer_cannot_be_asked() {
    let caught = WORLDS.map(|seed| {
        let mut world = forgetful(seed);
        world.cut(&[0, 1], Some(5));
        for unit in doubtful_units(&world) {
            if world.ask(0, Asked::read(unit..unit + 1)).is_none() {
                break;
            }
        }
        world.violation.map(|violation| violation.rule)
    });
    assert!(caught.into_iter().any(|rule| rule == Some("D6")));
}

#[test]
fn even_a_forgotten_reboot_loses_nothing_while_the_peer_can_be_asked() {
    for seed in WORLDS {
        let mut world = forgetful(seed);
        read_all(&mut world);
        until_rechecked(&mut world);
        world.end_well();
    }
}
