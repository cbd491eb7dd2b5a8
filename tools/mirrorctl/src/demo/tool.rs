//! Runs the system's tools for the demo.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use local_pair::run_tool;

/// Longest run of one tool.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Runs a tool that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_tool(program, arguments, LIMIT)
}

/// A path as a tool's argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}
