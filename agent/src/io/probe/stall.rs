//! The agent's own progress. Where a watchdog device is configured, each try feeds it: an agent that no longer
//! runs, or that cannot be scheduled, lets the kernel reset the machine.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub struct Stall {
    device: Option<PathBuf>,
    open: Mutex<Option<File>>,
}

impl Stall {
    pub fn new(device: Option<&Path>) -> Self {
        Self {
            device: device.map(Into::into),
            open: Mutex::new(None),
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = Some(OpenOptions::new().write(true).open(device).map_err(fault)?);
        }
        let file = open.as_mut().expect("opened above");
        file.write_all(b"\0").map_err(fault)
    }
}

impl Drop for Stall {
    /// An agent that ends on purpose takes the watchdog with it: the "magic close" of the kernel's interface.
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open {
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
    fn a_missing_watchdog_is_named() {
        let stall = Stall::new(Some(Path::new("/nowhere/watchdog")));
        assert!(stall.probe().unwrap_err().contains("/nowhere/watchdog"));
    }
}
