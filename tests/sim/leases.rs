//! Answers under an arbiter (A3): a lease that runs out beside a peer and alone, a node that sleeps through
//! its own replacement, an arbiter that restarts or loses its file, and the orders of an agent.

use mirror_core::request::{Answer, Failure};
use mirror_core::units::RequestId;
use mirror_core::volume::config::{LeaseCheck, PeerLoss};
use mirror_core::volume::event::{Command, Grant};
use mirror_core::wire::message::{DiskState, Message, Mode, Role};
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::Crash;
use mirror_tests::sim::network::{NodeIndex, other};
use mirror_tests::sim::run::{Kind, run_seed};
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

const CHECKS: [LeaseCheck; 2] = [LeaseCheck::Clock, LeaseCheck::RoundTrip];
const FIXED: std::ops::Range<u64> = 0..150;
const FIXED_AHEAD: std::ops::Range<u64> = 0..75;
/// Longer than a lease and every word of a peer.
const LONG_MS: u64 = 4_000;
/// Long enough for whatever needs nobody else.
const MOMENT_MS: u64 = 20;

/// Two nodes in sync under an arbiter, and the one that serves.
fn pair(seed: u64, check: LeaseCheck) -> (World, NodeIndex) {
    World::arbitrated_pair(seed, Settings::arbitrated(check))
}

fn answered(world: &World, id: RequestId) -> Option<Answer> {
    world.answers.get(&id).cloned()
}

fn refusal(world: &mut World, node: NodeIndex, command: Command) -> String {
    let outcome = world.command(node, command).expect("an outcome");
    world.assert_sound();
    outcome.expect_err("a refusal").rule
}

fn done(world: &mut World, node: NodeIndex, command: Command) {
    let outcome = world.command(node, command).expect("an outcome");
    world.assert_sound();
    assert!(outcome.is_ok(), "{command:?}: {outcome:?}");
}

#[test]
fn a_lease_that_runs_out_beside_a_peer_holds_nothing_up() {
    for check in CHECKS {
        let (mut world, node) = pair(1, check);
        world.arbiter.up = false;
        world.run_for(LONG_MS);
        assert!(world.nodes[node].has_noticed("lease-expired"));
        let status = world.status(node).expect("it runs");
        assert!(!status.frozen && status.lease.is_some_and(|lease| !lease.live));
        let start_ms = world.now_ms();
        for unit in 0..50 {
            world.write(node, unit..unit + 1);
            world.read(node, unit);
            assert_eq!(world.asked(node, Asked::Flush), Answer::Done);
        }
        assert!(world.now_ms() - start_ms < 1_000, "{check:?} is slow");
        world.end_well();
    }
}

#[test]
fn alone_and_without_a_lease_nothing_is_answered_until_it_is_renewed() {
    for check in CHECKS {
        let (mut world, node) = pair(2, check);
        world.arbiter.cut[other(node)] = true;
        world.cut(&[0, 1], Some(10));
        world.write(node, 0..4);
        assert!(world.nodes[node].has_noticed("went-alone"));
        world.arbiter.up = false;
        world.run_for(LONG_MS);
        let ids = [Asked::write(0..4), Asked::read(0..4), Asked::Flush]
            .map(|asked| world.submit(node, asked));
        world.run_for(LONG_MS);
        assert!(ids.iter().all(|id| answered(&world, *id).is_none()));
        assert!(world.status(node).is_some_and(|status| status.frozen));
        assert!(world.nodes[node].has_noticed("frozen"));
        let now_us = world.arbiter_us();
        world.arbiter.restart(now_us);
        world.until("all is answered", |world| {
            ids.iter().all(|id| {
                answered(world, *id).is_some_and(|answer| !matches!(answer, Answer::Failed(_)))
            })
        });
        assert!(world.nodes[node].has_noticed("thawed"));
        world.end_well();
    }
}

/// The node sleeps with a request on its way, the other takes over and answers; what the first says when
/// it wakes.
fn sleep_through(seed: u64, check: LeaseCheck, stops_clock: bool) {
    let (mut world, node) = pair(seed, check);
    let peer = other(node);
    world.write(node, 0..4);
    let early = [Asked::read(0..4), Asked::write(8..12)].map(|asked| world.submit(node, asked));
    world.pause(node, stops_clock);
    world.until("the other serves", |world| world.nodes[peer].serving);
    world.write(peer, 0..4);
    let late = [Asked::read(0..4), Asked::write(0..4)].map(|asked| world.submit(node, asked));
    world.run_for(100);
    world.wake(node);
    world.until("the first steps aside", |world| !world.nodes[node].serving);
    world.until("every request has ended", |world| {
        early
            .iter()
            .chain(&late)
            .all(|id| answered(world, *id).is_some())
    });
    let failed = |id: &RequestId| matches!(answered(&world, *id), Some(Answer::Failed(_)));
    assert!(
        late.iter().all(failed),
        "{check:?} answers what came too late"
    );
    assert!(
        stops_clock || early.iter().all(failed),
        "{check:?} answers after it slept"
    );
    world.end_well();
}

/// The peer has recorded that it is inconsistent, and nobody knows how long a resync takes.
#[test]
fn what_waited_for_proof_when_the_line_was_cut_does_not_wait_for_a_resync() {
    let mut settings = Settings::arbitrated(LeaseCheck::RoundTrip);
    settings.mode = Mode::Semisync;
    settings.peer_loss = PeerLoss::Hold;
    let (mut world, node) = World::arbitrated_pair(9, settings);
    let peer = other(node);
    world.arbiter.up = false;
    world.network.hold = Some(Box::new(|_, message: &Message| {
        matches!(message, Message::Ack { .. } | Message::Confirmed { .. })
    }));
    world.run_for(LONG_MS);
    let id = world.submit(node, Asked::write(0..4));
    world.run_for(MOMENT_MS);
    assert_eq!(answered(&world, id), None, "nobody has proved the lease");
    world.network.hold = Some(Box::new(|_, message: &Message| {
        matches!(message, Message::ResyncData { .. })
    }));
    world.cut(&[0, 1], None);
    world.until("the loss is noticed", |world| {
        !world.is_connected(node) && !world.is_connected(peer)
    });
    world.heal();
    world.until("the resync runs", |world| {
        world
            .status(node)
            .is_some_and(|status| status.sync.is_some())
    });
    let now_us = world.arbiter_us();
    world.arbiter.restart(now_us);
    world.until("the answer", |world| answered(world, id).is_some());
    assert_eq!(answered(&world, id), Some(Answer::Done));
    let status = world.status(node).expect("it runs");
    assert!(status.sync.is_some() && status.peer_outdated);
    world.network.hold = None;
    world.end_well();
}

/// An async primary under an arbiter, and it; what it answered last, four units, its peer does not get.
fn async_with_a_tail(seed: u64) -> (World, NodeIndex) {
    let mut settings = Settings::arbitrated(LeaseCheck::Clock);
    settings.mode = Mode::Async;
    let (mut world, node) = World::arbitrated_pair(seed, settings);
    world.network.hold = Some(Box::new(move |from, message: &Message| {
        from == node && matches!(message, Message::Write { .. })
    }));
    world.write(node, 0..4);
    (world, node)
}

/// It goes on with its gate shut, and nobody else can say what its peer lacks.
#[test]
fn an_async_primary_that_died_knows_of_its_tail_when_it_is_reinstated_alone() {
    let (mut world, node) = async_with_a_tail(10);
    let tag = world.read(node, 2);
    world.arbiter.up = false;
    world.cut(&[0, 1], None);
    world.crash(node, Crash::Kill);
    world.network.hold = None;
    world.start(node);
    done(&mut world, node, Command::Reinstate { alone: true });
    let lag = world.status(node).map(|status| status.lag_bytes);
    assert!(lag >= Some(4 * 4096), "{lag:?}");
    done(&mut world, node, Command::Demote);
    world.heal();
    let now_us = world.arbiter_us();
    world.arbiter.restart(now_us);
    world.until("they are in sync and one serves", |world| {
        world.serving().is_some() && world.is_settled()
    });
    let serving = world.serving().expect("one serves");
    assert_eq!(world.read(serving, 2), tag);
    world.end_well();
}

#[test]
fn an_async_primary_that_is_superseded_still_says_what_its_peer_lacks() {
    let (mut world, node) = async_with_a_tail(11);
    let lag = |world: &World| world.status(node).map(|status| status.lag_bytes);
    assert_eq!(lag(&world), Some(4 * 4096));
    let epoch = world.status(node).expect("it runs").epoch + 1;
    world.give(node, Command::EpochSeen { epoch });
    world.until("it stops", |world| {
        world.nodes[node].has_noticed("superseded")
    });
    assert_eq!(lag(&world), Some(4 * 4096));
}

#[test]
fn a_node_that_slept_past_its_lease_answers_nothing() {
    for check in CHECKS {
        for seed in 10..20 {
            sleep_through(seed, check, false);
        }
    }
}

#[test]
fn a_flush_that_runs_when_its_node_steps_aside_ends_with_it() {
    let (mut world, node) = pair(11, LeaseCheck::Clock);
    world.cut(&[0, 1], Some(10));
    world.until("the link is lost", |world| !world.is_connected(node));
    let id = world.submit(node, Asked::Flush);
    assert_eq!(answered(&world, id), None, "it runs");
    done(&mut world, node, Command::EpochSeen { epoch: 77 });
    assert!(matches!(answered(&world, id), Some(Answer::Failed(_))));
    world.end_well();
}

#[test]
fn a_machine_whose_clocks_stood_still_answers_nothing_stale() {
    for seed in 20..30 {
        sleep_through(seed, LeaseCheck::RoundTrip, true);
    }
}

#[test]
fn an_arbiter_that_restarted_counts_every_lease_anew() {
    let (mut world, node) = pair(3, LeaseCheck::Clock);
    let epoch = world.arbiter.epoch();
    world.pause(node, false);
    world.run_for(900);
    let now_us = world.arbiter_us();
    world.arbiter.restart(now_us);
    world.run_for(900);
    assert_eq!(world.arbiter.epoch(), epoch, "a lease may still live");
    world.until("the other is granted it then", |world| {
        world.arbiter.epoch() > epoch
    });
    world.wake(node);
    world.end_well();
}

#[test]
fn an_arbiter_that_lost_its_file_grants_nothing_before_both_nodes_have_told_it() {
    for check in CHECKS {
        let (mut world, node) = pair(4, check);
        let peer = other(node);
        let epoch = world.arbiter.epoch();
        // The first goes on alone, on record; then the record is lost, and the first with it.
        world.arbiter.cut[peer] = true;
        world.cut(&[0, 1], Some(10));
        world.write(node, 0..4);
        world.arbiter.lose_file();
        world.pause(node, false);
        world.arbiter.cut[peer] = false;
        world.run_for(2 * LONG_MS);
        assert!(!world.nodes[peer].serving, "nobody has said who is current");
        world.wake(node);
        world.heal();
        world.until("the lease counts again", |world| {
            world.arbiter.epoch() >= epoch && world.serving().is_some() && world.is_settled()
        });
        world.write(node, 0..4);
        world.end_well();
    }
}

#[test]
fn nobody_is_promoted_without_a_grant_or_on_an_old_one() {
    let (mut world, node) = pair(5, LeaseCheck::Clock);
    world.arbiter.up = false;
    let peer = other(node);
    let promote = |force, grant| Command::Promote {
        peer_down: true,
        force,
        grant,
    };
    assert_eq!(refusal(&mut world, peer, promote(false, None)), "no-grant");
    assert_eq!(refusal(&mut world, peer, promote(true, None)), "no-grant");
    let grant = Grant {
        epoch: world.arbiter.epoch(),
        deadline_ms: u64::MAX,
    };
    assert_eq!(
        refusal(&mut world, peer, promote(true, Some(grant))),
        "grant-is-old"
    );
    let grant = Grant {
        epoch: grant.epoch + 1,
        deadline_ms: 1,
    };
    assert_eq!(
        refusal(&mut world, peer, promote(true, Some(grant))),
        "grant-is-over"
    );
    world.end_well();
}

#[test]
fn a_frozen_mirror_waits_for_the_word_and_a_failing_one_gives_errors() {
    for check in CHECKS {
        let (mut world, node) = pair(6, check);
        done(&mut world, node, Command::Freeze);
        let id = world.submit(node, Asked::read(0..4));
        world.run_for(LONG_MS);
        assert_eq!(answered(&world, id), None, "a renewal thaws nothing");
        assert_eq!(refusal(&mut world, node, Command::Demote), "frozen");
        done(&mut world, node, Command::Thaw);
        assert!(matches!(world.answer_to(id), Some(Answer::Data(_))));

        done(&mut world, node, Command::Freeze);
        let id = world.submit(node, Asked::write(0..4));
        done(&mut world, node, Command::FailIo);
        let failed = Some(Answer::Failed(Failure::Io));
        assert_eq!(world.answer_to(id), failed);
        let id = world.submit(node, Asked::read(0..4));
        assert_eq!(world.answer_to(id), failed);
        done(&mut world, node, Command::Demote);
        world.until("somebody serves", |world| {
            world.serving().is_some() && world.is_settled()
        });
        world.end_well();
    }
}

#[test]
fn what_waited_while_it_was_overwritten_is_answered_where_the_peer_got_the_outcome_alone() {
    for check in CHECKS {
        let (mut world, node) = pair(9, check);
        let peer = other(node);
        world.arbiter.cut[peer] = true;
        world.cut(&[0, 1], Some(10));
        world.write(node, 0..4);
        done(&mut world, node, Command::Freeze);
        let ids = [Asked::write(8..12), Asked::write(8..16)].map(|asked| world.submit(node, asked));
        world.until("this side has both", |world| {
            world.nodes[node].data.is_idle()
        });
        world.heal();
        world.until("the peer has what is left of them", |world| {
            world.is_connected(peer)
                && world
                    .status(peer)
                    .is_some_and(|status| status.disk == DiskState::UpToDate)
        });
        assert!(ids.iter().all(|id| answered(&world, *id).is_none()));
        done(&mut world, node, Command::Thaw);
        for id in ids {
            assert_eq!(world.answer_to(id), Some(Answer::Done));
        }
        world.end_well();
    }
}

#[test]
fn a_peer_that_has_said_hello_is_not_called_down() {
    let (mut world, node) = pair(10, LeaseCheck::Clock);
    world.arbiter.cut = [true; 2];
    world.cut(&[0, 1], Some(10));
    world.until("the link is lost", |world| !world.is_connected(node));
    let greetings = |world: &World| {
        let notices = world.nodes[node].notices.iter();
        notices.filter(|(kind, _)| *kind == "handshake").count()
    };
    let before = greetings(&world);
    world.heal();
    world.until("they shake hands", |world| greetings(world) > before);
    assert!(!world.is_connected(node), "it is too late to ask");
    done(&mut world, node, Command::PeerDown);
    world.until("they are in sync", |world| world.is_settled());
    assert!(!world.status(node).expect("it runs").peer_outdated);
    world.end_well();
}

#[test]
fn a_secondary_that_is_told_so_is_outdated_until_a_handshake_mends_it() {
    let (mut world, node) = pair(7, LeaseCheck::Clock);
    let peer = other(node);
    assert_eq!(refusal(&mut world, node, Command::Outdate), "is-primary");
    world.arbiter.cut[peer] = true;
    world.cut(&[0, 1], Some(10));
    world.until("the link is lost", |world| !world.is_connected(peer));
    done(&mut world, peer, Command::Outdate);
    let durable = world.nodes[peer].durable().expect("metadata");
    assert!(durable.superblock.flags.outdated);
    done(&mut world, node, Command::PeerDown);
    world.heal();
    world.until("a resync of nothing mends it", |world| world.is_settled());
    let status = world.status(peer).expect("it runs");
    assert_eq!(
        (status.role, status.disk),
        (Role::Secondary, DiskState::UpToDate)
    );
    // Also where nothing was wrong.
    done(&mut world, peer, Command::Outdate);
    world.until("and again", |world| world.is_settled());
    world.write(node, 0..4);
    world.end_well();
}

#[test]
fn a_side_that_went_on_alone_is_not_outdated_by_who_slept_through_it() {
    let (mut world, node) = pair(12, LeaseCheck::Clock);
    let peer = other(node);
    world.pause(node, false);
    world.until("the other serves", |world| world.nodes[peer].serving);
    world.write(peer, 0..4);
    done(&mut world, peer, Command::FailIo);
    done(&mut world, peer, Command::Demote);
    assert_eq!(refusal(&mut world, peer, Command::Outdate), "is-ahead");
    world.wake(node);
    world.run_for(LONG_MS);
    world.assert_sound();
}

#[test]
fn a_primary_that_hears_of_a_later_epoch_stops_at_once() {
    let (mut world, node) = pair(8, LeaseCheck::RoundTrip);
    let id = world.submit(node, Asked::write(0..4));
    done(&mut world, node, Command::EpochSeen { epoch: 77 });
    assert!(!world.nodes[node].serving);
    assert!(matches!(answered(&world, id), Some(Answer::Failed(_))));
    let durable = world.nodes[node].durable().expect("metadata");
    assert!(durable.superblock.flags.outdated);
    world.end_well();
}

fn check(seeds: std::ops::Range<u64>, mode: Mode) {
    let kind = Kind {
        arbitrated: true,
        mode,
    };
    let broken: Vec<String> = seeds
        .map(|seed| run_seed(seed, kind, None, false))
        .filter(|report| report.violation.is_some())
        .map(|report| report.describe())
        .take(3)
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_world_under_an_arbiter_breaks_a_rule() {
    check(FIXED, Mode::Sync);
}

#[test]
fn no_semisync_world_under_an_arbiter_breaks_a_rule() {
    check(FIXED_AHEAD, Mode::Semisync);
}

#[test]
fn no_async_world_under_an_arbiter_breaks_a_rule() {
    check(FIXED_AHEAD, Mode::Async);
}
