//! Semisync and async: what a failover finds, what a full queue does, and who is the truth when the old
//! primary returns.

use mirror_core::control::Connection;
use mirror_core::request::Answer;
use mirror_core::units::RequestId;
use mirror_core::volume::config::{PeerLoss, QueueFull};
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{DiskState, Message, Mode};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Virtual time in which a write that needs nobody else is answered.
const MOMENT_MS: u64 = 20;
const UNIT_BYTES: u64 = 4096;

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        peer_loss: PeerLoss::Hold,
        ..Settings::quiet()
    }
}

fn pair(mode: Mode) -> World {
    World::pair(21, settings(mode))
}

/// From now on nothing that changes data gets to the peer. The link stands.
fn hold_writes(world: &mut World) {
    world.network.hold = Some(Box::new(|from, message: &Message| {
        from == 0 && matches!(message, Message::Write { .. } | Message::Flush { .. })
    }));
}

fn is_answered(world: &World, id: RequestId) -> bool {
    world.answers.get(&id) == Some(&Answer::Done)
}

fn lag(world: &World) -> (u64, u64) {
    let status = world.status(0).expect("node 0 runs");
    (status.lag_bytes, status.lag_ms)
}

#[test]
fn async_answers_what_is_in_line_and_says_how_far_the_peer_is_behind() {
    let mut world = pair(Mode::Async);
    hold_writes(&mut world);
    world.write(0, 8..16);
    world.write(0, 8..12);
    assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
    world.run_for(200);
    let (bytes, ms) = lag(&world);
    assert_eq!(bytes, 12 * UNIT_BYTES);
    // As of the last tick.
    assert!((100..400).contains(&ms), "{ms} ms");
    world.network.hold = None;
    world.until("the peer has it", |world| world.is_settled());
    assert_eq!(lag(&world), (0, 0));
    world.end_well();
}

#[test]
fn a_failover_of_async_finds_a_prefix_and_the_old_primary_records_what_it_lost() {
    let mut world = pair(Mode::Async);
    world.write(0, 0..4);
    world.until("the peer has it", |world| lag(world).0 == 0);
    let kept = world.read(0, 0);
    hold_writes(&mut world);
    world.write(0, 0..4);
    world.write(0, 40..44);
    world.crash(0, Crash::Kill);
    world.network.hold = None;
    world.until("node 1 misses its peer", |world| {
        world.nodes[1].has_noticed("peer-lost")
    });
    assert!(world.promote(1, true, false).is_ok());
    assert_eq!(world.read(1, 0), kept, "the lost tail shows nowhere");
    world.start(0);
    world.until("both are in sync again", |world| world.is_settled());
    assert!(world.nodes[0].has_noticed("discarded"));
    world.end_well();
}

#[test]
fn a_semisync_failover_has_whatever_was_answered_flushed_or_not() {
    let mut world = pair(Mode::Semisync);
    world.nodes[1].hangs = true;
    for unit in 0..6 {
        // Received, and not on the disk: answered.
        world.write(0, unit..unit + 2);
    }
    assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
    let tags: Vec<_> = (0..7).map(|unit| world.read(0, unit)).collect();
    world.crash(0, Crash::PowerLoss);
    world.nodes[1].hangs = false;
    world.until("node 1 misses its peer", |world| {
        world.nodes[1].has_noticed("peer-lost")
    });
    assert!(world.promote(1, true, false).is_ok());
    let found: Vec<_> = (0..7).map(|unit| world.read(1, unit)).collect();
    assert_eq!(found, tags);
    world.end_well();
}

#[test]
fn semisync_waits_for_the_peer_to_receive() {
    let mut world = pair(Mode::Semisync);
    hold_writes(&mut world);
    let id = world.submit(0, Asked::write(0..1));
    let flush = world.submit(0, Asked::Flush);
    world.run_for(MOMENT_MS);
    assert!(!is_answered(&world, id) && !is_answered(&world, flush));
    world.network.hold = None;
    world.until("both are answered", |world| {
        is_answered(world, id) && is_answered(world, flush)
    });
    world.end_well();
}

#[test]
fn a_full_queue_blocks_and_goes_on_by_itself() {
    let mut world = World::pair(
        22,
        Settings {
            queue_bytes: 2 * UNIT_BYTES,
            ..settings(Mode::Async)
        },
    );
    hold_writes(&mut world);
    world.write(0, 0..1);
    world.write(0, 0..1);
    let third = world.submit(0, Asked::write(4..5));
    let fourth = world.submit(0, Asked::write(5..6));
    world.run_for(MOMENT_MS);
    assert!(!is_answered(&world, third), "the queue has no room");
    assert_eq!(lag(&world).0, 2 * UNIT_BYTES);
    world.network.hold = None;
    world.until("the rest is answered", |world| {
        is_answered(world, third) && is_answered(world, fourth)
    });
    world.end_well();
}

#[test]
fn a_degraded_peer_costs_no_waiting_and_is_not_promotable_until_it_has_caught_up() {
    let mut world = World::pair(
        23,
        Settings {
            queue_bytes: 4 * UNIT_BYTES,
            queue_full: QueueFull::Degrade,
            ..settings(Mode::Async)
        },
    );
    hold_writes(&mut world);
    for unit in 0..40 {
        world.write(0, unit..unit + 1);
    }
    assert!(world.nodes[0].has_noticed("fell-behind"));
    let status = world.status(0).expect("node 0 runs");
    assert_eq!(status.connection, Connection::Connected);
    assert_eq!(status.peer.disk, DiskState::Inconsistent);
    assert!(status.peer_outdated);
    assert!(status.lag_bytes >= 40 * UNIT_BYTES, "{}", status.lag_bytes);
    world.crash(0, Crash::Kill);
    world.network.hold = None;
    world.until("node 1 misses its peer", |world| {
        world.nodes[1].has_noticed("peer-lost")
    });
    let refused = world.promote(1, true, false).expect_err("it is a mixture");
    assert_eq!(refused.rule, "inconsistent");
    world.start(0);
    world.until("both are in sync again", |world| world.is_connected(0));
    world.end_well();
}

#[test]
fn a_peer_that_fell_behind_comes_back_into_line() {
    let mut world = World::pair(
        24,
        Settings {
            queue_bytes: 8 * UNIT_BYTES,
            queue_full: QueueFull::Degrade,
            ..settings(Mode::Async)
        },
    );
    hold_writes(&mut world);
    for unit in 0..30 {
        world.write(0, unit..unit + 1);
    }
    world.network.hold = None;
    world.until("it has caught up", |world| world.is_settled());
    let fell = |world: &World| {
        let notices = &world.nodes[0].notices;
        notices
            .iter()
            .filter(|(kind, _)| kind == "fell-behind")
            .count()
    };
    assert_eq!(fell(&world), 1);
    world.write(0, 3..5);
    world.until("it is in line", |world| world.is_settled());
    assert_eq!(fell(&world), 1);
    world.end_well();
}

#[test]
fn a_crashed_async_primary_that_nobody_replaced_is_the_truth() {
    let mut world = pair(Mode::Async);
    hold_writes(&mut world);
    world.write(0, 0..8);
    assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
    let tag = world.read(0, 3);
    world.crash(0, Crash::PowerLoss);
    world.network.hold = None;
    world.start(0);
    world.until("they have met", |world| world.is_connected(0));
    assert!(world.promote(0, false, false).is_ok());
    assert_eq!(world.read(0, 3), tag, "flushed, and on this disk alone");
    world.end_well();
}

#[test]
fn a_primary_that_leaves_with_what_the_peer_lacks_is_not_taken_for_its_equal() {
    let mut world = pair(Mode::Async);
    hold_writes(&mut world);
    world.write(0, 0..8);
    let tag = world.read(0, 3);
    world.cut(&[0, 1], Some(1));
    world.until("node 0 misses its peer", |world| {
        world.nodes[0].has_noticed("peer-lost")
    });
    let demoted = world.command(0, Command::Demote);
    assert!(matches!(demoted, Some(Ok(_))), "{demoted:?}");
    let view = world.nodes[0].durable().expect("readable metadata");
    assert!(view.superblock.peer.outdated, "it has a history of its own");
    world.network.hold = None;
    world.heal();
    world.until("both are in sync again", |world| world.is_settled());
    assert!(world.promote(1, false, false).is_ok());
    assert_eq!(world.read(1, 3), tag);
    world.end_well();
}

/// Whatever it answered last, only the peer that served has it, and that one has a generation of its own.
#[test]
fn a_primary_without_its_disk_leaves_with_no_history_of_its_own() {
    let mut world = pair(Mode::Async);
    world.nodes[1].hangs = true;
    world.write(0, 0..8);
    world.nodes[0].fail_next_write = true;
    world.submit(0, Asked::write(40..44));
    world.until("the peer serves", |world| {
        world.nodes[1].has_noticed("peer-disk-failed")
    });
    world.run_for(MOMENT_MS);
    world.crash(1, Crash::PowerLoss);
    world.until("node 0 misses its peer", |world| {
        world.nodes[0].has_noticed("peer-lost")
    });
    let demoted = world.command(0, Command::Demote);
    assert!(matches!(demoted, Some(Ok(_))), "{demoted:?}");
    world.crash(0, Crash::Kill);
    world.nodes[1].hangs = false;
    world.start(0);
    world.start(1);
    world.until("both are in sync again", |world| world.is_settled());
    world.end_well();
}

#[test]
fn an_answer_that_waits_for_the_line_to_be_cut_waits_for_the_word_about_the_peer() {
    let mut world = pair(Mode::Async);
    world.cut(&[0, 1], Some(1));
    world.until("node 0 misses its peer", |world| {
        world.nodes[0].has_noticed("peer-lost")
    });
    let id = world.submit(0, Asked::write(0..1));
    world.run_for(MOMENT_MS);
    assert!(!is_answered(&world, id), "neither sent nor in line");
    world.heal();
    world.until("it is answered", |world| is_answered(world, id));
    world.end_well();
}

#[test]
fn the_peer_begins_nothing_before_what_was_answered_before_it() {
    let mut world = pair(Mode::Async);
    world.nodes[1].hangs = true;
    world.write(0, 0..1);
    assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
    world.write(0, 8..9);
    world.run_for(MOMENT_MS);
    let disk = &world.nodes[1].data;
    assert!(disk.overlapping_write(&(0..1)).is_some(), "the first runs");
    assert!(
        disk.overlapping_write(&(8..9)).is_none(),
        "the second waits"
    );
    world.nodes[1].hangs = false;
    world.end_well();
}

#[test]
fn a_block_that_is_written_over_and_over_waits_for_no_round_trip() {
    let mut world = pair(Mode::Async);
    hold_writes(&mut world);
    for _ in 0..10 {
        world.write(0, 0..1);
    }
    assert_eq!(lag(&world).0, 10 * UNIT_BYTES);
    world.network.hold = None;
    world.end_well();
}

#[test]
fn a_limited_line_takes_what_it_may_and_no_more() {
    let mut world = World::pair(
        25,
        Settings {
            bandwidth_max: 1 << 20,
            ..settings(Mode::Async)
        },
    );
    let begin_ms = world.now_ms();
    for unit in 0..128 {
        world.write(0, unit..unit + 1);
    }
    let (bytes, _) = lag(&world);
    assert!(bytes > 64 * UNIT_BYTES, "{bytes} bytes wait in line");
    world.until("the peer has it", |world| world.is_settled());
    let ms = world.now_ms() - begin_ms;
    // Half a MiB, and a tenth of a second's worth at once.
    assert!((300..700).contains(&ms), "it took {ms} ms");
    world.end_well();
}

#[test]
fn a_disk_that_failed_since_vouches_for_nothing_that_the_peer_has_only_received() {
    let mut world = pair(Mode::Semisync);
    hold_writes(&mut world);
    let durable = Asked::Write {
        units: 0..1,
        fua: true,
    };
    let write = world.submit(0, durable);
    world.run_for(MOMENT_MS);
    let flush = world.submit(0, Asked::Flush);
    world.run_for(MOMENT_MS);
    // Both are done here and on their way when this disk turns out to be lost.
    world.nodes[0].fail_next_write = true;
    world.nodes[1].hangs = true;
    world.submit(0, Asked::write(1..2));
    world.until("the failed disk", |world| {
        world.nodes[0].has_noticed("disk-failed")
    });
    world.network.hold = None;
    world.run_for(MOMENT_MS);
    assert!(!is_answered(&world, write) && !is_answered(&world, flush));
    world.nodes[1].hangs = false;
    world.until("answers by the peer's disk", |world| {
        is_answered(world, write) && is_answered(world, flush)
    });
    world.assert_sound();
}

#[test]
fn what_an_earlier_run_of_the_peer_received_went_with_it() {
    let mut world = pair(Mode::Semisync);
    for node in [0, 1] {
        world.nodes[node].hangs = true;
    }
    let id = world.submit(0, Asked::write(0..1));
    world.run_for(MOMENT_MS);
    let arrived = world.nodes[1].data.overlapping_write(&(0..1)).is_some();
    assert!(arrived, "the peer has received it");
    world.crash(1, Crash::Kill);
    world.until("node 0 misses its peer", |world| {
        world.nodes[0].has_noticed("peer-lost")
    });
    for node in [0, 1] {
        world.nodes[node].hangs = false;
    }
    hold_writes(&mut world);
    world.start(1);
    world.until("both are connected again", |world| {
        let status = world.status(0).expect("it runs");
        status.connection == Connection::Connected
    });
    world.run_for(MOMENT_MS);
    assert!(!is_answered(&world, id));
    world.network.hold = None;
    world.until("it is answered", |world| is_answered(world, id));
    world.end_well();
}
