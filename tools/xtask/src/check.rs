//! `check`: everything that is known of the sources without running a node. Under two minutes when warm.

use anyhow::Result;

use crate::aws;
use crate::command::{cargo, run};
use crate::dependencies;
use crate::fuzz;
use crate::steps::Steps;
use crate::workspace::{Selection, linted};

pub fn format() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    // Outside of the workspace; `fuzz::build` compiles it.
    run(cargo()
        .args(["fmt", "--check", "--manifest-path"])
        .arg(fuzz::folder().join("Cargo.toml")))
}

/// Compiles every target, and denies every warning on the way.
pub fn build(selection: Selection) -> Result<()> {
    run(linted("build", selection).arg("--all-targets"))
}

pub fn unit_tests(selection: Selection) -> Result<()> {
    let mut test = linted("test", selection);
    test.args(["--lib", "--bins"]);
    if let Selection::Whole = selection {
        test.env(aws::MOTO_VARIABLE, aws::moto_server()?);
    }
    run(&mut test)
}

pub fn documentation() -> Result<()> {
    run(cargo()
        .args(["doc", "--locked"])
        .args(Selection::Usual.arguments())
        .args(["--no-deps", "--document-private-items"])
        .env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        ))
}

pub fn run_check() -> Result<()> {
    let selection = Selection::Usual;
    let mut steps = Steps::begin();
    steps.step("format", format);
    if steps.step("build and lint", || build(selection)) {
        steps.step("unit tests", || unit_tests(selection));
    }
    steps.step("documentation", documentation);
    steps.step("dependencies", dependencies::check);
    steps.finish()
}
