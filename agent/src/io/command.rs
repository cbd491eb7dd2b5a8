//! Runs programs of others: scripts, `systemctl`, `e2fsck`, `mount`.
//!
//! Every one gets its own process group, nothing on its input, and a time limit. When the limit is over, or
//! whoever waits for it loses interest, the whole group is killed, so that a script that hangs takes its
//! children with it. Of the output the end is kept, for the error. A program that ends in time may leave
//! children behind, as a start script does; what they still write is read and dropped. Where it may not
//! ([`Invocation::alone`]), they are killed.
//!
//! It does not know what a program is for, nor whether an exit code is good news.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// What is kept of each of the two outputs: the end of it.
const OUTPUT_BYTES_MAX: usize = 8 << 10;
/// How long a program that was killed may take to be gone. One that the kernel holds is left to it.
const REAP_LIMIT: Duration = Duration::from_secs(2);
/// How long output is waited for after the program ended; children of it may keep it open for ever.
const OUTPUT_LIMIT: Duration = Duration::from_millis(200);

/// A program with its arguments; no shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    words: Vec<String>,
    environment: Vec<(String, String)>,
    folder: Option<PathBuf>,
    leaves_children: bool,
}

/// How a program ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    program: String,
    /// None: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("there is no command to run")]
    Empty,
    #[error("cannot start {program}: {source}; look whether it is there and may be executed")]
    Start { program: String, source: io::Error },
    #[error("cannot wait for {program}: {source}")]
    Wait { program: String, source: io::Error },
    #[error("{program} did not end within {}, and was killed with its children{}", humantime::format_duration(*limit), said(output))]
    TimedOut {
        program: String,
        limit: Duration,
        output: String,
    },
    #[error("{program} ended with {}{}", code_text(*code), said(output))]
    Failed {
        program: String,
        code: Option<i32>,
        output: String,
    },
}

pub(super) fn code_text(code: Option<i32>) -> String {
    match code {
        Some(code) => format!("exit code {code}"),
        None => "a signal".into(),
    }
}

fn said(output: &str) -> String {
    match output.trim() {
        "" => String::new(),
        output => format!(", saying: {output}"),
    }
}

impl Invocation {
    pub fn new<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Self {
            words: words.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            folder: None,
            leaves_children: true,
        }
    }

    /// Where the program runs; otherwise where this one does.
    pub fn within(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// What the program leaves behind with its output open is killed once it has ended.
    pub fn alone(mut self) -> Self {
        self.leaves_children = false;
        self
    }

    /// Adds a path to the words.
    pub fn argument(mut self, path: &Path) -> Self {
        self.words.push(path.display().to_string());
        self
    }

    /// Adds a variable to the environment of the program.
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it to its end, whatever that is.
    pub async fn run(&self, limit: Duration) -> Result<Ended, CommandError> {
        let (program, arguments) = self.words.split_first().ok_or(CommandError::Empty)?;
        let mut command = Command::new(program);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let mut child = command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| CommandError::Start {
                program: program.clone(),
                source,
            })?;
        // Dropped before the child, so that its process id is still its own.
        let mut group = KilledGroup::of(&child);
        let stdout = Tail::follow(child.stdout.take());
        let stderr = Tail::follow(child.stderr.take());
        let status = match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(source)) => {
                return Err(CommandError::Wait {
                    program: program.clone(),
                    source,
                });
            }
            Err(_) => {
                group.kill();
                let reaped = tokio::time::timeout(REAP_LIMIT, child.wait()).await;
                group.release();
                if reaped.is_err() {
                    tracing::warn!("{program} was killed and is not gone: the kernel holds it");
                }
                let output = join(&stdout.text().await.0, &stderr.text().await.0);
                return Err(CommandError::TimedOut {
                    program: program.clone(),
                    limit,
                    output,
                });
            }
        };
        if self.leaves_children {
            group.release();
        }
        let ((stdout, stdout_ended), (stderr, stderr_ended)) =
            (stdout.text().await, stderr.text().await);
        // With the leader gone and nobody at its output, the number of the group may be another's.
        if stdout_ended && stderr_ended {
            group.release();
        }
        Ok(Ended {
            program: program.clone(),
            code: status.code(),
            stdout,
            stderr,
        })
    }

    /// Runs it, and takes anything but exit code 0 for a failure.
    pub async fn succeed(&self, limit: Duration) -> Result<Ended, CommandError> {
        self.run(limit).await?.success()
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words.join(" "))
    }
}

impl Ended {
    pub fn success(self) -> Result<Self, CommandError> {
        if self.code == Some(0) {
            Ok(self)
        } else {
            Err(self.failure())
        }
    }

    pub fn failure(self) -> CommandError {
        CommandError::Failed {
            output: join(&self.stdout, &self.stderr),
            program: self.program,
            code: self.code,
        }
    }
}

fn join(stdout: &str, stderr: &str) -> String {
    [stdout.trim(), stderr.trim()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// A process group that dies when this is dropped, until it is released.
struct KilledGroup {
    leader: Option<Pid>,
}

impl KilledGroup {
    fn of(child: &Child) -> Self {
        Self {
            leader: child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        }
    }

    fn kill(&mut self) {
        if let Some(leader) = self.leader {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }

    fn release(&mut self) {
        self.leader = None;
    }
}

impl Drop for KilledGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of an output. It is read until nobody holds it open, so that nobody who writes it is held up.
struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<tokio::task::JoinHandle<()>>,
}

impl Tail {
    fn follow(source: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = source.map(|mut source| {
            let kept = Arc::clone(&bytes);
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = source.read(&mut piece).await {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&piece[..count]);
                    let excess = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
                    kept.drain(..excess);
                }
            })
        });
        Self { bytes, reader }
    }

    /// And whether that is all of it: nobody holds the output any more.
    async fn text(self) -> (String, bool) {
        let ended = match self.reader {
            Some(reader) => tokio::time::timeout(OUTPUT_LIMIT, reader).await.is_ok(),
            None => true,
        };
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&bytes).trim().to_owned(), ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Invocation {
        Invocation::new(["sh", "-c", script])
    }

    #[tokio::test]
    async fn output_exit_code_and_environment_are_handed_over() {
        let ended = shell("echo out $NAME; echo err >&2; exit 3")
            .variable("NAME", "value")
            .run(LIMIT)
            .await
            .unwrap();
        assert_eq!(ended.code, Some(3));
        assert_eq!(ended.stdout, "out value");
        let error = ended.success().unwrap_err().to_string();
        assert!(
            error.contains("exit code 3, saying: out value; err"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = Invocation::new(["/nowhere/script"])
            .run(LIMIT)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot start /nowhere/script"), "{error}");
        assert!(matches!(
            Invocation::new(Vec::<String>::new()).run(LIMIT).await,
            Err(CommandError::Empty)
        ));
    }

    #[tokio::test]
    async fn a_script_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("child");
        let script = format!(
            "sleep 1000 & echo $! > {}; echo waiting; wait",
            note.display()
        );
        let error = shell(&script)
            .run(Duration::from_millis(500))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("did not end within 500ms"), "{error}");
        assert!(error.contains("waiting"), "{error}");
        is_gone(&note).await;
    }

    #[tokio::test]
    async fn a_program_that_nobody_waits_for_any_more_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("child");
        let script = format!(
            "echo $$ > {0}.new; mv {0}.new {0}; sleep 1000",
            note.display()
        );
        let invocation = shell(&script);
        let started = async {
            while !note.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = invocation.run(LIMIT) => panic!("{ended:?}"),
            () = started => {}
        }
        is_gone(&note).await;
    }

    #[tokio::test]
    async fn a_child_left_behind_holds_nobody_up_and_lives_on() {
        let ended = shell("sleep 1000 & echo $!").run(LIMIT).await.unwrap();
        let child = Pid::from_raw(ended.stdout.parse().unwrap());
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn of_much_output_the_end_is_kept() {
        let ended = shell("yes | head -n 100000; echo the end")
            .succeed(LIMIT)
            .await
            .unwrap();
        assert!(ended.stdout.len() <= OUTPUT_BYTES_MAX);
        assert!(ended.stdout.ends_with("the end"));
    }

    /// Waits until the process whose id is in `note` is gone or waits to be reaped by its new parent.
    async fn is_gone(note: &std::path::Path) {
        let id = std::fs::read_to_string(note).unwrap();
        let stat = format!("/proc/{}/stat", id.trim());
        let gone = async {
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, gone).await.unwrap();
    }
}
