//! What goes wrong, and for how long, drawn from the seed.

use super::network::{Line, PATHS};
use super::settings::Settings;
use crate::random::Random;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Cut(Vec<Line>),
    /// Datagrams are lost, come twice, and late; and some are recorded and sent again at any later time.
    Noise {
        loss_percent: u64,
        twice_percent: u64,
        delay_ms: u64,
        again_percent: u64,
    },
    /// Processes do not run; the clock does.
    FreezeAgent(usize),
    FreezeMirror(usize),
    FreezeBoth(usize),
    /// The machine stands still, and its clock with it.
    Pause(usize),
    KillAgent(usize),
    KillMirror(usize),
    /// Power off; on again at the end.
    Crash(usize),
    StartFails(usize),
    StartHangs(usize),
    /// A monitor finds a fault, whatever is done about it.
    ProbeFails(usize),
    StopFails(usize),
    StopSlow {
        node: usize,
        ms: u64,
    },
    /// Calls for a forced stop fail.
    ProviderFails,
    /// The forced stop takes this long.
    ProviderSlow {
        ms: u64,
    },
    WitnessDown,
    WitnessLosesFile,
    Switchover(usize),
    GroupStop(usize),
    GroupStart(usize),
    Standby {
        node: usize,
        from: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub at_ms: u64,
    pub for_ms: u64,
    pub fault: Fault,
}

/// The first fault comes when the cluster has settled.
pub const FIRST_MS: u64 = 25_000;
const LAST_MS: u64 = 120_000;
const FAULTS_MAX: u64 = 8;

pub fn draw(random: &mut Random, settings: &Settings) -> Vec<Trouble> {
    let count = random.between(1, FAULTS_MAX);
    let mut troubles: Vec<Trouble> = (0..count)
        .map(|_| Trouble {
            at_ms: random.between(FIRST_MS, LAST_MS),
            for_ms: random.skewed(300, 40_000),
            fault: draw_one(random, settings),
        })
        .collect();
    // What matters often meets: a second fault right after a first.
    if count > 1 && random.percent(40) {
        let at_ms = troubles[0].at_ms;
        troubles[1].at_ms = at_ms + random.skewed(10, 8_000);
    }
    troubles.sort_by_key(|trouble| trouble.at_ms);
    troubles
}

fn draw_one(random: &mut Random, settings: &Settings) -> Fault {
    let node = random.below(2) as usize;
    let from = random.below(2) as usize;
    match random.below(100) {
        0..=31 => Fault::Cut(draw_lines(random, settings)),
        32..=37 => Fault::Noise {
            loss_percent: random.between(0, 60),
            twice_percent: random.between(0, 40),
            delay_ms: random.skewed(5, 1_000),
            again_percent: random.between(0, 60),
        },
        38..=43 => Fault::FreezeAgent(node),
        44..=47 => Fault::FreezeMirror(node),
        48..=53 => Fault::FreezeBoth(node),
        54..=55 if settings.round_trip || settings.has_forced_stop() => Fault::Pause(node),
        54..=60 => Fault::KillAgent(node),
        61..=65 => Fault::KillMirror(node),
        66..=73 => Fault::Crash(node),
        74 => Fault::StartFails(node),
        75 => Fault::ProbeFails(node),
        76 => Fault::StartHangs(node),
        77 => Fault::StopFails(node),
        78..=80 => Fault::StopSlow {
            node,
            ms: random.skewed(100, 8_000),
        },
        81..=82 if settings.has_forced_stop() => Fault::ProviderFails,
        83..=84 if settings.has_forced_stop() => Fault::ProviderSlow {
            ms: random.skewed(100, settings.fence_delay_ms / 2),
        },
        81..=86 if settings.has_arbiter() => Fault::WitnessDown,
        87 if settings.has_arbiter() => Fault::WitnessLosesFile,
        81..=93 => Fault::Switchover(node),
        94..=95 => Fault::GroupStop(node),
        96..=97 => Fault::GroupStart(node),
        _ => Fault::Standby { node, from },
    }
}

fn draw_lines(random: &mut Random, settings: &Settings) -> Vec<Line> {
    let node = random.below(2) as usize;
    let arbiter = settings.has_arbiter();
    match random.below(12) {
        0 | 1 => Line::between_nodes(),
        2 => Line::path(random.below(PATHS as u64) as usize),
        3 => (0..PATHS).flat_map(Line::path).collect(),
        4 => Line::out_of(node),
        5 => (0..2).map(|from| Line::Mirror { from }).collect(),
        6 => vec![Line::Mirror { from: node }],
        7 if arbiter => Line::witness(node),
        8 if arbiter => (0..2).flat_map(Line::witness).collect(),
        9 => match random.below(3) {
            0 => vec![Line::Target(node)],
            1 => vec![Line::WebTarget(node)],
            _ => Line::targets(node),
        },
        10 => (0..2).flat_map(Line::targets).collect(),
        // All of one node's network, or the servers from each other and one from the witness.
        7 | 8 if arbiter => Line::of_node(node),
        11 if arbiter => {
            let mut lines = Line::between_nodes();
            lines.extend(Line::witness(node));
            lines
        }
        _ => Line::of_node(node),
    }
}
