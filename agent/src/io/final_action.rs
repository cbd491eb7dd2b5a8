//! The actions of last resort (A1), on this very machine.
//!
//! The real ones end it; tests get [`Machine::Recording`], which writes down what it would have done. An end in order is
//! asked of the service manager, and a unit that does not stop can hold that up for ever. So a process of its own is
//! started first, the [`Backstop`], which ends the machine by `reboot(2)` when [`BACKSTOP_AFTER`] is over. It outlives
//! the agent, which is stopped in the course of an end in order (`KillMode=process` in its unit).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use nbd_frontend::config::agent::FinalAction;
use nix::sys::reboot::RebootMode;

const SYSRQ: &str = "/proc/sys/kernel/sysrq";
const SYSRQ_TRIGGER: &str = "/proc/sysrq-trigger";
const WATCHDOG: &str = "/dev/watchdog";
/// How long the service manager may take to accept a request.
const SYSTEM_LIMIT: Duration = Duration::from_secs(10);
const SYSTEM_POLL: Duration = Duration::from_millis(20);
/// Longest from a final action to the end of the machine. The service manager kills by default what has not stopped
/// after 90 s; an end that goes on by then is left to it.
pub const BACKSTOP_AFTER: Duration = Duration::from_secs(120);
/// The argument with which `mirror-agent` is a backstop and nothing else.
pub const BACKSTOP_ARGUMENT: &str = "--backstop";

#[derive(Debug, Clone)]
pub enum Machine {
    Real,
    /// One name a line.
    Recording(PathBuf),
}

impl Machine {
    /// Returns before the machine has gone down, if at all. The agent stays as it is until then.
    ///
    /// `starved`: a watchdog is open here, and nobody feeds it any more.
    pub fn act(&self, action: FinalAction, starved: bool) -> anyhow::Result<()> {
        if let Self::Recording(file) = self {
            return record(file, action);
        }
        match action {
            FinalAction::None | FinalAction::StopGroup | FinalAction::StopService => Ok(()),
            FinalAction::StopServiceAndShutdown => end(&Real, Backstop::Poweroff),
            FinalAction::Reboot => end(&Real, Backstop::Reboot),
            FinalAction::SysrqPanic => {
                // The trigger works whatever is set, unless the kernel has none at all.
                let _ = fs::write(SYSRQ, "1");
                fs::write(SYSRQ_TRIGGER, "c")
                    .with_context(|| format!("cannot write {SYSRQ_TRIGGER}"))
            }
            FinalAction::WatchdogReset => reset(&Real, starved),
        }
    }
}

fn record(file: &PathBuf, action: FinalAction) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{action:?}")?;
    Ok(())
}

/// How the machine ends if it has not ended otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backstop {
    Reboot,
    Poweroff,
}

impl Backstop {
    /// As `systemctl` and the argument call it.
    fn verb(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Poweroff => "poweroff",
        }
    }

    /// The whole life of the process that is a backstop: it waits, and ends the machine.
    pub fn wait_and_end_the_machine(self) -> anyhow::Result<()> {
        // What hangs may be the disk that this program would be read from again.
        if let Err(error) = mirror_core::io::memory::lock_memory() {
            tracing::warn!("cannot lock memory: {error}");
        }
        std::thread::sleep(BACKSTOP_AFTER);
        tracing::error!(
            "the machine still runs {BACKSTOP_AFTER:?} after the final action; doing without the service manager"
        );
        Real.end_at_once(self)
    }
}

/// What really ends a machine. Nothing but [`Real`] touches this one.
trait Levers {
    fn start_backstop(&self, backstop: Backstop) -> anyhow::Result<()>;
    fn ask_system(&self, verb: &str) -> anyhow::Result<()>;
    fn open_watchdog(&self) -> anyhow::Result<()>;
    fn end_at_once(&self, backstop: Backstop) -> anyhow::Result<()>;
}

struct Real;

impl Levers for Real {
    fn start_backstop(&self, backstop: Backstop) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("this program is not known")?;
        // A group of its own, so that nothing that is sent to the agent's reaches it.
        Command::new(&program)
            .args([BACKSTOP_ARGUMENT, backstop.verb()])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map(drop)
            .with_context(|| format!("cannot start {} as a backstop", program.display()))
    }

    fn ask_system(&self, verb: &str) -> anyhow::Result<()> {
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

    fn open_watchdog(&self) -> anyhow::Result<()> {
        let device = OpenOptions::new()
            .write(true)
            .open(WATCHDOG)
            .with_context(|| format!("cannot open {WATCHDOG}; load a driver such as softdog"))?;
        // Closed without the magic letter it would stay armed too; open, nobody else can feed it.
        std::mem::forget(device);
        Ok(())
    }

    /// Not after a `sync`: that hangs where a file system does, which may be why this is called.
    fn end_at_once(&self, backstop: Backstop) -> anyhow::Result<()> {
        let mode = match backstop {
            Backstop::Reboot => RebootMode::RB_AUTOBOOT,
            Backstop::Poweroff => RebootMode::RB_POWER_OFF,
        };
        let never = nix::sys::reboot::reboot(mode);
        never.map(drop).context("reboot(2)")
    }
}

/// In order, as long as it is certain to come to an end.
fn end(levers: &impl Levers, backstop: Backstop) -> anyhow::Result<()> {
    let asked = levers
        .start_backstop(backstop)
        .and_then(|()| levers.ask_system(backstop.verb()));
    asked.or_else(|error| {
        tracing::error!("{error:#}; doing without the service manager");
        levers.end_at_once(backstop)
    })
}

/// A watchdog that is open and never fed resets the machine within its time, which may be long.
fn reset(levers: &impl Levers, starved: bool) -> anyhow::Result<()> {
    // Only one may hold the device, and a `stall` monitor that holds it has stopped to feed it.
    let armed = match starved {
        true => Ok(()),
        false => levers.open_watchdog(),
    };
    let armed = armed.and_then(|()| levers.start_backstop(Backstop::Reboot));
    armed.or_else(|error| {
        tracing::error!("{error:#}; rebooting instead");
        end(levers, Backstop::Reboot)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A machine on which some levers do not move.
    #[derive(Default)]
    struct Desk {
        stuck: Vec<&'static str>,
        pulled: RefCell<Vec<String>>,
    }

    impl Desk {
        fn pull(&self, lever: &str, with: &str) -> anyhow::Result<()> {
            self.pulled
                .borrow_mut()
                .push(format!("{lever} {with}").trim_end().into());
            anyhow::ensure!(!self.stuck.contains(&lever), "{lever} does not move");
            Ok(())
        }
    }

    impl Levers for Desk {
        fn start_backstop(&self, backstop: Backstop) -> anyhow::Result<()> {
            self.pull("backstop", backstop.verb())
        }

        fn ask_system(&self, verb: &str) -> anyhow::Result<()> {
            self.pull("ask", verb)
        }

        fn open_watchdog(&self) -> anyhow::Result<()> {
            self.pull("watchdog", "")
        }

        fn end_at_once(&self, backstop: Backstop) -> anyhow::Result<()> {
            self.pull("at once", backstop.verb())
        }
    }

    #[track_caller]
    fn check(stuck: &[&'static str], act: impl Fn(&Desk) -> anyhow::Result<()>, expected: &[&str]) {
        let desk = Desk {
            stuck: stuck.to_vec(),
            ..Desk::default()
        };
        let outcome = act(&desk);
        assert_eq!(outcome.is_err(), stuck.contains(&"at once"));
        assert_eq!(*desk.pulled.borrow(), expected);
    }

    #[test]
    fn an_end_in_order_has_its_backstop_before_it_is_asked_for() {
        for (backstop, verb) in [
            (Backstop::Reboot, "reboot"),
            (Backstop::Poweroff, "poweroff"),
        ] {
            let [first, ask, at_once] =
                ["backstop", "ask", "at once"].map(|lever| format!("{lever} {verb}"));
            let act = |desk: &Desk| end(desk, backstop);
            check(&[], act, &[&first, &ask]);
            check(&["ask"], act, &[&first, &ask, &at_once]);
            check(&["backstop"], act, &[&first, &at_once]);
            check(&["ask", "at once"], act, &[&first, &ask, &at_once]);
        }
    }

    #[test]
    fn a_watchdog_that_starves_already_is_not_opened_again() {
        check(&[], |desk| reset(desk, true), &["backstop reboot"]);
        let opened = ["watchdog", "backstop reboot"];
        check(&[], |desk| reset(desk, false), &opened);
        let none = ["watchdog", "backstop reboot", "ask reboot"];
        check(&["watchdog"], |desk| reset(desk, false), &none);
    }
}
