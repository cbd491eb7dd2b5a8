//! A simulated cluster as a case begins with it, and what a case asks of it.

use agent::control::CommandRequest;
use mirror_tests::cluster::faults::{Fault, Trouble};
use mirror_tests::cluster::settings::{Profile, Settings};
use mirror_tests::cluster::world::{Mistakes, World};
use nbd_frontend::config::agent::FinalAction;

/// A cluster of this kind that is in service, and the node that serves.
pub fn served(profile: Profile, change: impl FnOnce(&mut Settings)) -> (World, usize) {
    let mut settings = Settings::new(profile);
    change(&mut settings);
    let mut world = World::new(settings, 7, Mistakes::default());
    world.keep_trace = true;
    assert!(
        world.run_until_so(60_000, |world| world.serves(0) || world.serves(1)),
        "{}",
        story(&world)
    );
    world.run_until(world.now_ms + 10_000);
    let owner = usize::from(world.serves(1));
    in_order(&world);
    (world, owner)
}

pub fn no_final_action(settings: &mut Settings) {
    settings.final_action = FinalAction::None;
}

pub fn story(world: &World) -> String {
    let first = world.trace.len().saturating_sub(80);
    format!(
        "{:?}\n{}\n{}",
        world.checker.violation(),
        world.trace[first..].join("\n"),
        world.describe()
    )
}

pub fn in_order(world: &World) {
    assert!(world.checker.violation().is_none(), "{}", story(world));
}

pub fn comes_true(world: &mut World, within_ms: u64, is_so: impl Fn(&World) -> bool) {
    assert!(world.run_until_so(within_ms, is_so), "{}", story(world));
}

/// What this command on a node comes to.
pub fn outcome(
    world: &mut World,
    node: usize,
    request: CommandRequest,
    within_ms: u64,
) -> Result<String, String> {
    let id = world.command(node, request);
    let find = |world: &World| {
        let mut outcomes = world.outcomes.iter();
        let found = outcomes.find(|(at, _)| *at == id);
        found.map(|(_, result)| result.clone())
    };
    comes_true(world, within_ms, |world| find(world).is_some());
    find(world).expect("it is there")
}

pub fn trouble(for_ms: u64, fault: Fault) -> Trouble {
    Trouble {
        at_ms: 0,
        for_ms,
        fault,
    }
}

pub fn begin(world: &mut World, fault: Fault) {
    world.begin(&trouble(0, fault));
}

pub fn ids(world: &World, node: usize) -> Vec<u16> {
    world
        .alerts
        .iter()
        .filter(|(_, at, _)| *at == node)
        .map(|(_, _, alert)| alert.id)
        .collect()
}

/// These occur in this order, whatever lies between them.
pub fn in_this_order(all: &[u16], wanted: &[u16]) -> bool {
    let mut rest = all.iter();
    wanted.iter().all(|id| rest.any(|at| at == id))
}

/// How often a node has told this.
pub fn count(world: &World, node: usize, id: u16) -> usize {
    ids(world, node).into_iter().filter(|at| *at == id).count()
}
