//! A seed from beginning to verdict.

use agent::alert;
use agent::control::CommandRequest;
use agent::node::config::Reach;
use agent::node::failures::Patience;
use nbd_frontend::config::agent::{FinalAction, Need};

use super::checker::Violation;
use super::faults::{FIRST_MS, Fault, Trouble, draw};
use super::network::Line;
use super::settings::{GROUP, NAMES, PROFILES, Profile, Settings};
use super::world::{Mistakes, World};
use crate::random::Random;

/// A client that is served hears something within this.
const SERVED_MS: u64 = 1_500;
/// How often the operator does what the alerts ask for.
const OPERATOR_TRIES_MAX: usize = 3;
/// What the operator waits before each look.
const LOOK_MS: u64 = 1_000;
/// Without an arbiter the first stop must hit before the second is called for: it takes up to a second, and half of this
/// where its provider is slow.
const FENCE_DELAY_MS_MIN: u64 = 3_500;
/// One seed in so many gets nothing but what no cluster may mind.
const QUIET_EVERY: u64 = 6;
/// Watched once all is well again: what was put off must not come now.
const AFTER_MS: u64 = 6_000;

#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub profile: Profile,
    pub violation: Option<Violation>,
    pub troubles: Vec<Trouble>,
    pub answers: u64,
    pub failovers: u64,
    pub forced_stops: u64,
    pub virtual_ms: u64,
    pub trace: Vec<String>,
}

impl Report {
    pub fn describe(&self) -> String {
        match &self.violation {
            None => format!("seed {}: in order ({:?})", self.seed, self.profile),
            Some(violation) => {
                let troubles: Vec<String> = self
                    .troubles
                    .iter()
                    .map(|trouble| {
                        format!(
                            "  {} ms, for {} ms: {:?}",
                            trouble.at_ms, trouble.for_ms, trouble.fault
                        )
                    })
                    .collect();
                format!(
                    "seed {} ({:?}): at {} ms {violation}\n{}\nreplay: cargo xtask sim --cluster --seed {} --verbose",
                    self.seed,
                    self.profile,
                    self.virtual_ms,
                    troubles.join("\n"),
                    self.seed
                )
            }
        }
    }
}

pub fn run_seed(seed: u64, keep_trace: bool) -> Report {
    run_with(seed, None, Mistakes::default(), keep_trace)
}

/// `profile`: instead of the seed's own.
pub fn run_with(
    seed: u64,
    profile: Option<Profile>,
    mistakes: Mistakes,
    keep_trace: bool,
) -> Report {
    let mut random = Random::new(seed);
    let profile = profile.unwrap_or(PROFILES[(seed % 4) as usize]);
    let quiet = (seed / 4).is_multiple_of(QUIET_EVERY);
    let settings = draw_settings(&mut random, profile);
    let troubles = if quiet {
        draw_harmless(&mut random, &settings)
    } else {
        draw(&mut random, &settings)
    };
    let mut world = World::new(settings, seed, mistakes);
    world.keep_trace = keep_trace;
    live(&mut world, &troubles, quiet);
    Report {
        seed,
        profile,
        violation: world.checker.violation().cloned(),
        troubles,
        answers: world.checker.answers,
        failovers: world.checker.failovers,
        forced_stops: world.checker.forced_stops,
        virtual_ms: world.now_ms,
        trace: world.trace,
    }
}

fn draw_settings(random: &mut Random, profile: Profile) -> Settings {
    let usual = Settings::new(profile);
    // Shorter than the heartbeat time-out, as it should be, or longer.
    let lease_ms = random.between(1_000, 3 * usual.timeout_ms);
    let fence_delay_ms = match usual.has_arbiter() {
        // Only one of the two gets as far as that.
        true => random.between(0, 6_000),
        false => random.between(FENCE_DELAY_MS_MIN, 8_000),
    };
    let settings = Settings {
        resolvers: draw_resolvers(random, &usual),
        need: *random.pick(&[Need::Any, Need::All]),
        lease_ms,
        fence_delay_ms,
        automatic_start: random.percent(80),
        round_trip: random.percent(40),
        reinstates: random.percent(50),
        isolation_timeout_ms: random.between(1_000, 6_000),
        failback: random.percent(25),
        patience: Patience {
            failovers_max: random.percent(20).into(),
            failover_window_ms: 20_000,
            reset_ms: random.percent(50).then(|| random.between(2_000, 30_000)),
        },
        monitor_action: *random.pick(&[
            FinalAction::StopGroup,
            FinalAction::StopGroup,
            FinalAction::StopService,
            FinalAction::Reboot,
            FinalAction::None,
        ]),
        failover_on_failure: random.percent(30) && profile == Profile::WitnessAndStop,
        final_action: *random.pick(&[
            FinalAction::Reboot,
            FinalAction::Reboot,
            FinalAction::None,
            FinalAction::StopServiceAndShutdown,
        ]),
        ..usual
    };
    Settings {
        startup_delay_ms: settings.startup_delay_auto_ms(),
        ..settings
    }
}

/// One or two in most clusters, and none in some.
fn draw_resolvers(random: &mut Random, settings: &Settings) -> Vec<Reach> {
    use Reach::{Arbiter, Http, Majority, Ping};
    let kinds: &[&[Reach]] = match settings.has_arbiter() {
        true => &[
            &[Ping],
            &[Arbiter],
            &[Majority],
            &[Ping, Http],
            &[Ping, Arbiter],
            &[],
        ],
        false => &[&[Ping], &[Ping], &[Http], &[Ping, Http], &[Ping, Http], &[]],
    };
    random.pick(kinds).to_vec()
}

/// Jitter below the time-outs, one heartbeat path, the witness or the target: nothing may move for it.
fn draw_harmless(random: &mut Random, settings: &Settings) -> Vec<Trouble> {
    let count = random.between(0, 5);
    let mut at_ms = FIRST_MS;
    (0..count)
        .map(|_| {
            let node = random.below(2) as usize;
            let for_ms = random.skewed(100, 15_000);
            let (for_ms, fault) = match random.below(6) {
                0 => (for_ms, Fault::Cut(Line::path(node))),
                1 => (
                    for_ms,
                    Fault::Noise {
                        loss_percent: 10,
                        twice_percent: 50,
                        delay_ms: 300,
                        again_percent: 50,
                    },
                ),
                2 => (for_ms, Fault::Cut(Line::targets(node))),
                3 if settings.has_arbiter() => (for_ms, Fault::Cut(Line::witness(node))),
                4 if settings.has_arbiter() => (for_ms, Fault::WitnessDown),
                _ => (
                    random.between(50, settings.timeout_ms / 3),
                    Fault::FreezeAgent(node),
                ),
            };
            let trouble = Trouble {
                at_ms,
                for_ms,
                fault,
            };
            at_ms += for_ms + random.between(2_000, 8_000);
            trouble
        })
        .collect()
}

fn live(world: &mut World, troubles: &[Trouble], quiet: bool) {
    // Service comes first: nothing is wrong yet.
    let first_ms = world.settings.back_in_service_ms();
    if !world.settings.automatic_start {
        let linked = |world: &World| {
            (0..2).all(|node| world.has_alert(node, alert::STARTUP_DONE.id)) && is_linked(world)
        };
        world.run_until_so(first_ms, linked);
        world.run_until(world.now_ms + LOOK_MS);
        operate(world, 0);
    }
    if !world.run_until_so(first_ms, |world| world.checker.answers > 0) {
        return out_of_service(world, first_ms);
    }
    world.run_until(FIRST_MS - 1_000);
    world.quiet = quiet;
    let mut ends: Vec<(u64, &Trouble)> = Vec::new();
    for trouble in troubles {
        end_until(world, &mut ends, trouble.at_ms);
        if !world.run_until(trouble.at_ms) {
            return;
        }
        world.begin(trouble);
        ends.push((world.now_ms + trouble.for_ms, trouble));
    }
    end_until(world, &mut ends, u64::MAX);
    world.heal();
    if !come_back(world) {
        return;
    }
    world.run_until(world.now_ms + AFTER_MS);
    if world.checker.violation().is_some() {
        return;
    }
    if let Some((node, command)) = world.unanswered() {
        world.run_until_so(60_000, |world| world.unanswered().is_none());
        if world.unanswered().is_some() {
            world
                .checker
                .report(Violation::Unanswered { node, command });
        }
    }
    for node in 0..2 {
        if world.serves(node) {
            let holds = world.mirrors[node].disk.data.clone();
            world.checker.check_holds(node, &holds);
        }
    }
}

fn end_until(world: &mut World, ends: &mut Vec<(u64, &Trouble)>, until_ms: u64) {
    ends.sort_by_key(|(at_ms, _)| *at_ms);
    while let Some((at_ms, trouble)) = ends.first().copied() {
        if at_ms > until_ms {
            return;
        }
        ends.remove(0);
        world.run_until(at_ms);
        world.end(trouble);
    }
}

fn is_well(world: &World) -> bool {
    let served = world
        .checker
        .last_answer_ms
        .is_some_and(|at_ms| world.now_ms.saturating_sub(at_ms) < SERVED_MS);
    let agents = (0..2).all(|node| world.machines[node].agent.is_some());
    served && is_linked(world) && agents && world.serves(0) != world.serves(1)
}

fn is_linked(world: &World) -> bool {
    world.mirrors.iter().all(|mirror| {
        mirror
            .process
            .as_ref()
            .is_some_and(|process| process.link.is_some())
    })
}

/// All is mended: service comes back, by itself or with the command that the alerts ask for.
fn come_back(world: &mut World) -> bool {
    let within_ms = world.settings.back_in_service_ms();
    if world.run_until_so(within_ms, is_well) {
        return true;
    }
    if world.checker.violation().is_some() {
        return false;
    }
    if !needs_operator(world) {
        out_of_service(world, within_ms);
        return false;
    }
    for tries in 0..OPERATOR_TRIES_MAX {
        // A node that shut itself down meanwhile is switched on first.
        world.heal();
        let both_up = |world: &World| world.machines.iter().all(|at| at.agent.is_some());
        if !world.run_until_so(within_ms, both_up) {
            break;
        }
        // By now they have heard each other, and know what their mirrors hold.
        world.run_until(world.now_ms + LOOK_MS);
        operate(world, tries);
        if world.run_until_so(within_ms, is_well) {
            return true;
        }
    }
    if world.checker.violation().is_none() {
        out_of_service(world, within_ms);
    }
    false
}

/// Something that only people may decide.
fn needs_operator(world: &World) -> bool {
    let told = |id: u16| (0..2).any(|node| world.has_alert(node, id));
    let split = world.mirrors.iter().any(|mirror| {
        mirror
            .process
            .as_ref()
            .is_some_and(|process| process.split_brain)
    });
    let commanded = !world.outcomes.is_empty();
    split
        || commanded
        || told(alert::BOTH_ACTIVE.id)
        || told(alert::GROUP_START_FAILED.id)
        || told(alert::MONITOR_ACTION.id)
        || told(alert::FAILOVER_LIMIT.id)
}

/// `tries`: so many have led to nothing, as where the arbiter's record knows the other node alone as current.
fn operate(world: &mut World, tries: usize) {
    for (node, name) in NAMES.into_iter().enumerate() {
        let name = name.to_owned();
        world.command(node, CommandRequest::NodeActive { node: name });
    }
    let group = GROUP.to_owned();
    let keep = usize::from(!world.mirrors[0].is_primary());
    let split = world.mirrors.iter().any(|mirror| {
        mirror
            .process
            .as_ref()
            .is_some_and(|process| process.split_brain)
    });
    if split || (world.mirrors[0].is_primary() && world.mirrors[1].is_primary()) {
        let keep = NAMES[keep].to_owned();
        let request = CommandRequest::GroupResolve {
            group: group.clone(),
            keep,
        };
        world.command(0, request);
        world.run_until(world.now_ms + 15_000);
    }
    if (0..2).all(|node| !world.serves(node)) {
        let start = (usize::from(!world.mirrors[0].disk.is_current()) + tries) % 2;
        world.command(
            start,
            CommandRequest::GroupStart {
                group,
                peer_down: false,
                force: false,
            },
        );
    }
}

fn out_of_service(world: &mut World, for_ms: u64) {
    if world.checker.violation().is_none() {
        let state = world.describe();
        world
            .checker
            .report(Violation::OutOfService { for_ms, state });
    }
}
