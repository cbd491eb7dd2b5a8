//! What every cluster must survive, and what it must say, each by name.

use agent::alert;
use agent::control::CommandRequest;
use agent::node::config::Reach;
use mirror_tests::cluster::checker::Violation;
use mirror_tests::cluster::faults::Fault;
use mirror_tests::cluster::network::Line;
use mirror_tests::cluster::settings::{GROUP, NAMES, Profile};
use mirror_tests::cluster::world::World;

use crate::scene::*;

#[test]
fn without_a_forced_stop_a_cut_makes_both_active_and_both_say_so() {
    let (mut world, owner) = served(Profile::Nothing, |_| {});
    let before = world.alerts.len();
    begin(&mut world, Fault::Cut(Line::between_nodes()));
    comes_true(&mut world, 30_000, |world| {
        world.serves(0) && world.serves(1)
    });
    world.run_until(world.now_ms + 5_000);
    for node in [owner, 1 - owner] {
        assert!(
            world.has_alert(node, alert::MAY_BE_ACTIVE_TWICE.id),
            "{node}"
        );
    }
    world.end(&trouble(0, Fault::Cut(Line::between_nodes())));
    world.run_until(world.now_ms + 5_000);
    for node in 0..2 {
        let said = world.alerts[before..]
            .iter()
            .any(|(_, at, alert)| *at == node && alert.id == alert::BOTH_ACTIVE.id);
        assert!(
            said,
            "node {node} says that both are active\n{}",
            story(&world)
        );
    }
    // One command ends it.
    let request = CommandRequest::GroupResolve {
        group: GROUP.into(),
        keep: NAMES[owner].into(),
    };
    let id = world.command(owner, request);
    comes_true(&mut world, 60_000, |world| {
        let joined = world.mirrors[owner]
            .process
            .as_ref()
            .is_some_and(|process| process.link.is_some());
        joined && world.serves(owner) && !world.serves(1 - owner)
    });
    world.run_until(world.now_ms + 3_000);
    assert!(
        world
            .outcomes
            .iter()
            .any(|(at, result)| *at == id && result.is_ok()),
        "{}",
        story(&world)
    );
}

/// As `docs/operations/cluster.md` has it: the damage is not to grow while the nodes cannot see each other.
#[test]
fn a_side_that_was_stopped_amid_a_split_may_take_over_again_once_that_is_resolved() {
    for asked in 0..2 {
        let (mut world, owner) = served(Profile::Nothing, |_| {});
        let other = 1 - owner;
        begin(&mut world, Fault::Cut(Line::between_nodes()));
        comes_true(&mut world, 30_000, |world| {
            world.serves(0) && world.serves(1)
        });
        let stop = CommandRequest::GroupStop {
            group: GROUP.into(),
        };
        let stopped = outcome(&mut world, other, stop, 30_000);
        assert!(stopped.is_ok(), "{stopped:?}");
        world.end(&trouble(0, Fault::Cut(Line::between_nodes())));
        comes_true(&mut world, 30_000, |world| {
            world.has_alert(other, alert::MIRROR_SPLIT_BRAIN.id)
        });
        world.run_until(world.now_ms + 3_000);
        let resolve = CommandRequest::GroupResolve {
            group: GROUP.into(),
            keep: NAMES[owner].into(),
        };
        let resolved = outcome(&mut world, asked, resolve, 60_000);
        assert!(resolved.is_ok(), "{resolved:?}\n{}", story(&world));
        comes_true(&mut world, 30_000, |world| {
            world.mirrors[0].disk.generation == world.mirrors[1].disk.generation
        });
        world.run_until(world.now_ms + 5_000);
        world.power_off(owner);
        world.machines[owner].boot_ms = None;
        comes_true(&mut world, 30_000, |world| world.serves(other));
    }
}

#[test]
fn with_a_forced_stop_a_cut_leaves_the_owner_and_stops_the_other_first() {
    let (mut world, owner) = served(Profile::Classic, |_| {});
    begin(&mut world, Fault::Cut(Line::between_nodes()));
    comes_true(&mut world, 30_000, |world| world.checker.forced_stops > 0);
    comes_true(&mut world, 5_000, |world| world.serves(owner));
    assert_eq!(world.checker.forced_stops, 1);
    let wanted = [
        alert::PEER_DOWN.id,
        alert::STOP_REQUESTED.id,
        alert::STOP_COMPLETED.id,
    ];
    assert!(
        in_this_order(&ids(&world, owner), &wanted),
        "{}",
        story(&world)
    );
    in_order(&world);
}

#[test]
fn a_stop_that_hits_after_the_fence_delay_lets_two_nodes_stop_each_other() {
    const SLOW: Fault = Fault::ProviderSlow { ms: 6_000 };
    let cut_with = |fence_delay_ms| {
        let (mut world, owner) = served(Profile::Classic, |settings| {
            settings.fence_delay_ms = fence_delay_ms;
            settings.stop_wait_ms = 10_000;
        });
        begin(&mut world, SLOW);
        begin(&mut world, Fault::Cut(Line::between_nodes()));
        world.run_until(world.now_ms + 20_000);
        (world, owner)
    };
    let (world, _) = cut_with(4_000);
    assert_eq!(
        world.checker.violation(),
        Some(&Violation::StoppedEachOther),
        "{}",
        story(&world)
    );
    // A head start that counts the time until the hit is what `fence_delay` is by default.
    let (world, owner) = cut_with(8_000);
    in_order(&world);
    assert_eq!(world.checker.forced_stops, 1, "{}", story(&world));
    assert!(world.serves(owner), "{}", story(&world));
}

#[test]
fn an_owner_that_was_cut_off_when_the_other_fell_silent_has_lost_its_turn() {
    for outage_ms in (500..12_000).step_by(500) {
        let (mut world, owner) = served(Profile::Classic, |_| {});
        let target = Fault::Cut(vec![Line::Target(owner)]);
        begin(&mut world, target.clone());
        begin(&mut world, Fault::Cut(Line::between_nodes()));
        world.run_until(world.now_ms + outage_ms);
        world.end(&trouble(0, target));
        world.run_until(world.now_ms + 20_000);
        assert!(world.serves(0) != world.serves(1), "{}", story(&world));
        in_order(&world);
    }
}

#[test]
fn an_owner_that_stood_still_when_the_other_fell_silent_has_lost_its_turn() {
    for frozen_ms in (500..9_000).step_by(500) {
        let (mut world, owner) = served(Profile::Classic, |_| {});
        let freeze = Fault::FreezeBoth(owner);
        begin(&mut world, freeze.clone());
        begin(&mut world, Fault::Cut(Line::between_nodes()));
        world.run_until(world.now_ms + frozen_ms);
        world.end(&trouble(0, freeze));
        world.run_until(world.now_ms + 30_000);
        assert!(world.serves(0) != world.serves(1), "{}", story(&world));
        in_order(&world);
    }
}

#[test]
fn when_the_owner_dies_it_is_stopped_before_its_group_starts_elsewhere() {
    let (mut world, owner) = served(Profile::Classic, |_| {});
    begin(&mut world, Fault::FreezeBoth(owner));
    world.machines[owner].agent_frozen_until_ms = u64::MAX;
    world.machines[owner].mirror_frozen_until_ms = u64::MAX;
    comes_true(&mut world, 40_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 1_000);
    let wanted = [
        alert::PEER_DOWN.id,
        alert::STOP_REQUESTED.id,
        alert::STOP_COMPLETED.id,
        alert::FAILING_OVER.id,
        alert::GROUP_STARTED.id,
        alert::FAILED_OVER.id,
    ];
    assert!(
        in_this_order(&ids(&world, 1 - owner), &wanted),
        "{}",
        story(&world)
    );
    in_order(&world);
}

#[test]
fn with_a_witness_a_cut_leaves_exactly_one_node_answering() {
    let (mut world, _) = served(Profile::Witness, |_| {});
    begin(&mut world, Fault::Cut(Line::between_nodes()));
    world.run_until(world.now_ms + 15_000);
    assert!(world.serves(0) != world.serves(1), "{}", story(&world));
    in_order(&world);
}

#[test]
fn with_a_witness_an_owner_that_loses_all_its_lines_answers_nothing_and_the_other_takes_over() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    begin(&mut world, Fault::Cut(Line::of_node(owner)));
    comes_true(&mut world, 20_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 5_000);
    assert!(!world.serves(owner), "{}", story(&world));
    in_order(&world);
}

#[test]
fn a_primary_that_was_stopped_past_the_time_out_answers_nothing_when_it_wakes() {
    for profile in [Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, |_| {});
        world.begin(&trouble(12_000, Fault::FreezeBoth(owner)));
        comes_true(&mut world, 12_000, |world| world.serves(1 - owner));
        world.run_until(world.now_ms + 40_000);
        in_order(&world);
        assert!(world.serves(1 - owner), "{}", story(&world));
        assert!(!world.serves(owner), "{}", story(&world));
    }
}

#[test]
fn a_paused_virtual_machine_answers_nothing_stale_with_round_trips() {
    let (mut world, owner) = served(Profile::Witness, |settings| settings.round_trip = true);
    world.begin(&trouble(15_000, Fault::Pause(owner)));
    comes_true(&mut world, 15_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 30_000);
    in_order(&world);
    assert!(world.serves(0) != world.serves(1), "{}", story(&world));
}

#[test]
fn a_switchover_loses_nothing_and_stops_nobody() {
    for profile in [Profile::Classic, Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, |_| {});
        for from in [owner, owner] {
            let was = usize::from(world.serves(1));
            let request = CommandRequest::Switchover {
                group: GROUP.into(),
                to: Some(NAMES[1 - was].into()),
            };
            let outcome = outcome(&mut world, from, request, 15_000);
            assert!(outcome.is_ok(), "{outcome:?}\n{}", story(&world));
            comes_true(&mut world, 3_000, |world| world.serves(1 - was));
            world.run_until(world.now_ms + 5_000);
            in_order(&world);
        }
        assert_eq!(world.checker.forced_stops, 0);
    }
}

#[test]
fn a_group_that_does_not_stop_is_started_elsewhere_only_when_its_node_is_down() {
    for profile in [Profile::Classic, Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, no_final_action);
        begin(&mut world, Fault::StopFails(owner));
        let request = CommandRequest::Switchover {
            group: GROUP.into(),
            to: None,
        };
        world.command(owner, request);
        comes_true(&mut world, 20_000, |world| {
            world.has_alert(owner, alert::GROUP_STOP_FAILED.id)
        });
        world.run_until(world.now_ms + 10_000);
        assert!(!world.machines[1 - owner].mounted, "{}", story(&world));
        assert!(!world.machines[1 - owner].application, "{}", story(&world));
        world.power_off(owner);
        world.machines[owner].boot_ms = None;
        comes_true(&mut world, 60_000, |world| world.serves(1 - owner));
        in_order(&world);
    }
}

#[test]
fn what_held_a_stop_up_may_be_over_later() {
    let (mut world, owner) = served(Profile::Witness, no_final_action);
    let fault = Fault::StopFails(owner);
    begin(&mut world, fault.clone());
    let request = CommandRequest::GroupStop {
        group: GROUP.into(),
    };
    world.command(owner, request);
    comes_true(&mut world, 20_000, |world| {
        world.has_alert(owner, alert::GROUP_STOP_FAILED.id)
    });
    world.end(&trouble(0, fault));
    comes_true(&mut world, 40_000, |world| {
        !world.machines[owner].mounted && world.has_alert(owner, alert::GROUP_STOPPED.id)
    });
    in_order(&world);
}

#[test]
fn a_lone_node_with_possibly_old_data_waits_and_says_for_whom() {
    for profile in [Profile::Classic, Profile::Witness] {
        let (mut world, owner) = served(profile, |_| {});
        let other = 1 - owner;
        // It misses what the owner writes next, and comes back alone.
        world.power_off(other);
        comes_true(&mut world, 30_000, |world| {
            world.mirrors[owner].disk.peer_outdated && world.serves(owner)
        });
        world.run_until(world.now_ms + 3_000);
        world.power_off(owner);
        world.machines[owner].boot_ms = None;
        world.machines[other].boot_ms = Some(world.now_ms + 500);
        world.run_until(world.now_ms + 60_000);
        world.machines[owner].boot_ms = None;
        assert!(!world.serves(other), "{}", story(&world));
        assert!(
            world.has_alert(other, alert::GROUP_WAITS.id),
            "{}",
            story(&world)
        );
        world.machines[owner].boot_ms = Some(world.now_ms + 500);
        comes_true(&mut world, 60_000, |world| {
            world.serves(0) || world.serves(1)
        });
        in_order(&world);
    }
}

#[test]
fn a_start_by_hand_where_the_record_knows_the_other_node_alone_says_which_one() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    let other = 1 - owner;
    world.power_off(other);
    world.machines[other].boot_ms = None;
    comes_true(&mut world, 30_000, |world| {
        world.mirrors[owner].disk.peer_outdated && world.serves(owner)
    });
    world.run_until(world.now_ms + 3_000);
    let group = GROUP.to_owned();
    world.command(owner, CommandRequest::GroupStop { group });
    comes_true(&mut world, 20_000, |world| !world.machines[owner].mounted);
    world.machines[other].boot_ms = Some(world.now_ms + 500);
    comes_true(&mut world, 60_000, |world| {
        let process = world.mirrors[other].process.as_ref();
        process.is_some_and(|process| process.link.is_some())
            && world.has_alert(other, alert::STARTUP_DONE.id)
    });
    world.run_until(world.now_ms + 5_000);
    let outcome = outcome(&mut world, other, start_by_hand(), 60_000);
    let current = format!("current is {}", NAMES[owner]);
    assert!(
        outcome.as_ref().is_err_and(|why| why.contains(&current)),
        "{outcome:?}\n{}",
        story(&world)
    );
    in_order(&world);
}

#[test]
fn standby_moves_the_group_and_active_lets_the_node_take_over_again() {
    let (mut world, owner) = served(Profile::WitnessAndStop, |_| {});
    let node = NAMES[owner].to_owned();
    world.command(owner, CommandRequest::NodeStandby { node: node.clone() });
    comes_true(&mut world, 15_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 5_000);
    // It is on standby: nothing comes back to it when the other dies.
    world.command(owner, CommandRequest::NodeActive { node });
    world.run_until(world.now_ms + 2_000);
    world.power_off(1 - owner);
    world.machines[1 - owner].boot_ms = None;
    comes_true(&mut world, 30_000, |world| world.serves(owner));
    in_order(&world);
}

#[test]
fn each_daemon_may_die_under_load_and_service_goes_on_or_returns() {
    for profile in [Profile::Classic, Profile::Witness, Profile::WitnessAndStop] {
        for (mirror, at_owner) in [(false, true), (false, false), (true, true), (true, false)] {
            let (mut world, owner) = served(profile, |_| {});
            let node = if at_owner { owner } else { 1 - owner };
            let fault = if mirror {
                Fault::KillMirror(node)
            } else {
                Fault::KillAgent(node)
            };
            let before = world.alerts.len();
            world.begin(&trouble(1_000, fault));
            world.run_until(world.now_ms + 500);
            comes_true(&mut world, 40_000, |world| {
                world.serves(0) != world.serves(1)
                    && world.machines.iter().all(|machine| machine.agent.is_some())
            });
            world.run_until(world.now_ms + 10_000);
            assert!(world.serves(0) != world.serves(1), "{}", story(&world));
            assert_eq!(world.checker.forced_stops, 0, "{}", story(&world));
            if !mirror {
                // The service has nothing to do with an agent that dies.
                let stops = |alert: &alert::Alert| alert.id == alert::GROUP_STOPPED.id;
                let stopped = world.alerts[before..].iter().any(|(.., said)| stops(said));
                assert!(!stopped && world.serves(owner), "{}", story(&world));
            }
            in_order(&world);
        }
    }
}

#[test]
fn a_mirrord_that_never_comes_back_costs_its_node_the_group() {
    for profile in [Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, |_| {});
        world.begin(&trouble(1_000, Fault::KillMirror(owner)));
        world.machines[owner].mirror_start_ms = None;
        world.run_until(world.now_ms + 500);
        assert!(!world.serves(owner), "{}", story(&world));
        comes_true(&mut world, 60_000, |world| world.serves(1 - owner));
        in_order(&world);
    }
}

#[test]
fn an_owner_that_slept_through_its_replacement_does_not_outdate_what_is_newer() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    world.begin(&trouble(60_000, Fault::FreezeBoth(owner)));
    comes_true(&mut world, 30_000, |world| world.serves(1 - owner));
    world.run_until(world.now_ms + 3_000);
    let link = [0, 1].map(|from| Line::Mirror { from }).to_vec();
    begin(&mut world, Fault::Cut(link.clone()));
    world.power_off(1 - owner);
    world.machines[1 - owner].boot_ms = Some(world.now_ms + 3_000);
    world.run_until(world.now_ms + 6_000);
    world.end(&trouble(0, Fault::FreezeBoth(owner)));
    world.run_until(world.now_ms + 10_000);
    world.end(&trouble(0, Fault::Cut(link)));
    comes_true(&mut world, 60_000, |world| {
        world.serves(0) != world.serves(1)
    });
    in_order(&world);
}

#[test]
fn a_witness_that_lost_its_file_is_told_again_and_grants_again() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    world.begin(&trouble(2_000, Fault::WitnessLosesFile));
    world.run_until(world.now_ms + 2_000);
    world.end(&trouble(0, Fault::WitnessLosesFile));
    comes_true(&mut world, 20_000, |world| !world.witness.knows_nothing());
    world.run_until(world.now_ms + 3_000);
    assert!(world.serves(owner), "{}", story(&world));
    world.power_off(owner);
    world.machines[owner].boot_ms = None;
    comes_true(&mut world, 30_000, |world| world.serves(1 - owner));
    in_order(&world);
}

#[test]
fn a_restart_of_the_disk_by_its_monitor_gets_a_new_grant() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    world.begin(&trouble(200, Fault::KillMirror(owner)));
    world.run_until(world.now_ms + 1_000);
    comes_true(&mut world, 20_000, |world| {
        world.serves(0) || world.serves(1)
    });
    in_order(&world);
}

#[test]
fn recordings_keep_no_dead_owner_alive_and_no_restarted_node_from_its_group() {
    for profile in [Profile::Classic, Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, |_| {});
        begin(
            &mut world,
            Fault::Noise {
                loss_percent: 0,
                twice_percent: 0,
                delay_ms: 0,
                again_percent: 100,
            },
        );
        world.run_until(world.now_ms + 5_000);
        assert!(world.serves(owner), "{}", story(&world));
        for node in 0..2 {
            assert!(!world.has_alert(node, alert::PEER_DOWN.id), "{node}");
            assert!(world.has_alert(node, alert::BEAT_REFUSED.id), "{node}");
        }
        world.power_off(owner);
        world.machines[owner].boot_ms = None;
        comes_true(&mut world, 30_000, |world| {
            world.serves(1 - owner) && world.mirrors[1 - owner].disk.peer_outdated
        });
        assert!(world.has_alert(1 - owner, alert::PEER_DOWN.id));
        world.machines[owner].boot_ms = None;
        // The survivor is started anew, with nobody there but whoever sends what both said before.
        let before = world.alerts.len();
        world.power_off(1 - owner);
        world.machines[1 - owner].boot_ms = Some(world.now_ms + 1_000);
        if profile == Profile::Classic {
            // Nobody can tell it that the other was not forced to go on meanwhile.
            world.run_until(world.now_ms + 60_000);
            assert!(!world.serves(1 - owner), "{}", story(&world));
        } else {
            comes_true(&mut world, 60_000, |world| world.serves(1 - owner));
        }
        let wrong = [
            alert::PEER_UP.id,
            alert::SAME_NAME.id,
            alert::GROUP_START_FAILED.id,
            alert::FINAL_ACTION.id,
        ];
        let told = world.alerts[before..].iter();
        let told: Vec<_> = told
            .filter(|(_, _, alert)| wrong.contains(&alert.id))
            .collect();
        assert!(told.is_empty(), "{told:?}");
        in_order(&world);
    }
}

#[test]
fn with_a_majority_the_node_that_sees_one_of_the_two_others_goes_on() {
    for profile in [Profile::Witness, Profile::WitnessAndStop] {
        for cut_off in 0..2 {
            let (mut world, _) = served(profile, |settings| {
                settings.resolvers = vec![Reach::Majority]
            });
            let mut lines = Line::between_nodes();
            lines.extend(Line::witness(cut_off));
            begin(&mut world, Fault::Cut(lines));
            comes_true(&mut world, 30_000, |world| {
                world.serves(1 - cut_off) && !world.serves(cut_off)
            });
            world.run_until(world.now_ms + 20_000);
            assert!(world.serves(1 - cut_off), "{}", story(&world));
            assert!(!world.serves(cut_off), "{}", story(&world));
            in_order(&world);
        }
        // Two of the three see each other: nothing happens.
        let (mut world, owner) = served(profile, |settings| {
            settings.resolvers = vec![Reach::Majority]
        });
        begin(
            &mut world,
            Fault::Cut((0..2).flat_map(Line::witness).collect()),
        );
        world.run_until(world.now_ms + 20_000);
        assert!(world.serves(owner), "{}", story(&world));
        assert!(!world.has_alert(owner, alert::ISOLATED.id));
        in_order(&world);
    }
}

/// It has nothing but what it found to say that it wants the mirror.
#[test]
fn an_agent_that_was_restarted_asks_for_a_grant_when_its_mirrord_dies_later() {
    for profile in [Profile::Witness, Profile::WitnessAndStop] {
        let (mut world, owner) = served(profile, |_| {});
        world.begin(&trouble(500, Fault::KillAgent(owner)));
        comes_true(&mut world, 10_000, |world| {
            world.machines[owner].agent.is_some()
        });
        world.run_until(world.now_ms + 10_000);
        assert!(world.serves(owner), "{}", story(&world));
        world.begin(&trouble(200, Fault::KillMirror(owner)));
        world.run_until(world.now_ms + 1_000);
        comes_true(&mut world, 10_000, |world| world.serves(owner));
        in_order(&world);
    }
}

/// A later epoch would be of no use to it: it takes leases of its own only, and so would have none when it is alone.
#[test]
fn a_mirrord_that_goes_on_with_its_device_goes_on_in_its_epoch() {
    for agent_dies in [false, true] {
        for profile in [Profile::Witness, Profile::WitnessAndStop] {
            let (mut world, owner) = served(profile, |settings| settings.reinstates = true);
            let grants = count(&world, owner, alert::GRANTED.id);
            for _ in 0..2 {
                world.begin(&trouble(200, Fault::KillMirror(owner)));
                world.run_until(world.now_ms + 500);
                if agent_dies {
                    world.begin(&trouble(500, Fault::KillAgent(owner)));
                }
                world.run_until(world.now_ms + 5_000);
                assert!(world.serves(owner), "{}", story(&world));
            }
            let link = [0, 1].map(|from| Line::Mirror { from }).to_vec();
            begin(&mut world, Fault::Cut(link));
            world.run_until(world.now_ms + 3_000);
            assert!(world.serves(owner), "{}", story(&world));
            for (id, times) in [
                (alert::GRANTED.id, grants),
                (alert::LEASE_LOST.id, 0),
                (alert::RESOURCE_FAILED.id, 0),
                (alert::GROUP_STOPPED.id, 0),
            ] {
                assert_eq!(count(&world, owner, id), times, "{id}: {}", story(&world));
            }
            in_order(&world);
        }
    }
}

#[test]
fn a_group_whose_mirror_waits_for_a_grant_stops_at_once_when_it_is_told_to() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    begin(&mut world, Fault::WitnessDown);
    world.begin(&trouble(200, Fault::KillMirror(owner)));
    comes_true(&mut world, 10_000, |world| {
        !world.machines[owner].application
    });
    world.run_until(world.now_ms + 1_000);
    let request = CommandRequest::GroupStop {
        group: GROUP.into(),
    };
    assert!(
        !world.has_alert(owner, alert::GROUP_STOPPED.id),
        "{}",
        story(&world)
    );
    world.command(owner, request);
    comes_true(&mut world, 1_500, |world| {
        world.has_alert(owner, alert::GROUP_STOPPED.id)
    });
    in_order(&world);
}

fn start_by_hand() -> CommandRequest {
    CommandRequest::GroupStart {
        group: GROUP.into(),
        peer_down: false,
        force: false,
    }
}

/// Somebody who starts a group by hand may not know that the other node runs it.
#[test]
fn a_start_by_hand_beside_a_node_that_was_never_heard_takes_a_word_that_it_is_down() {
    let (mut world, owner) = served(Profile::Classic, |_| {});
    let other = 1 - owner;
    world.power_off(other);
    begin(&mut world, Fault::Cut(Line::between_nodes()));
    world.machines[other].boot_ms = Some(world.now_ms + 500);
    comes_true(&mut world, 60_000, |world| {
        count(world, other, alert::STARTUP_DONE.id) == 2
    });
    let outcome = outcome(&mut world, other, start_by_hand(), 10_000);
    assert!(
        outcome
            .as_ref()
            .is_err_and(|why| why.contains("not heard since")),
        "{outcome:?}\n{}",
        story(&world)
    );
    assert!(world.serves(owner), "{}", story(&world));
    in_order(&world);
}

/// An agent that was never heard may stand still beside a mirror that serves.
#[test]
fn a_start_by_hand_is_refused_while_a_mirror_hears_the_other_node_as_its_primary() {
    let (mut world, owner) = served(Profile::Classic, |_| {});
    let other = 1 - owner;
    world.begin(&trouble(60_000, Fault::FreezeAgent(owner)));
    world.begin(&trouble(500, Fault::KillAgent(other)));
    comes_true(&mut world, 20_000, |world| {
        let agent = world.machines[other].agent.as_ref();
        let view = agent.and_then(|agent| agent.viewed.flatten());
        view.is_some_and(|view| view.connected && view.peer_primary)
    });
    let outcome = outcome(&mut world, other, start_by_hand(), 10_000);
    assert!(
        outcome
            .as_ref()
            .is_err_and(|why| why.contains("which is its primary")),
        "{outcome:?}\n{}",
        story(&world)
    );
    in_order(&world);
}

/// The node that went on alone is lost with what only it had, and somebody accepts that.
fn lost_for_good(profile: Profile, peer_down: bool) -> (World, usize) {
    let (mut world, owner) = served(profile, no_final_action);
    let other = 1 - owner;
    world.power_off(other);
    world.machines[other].boot_ms = None;
    comes_true(&mut world, 60_000, |world| {
        world.mirrors[owner].disk.peer_outdated && world.serves(owner)
    });
    world.run_until(world.now_ms + 3_000);
    world.power_off(owner);
    world.machines[owner].boot_ms = None;
    world.machines[other].boot_ms = Some(world.now_ms + 500);
    comes_true(&mut world, 60_000, |world| {
        count(world, other, alert::STARTUP_DONE.id) == 2
    });
    world.run_until(world.now_ms + 5_000);
    let refused = outcome(&mut world, other, start_by_hand(), 60_000);
    assert!(refused.is_err(), "{refused:?}\n{}", story(&world));
    let left = world.mirrors[other].disk.data.clone();
    assert!(world.checker.first_missing_in(&left).is_some());
    world.checker.give_up_beyond(&left);
    let by_force = CommandRequest::GroupStart {
        group: GROUP.into(),
        peer_down,
        force: true,
    };
    let started = outcome(&mut world, other, by_force, 60_000);
    assert!(started.is_ok(), "{started:?}\n{}", story(&world));
    assert!(world.has_alert(other, alert::GROUP_FORCED.id));
    comes_true(&mut world, 10_000, |world| world.serves(other));
    (world, owner)
}

/// It comes back after all, with data that no longer counts.
fn returns_as_the_side_that_is_copied_to(world: &mut World, lost: usize) {
    let other = 1 - lost;
    world.machines[lost].boot_ms = Some(world.now_ms + 500);
    comes_true(world, 60_000, |world| {
        let equal = world.mirrors[lost].disk.generation == world.mirrors[other].disk.generation;
        equal && world.mirrors[lost].disk.is_current() && world.serves(other)
    });
    world.run_until(world.now_ms + 5_000);
    assert!(!world.machines[lost].application, "{}", story(world));
    in_order(world);
}

#[test]
fn by_force_an_outdated_node_is_granted_what_the_record_gave_to_the_other_alone() {
    let (mut world, lost) = lost_for_good(Profile::Witness, false);
    in_order(&world);
    returns_as_the_side_that_is_copied_to(&mut world, lost);
}

/// Nothing but an operator says there which of the two counts, should the lost one come back after all.
#[test]
fn by_force_a_node_that_may_be_behind_serves_also_without_an_arbiter() {
    let (mut world, lost) = lost_for_good(Profile::Classic, true);
    in_order(&world);
    let other = 1 - lost;
    world.machines[lost].boot_ms = Some(world.now_ms + 500);
    comes_true(&mut world, 60_000, |world| {
        world.has_alert(lost, alert::MIRROR_SPLIT_BRAIN.id)
    });
    world.run_until(world.now_ms + 20_000);
    assert!(world.serves(other) && !world.machines[lost].application);
    let resolve = CommandRequest::GroupResolve {
        group: GROUP.into(),
        keep: NAMES[other].into(),
    };
    let resolved = outcome(&mut world, other, resolve, 60_000);
    assert!(resolved.is_ok(), "{resolved:?}\n{}", story(&world));
    comes_true(&mut world, 30_000, |world| {
        world.mirrors[lost].disk.generation == world.mirrors[other].disk.generation
    });
    in_order(&world);
}

#[test]
fn force_is_refused_while_the_other_node_has_the_data() {
    let (mut world, owner) = served(Profile::Witness, |_| {});
    let group = GROUP.to_owned();
    world.command(owner, CommandRequest::GroupStop { group });
    comes_true(&mut world, 20_000, |world| !world.machines[owner].mounted);
    world.run_until(world.now_ms + 1_000);
    let by_force = CommandRequest::GroupStart {
        group: GROUP.into(),
        peer_down: false,
        force: true,
    };
    let refused = outcome(&mut world, 1 - owner, by_force, 10_000);
    assert!(
        refused
            .as_ref()
            .is_err_and(|why| why.contains("up-to-date data")),
        "{refused:?}\n{}",
        story(&world)
    );
    assert!(!world.has_alert(1 - owner, alert::GROUP_FORCED.id));
    in_order(&world);
}

/// Alone, and nobody had to be stopped for that, because nothing was to start.
#[test]
fn a_start_by_hand_in_a_silence_takes_a_word_where_nobody_was_stopped() {
    let (mut world, owner) = served(Profile::Classic, |_| {});
    let other = 1 - owner;
    // Nor is it stopped by the owner meanwhile.
    begin(&mut world, Fault::ProviderFails);
    begin(&mut world, Fault::Cut(Line::between_nodes()));
    let stop = CommandRequest::GroupStop {
        group: GROUP.into(),
    };
    let stopped = outcome(&mut world, other, stop, 10_000);
    assert!(stopped.is_err(), "{stopped:?}");
    comes_true(&mut world, 10_000, |world| {
        world.has_alert(other, alert::PEER_DOWN.id)
    });
    world.run_until(world.now_ms + 3_000);
    let refused = outcome(&mut world, other, start_by_hand(), 10_000);
    assert!(
        refused
            .as_ref()
            .is_err_and(|why| why.contains("not certain")),
        "{refused:?}\n{}",
        story(&world)
    );
    in_order(&world);
}

/// Whoever asked for the move hears of it, and the next one is possible.
#[test]
fn a_move_ends_where_the_group_is_stopped_or_started_by_hand_meanwhile() {
    let (mut world, owner) = served(Profile::Nothing, |_| {});
    let group = || GROUP.to_owned();
    let switchover = || CommandRequest::Switchover {
        group: group(),
        to: None,
    };
    let moved = world.command(owner, switchover());
    let stop = CommandRequest::GroupStop { group: group() };
    let stopped = outcome(&mut world, owner, stop, 30_000);
    assert!(stopped.is_ok(), "{stopped:?}");
    let ended = world.outcomes.iter().find(|(at, _)| *at == moved);
    assert!(
        ended.is_some_and(|(_, result)| result.as_ref().is_err_and(|why| why.contains("by hand"))),
        "{}",
        story(&world)
    );
    let started = outcome(&mut world, owner, start_by_hand(), 30_000);
    assert!(started.is_ok(), "{started:?}");
    world.run_until(world.now_ms + 5_000);
    let moved = outcome(&mut world, owner, switchover(), 60_000);
    assert!(moved.is_ok(), "{moved:?}\n{}", story(&world));
    assert!(world.serves(1 - owner));
    in_order(&world);
}
