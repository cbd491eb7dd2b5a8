//! `ci`: what a change must pass. Every step is tried; a step that cannot run is a failed one.

use anyhow::Result;

use crate::aws;
use crate::check;
use crate::fuzz;
use crate::packages::{self, Use};
use crate::steps::Steps;
use crate::suites::{self, GROUPS, Profile};

const FUZZ_SECONDS: u64 = 12;
const FRESH_SIM_MINUTES: &str = "1";

pub fn run() -> Result<()> {
    packages::install_missing(&[Use::Demo, Use::Tests, Use::Bench, Use::Fuzz, Use::Aws])?;
    let mut steps = Steps::default();
    check::run_steps(&mut steps);

    if steps.step("build programs (dev)", || {
        suites::build_programs(Profile::Dev)
    }) {
        for group in GROUPS.iter().filter(|group| **group != aws::GROUP) {
            steps.step(format!("test {group}"), || suites::test_group(group, &[]));
        }
    }
    steps.step("sim, fresh seeds", || {
        suites::sim(&["--minutes".into(), FRESH_SIM_MINUTES.into()])
    });

    if steps.step("build fuzz targets", fuzz::build) {
        for target in fuzz::targets()? {
            steps.step(format!("fuzz {target}"), || {
                fuzz::run_target(&target, FUZZ_SECONDS)
            });
        }
    }

    if steps.step("build programs (release)", || {
        suites::build_programs(Profile::Release)
    }) {
        steps.step("bench --smoke", || suites::bench(&["--smoke".into()]));
        steps.step("demo", || suites::demo(&[]));
    }
    steps.step("test aws", || suites::test_group(aws::GROUP, &[]));
    steps.finish()
}
