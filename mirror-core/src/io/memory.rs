//! The memory of this process: how much is in RAM, and keeping it there: a daemon that other processes' pages are written through must not wait for a page
//! of its own to come back from a disk, least of all from its own mirror.

use std::{fs, io};

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Memory of this process that is in RAM (proc_pid_statm(5)); nothing where /proc is not there.
pub fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page_bytes).ok()?)
}

/// Locks what is in memory now and what comes later, each page when it is first touched. Gives false where the limit
/// on locked memory is finite: with it, later allocations would fail.
pub fn lock_memory() -> io::Result<bool> {
    let (limit_bytes, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if limit_bytes != RLIM_INFINITY {
        return Ok(false);
    }
    // Not at once: stacks and pools take far more addresses than pages.
    let flags = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT)
        | MlockAllFlags::MCL_CURRENT
        | MlockAllFlags::MCL_FUTURE;
    mlockall(flags)?;
    Ok(true)
}
