//! The clock of leases and heartbeats: it never steps, and it counts the time that the machine was
//! suspended.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, suspended time included, rounded down.
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39");
    u64::try_from(Duration::from(now).as_millis()).expect("less than 500 million years")
}
