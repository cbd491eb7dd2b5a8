//! The actions of last resort (A1), on this very machine.
//!
//! The real ones end it; tests get [`Machine::Recording`], which writes down what it would have done.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use nbd_frontend::config::agent::FinalAction;

const SYSRQ: &str = "/proc/sys/kernel/sysrq";
const SYSRQ_TRIGGER: &str = "/proc/sysrq-trigger";
const WATCHDOG: &str = "/dev/watchdog";

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
            FinalAction::StopServiceAndShutdown => system("poweroff"),
            FinalAction::Reboot => system("reboot").or_else(|error| {
                tracing::error!("{error:#}; rebooting without the service manager");
                nix::unistd::sync();
                let never = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
                never.map(drop).context("reboot(2)")
            }),
            FinalAction::SysrqPanic => {
                // The trigger works whatever is set, unless the kernel has none at all.
                let _ = fs::write(SYSRQ, "1");
                fs::write(SYSRQ_TRIGGER, "c")
                    .with_context(|| format!("cannot write {SYSRQ_TRIGGER}"))
            }
            FinalAction::WatchdogReset => reset_by_watchdog(),
        }
    }
}

fn record(file: &PathBuf, action: FinalAction) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{action:?}")?;
    Ok(())
}

fn system(verb: &str) -> anyhow::Result<()> {
    let status = Command::new("systemctl")
        .args(["--no-block", verb])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start systemctl {verb}"))?;
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
