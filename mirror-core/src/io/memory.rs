//! Keeps this process in memory: a daemon that other processes' pages are written through must not wait for a page
//! of its own to come back from a disk, least of all from its own mirror.

use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

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
