//! Runs the operator's script. `docs/forced-stop.md` has its contract.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_frontend::config::trust;

use super::{ScriptFault, Servers, StopError};
use crate::io::command::{CommandError, Invocation};

/// The part of the output that reaches the log.
const OUTPUT_CHARS_MAX: usize = 1024;

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

    /// Exit code 0 is yes: in mode `stop` the node is down now, in mode `check` a stop would work. A script that others
    /// may change is not run in either mode, so that the checks tell of it long before it is needed.
    pub async fn run(&self, target: usize, mode: Mode) -> Result<(), StopError> {
        if let Ok(Err(exposure)) = trust::check_path(&self.script) {
            return Err(StopError::ScriptExposed {
                script: self.script.clone(),
                exposure,
            });
        }
        let Servers {
            cluster,
            nodes,
            local,
        } = &self.servers;
        let script = Invocation::new(Vec::<String>::new())
            .argument(&self.script)
            .variable("MIRROR_CLUSTER", cluster)
            .variable("MIRROR_DOWN_SERVER", &nodes[target])
            .variable("MIRROR_LOCAL_SERVER", &nodes[*local])
            .variable("MIRROR_MODE", mode.to_string())
            .within(Path::new("/"))
            .alone();
        // A little less than whoever waits for this allows, so that the script's own words come with the error.
        let ended = script.succeed(self.timeout - self.timeout / 20).await;
        tracing::debug!(script = %self.script.display(), %mode, ?ended, "forced stop script ended");
        ended.map(|_| ()).map_err(|error| self.error(error, mode))
    }

    fn error(&self, error: CommandError, mode: Mode) -> StopError {
        let script = self.script.clone();
        match error {
            CommandError::Start { source, .. } => StopError::Script {
                script,
                fault: self.fault(&source),
                source,
            },
            CommandError::Wait { source, .. } => StopError::ScriptLost { script, source },
            CommandError::TimedOut { output, .. } => StopError::ScriptTimedOut {
                script,
                mode,
                timeout: self.timeout,
                output: one_line(&output),
            },
            CommandError::Failed { code, output, .. } => StopError::ScriptFailed {
                script,
                mode,
                code,
                output: one_line(&output),
            },
            CommandError::Empty => StopError::Script {
                script,
                fault: ScriptFault::Missing,
                source: ErrorKind::NotFound.into(),
            },
        }
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

/// The end of what it said, without what a terminal would act on.
fn one_line(output: &str) -> String {
    let words: Vec<_> = output
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    let over = line.chars().count().saturating_sub(OUTPUT_CHARS_MAX);
    line.chars().skip(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_says_becomes_one_clean_line() {
        assert_eq!(
            one_line("power\n\x1b[31moff \u{fffd}\r\n"),
            "power [31moff \u{fffd}"
        );
        let long = "a".repeat(5 * OUTPUT_CHARS_MAX);
        assert_eq!(one_line(&long), "a".repeat(OUTPUT_CHARS_MAX));
    }
}
