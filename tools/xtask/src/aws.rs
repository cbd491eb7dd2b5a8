//! The package `mirror-aws` and the agent's feature `aws`.
//!
//! Its tests talk to a real `moto_server`, in a Python environment of its own under the target folder; so do those of the
//! agent and of `mirrorctl` that need the feature.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::{program, run, target_dir};
use crate::workspace::{Selection, linted};

/// The test group.
pub const GROUP: &str = "aws";

/// `moto_server` with the part of its dependencies that EC2 and IAM need.
const REQUIREMENTS: [&str; 3] = ["moto[ec2]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// Names the server to the tests.
pub const MOTO_VARIABLE: &str = "MIRROR_MOTO_SERVER";

pub fn test(arguments: &[String]) -> Result<()> {
    let server = moto_server()?;
    run(linted("test", Selection::Aws)
        .args(["--lib", "--test", "forced_stop_custom"])
        .args(["--test", "forced_stop_aws", "--test", "check_aws", "--"])
        .args(arguments)
        .env(MOTO_VARIABLE, server))
}

/// Installs the server, unless this very version is there already.
pub fn moto_server() -> Result<PathBuf> {
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
