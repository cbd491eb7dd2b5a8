//! Disks for tests: with a file system and mounted, with little room, failing, full or hanging on demand.
//!
//! Each has a folder of its own and takes itself away when it is dropped, also by a panic; when the whole program is
//! killed, a [`Cleaner`] beside it does that. All of them need root.

mod cleaner;
mod failing_disk;
mod loop_disk;
mod small_disk;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use local_pair::run_tool;

pub use cleaner::Cleaner;
pub use failing_disk::FailingDisk;
pub use loop_disk::{Format, LoopDisk};
pub use small_disk::SmallDisk;

const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// Runs a tool that must succeed.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_tool(program, arguments, TOOL_LIMIT)
}

fn ensure_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a disk; run it as root"
    );
    Ok(())
}

fn is_mounted(point: &Path) -> bool {
    let point = text(point);
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&point))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
