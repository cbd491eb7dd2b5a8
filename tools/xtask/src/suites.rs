//! The suites that run whole nodes, simulated or real.
//!
//! Tests run in the dev profile, where arithmetic is checked and what takes their time is optimised all the
//! same. What people see, the demo and the figures, runs in the release profile; `ci` only tries whether both work,
//! with the programs of its tests.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::aws;
use crate::command::{cargo, program, run, target_dir};
use crate::packages::{self, Use};
use crate::vm;
use crate::workspace::{Selection, linted};

/// Quickest first. Each is a test binary of the package [`SUITES`], but for [`PROGRAMS`] and [`aws::GROUP`].
pub const GROUPS: [&str; 11] = [
    "golden",
    "crash",
    "conformance",
    PROGRAMS,
    "link",
    "sim",
    "cluster",
    "nbd",
    HA,
    vm::GROUP,
    aws::GROUP,
];

/// The package of the suites.
const SUITES: &str = "mirror-tests";

/// The tests in the `tests` folder of every other package: each program by itself, at its command line.
const PROGRAMS: &str = "programs";

/// Whole clusters, each in namespaces of its own.
const HA: &str = "ha";

/// Of those at once: they wait for time-outs nearly all the while, on however many cores.
const HA_THREADS: &str = "8";

/// Groups that start no program from outside of this repository.
const SELF_CONTAINED: [&str; 4] = ["golden", "crash", "sim", "cluster"];

/// With this word the figures are taken in a virtual machine.
const BENCH_IN_MACHINE: &str = "--drbd";

/// Names the folder of built programs to the tests, so that they never start stale ones.
const PROGRAM_DIR_VARIABLE: &str = "MIRROR_BIN_DIR";

#[derive(Debug, Clone, Copy)]
pub enum Profile {
    Dev,
    /// What people see.
    Release,
}

impl Profile {
    fn program_dir(self) -> PathBuf {
        target_dir().join(match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        })
    }
}

/// Builds what is installed on servers.
pub fn build_for_servers() -> Result<()> {
    run(cargo()
        .args(["build", "--release", "--locked", "--bins"])
        .args(["-p", "nbd-frontend", "-p", "agent", "-p", "mirrorctl"])
        .args(["-p", "mirror-inspect", "--features=agent/aws"]))
}

/// Builds what the demo, the benches and the fault campaign start.
fn build_programs(profile: Profile, selection: Selection) -> Result<()> {
    match profile {
        // With a test among the targets cargo turns on what tests need of dependencies, as in every other task.
        Profile::Dev => run(linted("build", selection).args(["--bins", "--test", HA])),
        Profile::Release => run(cargo()
            .args(["build", "--release", "--locked", "--bins"])
            .args(["-p", "nbd-frontend", "-p", "agent", "-p", "mirrorctl"])
            .args(["-p", "mirror-inspect", "-p", "mirror-bench"])),
    }
}

pub fn test(group: Option<&str>, arguments: &[String]) -> Result<()> {
    let groups = match group {
        None => GROUPS.to_vec(),
        Some(name) if GROUPS.contains(&name) => vec![name],
        Some(name) => bail!("no test group `{name}`; there are {}", GROUPS.join(", ")),
    };
    let own = |group: &&str| SELF_CONTAINED.contains(group) || *group == aws::GROUP;
    if !groups.iter().all(own) {
        packages::install_missing(&[Use::Tests])?;
    }
    if groups.contains(&aws::GROUP) {
        packages::install_missing(&[Use::Aws])?;
    }
    if groups.contains(&vm::GROUP) {
        packages::install_missing(&[Use::Vm])?;
    }
    groups
        .into_iter()
        .try_for_each(|group| test_group(group, Selection::Usual, arguments))
}

/// Builds and runs one group.
pub fn test_group(group: &str, selection: Selection, arguments: &[String]) -> Result<()> {
    if group == vm::GROUP {
        return test_machines(selection, Cases::Representative, arguments);
    }
    if group == aws::GROUP {
        return aws::test(arguments);
    }
    let targets: &[&str] = match group {
        // Of the whole workspace, so that the tests of a new package cannot be forgotten.
        PROGRAMS => &["--exclude", SUITES, "--test", "*"],
        _ => &["--test", group],
    };
    // The programs first: a test binary is no reason for cargo to build those of other packages.
    run(linted("build", selection).arg("--bins").args(targets))?;
    let mut test = linted("test", selection);
    if group == HA {
        test.env("RUST_TEST_THREADS", HA_THREADS);
    }
    run(test
        .args(targets)
        .arg("--")
        .args(arguments)
        .env(PROGRAM_DIR_VARIABLE, Profile::Dev.program_dir()))
}

/// Which cases of [`vm::GROUP`] are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cases {
    All,
    /// Without those that take many minutes each.
    Representative,
}

/// Builds and runs the cases in virtual machines, one after the other: each needs all processors there are.
pub fn test_machines(selection: Selection, cases: Cases, arguments: &[String]) -> Result<()> {
    let system = vm::system()?;
    let targets = ["--test", vm::GROUP];
    run(linted("build", selection).arg("--bins").args(targets))?;
    let mut test = linted("test", selection);
    test.args(targets).arg("--").args(arguments);
    if cases == Cases::Representative {
        test.args(["--skip", vm::LONG]);
    }
    run(test
        .env("RUST_TEST_THREADS", "1")
        .env(vm::SYSTEM_VARIABLE, system)
        .env(PROGRAM_DIR_VARIABLE, Profile::Dev.program_dir()))
}

/// Every case in virtual machines.
pub fn all_machines(arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Vm])?;
    test_machines(Selection::Usual, Cases::All, arguments)
}

/// Mirrors, or whole clusters where the first word is `--cluster`.
pub fn sim(selection: Selection, arguments: &[String]) -> Result<()> {
    let (simulator, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "--cluster" => ("cluster-sim", rest),
        _ => ("sim", arguments),
    };
    // With a test among the targets cargo turns on what tests need of dependencies, as in every other task.
    run(linted("build", selection).args(["--bin", simulator, "--test", "sim"]))?;
    run(program(Profile::Dev.program_dir().join(simulator)).args(arguments))
}

pub fn soak(selection: Selection, arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Tests])?;
    build_programs(Profile::Dev, selection)?;
    let folder = Profile::Dev.program_dir();
    run(program(folder.join("soak"))
        .args(arguments)
        .env(PROGRAM_DIR_VARIABLE, &folder))
}

pub fn bench(profile: Profile, selection: Selection, arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Bench])?;
    let folder = profile.program_dir();
    let mut bench = program(folder.join("mirror-bench"));
    bench.args(arguments).env(PROGRAM_DIR_VARIABLE, &folder);
    if arguments
        .iter()
        .any(|argument| argument == BENCH_IN_MACHINE)
    {
        packages::install_missing(&[Use::Vm])?;
        bench
            .env(vm::SYSTEM_VARIABLE, vm::system()?)
            .env(vm::PEERS_VARIABLE, vm::peers()?);
    }
    build_programs(profile, selection)?;
    run(&mut bench)
}

pub fn demo(profile: Profile, selection: Selection, arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Demo])?;
    build_programs(profile, selection)?;
    run(program(profile.program_dir().join("mirrorctl"))
        .arg("demo")
        .args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_integration_test_of_the_workspace_is_in_a_group() {
        let output = cargo()
            .args([
                "metadata",
                "--format-version",
                "1",
                "--no-deps",
                "--offline",
            ])
            .output()
            .unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let suites = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|package| package["name"] == SUITES)
            .unwrap();
        let mut found: Vec<_> = suites["targets"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|target| target["kind"][0] == "test")
            .map(|target| target["name"].as_str().unwrap())
            .chain([PROGRAMS, aws::GROUP])
            .collect();
        let mut groups = GROUPS.to_vec();
        found.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, found);
    }
}
