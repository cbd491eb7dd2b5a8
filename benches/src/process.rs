//! What the kernel tells of a process (proc(5)).

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

/// Resident memory in KiB.
pub fn resident_kib(id: impl std::fmt::Display) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse().ok())
        .context("/proc tells the resident memory")
}

/// Seconds of processor time that it has used, its own and the kernel's for it.
pub fn processor_seconds(id: impl std::fmt::Display) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // After the name, which may hold anything, `utime` is the 12th word and `stime` the 13th.
    let (_, rest) = stat.rsplit_once(") ").context("/proc tells a name")?;
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.sum::<Result<u64, _>>().context("/proc tells ticks")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel tells its clock tick")?;
    Ok(ticks as f64 / per_second as f64)
}
