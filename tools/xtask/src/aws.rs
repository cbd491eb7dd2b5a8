//! The package `mirror-aws` and the agent's feature `aws`: built apart from everything else, and once.
//!
//! Its tests, and those of the agent that the feature concerns, share one selection of packages and so one
//! build of what takes minutes to compile. They talk to a real `moto_server`, in a Python environment of its
//! own under the target folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, program, run, target_dir};

/// The test group.
pub const GROUP: &str = "aws";

/// Keeps the package out of what is done to the whole workspace.
pub const EXCLUDE: [&str; 2] = ["--exclude", "mirror-aws"];

/// What decides which of the shared dependencies' features are on. Another selection would compile them anew.
const SELECTION: [&str; 6] = [
    "--locked",
    "-p",
    "mirror-aws",
    "-p",
    "agent",
    "--features=agent/aws",
];

/// `moto_server` with the part of its dependencies that EC2 and IAM need.
const REQUIREMENTS: [&str; 3] = ["moto[ec2]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// Names the server to the tests.
const MOTO_VARIABLE: &str = "MIRROR_MOTO_SERVER";

/// Crates of the workspace are compiled by clippy's compiler. `cargo clippy` would have to go through the
/// dependencies once more.
fn linted(command: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .arg(command)
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        // The form in which `cargo clippy` hands over `--deny warnings`.
        .env(
            "CLIPPY_ARGS",
            "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
        );
    cargo
}

pub fn test(arguments: &[String]) -> Result<()> {
    let server = moto_server()?;
    run(linted("test")
        .args(SELECTION)
        .args(["--lib", "--test", "forced_stop_custom", "--"])
        .args(arguments)
        .env(MOTO_VARIABLE, server))
}

/// Installs the server, unless this very version is there already.
fn moto_server() -> Result<PathBuf> {
    let folder = target_dir().join("venv");
    let installed = folder.join("installed");
    let wanted = REQUIREMENTS.join("\n");
    if std::fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(folder.join("bin/moto_server"));
    }
    // That of the system, which the package python3-venv belongs to.
    run(program("/usr/bin/python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    run(program(folder.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(REQUIREMENTS))?;
    std::fs::write(&installed, wanted)
        .with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(folder.join("bin/moto_server"))
}
