//! `check`: everything that is known of the sources without running a node. Under two minutes when warm.

use anyhow::Result;

use crate::aws;
use crate::command::{cargo, run};
use crate::dependencies;
use crate::fuzz;
use crate::steps::Steps;

pub fn run_steps(steps: &mut Steps) {
    steps.step("format", || {
        run(cargo().args(["fmt", "--all", "--check"]))?;
        // Outside of the workspace; `fuzz::build` compiles it.
        run(cargo()
            .args(["fmt", "--check", "--manifest-path"])
            .arg(fuzz::folder().join("Cargo.toml")))
    });
    steps.step("clippy", || {
        run(cargo()
            .args(["clippy", "--workspace", "--all-targets", "--locked"])
            .args(aws::EXCLUDE)
            .args(["--", "--deny", "warnings"]))
    });
    steps.step("unit tests", || {
        run(cargo()
            .args(["test", "--workspace", "--lib", "--bins", "--locked"])
            .args(aws::EXCLUDE))
    });
    steps.step("documentation", || {
        run(cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .args(aws::EXCLUDE)
            .args(["--document-private-items"])
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private_intra_doc_links",
            ))
    });
    steps.step("dependencies", dependencies::check);
}

pub fn run_check() -> Result<()> {
    let mut steps = Steps::default();
    run_steps(&mut steps);
    steps.finish()
}
