//! Resources that are run by somebody else: by commands of the operator, or by systemd.
//!
//! Commands get `MIRROR_GROUP`, `MIRROR_RESOURCE` and `MIRROR_FORCE` ("0" or "1") in their environment. Both start
//! and stop must be content when they find their work done. Where no check command is configured, a note in the
//! run directory remembers that the start command succeeded; it goes with the run directory when the machine
//! restarts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Presence;
use crate::io::command::{CommandError, Invocation};

/// Longest that one check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(30);
/// Exit code of `systemctl is-active` for a unit that is there and not active.
const NOT_ACTIVE: i32 = 3;
/// The same for a unit that systemd does not know.
const NO_SUCH_UNIT: i32 = 4;

#[derive(Debug)]
pub struct Exec {
    start: Vec<String>,
    stop: Vec<String>,
    check: Option<Vec<String>>,
    group: String,
    resource: String,
    note: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("the start command failed: {}", bounded(.0, "start_timeout"))]
    Start(CommandError),
    #[error("the stop command failed: {}", bounded(.0, "stop_timeout"))]
    Stop(CommandError),
    #[error("the check command says that it does not run: {0}")]
    Check(CommandError),
    #[error("the check command cannot tell whether it runs: {0}")]
    CannotCheck(CommandError),
    #[error(
        "the stop command ended well, but the check command says that it still runs; mend one of the two"
    )]
    StillRuns,
    #[error("the start command was not run, or did not succeed, since this machine started")]
    NeverStarted,
    #[error("cannot write {}: {source}", path.display())]
    Note { path: PathBuf, source: io::Error },
}

/// What went wrong with a command that a key bounds.
fn bounded(error: &CommandError, key: &str) -> String {
    match error {
        CommandError::TimedOut { .. } => {
            format!("{error}; if it only needs longer, raise `{key}`")
        }
        _ => error.to_string(),
    }
}

impl Exec {
    pub fn new(
        [start, stop]: [Vec<String>; 2],
        check: Option<Vec<String>>,
        group: &str,
        resource: &str,
        run_dir: &Path,
    ) -> Self {
        Self {
            start,
            stop,
            check,
            group: group.into(),
            resource: resource.into(),
            note: run_dir.join("started").join(format!("{group}.{resource}")),
        }
    }

    pub async fn start(&self, limit: Duration) -> Result<(), ExecError> {
        let found = self.probe_state().await?;
        if found == Presence::Online {
            return Ok(());
        }
        // Before the command: one that is interrupted may have got somewhere.
        self.write_note("starting")?;
        match self.invocation(&self.start, false).succeed(limit).await {
            Ok(_) => self.write_note("started"),
            Err(error) => {
                // One that was never run got nowhere: there is nothing to stop, maybe by a program that is missing too.
                if found == Presence::Offline && matches!(error, CommandError::Start { .. }) {
                    self.remove_note()?;
                }
                Err(ExecError::Start(error))
            }
        }
    }

    pub async fn stop(&self, force: bool, limit: Duration) -> Result<(), ExecError> {
        let begun = Instant::now();
        if self.probe_state().await? == Presence::Offline {
            return Ok(());
        }
        self.invocation(&self.stop, force)
            .succeed(limit.saturating_sub(begun.elapsed()))
            .await
            .map_err(ExecError::Stop)?;
        self.remove_note()?;
        match self.probe_state().await? {
            Presence::Offline => Ok(()),
            Presence::Online | Presence::Partial => Err(ExecError::StillRuns),
        }
    }

    pub async fn check(&self) -> Result<(), ExecError> {
        match &self.check {
            Some(check) => self
                .invocation(check, false)
                .succeed(CHECK_LIMIT)
                .await
                .map(drop)
                .map_err(ExecError::Check),
            None if self.probe_state().await? == Presence::Online => Ok(()),
            None => Err(ExecError::NeverStarted),
        }
    }

    pub async fn probe_state(&self) -> Result<Presence, ExecError> {
        let note = fs::read_to_string(&self.note).unwrap_or_default();
        let Some(check) = &self.check else {
            return Ok(match note.as_str() {
                "started" => Presence::Online,
                "" => Presence::Offline,
                _ => Presence::Partial,
            });
        };
        let ended = self
            .invocation(check, false)
            .run(CHECK_LIMIT)
            .await
            .map_err(ExecError::CannotCheck)?;
        Ok(match ended.code {
            Some(0) => Presence::Online,
            // The start was interrupted: the check may see nothing of what it has done.
            _ if note == "starting" => Presence::Partial,
            Some(_) => Presence::Offline,
            None => return Err(ExecError::CannotCheck(ended.failure())),
        })
    }

    fn invocation(&self, words: &[String], force: bool) -> Invocation {
        Invocation::new(words.iter().cloned())
            .variable("MIRROR_GROUP", &self.group)
            .variable("MIRROR_RESOURCE", &self.resource)
            .variable("MIRROR_FORCE", if force { "1" } else { "0" })
    }

    fn remove_note(&self) -> Result<(), ExecError> {
        match fs::remove_file(&self.note) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ExecError::Note {
                path: self.note.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    fn write_note(&self, text: &str) -> Result<(), ExecError> {
        let write = || {
            if let Some(folder) = self.note.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&self.note, text)
        };
        write().map_err(|source| ExecError::Note {
            path: self.note.clone(),
            source,
        })
    }
}

/// A unit, through `systemctl`. It must not be enabled, or the machine starts it by itself.
#[derive(Debug)]
pub struct Systemd {
    unit: String,
    program: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("systemd does not know the unit {unit}; install it, or mend its name")]
    NoSuchUnit { unit: String },
    #[error("the unit {unit} is {state}; look at `systemctl status {unit}`")]
    NotActive { unit: String, state: String },
    #[error("the unit {unit} was not started: {source}; look at `journalctl -u {unit}`")]
    Start { unit: String, source: CommandError },
    #[error("the unit {unit} was not stopped: {source}; look at `journalctl -u {unit}`")]
    Stop { unit: String, source: CommandError },
    #[error(
        "systemd cannot be asked about {unit}: {source}; a resource of type \"systemd\" needs a machine that systemd runs"
    )]
    Ask { unit: String, source: CommandError },
}

impl Systemd {
    pub fn new(unit: String) -> Self {
        Self::through("systemctl", unit)
    }

    /// `program` stands in for `systemctl`.
    pub fn through(program: impl Into<String>, unit: String) -> Self {
        Self {
            unit,
            program: program.into(),
        }
    }

    pub async fn start(&self, limit: Duration) -> Result<(), SystemdError> {
        // Said better here than by a start of something unknown.
        self.probe_state().await?;
        self.systemctl(&["start"])
            .succeed(limit)
            .await
            .map(drop)
            .map_err(|source| SystemdError::Start {
                unit: self.unit.clone(),
                source,
            })
    }

    /// With `force` its processes are killed before it is stopped.
    pub async fn stop(&self, force: bool, limit: Duration) -> Result<(), SystemdError> {
        match self.probe_state().await {
            Ok(Presence::Offline) | Err(SystemdError::NoSuchUnit { .. }) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        if force
            && let Err(error) = self
                .systemctl(&["kill", "--signal=SIGKILL"])
                .succeed(CHECK_LIMIT)
                .await
        {
            tracing::warn!("{error}");
        }
        self.systemctl(&["stop"])
            .succeed(limit)
            .await
            .map(drop)
            .map_err(|source| SystemdError::Stop {
                unit: self.unit.clone(),
                source,
            })
    }

    pub async fn check(&self) -> Result<(), SystemdError> {
        let state = self.active_state().await?;
        if state == "active" {
            return Ok(());
        }
        Err(SystemdError::NotActive {
            unit: self.unit.clone(),
            state,
        })
    }

    pub async fn probe_state(&self) -> Result<Presence, SystemdError> {
        Ok(match self.active_state().await?.as_str() {
            "active" => Presence::Online,
            "inactive" | "failed" => Presence::Offline,
            _ => Presence::Partial,
        })
    }

    /// "active", "activating", "inactive", "failed" …
    async fn active_state(&self) -> Result<String, SystemdError> {
        let unit = || self.unit.clone();
        let ended = self
            .systemctl(&["is-active"])
            .run(CHECK_LIMIT)
            .await
            .map_err(|source| SystemdError::Ask {
                unit: unit(),
                source,
            })?;
        match ended.code {
            Some(0 | NOT_ACTIVE) if !ended.stdout.is_empty() => Ok(ended.stdout),
            Some(NO_SUCH_UNIT) => Err(SystemdError::NoSuchUnit { unit: unit() }),
            _ => Err(SystemdError::Ask {
                unit: unit(),
                source: ended.failure(),
            }),
        }
    }

    fn systemctl(&self, words: &[&str]) -> Invocation {
        let words = words.iter().copied().chain(["--", self.unit.as_str()]);
        Invocation::new([self.program.as_str()].into_iter().chain(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(String::from).into()
    }

    fn exec(folder: &Path, start: &str, stop: &str, check: Option<&str>) -> Exec {
        Exec::new(
            [shell(start), shell(stop)],
            check.map(shell),
            "web",
            "app",
            folder,
        )
    }

    #[tokio::test]
    async fn start_and_stop_are_content_with_what_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (start, stop) = (
            format!(
                "echo start $MIRROR_GROUP $MIRROR_RESOURCE >> {}",
                log.display()
            ),
            format!("echo stop $MIRROR_FORCE >> {}", log.display()),
        );
        let exec = exec(folder.path(), &start, &stop, None);
        exec.stop(false, LIMIT).await.unwrap();
        exec.start(LIMIT).await.unwrap();
        exec.start(LIMIT).await.unwrap();
        exec.check().await.unwrap();
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Online);
        exec.stop(true, LIMIT).await.unwrap();
        exec.stop(true, LIMIT).await.unwrap();
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Offline);
        assert_eq!(fs::read_to_string(log).unwrap(), "start web app\nstop 1\n");
    }

    #[tokio::test]
    async fn a_start_that_hangs_leaves_the_resource_in_part_and_its_stop_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let exec = exec(folder.path(), "sleep 1000", "true", None);
        let error = exec.start(Duration::from_millis(100)).await.unwrap_err();
        assert!(
            error.to_string().contains("did not end within 100ms"),
            "{error}"
        );
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Partial);
        exec.stop(false, LIMIT).await.unwrap();
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Offline);
    }

    #[tokio::test]
    async fn a_start_command_that_is_missing_leaves_nothing_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let script = vec![folder.path().join("app").display().to_string()];
        let words = || [script.clone(), script.clone()];
        let exec = Exec::new(words(), None, "web", "app", folder.path());
        let error = exec.start(LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("look whether it is there"), "{error}");
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Offline);
        exec.stop(false, LIMIT).await.unwrap();
        // What an earlier start may have done is still to be stopped.
        exec.write_note("starting").unwrap();
        exec.start(LIMIT).await.unwrap_err();
        assert_eq!(exec.probe_state().await.unwrap(), Presence::Partial);
    }

    #[tokio::test]
    async fn the_check_command_has_the_last_word() {
        let folder = tempfile::tempdir().unwrap();
        let up = folder.path().join("up").display().to_string();
        let working = exec(
            folder.path(),
            &format!("touch {up}"),
            &format!("rm {up}"),
            Some(&format!("test -e {up} || {{ echo gone; false; }}")),
        );
        working.start(LIMIT).await.unwrap();
        working.check().await.unwrap();
        fs::remove_file(&up).unwrap();
        let error = working.check().await.unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
        let stubborn = exec(folder.path(), "true", "true", Some("true"));
        assert!(matches!(
            stubborn.stop(false, LIMIT).await,
            Err(ExecError::StillRuns)
        ));
    }

    /// A program that behaves as `systemctl` does, with the state in a file.
    fn fake_systemctl(folder: &Path) -> Systemd {
        use std::os::unix::fs::PermissionsExt;
        let program = folder.join("systemctl");
        let script = "#!/bin/sh\nstate=$(dirname $0)/state\nfor unit; do :; done\n\
             [ $unit = web.service ] || { echo inactive; exit 4; }\n\
             case $1 in\nis-active) cat $state; grep -qx active $state || exit 3;;\n\
             start) echo active > $state;;\nstop) echo inactive > $state;;\nesac\n";
        fs::write(folder.join("state"), "inactive\n").unwrap();
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Systemd::through(program.display().to_string(), "web.service".into())
    }

    #[tokio::test]
    async fn a_unit_is_started_found_and_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let unit = fake_systemctl(folder.path());
        unit.stop(false, LIMIT).await.unwrap();
        let error = unit.check().await.unwrap_err().to_string();
        assert!(error.contains("web.service is inactive"), "{error}");
        unit.start(LIMIT).await.unwrap();
        unit.start(LIMIT).await.unwrap();
        unit.check().await.unwrap();
        assert_eq!(unit.probe_state().await.unwrap(), Presence::Online);
        unit.stop(true, LIMIT).await.unwrap();
        assert_eq!(unit.probe_state().await.unwrap(), Presence::Offline);
    }

    #[tokio::test]
    async fn an_unknown_unit_and_a_machine_without_systemd_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fake_systemctl(folder.path());
        let program = folder.path().join("systemctl").display().to_string();
        let unknown = Systemd::through(program, "typo.service".into());
        let error = unknown.start(LIMIT).await.unwrap_err().to_string();
        assert!(
            error.contains("does not know the unit typo.service"),
            "{error}"
        );
        unknown.stop(false, LIMIT).await.unwrap();
        let nowhere = Systemd::through("/nowhere/systemctl", "web.service".into());
        let error = nowhere.start(LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("a machine that systemd runs"), "{error}");
    }
}
