//! The agent's own progress. Where a watchdog device is configured, each try feeds it: an agent that no longer
//! runs, or that cannot be scheduled, lets the kernel reset the machine. So does one that is told to starve it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub struct Stall {
    device: Option<PathBuf>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    open: Option<File>,
    /// The machine is to be reset: it is fed no more.
    starving: bool,
}

impl Stall {
    pub fn new(device: Option<&Path>) -> Self {
        Self {
            device: device.map(Into::into),
            held: Mutex::default(),
        }
    }

    pub fn probe(&self) -> Result<(), String> {
        let Some(device) = &self.device else {
            return Ok(());
        };
        let fault = |error: std::io::Error| {
            format!(
                "the watchdog {}: {error}; load a driver such as softdog, or remove `watchdog`",
                device.display()
            )
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.starving {
            return Ok(());
        }
        if held.open.is_none() {
            held.open = Some(OpenOptions::new().write(true).open(device).map_err(fault)?);
        }
        let file = held.open.as_mut().expect("opened above");
        file.write_all(b"\0").map_err(fault)
    }

    /// From now on nobody feeds the watchdog, nor disarms it, also when the agent ends. False if it is not open here.
    pub fn starve(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.starving = true;
        held.open.is_some()
    }
}

impl Drop for Stall {
    /// An agent that ends on purpose takes the watchdog with it: the "magic close" of the kernel's interface.
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if held.starving {
            return;
        }
        if let Some(file) = &mut held.open {
            // A device that refuses stays armed, which is its safe side.
            let _ = file.write_all(b"V");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_fed_at_each_try_and_let_go_of_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        File::create(&device).unwrap();
        let stall = Stall::new(Some(&device));
        assert_eq!(stall.probe(), Ok(()));
        assert_eq!(stall.probe(), Ok(()));
        drop(stall);
        assert_eq!(std::fs::read(&device).unwrap(), b"\0\0V");
    }

    #[test]
    fn a_watchdog_that_starves_is_neither_fed_nor_let_go_of() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        File::create(&device).unwrap();
        let stall = Stall::new(Some(&device));
        assert!(!stall.starve(), "it was never opened");
        assert_eq!(stall.probe(), Ok(()));
        assert_eq!(std::fs::read(&device).unwrap(), b"", "nor is it now");

        let stall = Stall::new(Some(&device));
        assert_eq!(stall.probe(), Ok(()));
        assert!(stall.starve());
        assert_eq!(stall.probe(), Ok(()));
        drop(stall);
        assert_eq!(std::fs::read(&device).unwrap(), b"\0");
    }

    #[test]
    fn a_missing_watchdog_is_named() {
        let stall = Stall::new(Some(Path::new("/nowhere/watchdog")));
        assert!(stall.probe().unwrap_err().contains("/nowhere/watchdog"));
    }
}
