//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mirror_core::control::CommandRequest;
use nbd_frontend::config::{PATH_DEFAULT, RUN_DIR_DEFAULT, units};
use nbd_frontend::control::client::Client;

use crate::cluster;

/// Time for one call when --timeout says nothing.
const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(65);

/// Look after the mirrors of this node, and the cluster.
///
/// Exit codes: 0 done; 1 refused or failed, with the reason and the next step on standard error;
/// 2 wrong usage; 3 the daemon cannot be reached; 4 timed out.
#[derive(Debug, Parser)]
#[command(name = "mirrorctl", version, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = PATH_DEFAULT)]
    pub config: PathBuf,
    /// Which node of the configuration this is [default: the host name]
    #[arg(long, global = true, value_name = "NAME")]
    pub node: Option<String>,
    /// Where the daemons have their sockets
    #[arg(long, global = true, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    pub run_dir: PathBuf,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up after this long, for example 30s; with --watch and --follow, when the daemon does not answer for so long
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    /// Print results only: no confirmations, no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Global {
    pub fn shows_progress(&self) -> bool {
        !self.quiet && !self.json
    }

    pub fn client(&self) -> Client {
        Client::new(&self.run_dir, self.timeout.unwrap_or(CALL_TIMEOUT_DEFAULT))
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(timeout) if timeout.is_zero() => Err("zero is no time; write for example 30s".into()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{}; {}", error.message, error.remedy)),
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a new cluster key, readable by this user only
    Keygen { file: PathBuf },
    /// Write fresh metadata for a mirror on this node
    Init {
        mirror: String,
        /// Keep the data that is on the partition already
        #[arg(long)]
        adopt: bool,
        /// Go on although metadata or something else is found there
        #[arg(long)]
        force: bool,
    },
    /// Show the state of every mirror, or of one
    Mdstat {
        mirror: Option<String>,
        /// What it did since it was opened, and how long that took; with --json they are there anyway
        #[arg(long)]
        stats: bool,
        /// Show it again every second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Print the state and statistics of all mirrors as Prometheus reads them (OpenMetrics text)
    Metrics,
    /// Make this node primary
    Promote {
        mirror: String,
        /// You know that the lost peer is really down
        #[arg(long)]
        peer_down: bool,
        /// Declare this side's data the truth: first start, or data loss accepted
        #[arg(long)]
        force: bool,
    },
    /// Make this node secondary
    Demote { mirror: String },
    /// Attach a primary's device to the kernel, where that failed before
    Attach { mirror: String },
    /// Take the device away from the kernel; refused while somebody has it open
    Detach {
        mirror: String,
        /// Also while somebody has it open: they get errors
        #[arg(long)]
        force: bool,
    },
    /// Look for the peer
    Connect { mirror: String },
    /// Leave the peer and do not look for it until `connect`
    Disconnect { mirror: String },
    /// Bring the sides into step again
    Resync {
        mirror: String,
        /// Copy everything, not only what differs
        #[arg(long)]
        full: bool,
        /// After a split brain: give up this side's data
        #[arg(long, conflicts_with = "full")]
        discard_local: bool,
    },
    /// Stop a resync or verify for a while
    Pause { mirror: String },
    /// Go on with a paused resync or verify
    Resume { mirror: String },
    /// Compare both sides while the mirror is in use
    Verify {
        mirror: String,
        /// Copy this side's blocks over those that differ
        #[arg(long)]
        repair: bool,
        /// Return when it has begun; `mdstat` shows its progress
        #[arg(long)]
        no_wait: bool,
    },
    /// Take up data partitions that grew on both nodes
    Resize { mirror: String },
    /// Return when a mirror has reached a state; exit code 4 if --timeout passes first
    Wait {
        mirror: String,
        #[arg(long = "for", value_name = "STATE")]
        condition: Condition,
    },
    /// Show what happened, newest last
    Events {
        /// Keep showing what happens until interrupted
        #[arg(long)]
        follow: bool,
    },
    /// Say why a mirror is in its state and what can be done
    Explain { mirror: String },
    #[command(flatten)]
    Cluster(cluster::Command),
    /// Check the configuration and what it needs of this machine and of others; name every problem
    Check {
        /// Do not try the forced stop, the arbiter, the resolvers' targets and the floating addresses
        #[arg(long)]
        offline: bool,
    },
    /// Two nodes in a temporary folder: one dies, the other carries on, the first comes back
    Demo {
        /// How the file system reaches the mirror [default: the first that works here, in this order]
        #[arg(long, value_name = "WAY")]
        attach: Option<Attach>,
    },
    /// Print a completion script
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    Connected,
    Synced,
    Primary,
    Secondary,
}

/// The application's end of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// Mounted through nbdfuse and a loop device
    Nbdfuse,
    /// Mounted through nbd-client and the kernel's /dev/nbdN
    NbdClient,
    /// An image that is copied; nothing is mounted
    Image,
}

impl Command {
    /// What goes to the daemon as it is, with the mirror it is for.
    pub fn request(&self) -> Option<(&str, CommandRequest)> {
        let (mirror, request) = match self {
            Self::Promote {
                mirror,
                peer_down,
                force,
            } => (
                mirror,
                CommandRequest::Promote {
                    peer_down: *peer_down,
                    force: *force,
                    grant: None,
                },
            ),
            Self::Demote { mirror } => (mirror, CommandRequest::Demote),
            Self::Connect { mirror } => (mirror, CommandRequest::Connect),
            Self::Disconnect { mirror } => (mirror, CommandRequest::Disconnect),
            Self::Resync {
                mirror,
                full,
                discard_local,
            } => (
                mirror,
                CommandRequest::Resync {
                    full: *full,
                    discard_local: *discard_local,
                },
            ),
            Self::Pause { mirror } => (mirror, CommandRequest::Pause),
            Self::Resume { mirror } => (mirror, CommandRequest::Resume),
            Self::Resize { mirror } => (mirror, CommandRequest::Resize),
            _ => return None,
        };
        Some((mirror, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn time_outs_need_units() {
        assert!(parse_timeout("30s").is_ok());
        assert!(parse_timeout("30").unwrap_err().contains("has no unit"));
        assert!(parse_timeout("0").is_err());
    }
}
