//! `ci`: what a change must pass. Every step is tried; a step that cannot run is a failed one.
//!
//! First everything is compiled, then everything is run, so that no test shares the processors with a compiler.

use std::thread;

use anyhow::Result;

use crate::check;
use crate::command;
use crate::dependencies;
use crate::fuzz;
use crate::packages::{self, Use};
use crate::steps::Steps;
use crate::suites::{self, Cases, GROUPS, Profile};
use crate::vm;
use crate::workspace::Selection;

const FUZZ_SECONDS: u64 = 10;
const FRESH_SIM_MINUTES: &str = "0.5";
const FRESH_CLUSTER_MINUTES: &str = "0.35";
const SOAK_MINUTES: &str = "10";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Before a change goes in.
    Usual,
    /// With what takes too long for that: the fault campaign, and the long cases in virtual machines.
    Extended,
}

/// One build for all steps, also for the group `aws`.
const SELECTION: Selection = Selection::Whole;

#[derive(Debug, Default)]
struct Built {
    dev: bool,
    fuzz: bool,
}

pub fn run(length: Length) -> Result<()> {
    command::keep_tails();
    packages::install_missing(&[
        Use::Demo,
        Use::Tests,
        Use::Bench,
        Use::Fuzz,
        Use::Aws,
        Use::Vm,
    ])?;
    let mut steps = Steps::begin();
    steps.step("format", check::format);
    steps.step("dependencies", dependencies::check);
    let built = build(&mut steps);
    steps.step("documentation", check::documentation);

    if built.dev {
        steps.step("unit tests", || check::unit_tests(SELECTION));
        for group in GROUPS {
            steps.step(format!("test {group}"), || {
                if group == vm::GROUP && length == Length::Extended {
                    return suites::test_machines(SELECTION, Cases::All, &[]);
                }
                suites::test_group(group, SELECTION, &[])
            });
        }
        if length == Length::Extended {
            steps.step("soak", || {
                suites::soak(SELECTION, &["--minutes".into(), SOAK_MINUTES.into()])
            });
        }
        steps.step("sim, fresh seeds", || {
            suites::sim(SELECTION, &["--minutes".into(), FRESH_SIM_MINUTES.into()])
        });
        steps.step("sim --cluster, fresh seeds", || {
            let words = ["--cluster", "--minutes", FRESH_CLUSTER_MINUTES];
            suites::sim(SELECTION, &words.map(String::from))
        });
        steps.step("bench --smoke", || {
            suites::bench(Profile::Dev, SELECTION, &["--smoke".into()])
        });
        steps.step("demo", || suites::demo(Profile::Dev, SELECTION, &[]));
    }
    if built.fuzz {
        for target in fuzz::targets(fuzz::Reach::Pure)? {
            steps.step(format!("fuzz {target}"), || {
                fuzz::run_target(&target, FUZZ_SECONDS)
            });
        }
    }
    steps.finish()
}

/// Compiles side by side what has folders of its own: one crate, `aws-sdk-ec2`, keeps one processor busy for minutes
/// while nothing else is left to do in its own build.
fn build(steps: &mut Steps) -> Built {
    let mut built = Built::default();
    let mut beside = Steps::begin();
    thread::scope(|scope| {
        scope.spawn(|| {
            built.fuzz = beside.step("build fuzz targets", || fuzz::build(fuzz::Reach::Pure));
        });
        built.dev = steps.step("build and lint (dev)", || check::build(SELECTION));
    });
    steps.append(beside);
    built
}
