//! The actions of last resort (A1), on this very machine.
//!
//! The real ones end it; tests get [`Machine::Recording`], which writes down what it would have done.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nbd_frontend::config::agent::FinalAction;
use nix::sys::reboot::RebootMode;

const SYSRQ: &str = "/proc/sys/kernel/sysrq";
const SYSRQ_TRIGGER: &str = "/proc/sysrq-trigger";
const WATCHDOG: &str = "/dev/watchdog";
/// How long the service manager may take to accept a request.
const SYSTEM_LIMIT: Duration = Duration::from_secs(10);
const SYSTEM_POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone)]
pub enum Machine {
    Real,
    /// One name a line.
    Recording(PathBuf),
}

impl Machine {
    /// Returns before the machine has gone down, if at all. The agent stays as it is until then.
    pub fn act(&self, action: FinalAction) -> anyhow::Result<()> {
        if let Self::Recording(file) = self {
            return record(file, action);
        }
        match action {
            FinalAction::None | FinalAction::StopGroup | FinalAction::StopService => Ok(()),
            FinalAction::StopServiceAndShutdown => end("poweroff", RebootMode::RB_POWER_OFF),
            FinalAction::Reboot => end("reboot", RebootMode::RB_AUTOBOOT),
            FinalAction::SysrqPanic => {
                // The trigger works whatever is set, unless the kernel has none at all.
                let _ = fs::write(SYSRQ, "1");
                fs::write(SYSRQ_TRIGGER, "c")
                    .with_context(|| format!("cannot write {SYSRQ_TRIGGER}"))
            }
            // A `stall` monitor may hold the device, and only one may.
            FinalAction::WatchdogReset => reset_by_watchdog().or_else(|error| {
                tracing::error!("{error:#}; rebooting instead");
                end("reboot", RebootMode::RB_AUTOBOOT)
            }),
        }
    }
}

fn record(file: &PathBuf, action: FinalAction) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{action:?}")?;
    Ok(())
}

/// Not after a `sync`: that hangs where a file system does, which may be why this is called.
fn end(verb: &str, mode: RebootMode) -> anyhow::Result<()> {
    system(verb).or_else(|error| {
        tracing::error!("{error:#}; doing without the service manager");
        let never = nix::sys::reboot::reboot(mode);
        never.map(drop).context("reboot(2)")
    })
}

fn system(verb: &str) -> anyhow::Result<()> {
    let mut asked = Command::new("systemctl")
        .args(["--no-block", verb])
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start systemctl {verb}"))?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = asked.try_wait()? {
            break status;
        }
        if begun.elapsed() > SYSTEM_LIMIT {
            let _ = asked.kill();
            anyhow::bail!("systemctl {verb} did not end within {SYSTEM_LIMIT:?}");
        }
        std::thread::sleep(SYSTEM_POLL);
    };
    anyhow::ensure!(status.success(), "systemctl {verb} ended with {status}");
    Ok(())
}

/// Opened and never fed: the watchdog resets the machine within its time.
fn reset_by_watchdog() -> anyhow::Result<()> {
    let device = OpenOptions::new()
        .write(true)
        .open(WATCHDOG)
        .with_context(|| format!("cannot open {WATCHDOG}; load a driver such as softdog"))?;
    // Closed without the magic letter it would stay armed too; open, nobody else can feed it.
    std::mem::forget(device);
    Ok(())
}
