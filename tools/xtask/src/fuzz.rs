//! The fuzz targets of `tests/fuzz`, built with the pinned stable toolchain: coverage comes from LLVM's
//! sanitizer pass, which stable rustc can run, so that nobody needs a nightly compiler or `cargo fuzz`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

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

/// The names of all targets, in order.
pub fn targets() -> Result<Vec<String>> {
    let sources = folder().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&sources)
        .with_context(|| format!("cannot list the fuzz targets in {}", sources.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    if names.is_empty() {
        bail!("no fuzz targets in {}", sources.display());
    }
    names.sort();
    Ok(names)
}

pub fn build() -> Result<()> {
    run(cargo()
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--target",
            TRIPLE,
        ])
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
    let mut names = targets()?;
    if let Some(name) = only {
        if !names.iter().any(|n| n == name) {
            bail!("no fuzz target `{name}`; there are {}", names.join(", "));
        }
        names.retain(|n| n == name);
    }
    packages::install_missing(&[Use::Fuzz])?;
    build()?;
    names.iter().try_for_each(|name| run_target(name, seconds))
}
