//! The control API: HTTP and JSON on `<run-dir>/mirrord.sock`, from both ends.
//!
//! [`router`] answers, [`client`] asks, [`events`] keeps what is to be told, [`metrics`] writes for Prometheus. Nothing here decides about a
//! mirror: commands are passed on and their outcome is passed back. Types are in `mirror_core::control`.
//!
//! What any daemon with such a socket needs is apart from what `mirrord` says over it, and the agent's
//! console is built of the same parts: [`run_dir`] (one daemon owns the folder), [`server`], [`failed`]
//! (answers that are no success), [`port`] (the way to the task that owns the state), [`ring`] (numbered
//! records with a long poll) and [`caller`].

pub mod caller;
pub mod client;
pub mod events;
pub mod failed;
pub mod metrics;
pub mod port;
pub mod ring;
pub mod router;
pub mod run_dir;
pub mod server;

use std::time::Duration;

/// How a daemon is called, in files and in messages.
#[derive(Debug)]
pub struct Daemon {
    pub name: &'static str,
    /// Name of the socket in the run directory.
    pub socket_name: &'static str,
    /// What shows an operator its state.
    pub status_command: &'static str,
    /// Longest a command may take before its caller gets a time-out; the command itself goes on.
    pub command_timeout: Duration,
}

pub const MIRRORD: Daemon = Daemon {
    name: "mirrord",
    socket_name: SOCKET_NAME,
    status_command: "mirrorctl mdstat",
    command_timeout: COMMAND_TIMEOUT,
};

/// Name of the socket in the run directory.
pub const SOCKET_NAME: &str = "mirrord.sock";
/// Most bytes of a request body; a command is far smaller.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest a caller may take to send the headers of a request, and again for its body.
pub const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest a command may take before its caller gets a time-out; the command itself goes on.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest a status or an explanation may take. They need one turn of the mirror's thread.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of one call for newer events.
pub const EVENT_WAIT_MAX: Duration = Duration::from_secs(10);
