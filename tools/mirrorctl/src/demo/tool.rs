//! Runs the system's tools for the demo.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use local_pair::run_bounded;

/// Longest run of one tool.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Runs a tool that must succeed, also from `/sbin` where a user's `PATH` lacks it.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = run_bounded(
        Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .process_group(0),
        LIMIT,
    )?;
    if !output.status.success() {
        bail!(
            "`{program} {}` ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A path as a tool's argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}
