//! Runs the operator's script. `docs/forced-stop.md` has its contract.
//!
//! The script leads a process group of its own. The group is killed when the time is up, when the call is
//! dropped, and when the script ended but left something behind that still holds its output. What it
//! says is read to the end, so that a talkative script does not block, and only the last part is kept.

use std::ffi::OsStr;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{ScriptFault, Servers, StopError};

/// The part of the output that reaches the log.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Longest wait for the rest of the output once the script has ended.
const DRAIN: Duration = Duration::from_millis(500);
/// Longest wait for a process that was killed. One that the kernel holds up is left to it.
const KILL_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Custom {
    script: PathBuf,
    servers: Servers,
    timeout: Duration,
}

/// `MIRROR_MODE`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Check,
    Stop,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Stop => "stop",
        })
    }
}

impl Custom {
    pub fn new(script: PathBuf, servers: Servers, timeout: Duration) -> Self {
        Self {
            script,
            servers,
            timeout,
        }
    }

    /// Exit code 0 is yes: in mode `stop` the node is down now, in mode `check` a stop would work.
    pub async fn run(&self, target: usize, mode: Mode) -> Result<(), StopError> {
        let mut child = self.spawn(target, mode)?;
        let mut group = Group::of(&child);
        let mut said = Said::of(&mut child);
        let ended = timeout(self.timeout, said.until_end_of(&mut child)).await;
        let status = match ended {
            Ok(status) => {
                if said.rest().await {
                    // It is the leader, and only its group, that has been waited for.
                    group.disarm();
                }
                status
            }
            Err(_) => {
                group.kill();
                // The kill is what matters; the exit status of a killed script says nothing.
                let _ = timeout(KILL_WAIT, child.wait()).await;
                said.rest().await;
                return Err(StopError::ScriptTimedOut {
                    script: self.script.clone(),
                    mode,
                    timeout: self.timeout,
                    output: said.text(),
                });
            }
        };
        let status = status.map_err(|source| StopError::ScriptLost {
            script: self.script.clone(),
            source,
        })?;
        let output = said.text();
        tracing::debug!(script = %self.script.display(), %mode, %status, output, "forced stop script ended");
        if status.success() {
            return Ok(());
        }
        Err(StopError::ScriptFailed {
            script: self.script.clone(),
            mode,
            status,
            output,
        })
    }

    fn spawn(&self, target: usize, mode: Mode) -> Result<Child, StopError> {
        let Servers {
            cluster,
            nodes,
            local,
        } = &self.servers;
        let variables: [(&str, &OsStr); 4] = [
            ("MIRROR_CLUSTER", cluster.as_ref()),
            ("MIRROR_DOWN_SERVER", nodes[target].as_ref()),
            ("MIRROR_LOCAL_SERVER", nodes[*local].as_ref()),
            (
                "MIRROR_MODE",
                match mode {
                    Mode::Check => "check".as_ref(),
                    Mode::Stop => "stop".as_ref(),
                },
            ),
        ];
        Command::new(&self.script)
            .envs(variables)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| StopError::Script {
                script: self.script.clone(),
                fault: self.fault(&source),
                source,
            })
    }

    fn fault(&self, error: &std::io::Error) -> ScriptFault {
        match error.kind() {
            // The same error for the script and for what its first line names.
            ErrorKind::NotFound if self.script.exists() => ScriptFault::NoInterpreter,
            ErrorKind::NotFound | ErrorKind::NotADirectory => ScriptFault::Missing,
            ErrorKind::PermissionDenied | ErrorKind::IsADirectory => ScriptFault::NotExecutable,
            _ if error.raw_os_error() == Some(libc::ENOEXEC) => ScriptFault::NoFirstLine,
            _ => ScriptFault::Refused,
        }
    }
}

/// The process group of a script; killed when this is dropped.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.map(Pid::from_raw))
    }

    /// The number may belong to others from now on.
    fn disarm(&mut self) {
        self.0 = None;
    }

    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // Gone already is as good.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the script said so far, both streams as they came.
#[derive(Debug)]
struct Said<O, E> {
    stdout: Option<O>,
    stderr: Option<E>,
    bytes: Vec<u8>,
}

impl Said<tokio::process::ChildStdout, tokio::process::ChildStderr> {
    fn of(child: &mut Child) -> Self {
        Self {
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            bytes: Vec::new(),
        }
    }
}

impl<O: AsyncRead + Unpin, E: AsyncRead + Unpin> Said<O, E> {
    async fn until_end_of(&mut self, child: &mut Child) -> std::io::Result<ExitStatus> {
        loop {
            tokio::select! {
                status = child.wait() => return status,
                () = self.read_some(), if self.is_open() => {}
            }
        }
    }

    /// True if nobody holds the other ends any more.
    async fn rest(&mut self) -> bool {
        let all = async {
            while self.is_open() {
                self.read_some().await;
            }
        };
        timeout(DRAIN, all).await.is_ok()
    }

    fn is_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    async fn read_some(&mut self) {
        let mut from_stdout = [0; OUTPUT_BYTES_MAX];
        let mut from_stderr = [0; OUTPUT_BYTES_MAX];
        let bytes = tokio::select! {
            count = read(&mut self.stdout, &mut from_stdout) => &from_stdout[..count],
            count = read(&mut self.stderr, &mut from_stderr) => &from_stderr[..count],
        };
        self.bytes.extend_from_slice(bytes);
        let over = self.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.bytes.drain(..over);
    }

    /// One line, without what a terminal would act on.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let words: Vec<_> = text
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|word| !word.is_empty())
            .collect();
        words.join(" ")
    }
}

/// Closes the stream at its end. Never ends for one that is closed.
async fn read<R: AsyncRead + Unpin>(stream: &mut Option<R>, buffer: &mut [u8]) -> usize {
    let Some(open) = stream else {
        return std::future::pending().await;
    };
    match open.read(buffer).await {
        Ok(count) if count > 0 => count,
        _ => {
            *stream = None;
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_last_part_of_a_long_output_is_kept() {
        let long = vec![b'a'; 5 * OUTPUT_BYTES_MAX];
        let mut said = Said {
            stdout: Some(&long[..]),
            stderr: Some(&b""[..]),
            bytes: Vec::new(),
        };
        assert!(said.rest().await);
        assert_eq!(said.text(), "a".repeat(OUTPUT_BYTES_MAX));
    }

    #[tokio::test]
    async fn what_a_script_says_becomes_one_clean_line() {
        let mut said = Said {
            stdout: Some(&b"power\n\x1b[31moff \xff\r\n"[..]),
            stderr: None::<&[u8]>,
            bytes: Vec::new(),
        };
        assert!(said.rest().await);
        assert_eq!(said.text(), "power [31moff \u{fffd}");
    }
}
