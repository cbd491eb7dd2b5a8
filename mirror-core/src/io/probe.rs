//! Finds out, before anything is opened, whether this process may use io_uring, and says what to
//! do where it may not.

use std::io;

use crate::io::ring::Runtime;

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "this kernel has no io_uring; mirrord needs Linux 5.11 or newer built with \
         CONFIG_IO_URING"
    )]
    Missing,
    #[error(
        "io_uring is switched off (kernel.io_uring_disabled = {0}); run `sysctl -w \
         kernel.io_uring_disabled=0`, or with the value 1 put mirrord into the group named by \
         kernel.io_uring_group"
    )]
    Disabled(u8),
    #[error(
        "io_uring is forbidden to this process, most likely by a container's seccomp profile; \
         allow the system calls io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Forbidden,
    #[error(
        "io_uring could not get its memory; raise the limit on locked memory (LimitMEMLOCK= in \
         the unit, `ulimit -l` in a shell)"
    )]
    NoMemory,
    #[error("io_uring could not be set up")]
    Other(#[source] io::Error),
}

/// Sets up a ring and drops it again.
pub fn probe() -> Result<(), ProbeError> {
    runtime().map(|_| ())
}

/// The runtime that a mirror's thread runs on.
pub(super) fn runtime() -> Result<Runtime, ProbeError> {
    Runtime::new().map_err(|error| explain(error, disabled_setting()))
}

fn disabled_setting() -> u8 {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn explain(error: io::Error, disabled: u8) -> ProbeError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => ProbeError::Missing,
        Some(libc::EPERM | libc::EACCES) if disabled > 0 => ProbeError::Disabled(disabled),
        Some(libc::EPERM | libc::EACCES) => ProbeError::Forbidden,
        Some(libc::ENOMEM) => ProbeError::NoMemory,
        _ => ProbeError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(errno: i32, disabled: u8, expected: &str) {
        let message = explain(io::Error::from_raw_os_error(errno), disabled).to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn each_obstacle_is_named_with_its_remedy() {
        check(libc::ENOSYS, 0, "Linux 5.11");
        check(libc::EPERM, 2, "kernel.io_uring_disabled = 2");
        check(libc::EPERM, 0, "seccomp");
        check(libc::ENOMEM, 0, "LimitMEMLOCK");
        check(libc::EIO, 0, "could not be set up");
    }
}
