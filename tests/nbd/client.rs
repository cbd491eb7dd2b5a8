//! Clients from Debian, each run to its end within a limit.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use local_pair::{run_failing_tool, run_tool};

const LIMIT: Duration = Duration::from_secs(90);

/// Runs a client that must succeed and gives its standard output.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_tool(program, arguments, LIMIT)
}

/// Runs a client that must fail and gives everything it said.
pub fn run_failing(program: &str, arguments: &[&str]) -> Result<String> {
    run_failing_tool(program, arguments, LIMIT)
}

/// Commands of `qemu-io` on a raw image; a pattern that does not match is an error.
pub fn qemu_io(uri: &str, commands: &[&str]) -> Result<()> {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    let said = run("qemu-io", &arguments)?;
    if said.contains("Pattern verification failed") || said.contains("error") {
        bail!("qemu-io {commands:?}: {said}");
    }
    Ok(())
}

/// Fills a file with bytes that repeat nowhere near each other.
pub fn random_file(path: &Path, bytes: u64) -> Result<()> {
    let mut from = std::io::Read::take(std::fs::File::open("/dev/urandom")?, bytes);
    let mut to = std::fs::File::create(path)?;
    std::io::copy(&mut from, &mut to)?;
    Ok(())
}
