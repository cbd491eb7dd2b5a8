//! Resyncs: cut by a crash of either side or of the link, overtaken by newer writes, stopped by commands
//! and by blocks that cannot be read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use mirror_core::control::SyncKind;
use mirror_core::request::Answer;
use mirror_core::units::{EXTENT_BYTES, REQUEST_BYTES_MAX};
use mirror_core::volume::config::Rates;
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{InitialSync, Message};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Node 1 misses writes, comes back, and the resync of them is under way.
fn resyncing(seed: u64) -> World {
    let settings = Settings {
        resync_in_flight: 1,
        ..Settings::quiet()
    };
    let mut world = World::pair(seed, settings);
    world.crash(1, Crash::Kill);
    for extent in 0..8 {
        let unit = world.extent(extent);
        world.write(0, unit..unit + 16);
    }
    world.start(1);
    world.until("some of the resync is done", |world| {
        world.status(1).is_some_and(|status| {
            status
                .sync
                .is_some_and(|sync| sync.done_bytes > 0 && sync.done_bytes < sync.total_bytes)
        })
    });
    world
}

#[test]
fn a_crash_of_the_target_in_the_middle_of_a_resync_is_made_good() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut world = resyncing(3);
        world.crash(1, crash);
        world.start(1);
        world.until("the resync ends", |world| world.is_settled());
        world.end_well();
    }
}

#[test]
fn a_crash_of_the_source_in_the_middle_of_a_resync_is_made_good() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut world = resyncing(3);
        world.crash(0, crash);
        world.until("the loss is noticed", |world| !world.is_connected(1));
        let refused = world
            .promote(1, true, false)
            .expect_err("a mixture of old and new");
        assert_eq!(refused.rule, "inconsistent");
        world.start(0);
        world.end_well();
    }
}

#[test]
fn a_stale_resync_write_does_not_land_over_a_newer_write() {
    let mut world = resyncing(4);
    let held = Rc::new(RefCell::new(Vec::new()));
    let holding = Rc::clone(&held);
    world.network.hold = Some(Box::new(move |_, message| {
        let Message::ResyncData { range, .. } = message else {
            return false;
        };
        holding.borrow_mut().push(range.extent());
        true
    }));
    world.run_for(20);
    let overtaken = *held.borrow().first().expect("a resync write is on its way");
    let newer: Vec<_> = (0..8)
        .map(|extent| {
            let unit = world.extent(extent);
            world.submit(0, Asked::write(unit..unit + 16))
        })
        .collect();
    world.run_for(20);
    assert_eq!(
        world.answers.get(&newer[overtaken.0 as usize]),
        None,
        "the newer write waits for the older one to land"
    );
    world.network.hold = None;
    for id in newer {
        assert_eq!(world.answer_to(id), Some(Answer::Done));
    }
    world.until("the resync ends", |world| world.is_settled());
    world.end_well();
}

#[test]
fn a_stale_repair_does_not_land_over_a_newer_write() {
    let mut world = World::pair(6, Settings::quiet());
    world.write(0, 40..44);
    world.nodes[0].data.spoil(41);
    world.network.hold = Some(Box::new(|_, message| {
        matches!(message, Message::ReadReply { .. })
    }));
    let read = world.submit(0, Asked::read(40..44));
    world.run_for(20);
    let newer = world.submit(0, Asked::write(40..44));
    world.run_for(20);
    world.network.hold = None;
    assert!(matches!(world.answer_to(read), Some(Answer::Data(_))));
    assert_eq!(world.answer_to(newer), Some(Answer::Done));
    let content = world.nodes[1].data.current(41);
    assert_eq!(world.read(0, 41), content);
    world.end_well();
}

// --- a full copy that is cut -------------------------------------------------------------------

/// The first sync, of which some is done and recorded.
fn first_syncing() -> World {
    let settings = Settings {
        initial_sync: InitialSync::Full,
        resync_in_flight: 1,
        checkpoint_bytes: 1 << 20,
        ..Settings::quiet()
    };
    let mut world = World::founded(5, settings);
    world.until("half of the first sync is done", |world| {
        world.status(1).is_some_and(|status| {
            status.sync.is_some_and(|sync| {
                assert_eq!(sync.kind, SyncKind::Full);
                sync.total_bytes > 0 && sync.done_bytes >= sync.total_bytes / 2
            })
        })
    });
    world
}

/// Whatever cut it, the copy goes on with what is left instead of starting over.
fn check_goes_on(mut world: World) {
    world.until("the copy goes on", |world| {
        let size_bytes = world.settings.size_bytes;
        world
            .status(1)
            .and_then(|status| status.sync)
            .is_some_and(|sync| {
                assert_eq!(sync.kind, SyncKind::Full);
                assert!(
                    sync.total_bytes == 0 || sync.total_bytes <= size_bytes * 5 / 8,
                    "{} of {size_bytes} bytes are copied again",
                    sync.total_bytes
                );
                sync.total_bytes > 0
            })
    });
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn a_full_copy_whose_target_crashes_goes_on_where_it_was() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut world = first_syncing();
        world.crash(1, crash);
        world.start(1);
        check_goes_on(world);
    }
}

#[test]
fn a_full_copy_whose_source_crashes_goes_on_where_it_was() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut world = first_syncing();
        world.crash(0, crash);
        world.until("the loss is noticed", |world| !world.is_connected(1));
        world.start(0);
        check_goes_on(world);
    }
}

#[test]
fn a_full_copy_whose_link_is_cut_goes_on_with_what_was_written_meanwhile() {
    let mut world = first_syncing();
    world.cut(&[0, 1], None);
    world.until("the loss is noticed", |world| {
        !world.is_connected(0) && !world.is_connected(1)
    });
    world.write(0, 8..16);
    world.heal();
    check_goes_on(world);
}

#[test]
fn a_target_that_was_promoted_by_force_is_copied_anew() {
    let mut world = first_syncing();
    world.cut(&[0, 1], None);
    world.until("the loss is noticed", |world| !world.is_connected(1));
    world.crash(0, Crash::Kill);
    world.promote(1, true, true).expect("forced");
    let view = world.nodes[1].durable().expect("readable metadata");
    assert!(view.superblock.peer.full_sync.is_none());
}

// --- a resync that is stopped while the link stands --------------------------------------------

#[test]
fn a_demotion_in_the_middle_of_a_resync_only_interrupts_it() {
    let mut world = resyncing(6);
    let demoted = world.command(0, Command::Demote).expect("an outcome");
    assert!(demoted.is_ok(), "{demoted:?}");
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn a_demotion_between_the_last_block_and_the_end_of_a_resync_only_interrupts_it() {
    let mut world = resyncing(6);
    world.network.hold = Some(Box::new(|_, message| {
        matches!(message, Message::ResyncDone { .. })
    }));
    world.until("nothing is left to copy", |world| {
        world
            .status(0)
            .is_some_and(|status| status.out_of_sync_bytes == 0)
    });
    let demote = world.give(0, Command::Demote);
    world.run_for(50);
    world.network.hold = None;
    world.until("the demotion ends", |world| world.outcome(demote).is_some());
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn an_unreadable_block_of_the_source_holds_up_nothing_but_itself() {
    let mut world = resyncing(7);
    let bad = world.extent(7) + 3;
    world.nodes[0].data.spoil(bad);
    world.until("the walk gives the block up", |world| {
        world.nodes[0].has_noticed("resync-stopped")
    });
    let status = world.status(0).expect("up");
    assert_eq!(
        status.out_of_sync_bytes, 4096,
        "all but the block is copied"
    );
    world.write(0, bad..bad + 1);
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

// --- growing -----------------------------------------------------------------------------------

fn growing() -> World {
    let settings = Settings {
        // Past the end of the first bitmap page.
        room_bytes: 40 * EXTENT_BYTES,
        ..Settings::quiet()
    };
    let mut world = World::pair(8, settings);
    world.write(0, 0..8);
    for node in [0, 1] {
        world.grow(node);
    }
    world
}

fn has_grown(world: &World) -> bool {
    let size_bytes = world.settings.size_bytes + world.settings.room_bytes;
    [0, 1].iter().all(|node| {
        world
            .status(*node)
            .is_some_and(|status| status.size_bytes == size_bytes)
    })
}

#[test]
fn a_mirror_grows_online() {
    let mut world = growing();
    let refused = world.command(1, Command::Resize).expect("an outcome");
    let refusal = refused.expect_err("the new part is copied from the other side");
    assert_eq!(refusal.rule, "not-the-source");
    let resized = world.command(0, Command::Resize).expect("an outcome");
    assert!(resized.is_ok(), "{resized:?}");
    world.until("both have the new size", |world| {
        has_grown(world) && world.is_settled()
    });
    assert!(!world.nodes[0].has_noticed("peer-lost"));
    world.end_well();
}

#[test]
fn a_resize_that_only_one_side_recorded_is_taken_up_by_the_next_handshake() {
    for crash in [None, Some(0), Some(1)] {
        let mut world = growing();
        world.network.cut_at = Some(Box::new(|_, message| {
            matches!(message, Message::ResizeCommitted { .. })
        }));
        let resize = world.give(0, Command::Resize);
        world.until("the link is cut", |world| world.outcome(resize).is_some());
        assert!(world.outcome(resize).is_some_and(Result::is_err));
        if let Some(node) = crash {
            world.crash(node, Crash::Kill);
            world.start(node);
        }
        world.heal();
        world.until("both have the new size", |world| {
            has_grown(world) && world.is_settled()
        });
        world.end_well();
    }
}

#[test]
fn what_a_verify_found_is_copied_by_the_next_primary() {
    let mut world = World::pair(9, Settings::quiet());
    world.write(0, 40..44);
    world.nodes[1].data.spoil(41);
    let verify = Command::Verify { repair: false };
    assert!(world.command(0, verify).is_some_and(|done| done.is_ok()));
    world.until("the verify ends", |world| {
        world.nodes[0].has_noticed("verify-finished")
    });
    assert!(
        world
            .status(0)
            .is_some_and(|status| status.out_of_sync_bytes > 0)
    );
    world.nodes[1].data.mend();
    let demote = world.command(0, Command::Demote).expect("an outcome");
    assert!(demote.is_ok(), "{demote:?}");
    world.run_for(10);
    world.promote(1, false, false).expect("up to date");
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

#[test]
fn an_order_to_copy_everything_outlives_the_resync_that_is_ending() {
    let mut world = resyncing(10);
    world.network.hold = Some(Box::new(|_, message| {
        matches!(message, Message::ResyncDone { .. })
    }));
    world.until("nothing is left to copy", |world| {
        world
            .status(0)
            .is_some_and(|status| status.out_of_sync_bytes == 0)
    });
    let full = Command::Resync {
        full: true,
        discard_local: false,
    };
    let ordered = world.give(0, full);
    world.network.hold = None;
    world.until("the order is taken", |world| {
        world.outcome(ordered).is_some()
    });
    world.until("everything is copied", |world| {
        world.status(0).is_some_and(|status| {
            status
                .sync
                .is_some_and(|sync| sync.kind == SyncKind::Full && sync.total_bytes > 0)
        })
    });
    world.until("both sides are in sync", |world| world.is_settled());
    world.end_well();
}

// --- among clients -----------------------------------------------------------------------------

/// Where each operation of a disk takes 10 ms, a step and its rest take 80 and move 12 MiB/s, and eight places 400 MiB/s.
const STEP_AND_REST_MS: u64 = 80;
const RATE_AMONG_CLIENTS: u64 = 40 << 20;

/// Bytes of a resync, and how long it took beside clients that had eight writes under way all the while.
fn resync_among_clients(min: u64) -> (u64, u64) {
    const DIRTY_BYTES: u64 = 64 << 20;
    let settings = Settings {
        size_bytes: 32 * EXTENT_BYTES,
        log_slots: 32,
        resync_in_flight: 8,
        resync_rates: Rates { min, max: 0 },
        checkpoint_bytes: 64 << 20,
        disk_us: (10_000, 10_000),
        peer_timeout_ms: 2_000,
        ..Settings::quiet()
    };
    let mut world = World::pair(11, settings);
    world.crash(1, Crash::Kill);
    world.until("the loss is noticed", |world| !world.is_connected(0));
    for half in 0..64 {
        let unit = world.extent(half / 2) + half % 2 * 256;
        world.write(0, unit..unit + 256);
    }
    world.start(1);
    world.until("the resync begins", |world| {
        let sync = world.status(0).and_then(|status| status.sync);
        sync.is_some_and(|sync| sync.total_bytes == DIRTY_BYTES)
    });
    let began_ms = world.now_ms();
    // In the other half of each extent, so that nobody waits for a step of the resync.
    let mut next = 0;
    let mut write = move |world: &mut World| {
        next += 1;
        let unit = world.extent(next % 32) + 512 + next / 32 % 32;
        world.submit(0, Asked::write(unit..unit + 1))
    };
    let mut under_way: Vec<_> = (0..8).map(|_| write(&mut world)).collect();
    let mut said = BTreeSet::new();
    world.until("the resync ends", |world| {
        for id in &mut under_way {
            if world.answers.contains_key(id) {
                *id = write(world);
            }
        }
        said.extend(what_decides(world));
        world
            .status(0)
            .is_some_and(|status| status.sync.is_none() && status.out_of_sync_bytes == 0)
    });
    let took_ms = world.now_ms() - began_ms;
    assert!(said.contains("it yields to clients"), "{said:?}");
    let has_insisted = said.contains("it is behind and does not yield to clients");
    assert_eq!(has_insisted, min > 0, "{said:?}");
    world.until("the clients are done", |world| world.is_settled());
    world.end_well();
    (DIRTY_BYTES, took_ms)
}

/// What `explain` says of the pace of node 0.
fn what_decides(world: &World) -> Option<String> {
    let facts = world.nodes[0].volume.as_ref()?.explain().facts;
    let fact = facts
        .iter()
        .find(|fact| fact.starts_with("the resync moves"))?;
    let (_, why) = fact.split_once(": ")?;
    Some(why.split(';').next()?.to_owned())
}

#[test]
fn clients_that_never_pause_do_not_keep_a_resync_from_its_minimum() {
    let (bytes, took_ms) = resync_among_clients(RATE_AMONG_CLIENTS);
    // It may be late by what the minimum looks back on, a step, and what the disks record at the end.
    let longest_ms = bytes * 1000 / RATE_AMONG_CLIENTS + 2_000;
    assert!(took_ms <= longest_ms, "{took_ms} ms of {longest_ms}");
    // Otherwise it yields for good, and rests no longer than it has to.
    let (_, without_ms) = resync_among_clients(0);
    let yielding_ms = bytes / u64::from(REQUEST_BYTES_MAX) * STEP_AND_REST_MS;
    assert!(
        without_ms > longest_ms && (yielding_ms..yielding_ms * 5 / 4).contains(&without_ms),
        "{without_ms} ms without a minimum"
    );
}
