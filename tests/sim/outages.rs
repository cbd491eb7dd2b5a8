//! Disks that hang or fail under the mirror, clean stops, and commands that race: cases in which the
//! mirror must go on, or say why not, and never promise what nobody holds.

use mirror_core::control;
use mirror_core::request::{Answer, Failure};
use mirror_core::volume::config::PeerLoss;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{DiskState, Message, Role};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

const PROMOTE: Command = Command::Promote {
    peer_down: false,
    force: false,
    grant: None,
};

fn pair(seed: u64) -> World {
    World::pair(seed, Settings::quiet())
}

fn done(world: &mut World, node: usize, command: Command) {
    let outcome = world.command(node, command).expect("an outcome");
    assert!(outcome.is_ok(), "{command:?}: {outcome:?}");
}

#[test]
fn a_peer_whose_disk_hangs_is_lost_and_holds_up_nothing_after_that() {
    let mut world = pair(1);
    world.nodes[1].hangs = true;
    world.write(0, 0..8);
    assert!(world.nodes[0].has_noticed("peer-lost"));
    // Its daemon answers, connects again and again, and never gets to a hello.
    let start_ms = world.now_ms();
    for unit in 0..100 {
        let asked_ms = world.now_ms();
        world.write(0, unit..unit + 1);
        assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
        assert!(world.now_ms() - asked_ms < 100, "held up at {unit}");
        world.run_for(100);
    }
    assert!(world.now_ms() - start_ms > 10_000);
    world.nodes[1].hangs = false;
    world.end_well();
}

/// Otherwise an agent would wait for ever for its demotion, and nobody would serve.
#[test]
fn a_primary_that_cannot_write_its_metadata_is_one_no_more() {
    let mut world = pair(12);
    world.write(0, 0..8);
    world.nodes[0].fail_next_metadata = true;
    let outcome = world.command(0, Command::Demote).expect("an outcome");
    assert!(outcome.is_err(), "it could not be recorded: {outcome:?}");
    assert!(world.nodes[0].has_noticed("metadata-failed"));
    let status = world.status(0).expect("it runs");
    assert_eq!(status.role, control::Role::Secondary);
    done(&mut world, 0, Command::Demote);
    world.until("the other side noticed", |world| {
        let status = world.status(1).expect("it runs");
        status.connection != control::Connection::Connected
    });
    let promote = Command::Promote {
        peer_down: true,
        force: false,
        grant: None,
    };
    done(&mut world, 1, promote);
    world.assert_sound();
}

#[test]
fn promotions_that_race_make_one_primary() {
    for lead_ms in 0..6 {
        for first in [0, 1] {
            let mut world = pair(2);
            done(&mut world, 0, Command::Demote);
            world.until("both are secondary", |world| world.is_settled());
            let one = world.give(first, PROMOTE);
            world.run_for(lead_ms);
            let other = world.give(1 - first, PROMOTE);
            world.until("both commands ended", |world| {
                world.outcome(one).is_some() && world.outcome(other).is_some()
            });
            world.until("it settles", |world| world.is_settled());
            let primaries = [0, 1].map(|node| {
                world
                    .status(node)
                    .is_some_and(|status| status.role == Role::Primary)
            });
            assert!(primaries != [true, true], "two primaries, {lead_ms} ms");
            world.end_well();
        }
    }
}

#[test]
fn what_a_failed_flush_dropped_is_not_forgotten_by_a_clean_stop() {
    let mut world = pair(3);
    world.write(0, 0..16);
    world.nodes[0].fail_next_flush = true;
    // The peer is lost before it has recorded that it is the only one.
    world.network.cut_at = Some(Box::new(|_, message: &Message| {
        matches!(message, Message::Detached { .. })
    }));
    let answer = world.asked(0, Asked::Flush);
    assert_eq!(answer, Answer::Failed(Failure::Io));
    done(&mut world, 0, Command::Stop);
    let view = world.nodes[0].durable().expect("readable metadata");
    assert!(view.covers(0), "the dropped writes are on record");
    world.crash(0, Crash::PowerLoss);
    world.heal();
    world.start(0);
    world.end_well();
}

#[test]
fn a_flush_under_which_the_last_disk_fails_is_answered() {
    let mut world = pair(4);
    world.crash(1, Crash::Kill);
    world.write(0, 0..8);
    let flush = world.submit(0, Asked::Flush);
    world.nodes[0].fail_next_write = true;
    let write = world.submit(0, Asked::write(8..16));
    assert_eq!(world.answer_to(write), Some(Answer::Failed(Failure::Io)));
    assert!(world.answer_to(flush).is_some(), "a client waits for ever");
}

/// What the failed disk had done is worth nothing, and the peer never said that it has it.
#[test]
fn what_only_a_failed_disk_had_done_fails_with_the_peer_that_serves() {
    let mut world = pair(17);
    world.nodes[1].hangs = true;
    let write = world.submit(0, Asked::write(0..8));
    let flush = world.submit(0, Asked::Flush);
    world.run_for(10);
    world.nodes[0].fail_next_write = true;
    world.submit(0, Asked::write(16..24));
    world.until("the peer serves", |world| {
        world.nodes[1].has_noticed("peer-disk-failed")
    });
    world.run_for(10);
    assert_eq!(
        world.answers.get(&write),
        None,
        "the peer still works on it"
    );
    world.crash(1, Crash::Kill);
    assert_eq!(world.answer_to(write), Some(Answer::Failed(Failure::Io)));
    assert_eq!(world.answer_to(flush), Some(Answer::Failed(Failure::Io)));
    world.assert_sound();
}

#[test]
fn under_hold_a_clean_stop_of_the_peer_is_word_enough() {
    let settings = Settings {
        peer_loss: PeerLoss::Hold,
        ..Settings::quiet()
    };
    let mut world = World::pair(5, settings);
    done(&mut world, 1, Command::Stop);
    world.crash(1, Crash::Kill);
    world.write(0, 0..8);
    world.start(1);
    world.end_well();
}

/// The roles were swapped on a link that stands, so each side was the other's follower at a time.
#[test]
fn after_a_switchover_a_failed_disk_is_served_by_the_peer_for_good() {
    let mut world = pair(16);
    world.write(0, 0..8);
    done(&mut world, 0, Command::Demote);
    world.until("the demotion is heard of", |world| {
        let status = world.status(1);
        status.is_some_and(|status| status.peer.role == control::Role::Secondary)
    });
    done(&mut world, 1, PROMOTE);
    world.write(1, 0..4);
    world.nodes[1].fail_next_write = true;
    world.write(1, 2..4);
    let failed = |world: &World| {
        let status = world.status(1);
        status.is_some_and(|status| status.disk == DiskState::Failed)
    };
    assert!(failed(&world));
    // Longer than what the quiet flush of the other side waits.
    for unit in 0..12 {
        world.write(1, unit..unit + 1);
        assert_eq!(world.asked(1, Asked::Flush), Answer::Done);
        world.run_for(1_000);
    }
    assert!(failed(&world) && world.is_connected(1));
    let newest = world.nodes[0].data.current(3);
    assert_eq!(world.read(1, 3), newest);
}

/// Otherwise the only good copy would be given up for want of room for a second.
#[test]
fn a_block_that_is_given_back_in_vain_stays_good_at_the_peer() {
    let mut world = pair(18);
    world.write(0, 0..8);
    let kept = world.nodes[1].data.current(3);
    world.nodes[0].data.spoil(3);
    world.nodes[0].full_next_write = true;
    assert_eq!(world.read(0, 3), kept);
    world.until("the disk is full", |world| !world.nodes[0].full_next_write);
    assert_eq!(
        world.read(0, 3),
        kept,
        "from the peer again, and given back"
    );
    let status = world.status(0).expect("it runs");
    assert_eq!((status.out_of_sync_bytes, status.sync), (0, None));
    world.end_well();
}

/// It has all that was answered, flushed by itself as it stopped; the primary that died had not flushed.
#[test]
fn a_clean_restart_of_the_survivor_loses_nothing_that_the_dead_primary_lost() {
    let mut world = pair(17);
    world.write(0, 0..8);
    assert_eq!(world.asked(0, Asked::Flush), Answer::Done);
    world.write(0, 2..6);
    let newest = world.nodes[1].data.current(3);
    world.crash(0, Crash::PowerLoss);
    done(&mut world, 1, Command::Stop);
    world.until("it has restarted", |world| {
        let status = world.status(1);
        status.is_some_and(|status| status.connection == control::Connection::Connecting)
    });
    world.start(0);
    world.until("both sides are in sync", |world| world.is_settled());
    for node in [0, 1] {
        assert_eq!(world.nodes[node].data.current(3), newest, "node {node}");
    }
    world.end_well();
}

#[test]
fn a_disk_that_fails_during_a_verify_is_served_by_the_peer() {
    let mut world = pair(6);
    world.write(0, 0..8);
    done(&mut world, 0, Command::Verify { repair: false });
    world.nodes[0].fail_next_write = true;
    world.write(0, 2..4);
    assert!(
        world
            .status(0)
            .is_some_and(|status| status.disk == DiskState::Failed)
    );
    let newest = world.nodes[1].data.current(3);
    assert_eq!(world.read(0, 3), newest);
}

#[test]
fn a_paused_resync_stays_paused_over_a_reconnect() {
    let settings = Settings {
        resync_in_flight: 1,
        ..Settings::quiet()
    };
    let mut world = World::pair(7, settings);
    world.crash(1, Crash::Kill);
    for extent in 0..8 {
        let unit = world.extent(extent);
        world.write(0, unit..unit + 16);
    }
    world.start(1);
    let paused = |world: &World, node: usize| {
        world
            .status(node)
            .and_then(|status| status.sync)
            .is_some_and(|sync| sync.paused)
    };
    world.until("the resync runs", |world| {
        world.status(0).is_some_and(|status| status.sync.is_some())
    });
    done(&mut world, 0, Command::Pause);
    world.cut(&[0, 1], None);
    world.until("the loss is noticed", |world| {
        !world.is_connected(0) && !world.is_connected(1)
    });
    world.heal();
    world.until("it is paused on both sides again", |world| {
        paused(world, 0) && paused(world, 1)
    });
    let left = world.status(0).map(|status| status.out_of_sync_bytes);
    world.run_for(1_000);
    assert_eq!(world.status(0).map(|status| status.out_of_sync_bytes), left);
    done(&mut world, 0, Command::Resume);
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn work_moves_away_from_a_primary_whose_disk_failed() {
    let mut world = pair(8);
    world.write(0, 0..8);
    world.nodes[0].fail_next_write = true;
    world.write(0, 2..4);
    done(&mut world, 0, Command::Demote);
    world.until("the other side knows", |world| {
        world
            .status(1)
            .is_some_and(|status| status.peer.role == Role::Secondary)
    });
    done(&mut world, 1, PROMOTE);
    world.write(1, 3..7);
    // The disk is replaced, here by the old one that works again, and everything comes back.
    world.crash(0, Crash::Kill);
    world.start(0);
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn a_side_whose_only_disk_failed_is_current_again_once_both_are_equal() {
    let mut world = pair(10);
    world.crash(1, Crash::Kill);
    world.write(0, 0..8);
    world.nodes[0].fail_next_write = true;
    assert_eq!(
        world.asked(0, Asked::write(8..16)),
        Answer::Failed(Failure::Io)
    );
    world.crash(0, Crash::Kill);
    world.start(0);
    world.start(1);
    world.until("both are up to date and equal", |world| world.is_settled());
    for node in [0, 1] {
        let status = world.status(node).expect("up");
        assert_eq!(
            status.peer.disk,
            DiskState::UpToDate,
            "as node {node} sees it"
        );
    }
    world.end_well();
}

#[test]
fn what_the_flush_of_a_demotion_dropped_is_on_record_before_the_log_goes() {
    let mut world = pair(11);
    world.write(0, 0..16);
    world.nodes[0].fail_next_flush = true;
    // Nothing of the detachment reaches the peer before the demotion ends.
    world.network.hold = Some(Box::new(|_, message: &Message| {
        matches!(message, Message::Detached { .. })
    }));
    done(&mut world, 0, Command::Demote);
    let view = world.nodes[0].durable().expect("readable metadata");
    assert!(view.covers(0), "the dropped writes are on record");
    world.network.hold = None;
    world.crash(0, Crash::Kill);
    world.start(0);
    world.end_well();
}

#[test]
fn under_hold_a_write_on_its_way_to_a_peer_that_stops_cleanly_is_answered() {
    let settings = Settings {
        peer_loss: PeerLoss::Hold,
        ..Settings::quiet()
    };
    let mut world = World::pair(12, settings);
    world.network.hold = Some(Box::new(|from, message: &Message| {
        from == 0 && matches!(message, Message::Write { .. })
    }));
    let write = world.submit(0, Asked::write(0..8));
    world.run_for(5);
    let stop = world.give(1, Command::Stop);
    world.until("the peer stopped", |world| world.outcome(stop).is_some());
    world.network.hold = None;
    assert_eq!(world.answer_to(write), Some(Answer::Done));
    world.crash(1, Crash::Kill);
    world.start(1);
    world.end_well();
}
