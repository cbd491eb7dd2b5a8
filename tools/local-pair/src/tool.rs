//! Runs tools of the system, each to its end within a limit.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::wait::run_bounded;

/// Where a user's `PATH` may lack what mounts and makes file systems.
const SYSTEM_FOLDERS: &str = ":/usr/sbin:/sbin";

/// Runs a tool that must succeed and gives its standard output.
pub fn run_tool(program: &str, arguments: &[&str], limit: Duration) -> Result<String> {
    let output = run(program, arguments, limit)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "`{program} {}` ended with {}: {stdout}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(stdout)
}

/// Runs a tool that must fail and gives everything it said.
pub fn run_failing_tool(program: &str, arguments: &[&str], limit: Duration) -> Result<String> {
    let output = run(program, arguments, limit)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        bail!("`{program} {}` succeeded: {said}", arguments.join(" "));
    }
    Ok(said)
}

/// In a process group of its own, so that Ctrl-C does not take it away from under who waits for it.
fn run(program: &str, arguments: &[&str], limit: Duration) -> Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default() + SYSTEM_FOLDERS;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path).process_group(0);
    run_bounded(&mut command, limit)
}
