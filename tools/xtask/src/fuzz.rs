//! The fuzz targets of `tests/fuzz`, built with the pinned stable toolchain: coverage comes from LLVM's
//! sanitizer pass, which stable rustc can run, so that nobody needs a nightly compiler or `cargo fuzz`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, program, root, run};
use crate::packages::{self, Use};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const COVERAGE_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1 --cfg fuzzing";

/// One input may not take longer than this.
const INPUT_SECONDS_MAX: u32 = 10;
/// Nor may a target use more memory than this, so that an allocation taken from an unchecked length is found.
const MEMORY_MIB_MAX: u32 = 1024;

pub fn folder() -> PathBuf {
    root().join("tests/fuzz")
}

/// Which targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those that compile without drivers and daemons.
    Pure,
    /// All: takes minutes to compile.
    Whole,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    bin: Vec<Target>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Target {
    name: String,
    #[serde(default)]
    required_features: Vec<String>,
}

/// The names of the targets, in order.
pub fn targets(reach: Reach) -> Result<Vec<String>> {
    let path = folder().join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut names: Vec<String> = manifest
        .bin
        .into_iter()
        .filter(|target| reach == Reach::Whole || target.required_features.is_empty())
        .map(|target| target.name)
        .collect();
    names.sort();
    Ok(names)
}

pub fn build(reach: Reach) -> Result<()> {
    let features: &[&str] = match reach {
        Reach::Pure => &[],
        Reach::Whole => &["--features", "whole"],
    };
    run(cargo()
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--target",
            TRIPLE,
        ])
        .args(features)
        .arg("--manifest-path")
        .arg(folder().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(folder().join("target"))
        .env("RUSTFLAGS", COVERAGE_FLAGS))
}

/// Runs one built target. New inputs go to a scratch corpus; those kept with the sources are read only.
pub fn run_target(target: &str, seconds: u64) -> Result<()> {
    let found = folder().join("target/corpus").join(target);
    let artifacts = folder().join("artifacts").join(target);
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;
    let mut fuzz = program(
        folder()
            .join("target")
            .join(TRIPLE)
            .join("release")
            .join(target),
    );
    fuzz.arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .arg(found);
    let kept = folder().join("corpus").join(target);
    if kept.is_dir() {
        fuzz.arg(kept);
    }
    run(&mut fuzz).with_context(|| {
        format!(
            "target {target} found something; the input is in {}",
            artifacts.display()
        )
    })
}

pub fn run_targets(only: Option<&str>, seconds: u64) -> Result<()> {
    let mut names = targets(Reach::Whole)?;
    let mut reach = Reach::Whole;
    if let Some(name) = only {
        if !names.iter().any(|n| n == name) {
            bail!("no fuzz target `{name}`; there are {}", names.join(", "));
        }
        names.retain(|n| n == name);
        if targets(Reach::Pure)?.contains(&names[0]) {
            reach = Reach::Pure;
        }
    }
    packages::install_missing(&[Use::Fuzz])?;
    build(reach)?;
    names.iter().try_for_each(|name| run_target(name, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_a_target() {
        let mut sources: Vec<_> = fs::read_dir(folder().join("fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        sources.sort();
        assert_eq!(targets(Reach::Whole).unwrap(), sources);
        let pure = targets(Reach::Pure).unwrap();
        assert!(!pure.is_empty() && pure.iter().all(|name| sources.contains(name)));
    }
}
