//! The agent's side of `mirrorctl`: HTTP and JSON on `<run-dir>/agent.sock`.
//!
//! `router` takes calls and puts them to the agent's own task through an [`AgentPort`]; alerts are read
//! from their ring without asking it. [`client`] is the other end. The console decides nothing: it passes
//! commands on and their outcome back. Server, run directory and caller are those of `mirrord`.

pub mod client;
mod port;
mod router;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::time::Duration;

use nbd_frontend::control::run_dir::{RunDir, RunDirError};
use nbd_frontend::control::{Daemon, server};

use crate::alert_log::AlertRing;
pub use port::{AgentPort, Ask};

/// Longest a caller is kept waiting for the outcome of a command. A group may take its whole stop and
/// start time-out; most callers give up long before, and the command goes on.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// Longest that one connection lives; above every call's own bound.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60 + 60);

pub const AGENT: Daemon = Daemon {
    name: "mirror-agent",
    socket_name: "agent.sock",
    status_command: "mirrorctl status",
    command_timeout: COMMAND_TIMEOUT,
};

/// The right to be the one agent of a run directory, and the socket to be asked on. Both end when this
/// is dropped.
#[derive(Debug)]
pub struct Console {
    run_dir: RunDir,
    listener: Option<std::os::unix::net::UnixListener>,
}

impl Console {
    /// Claims the run directory and listens. Callers wait in the backlog until [`Self::serve`] runs. Done
    /// before anything else, so that a second agent stops before it touches a group.
    pub fn claim(run_dir: &Path) -> Result<Self, RunDirError> {
        let run_dir = RunDir::claim(run_dir, &AGENT)?;
        let listener = run_dir.listen(AGENT.socket_name)?;
        Ok(Self {
            run_dir,
            listener: Some(listener),
        })
    }

    /// Serves until the task that runs it is dropped. An error is that the socket cannot be used.
    pub async fn serve(mut self, port: AgentPort, alerts: AlertRing) -> io::Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let router = router::router(port, alerts);
        server::serve_for(listener, router, CONNECTION_TIMEOUT).await;
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.run_dir.remove(AGENT.socket_name);
    }
}
