//! The alert log: what the agent decides and why, for the operator, for scripts and for afterwards.
//!
//! [`AlertLog::record`] stamps an alert, puts it into a ring in memory that `mirrorctl log` reads, says it
//! to the daemon's own log, and hands it to a thread that writes it to two files: text lines in the field's
//! form, and the same as JSON beside it. Nothing that a disk does can hold up the agent: the way to that
//! thread is bounded and never waited for, and what could not be written is said once and counted.
//! Numbers go on after a restart. It knows nothing of what an alert means.

mod file;
pub mod line;
mod ring;
mod tail;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::alert::{Alert, Level};
use crate::control::AlertRecord;
use file::LogFile;
pub use ring::AlertRing;
pub use tail::{last_in, tail};

/// Alerts that may wait for the disk; later ones are not written, only kept in memory.
const WAITING_MAX: usize = 1024;

/// Where the JSON lines go: beside the text, with `.json` added.
pub fn json_path(text: &Path) -> PathBuf {
    let mut name = text.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// The agent's end. Clones write to the same log.
#[derive(Debug, Clone)]
pub struct AlertLog {
    node: String,
    ring: AlertRing,
    writer: SyncSender<Job>,
    trouble: Trouble,
}

/// Why the files lack lines, while they do.
#[derive(Debug, Clone, Default)]
struct Trouble(Arc<Mutex<Option<String>>>);

#[derive(Debug)]
enum Job {
    Write(AlertRecord),
    Reopen,
    /// Answered when everything before it is written, or could not be.
    Flush(oneshot::Sender<()>),
}

impl AlertLog {
    /// Never fails: an agent whose log cannot be written must still do its work. Reads the end of the
    /// log, to go on where it ended.
    pub fn open(path: &Path, node: &str) -> Self {
        let trouble = Trouble::default();
        let ring = AlertRing::restored(tail::unbroken(&json_path(path), node));
        let (writer, jobs) = sync_channel(WAITING_MAX);
        let files = [LogFile::new(path.into()), LogFile::new(json_path(path))];
        let thread_trouble = trouble.clone();
        let spawned = std::thread::Builder::new()
            .name("alert-log".into())
            .spawn(move || write_all(&jobs, files, &thread_trouble));
        if let Err(error) = spawned {
            trouble.begin(format!(
                "the alert log is not written: no thread for it: {error}"
            ));
        }
        Self {
            node: node.into(),
            ring,
            writer,
            trouble,
        }
    }

    pub fn record(&self, alert: Alert) {
        say(&alert);
        let record = self.ring.push(&self.node, alert);
        match self.writer.try_send(Job::Write(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.trouble.begin(format!(
                "the alert log is not written: its disk has not answered for {WAITING_MAX} lines; see to that disk"
            )),
            // The thread could not be started, which was said.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// What the console serves.
    pub fn ring(&self) -> AlertRing {
        self.ring.clone()
    }

    /// Why the files lack lines at present; a warning for `status`.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.now()
    }

    /// Opens the files anew, for who rotates them and says so by SIGHUP. Files that were moved away are
    /// noticed without it.
    pub fn reopen(&self) {
        // With a full queue the next line notices by itself.
        let _ = self.writer.try_send(Job::Reopen);
    }

    /// Waits until all that was recorded is on the disk, for `limit` at most: before the agent ends or
    /// takes an action after which nothing is written any more.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        if self.writer.try_send(Job::Flush(done)).is_ok() {
            // After the limit it is given up: the action must not wait for a disk.
            let _ = tokio::time::timeout(limit, flushed).await;
        }
    }

    /// Reopens the files at each SIGHUP; runs until its task is dropped.
    pub async fn reopen_on_hangup(self) -> std::io::Result<()> {
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        while hangup.recv().await.is_some() {
            self.reopen();
        }
        Ok(())
    }
}

/// The same to the daemon's own log.
fn say(alert: &Alert) {
    let (id, module, message) = (alert.id, alert.module.name(), &alert.message);
    match alert.level {
        Level::Info => tracing::info!(id, module, "{message}"),
        Level::Warning => tracing::warn!(id, module, "{message}"),
        Level::Error => tracing::error!(id, module, "{message}"),
    }
}

/// The thread: runs until the last [`AlertLog`] is dropped.
fn write_all(jobs: &Receiver<Job>, mut files: [LogFile; 2], trouble: &Trouble) {
    while let Ok(first) = jobs.recv() {
        let mut flushed = Vec::new();
        // All that waits is written before it is synced once.
        for job in std::iter::once(first).chain(jobs.try_iter().take(WAITING_MAX)) {
            match job {
                Job::Write(record) => {
                    files[0].append(&line::text(&record));
                    files[1].append(&line::json(&record));
                }
                Job::Reopen => files.iter_mut().for_each(LogFile::close),
                Job::Flush(done) => flushed.push(done),
            }
        }
        files.iter_mut().for_each(LogFile::sync);
        match files.iter().find_map(LogFile::trouble) {
            Some(reason) => trouble.begin(reason),
            None => trouble.end(),
        }
        for done in flushed {
            // Who does not wait any more needs no answer.
            let _ = done.send(());
        }
    }
}

impl Trouble {
    /// Says it to the daemon's log, once until it ends.
    fn begin(&self, reason: String) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_none() {
            tracing::error!(
                "{reason}; the agent goes on, and `mirrorctl log` shows what it keeps in memory"
            );
        }
        *now = Some(reason);
    }

    fn end(&self) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.take().is_some() {
            tracing::info!("the alert log is written again");
        }
    }

    fn now(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
