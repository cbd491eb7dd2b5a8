//! Waiting for a state, never for a time.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks at a state.
const POLL: Duration = Duration::from_millis(20);

/// Set by [`interrupt`], taken by the next wait, so that the waits of the clean-up after it run to their end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends the wait that is running, or the next one, with an error.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The end of a wait.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    pub fn after_seconds(seconds: u64) -> Self {
        Self::after(Duration::from_secs(seconds))
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Looks until `look` finds something; an error names what was waited for.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(found) = look().with_context(|| format!("while waiting for {what}"))? {
                return Ok(found);
            }
            if INTERRUPTED.swap(false, Ordering::Relaxed) {
                bail!("interrupted while waiting for {what}");
            }
            if self.is_over() {
                bail!("{what} did not come within {:?}", self.limit);
            }
            std::thread::park_timeout(POLL);
        }
    }
}

/// Runs a command to its end and takes its output; one that takes longer than `limit` is killed and an error.
///
/// Output goes through files, so that no pipe can fill up and stop the command.
pub fn run_bounded(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let stdout = tempfile::NamedTempFile::new().context("cannot make a file for output")?;
    let stderr = tempfile::NamedTempFile::new().context("cannot make a file for output")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.reopen()?)
        .stderr(stderr.reopen()?)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let ended = Deadline::after(limit).until(&format!("the end of {name}"), || {
        child.try_wait().map_err(anyhow::Error::from)
    });
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let said = std::fs::read_to_string(stderr.path()).unwrap_or_default();
            return Err(error.context(format!("{name} was killed; it had said: {}", said.trim())));
        }
    };
    Ok(Output {
        status,
        stdout: std::fs::read(stdout.path())?,
        stderr: std::fs::read(stderr.path())?,
    })
}
