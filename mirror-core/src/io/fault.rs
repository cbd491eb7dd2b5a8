//! What the system said when an operation on a store failed, told to the operator: every fault is in the log, and the
//! first of its kind in a while is an event as well.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two reports of the same failure.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps what is to be told of one store until somebody takes it.
#[derive(Debug, Default)]
pub struct FaultReports {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Told last: what failed, the error number, and when.
    last: Option<(&'static str, Option<i32>, Instant)>,
    untold: Option<String>,
}

impl FaultReports {
    pub fn note(&self, path: &Path, action: &'static str, offset: u64, error: &io::Error) {
        let mut state = self.state.borrow_mut();
        let number = error.raw_os_error();
        let now = Instant::now();
        let told = state.last.is_some_and(|(last, last_number, at)| {
            last == action && last_number == number && now - at < REPORT_INTERVAL
        });
        if told {
            return;
        }
        state.last = Some((action, number, now));
        state.untold = Some(format!(
            "cannot {action} at byte {offset} of {}: {error}; {}",
            path.display(),
            next_step(number)
        ));
    }

    /// What was not told yet; nothing the next time.
    pub fn take(&self) -> Option<String> {
        self.state.borrow_mut().untold.take()
    }
}

fn next_step(number: Option<i32>) -> &'static str {
    match number {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "make room for it; if `mirrorctl mdstat` shows the disk as failed, then let it be copied anew as in \
             docs/operations/replace-a-disk.md"
        }
        _ => {
            "look at the health of the disk; docs/operations/replace-a-disk.md says how to replace it"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_once() {
        let reports = FaultReports::default();
        let path = Path::new("/dev/vdb1");
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        reports.note(path, "write", 4096, &full);
        let told = reports.take().unwrap();
        assert!(
            told.starts_with("cannot write at byte 4096 of /dev/vdb1: No space left on device")
                && told.contains("make room"),
            "{told}"
        );
        reports.note(path, "write", 8192, &full);
        assert_eq!(reports.take(), None);
        reports.note(
            path,
            "write",
            8192,
            &io::Error::from_raw_os_error(libc::EIO),
        );
        let told = reports.take().unwrap();
        assert!(
            told.contains("Input/output error") && told.contains("replace-a-disk.md"),
            "{told}"
        );
    }
}
