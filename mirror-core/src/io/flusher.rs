//! Marks this process as one that writes other processes' memory to disk, so that the kernel never
//! makes it wait, under memory pressure, for the very writes that it is to carry out.

use std::io;

/// From `linux/prctl.h`, since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Applies to the calling thread and to all it starts later, so call it first in `main`. Needs
/// `CAP_SYS_RESOURCE`.
pub fn become_io_flusher() -> io::Result<()> {
    // SAFETY: this prctl takes integers only and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
