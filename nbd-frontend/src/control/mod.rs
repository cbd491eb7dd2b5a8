//! The control API: HTTP and JSON on `<run-dir>/mirrord.sock`, from both ends.
//!
//! [`router`] answers, [`client`] asks, [`events`] keeps what is to be told, [`run_dir`] makes sure
//! that one daemon owns the folder. Nothing here decides about a mirror: commands are passed on and
//! their outcome is passed back. Types are in `mirror_core::control`.

pub mod client;
pub mod events;
pub mod port;
pub mod router;
pub mod run_dir;
pub mod server;

use std::time::Duration;

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
