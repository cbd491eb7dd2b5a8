//! Crash points: a short script is run again and again, and one node crashes at each place where it
//! began a metadata write or a flush; once with what was in flight lost, once torn, once landed; once as
//! a killed process and once as a power loss. Then everything starts again and must end well.

use mirror_core::units::RequestId;
use mirror_tests::sim::client::Asked;
use mirror_tests::sim::disk::{Crash, Unit};
use mirror_tests::sim::metadata_disk::InFlightFate;
use mirror_tests::sim::network::NodeIndex;
use mirror_tests::sim::settings::Settings;
use mirror_tests::sim::world::World;

/// Virtual time that each step of a script gets. A node that is down answers nothing.
const STEP_MS: u64 = 400;

fn world() -> World {
    let settings = Settings {
        log_slots: 2,
        resync_in_flight: 2,
        checkpoint_bytes: 1 << 20,
        ..Settings::quiet()
    };
    World::pair(11, settings)
}

fn submit(world: &mut World, asked: Asked) -> Option<RequestId> {
    let serving = world.nodes[0].is_up() && world.nodes[0].serving;
    serving.then(|| world.submit(0, asked))
}

fn write(world: &mut World, units: impl IntoIterator<Item = Unit>) {
    let asked: Vec<_> = units
        .into_iter()
        .map(|unit| submit(world, Asked::write(unit..unit + 3)))
        .collect();
    world.run_until(STEP_MS, |world| {
        !world.nodes[0].is_up()
            || asked
                .iter()
                .flatten()
                .all(|id| world.answers.contains_key(id))
    });
}

/// Connected: extents come and go, and a flush.
fn connected(world: &mut World) {
    for round in 0..2 {
        let units: Vec<Unit> = (0..4).map(|extent| world.extent(extent) + round).collect();
        write(world, units);
        submit(world, Asked::Flush);
        world.run_for(20);
    }
}

/// The peer is away: the primary goes on alone, and evicts extents with dirty bits.
fn alone(world: &mut World) {
    write(world, [0, 8]);
    world.cut(&[0, 1], Some(5));
    for extent in 0..4 {
        let unit = world.extent(extent) + 1;
        write(world, [unit]);
    }
}

/// The peer comes back and gets what it missed, while the primary writes on.
fn resync(world: &mut World) {
    alone(world);
    world.heal();
    world.run_for(20);
    let units: Vec<Unit> = (0..4).map(|extent| world.extent(extent) + 2).collect();
    write(world, units);
    world.run_for(STEP_MS);
}

fn check(script: impl Fn(&mut World), node: NodeIndex) {
    let mut counted = world();
    let before = counted.sync_points[node];
    script(&mut counted);
    counted.assert_sound();
    let points = counted.sync_points[node];
    assert!(points > before, "the script has sync points");
    for point in before + 1..=points {
        for fate in [InFlightFate::Lost, InFlightFate::Torn, InFlightFate::Landed] {
            for crash in [Crash::Kill, Crash::PowerLoss] {
                let mut world = world();
                world.metadata_fate = fate;
                world.crash_at = Some((node, point, crash));
                script(&mut world);
                world.assert_sound();
                world.crash_at = None;
                world.end_well();
            }
        }
    }
}

#[test]
fn a_primary_may_crash_at_any_sync_point_while_connected() {
    check(connected, 0);
}

#[test]
fn a_secondary_may_crash_at_any_sync_point_while_connected() {
    check(connected, 1);
}

#[test]
fn a_primary_may_crash_at_any_sync_point_while_it_goes_on_alone() {
    check(alone, 0);
}

#[test]
fn a_source_may_crash_at_any_sync_point_of_a_resync() {
    check(resync, 0);
}

#[test]
fn a_target_may_crash_at_any_sync_point_of_a_resync() {
    check(resync, 1);
}
