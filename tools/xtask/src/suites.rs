//! The suites that run whole nodes, simulated or real.
//!
//! Tests run in the dev profile, where arithmetic is checked and `mirror-core` and every dependency are
//! optimised all the same. What people see, the demo and the figures, runs in the release profile.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::aws;
use crate::command::{cargo, program, run, target_dir};
use crate::packages::{self, Use};

/// Quickest first. Each is a test binary of the package [`SUITES`], but for [`PROGRAMS`] and [`aws::GROUP`].
pub const GROUPS: [&str; 9] = [
    "golden",
    "crash",
    "conformance",
    PROGRAMS,
    "link",
    "sim",
    "cluster",
    "nbd",
    aws::GROUP,
];

/// The package of the suites.
const SUITES: &str = "mirror-tests";

/// The tests in the `tests` folder of every other package: each program by itself, at its command line.
const PROGRAMS: &str = "programs";

/// Groups that start no program from outside of this repository.
const SELF_CONTAINED: [&str; 4] = ["golden", "crash", "sim", "cluster"];

/// Names the folder of built programs to the tests, so that they never start stale ones.
const PROGRAM_DIR_VARIABLE: &str = "MIRROR_BIN_DIR";

#[derive(Debug, Clone, Copy)]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn program_dir(self) -> PathBuf {
        target_dir().join(match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        })
    }

    fn apply(self, command: &mut Command) -> &mut Command {
        match self {
            Profile::Dev => command,
            Profile::Release => command.arg("--release"),
        }
    }
}

/// Builds the programs that end-to-end tests and the demo start.
pub fn build_programs(profile: Profile) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--locked", "--bins"]);
    build.args([
        "-p",
        "nbd-frontend",
        "-p",
        "agent",
        "-p",
        "mirrorctl",
        "-p",
        "mirror-inspect",
    ]);
    if let Profile::Release = profile {
        build.args(["-p", "mirror-bench"]);
    }
    run(profile.apply(&mut build))
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
    if groups != [aws::GROUP] {
        build_programs(Profile::Dev)?;
    }
    groups
        .into_iter()
        .try_for_each(|group| test_group(group, arguments))
}

/// Runs one group; the programs must be built.
pub fn test_group(group: &str, arguments: &[String]) -> Result<()> {
    if group == aws::GROUP {
        return aws::test(arguments);
    }
    let mut test = cargo();
    test.args(["test", "--locked"]);
    match group {
        // Of the whole workspace, so that the tests of a new package cannot be forgotten.
        PROGRAMS => test
            .args(["--workspace", "--exclude", SUITES, "--test", "*"])
            .args(aws::EXCLUDE),
        _ => test.args(["-p", SUITES, "--test", group]),
    };
    run(test
        .arg("--")
        .args(arguments)
        .env(PROGRAM_DIR_VARIABLE, Profile::Dev.program_dir()))
}

/// Mirrors, or whole clusters where the first word is `--cluster`.
pub fn sim(arguments: &[String]) -> Result<()> {
    let (simulator, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "--cluster" => ("cluster-sim", rest),
        _ => ("sim", arguments),
    };
    run(cargo()
        .args([
            "run",
            "--locked",
            "--quiet",
            "-p",
            "mirror-tests",
            "--bin",
            simulator,
            "--",
        ])
        .args(arguments))
}

pub fn bench(arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Bench])?;
    build_programs(Profile::Release)?;
    let folder = Profile::Release.program_dir();
    run(program(folder.join("mirror-bench"))
        .args(arguments)
        .env(PROGRAM_DIR_VARIABLE, &folder))
}

pub fn demo(arguments: &[String]) -> Result<()> {
    packages::install_missing(&[Use::Demo])?;
    build_programs(Profile::Release)?;
    run(program(Profile::Release.program_dir().join("mirrorctl"))
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
