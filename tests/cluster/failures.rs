//! Groups that fail, what is remembered of it and for how long, and what comes last.

use agent::alert;
use agent::control::CommandRequest;
use mirror_tests::cluster::faults::Fault;
use mirror_tests::cluster::settings::{GROUP, Profile, Settings};
use mirror_tests::cluster::world::{Mistakes, World};
use nbd_frontend::config::agent::FinalAction;

use crate::scene::*;

#[test]
fn a_start_that_failed_on_both_nodes_is_tried_again_after_a_while_where_that_is_configured() {
    for reset_ms in [None, Some(20_000)] {
        let (mut world, owner) = served(Profile::Witness, |settings| {
            settings.patience.reset_ms = reset_ms;
            no_final_action(settings);
        });
        for node in 0..2 {
            begin(&mut world, Fault::StartFails(node));
        }
        // Restarted by its monitor, which does not help.
        world.kill_mirror(owner, 200);
        comes_true(&mut world, 40_000, |world| {
            (0..2).all(|node| count(world, node, alert::GROUP_STOPPED.id) > 0)
        });
        for node in 0..2 {
            world.end(&trouble(0, Fault::StartFails(node)));
        }
        let tried = [0, 1].map(|node: usize| count(&world, node, alert::GROUP_STARTING.id));
        match reset_ms {
            None => {
                world.run_until(world.now_ms + 120_000);
                let now = [0, 1].map(|node: usize| count(&world, node, alert::GROUP_STARTING.id));
                assert_eq!(now, tried, "an operator has the word\n{}", story(&world));
                world.command(
                    owner,
                    CommandRequest::GroupStart {
                        group: GROUP.into(),
                        peer_down: false,
                        force: false,
                    },
                );
            }
            Some(reset_ms) => {
                world.run_until(world.now_ms + reset_ms / 2);
                assert!(!world.serves(0) && !world.serves(1), "{}", story(&world));
            }
        }
        comes_true(&mut world, 30_000, |world| {
            world.serves(0) != world.serves(1)
        });
        let forgotten = (0..2).any(|node| world.has_alert(node, alert::FAILURE_FORGOTTEN.id));
        assert_eq!(forgotten, reset_ms.is_some());
        in_order(&world);
    }
}

fn switch_over(world: &mut World, owner: usize) -> Result<String, String> {
    let request = CommandRequest::Switchover {
        group: GROUP.into(),
        to: None,
    };
    outcome(world, owner, request, 30_000)
}

/// What fails to start may have started in part: it comes back when all of it is stopped there, and not before.
#[test]
fn a_group_that_could_not_be_started_where_it_was_given_to_comes_back_after_it_has_stopped_there() {
    let (mut world, owner) = served(Profile::Classic, no_final_action);
    let slow = Fault::StopSlow {
        node: 1 - owner,
        ms: 2_000,
    };
    for fault in [Fault::StartFails(1 - owner), slow] {
        begin(&mut world, fault);
    }
    assert!(switch_over(&mut world, owner).is_err(), "{}", story(&world));
    comes_true(&mut world, 10_000, |world| world.serves(owner));
    assert!(!world.has_alert(owner, alert::BOTH_ACTIVE.id));
    in_order(&world);
}

/// Nor does it come back from where it does not stop.
#[test]
fn a_group_that_neither_starts_nor_stops_where_it_was_given_to_is_started_nowhere_else() {
    let (mut world, owner) = served(Profile::Classic, no_final_action);
    for fault in [Fault::StartFails(1 - owner), Fault::StopFails(1 - owner)] {
        begin(&mut world, fault);
    }
    let said = switch_over(&mut world, owner);
    assert!(
        said.as_ref().is_err_and(|why| why.contains("did not stop")),
        "{said:?}\n{}",
        story(&world)
    );
    world.run_until(world.now_ms + 30_000);
    assert!(!world.machines[owner].mounted, "{}", story(&world));
    in_order(&world);
    for fault in [Fault::StartFails(1 - owner), Fault::StopFails(1 - owner)] {
        world.end(&trouble(0, fault));
    }
    comes_true(&mut world, 60_000, |world| {
        world.serves(0) || world.serves(1)
    });
    in_order(&world);
}

/// The daemon of a group that failed and stopped without it comes back and goes on with its device.
#[test]
fn a_primary_under_no_group_makes_room_for_the_node_that_starts_it() {
    let (mut world, owner) = served(Profile::Classic, |settings| {
        settings.reinstates = true;
        no_final_action(settings);
    });
    world.kill_mirror(owner, 8_000);
    comes_true(&mut world, 40_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 5_000);
    in_order(&world);
}

#[test]
fn a_monitor_s_last_action_stops_the_group_on_both_nodes_until_somebody_starts_it() {
    for reset_ms in [None, Some(60_000)] {
        let (mut world, owner) = served(Profile::Witness, |settings| {
            settings.patience.reset_ms = reset_ms;
        });
        for node in 0..2 {
            begin(&mut world, Fault::ProbeFails(node));
        }
        // Restarts and failovers are used up on the way.
        let halted = |world: &World| {
            let says = |node: usize| {
                let agent = world.machines[node].agent.as_ref();
                let groups = agent.map(|agent| agent.node.status(&["disk".into()]).groups);
                groups.is_some_and(|groups| {
                    let waits_for = groups[0].waits_for.as_deref();
                    waits_for.is_some_and(|why| why.contains("the final action of a monitor"))
                })
            };
            says(0) && says(1) && !world.serves(0) && !world.serves(1)
        };
        comes_true(&mut world, 240_000, halted);
        for node in 0..2 {
            world.end(&trouble(0, Fault::ProbeFails(node)));
        }
        let starts =
            |world: &World| [0, 1].map(|node| count(world, node, alert::GROUP_STARTING.id));
        let before = starts(&world);
        world.run_until(world.now_ms + 40_000);
        assert_eq!(starts(&world), before, "{}", story(&world));
        if reset_ms.is_none() {
            world.run_until(world.now_ms + 60_000);
            assert_eq!(starts(&world), before, "{}", story(&world));
            let request = CommandRequest::GroupStart {
                group: GROUP.into(),
                peer_down: false,
                force: false,
            };
            world.command(owner, request);
        }
        comes_true(&mut world, 60_000, |world| {
            world.serves(0) != world.serves(1)
        });
        in_order(&world);
    }
}

/// Monitors have found faults on both nodes, one after the other, and the only failover was from the first, which is
/// given: the group leaves the second by the last action or not at all.
fn with_no_failover_left(profile: Profile, action: FinalAction) -> (World, usize) {
    let (mut world, owner) = served(profile, |settings| {
        settings.monitor_action = action;
        settings.patience.failovers_max = 1;
        no_final_action(settings);
    });
    begin(&mut world, Fault::ProbeFails(owner));
    comes_true(&mut world, 60_000, |world| world.serves(1 - owner));
    world.end(&trouble(0, Fault::ProbeFails(owner)));
    world.run_until(world.now_ms + 5_000);
    begin(&mut world, Fault::ProbeFails(1 - owner));
    (world, owner)
}

#[test]
fn a_monitor_s_last_action_comes_after_its_group_has_stopped_and_the_other_node_takes_over() {
    let (mut world, owner) = with_no_failover_left(Profile::Witness, FinalAction::Reboot);
    comes_true(&mut world, 60_000, |world| {
        world.has_alert(1 - owner, alert::FINAL_ACTION.id)
    });
    let wanted = [
        alert::FAILOVER_LIMIT.id,
        alert::GROUP_STOPPING.id,
        alert::GROUP_STOPPED.id,
        alert::FINAL_ACTION.id,
    ];
    let told = ids(&world, 1 - owner);
    assert!(in_this_order(&told, &wanted), "{}", story(&world));
    in_order(&world);
}

#[test]
fn failovers_to_both_nodes_count_for_the_limit_until_the_window_is_over() {
    const WINDOW_MS: u64 = 120_000;
    let (mut world, mut at) = served(Profile::Witness, |settings| {
        settings.patience.failovers_max = 2;
        settings.patience.failover_window_ms = WINDOW_MS;
    });
    for _ in 0..2 {
        begin(&mut world, Fault::ProbeFails(at));
        comes_true(&mut world, 60_000, |world| world.serves(1 - at));
        world.end(&trouble(0, Fault::ProbeFails(at)));
        world.run_until(world.now_ms + 3_000);
        assert!(!world.has_alert(at, alert::FAILOVER_LIMIT.id));
        at = 1 - at;
    }
    let last_ms = world.now_ms;
    world.power_off(at);
    world.machines[at].boot_ms = None;
    comes_true(&mut world, 30_000, |world| {
        world.has_alert(1 - at, alert::FAILOVER_LIMIT.id)
    });
    world.run_until(last_ms + WINDOW_MS / 2);
    assert!(!world.serves(1 - at), "{}", story(&world));
    comes_true(&mut world, WINDOW_MS, |world| world.serves(1 - at));
    in_order(&world);
}

#[test]
fn a_group_goes_back_to_the_node_that_it_prefers_where_that_is_configured() {
    for failback in [false, true] {
        let (mut world, owner) = served(Profile::Witness, |settings| settings.failback = failback);
        assert_eq!(owner, 0, "the first of its nodes");
        world.power_off(owner);
        world.machines[owner].boot_ms = None;
        comes_true(&mut world, 30_000, |world| world.serves(1));
        world.machines[owner].boot_ms = Some(world.now_ms);
        let back = world.run_until_so(60_000, |world| world.serves(0));
        assert_eq!(back, failback, "{}", story(&world));
        assert_eq!(world.has_alert(1, alert::FAILING_BACK.id), failback);
        world.run_until(world.now_ms + 5_000);
        assert!(world.serves(0) != world.serves(1), "{}", story(&world));
        in_order(&world);
    }
}

#[test]
fn a_group_that_is_started_by_hand_waits_for_that_and_fails_over_all_the_same() {
    let mut settings = Settings::new(Profile::Witness);
    settings.automatic_start = false;
    let mut world = World::new(settings, 7, Mistakes::default());
    world.keep_trace = true;
    world.run_until(60_000);
    assert!(!world.serves(0) && !world.serves(1), "{}", story(&world));
    let request = CommandRequest::GroupStart {
        group: GROUP.into(),
        peer_down: false,
        force: false,
    };
    world.command(1, request);
    comes_true(&mut world, 10_000, |world| world.serves(1));
    world.run_until(world.now_ms + 10_000);
    world.power_off(1);
    world.machines[1].boot_ms = None;
    comes_true(&mut world, 30_000, |world| world.serves(0));
    in_order(&world);
}

#[test]
fn a_service_that_stops_as_a_last_action_takes_its_groups_along_and_tells_the_other_node() {
    let (mut world, owner) =
        with_no_failover_left(Profile::WitnessAndStop, FinalAction::StopService);
    comes_true(&mut world, 60_000, |world| {
        world.has_alert(owner, alert::PEER_LEFT.id)
    });
    comes_true(&mut world, 30_000, |world| world.serves(owner));
    let told = ids(&world, 1 - owner);
    let wanted = [
        alert::GROUP_STOPPED.id,
        alert::FINAL_ACTION.id,
        alert::NODE_STOPPING.id,
    ];
    assert!(in_this_order(&told, &wanted), "{}", story(&world));
    assert_eq!(world.checker.forced_stops, 0);
    in_order(&world);
}

/// A restart whose stop failed is no start that failed.
#[test]
fn a_node_that_could_not_stop_its_disk_at_first_may_have_the_group_again() {
    let (mut world, owner) = served(Profile::Witness, no_final_action);
    let fault = Fault::StopFails(owner);
    begin(&mut world, fault.clone());
    world.begin(&trouble(200, Fault::KillMirror(owner)));
    comes_true(&mut world, 20_000, |world| {
        world.has_alert(owner, alert::GROUP_STOP_FAILED.id)
    });
    world.end(&trouble(0, fault));
    comes_true(&mut world, 60_000, |world| {
        world.serves(0) != world.serves(1)
    });
    world.run_until(world.now_ms + 10_000);
    if world.serves(1 - owner) {
        world.power_off(1 - owner);
        world.machines[1 - owner].boot_ms = None;
    }
    comes_true(&mut world, 60_000, |world| world.serves(owner));
    in_order(&world);
}

#[test]
fn a_last_action_is_forgotten_also_where_the_node_that_took_it_is_gone() {
    for reset_ms in [None, Some(30_000)] {
        let (mut world, owner) = served(Profile::Witness, |settings| {
            settings.patience.failovers_max = 1;
            settings.patience.reset_ms = reset_ms;
        });
        for node in 0..2 {
            begin(&mut world, Fault::ProbeFails(node));
        }
        // One failover is all there is: it ends on the other node.
        comes_true(&mut world, 120_000, |world| {
            let told = count(world, 1 - owner, alert::FAILOVER_LIMIT.id) > 0;
            told && !world.machines[0].application && !world.machines[1].application
        });
        world.run_until(world.now_ms + 2_000);
        for node in 0..2 {
            world.end(&trouble(0, Fault::ProbeFails(node)));
        }
        world.power_off(1 - owner);
        world.machines[1 - owner].boot_ms = None;
        world.run_until(world.now_ms + 15_000);
        assert!(!world.serves(owner), "{}", story(&world));
        let back = world.run_until_so(60_000, |world| world.serves(owner));
        assert_eq!(back, reset_ms.is_some(), "{}", story(&world));
        in_order(&world);
    }
}
