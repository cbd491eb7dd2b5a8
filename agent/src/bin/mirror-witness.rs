//! `mirror-witness`: the arbiter on a third host. Only the command line is here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::io::witness::{self, Options, PATH_DEFAULT};
use clap::{Parser, Subcommand};
use nbd_frontend::chain;
use nbd_frontend::daemon::log;

/// Grant epochs and leases to the nodes of clusters, and record who holds current data.
///
/// Without a command it serves: it runs in the foreground, logs to standard error, and stops cleanly on
/// SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "mirror-witness", version)]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = PATH_DEFAULT, global = true)]
    config: PathBuf,
    /// Where to listen, instead of the configured address
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How logs are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: log::LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read the configuration, its key files and the state, and say what is wrong with them
    Check,
    /// Drop what is recorded of a cluster or mirror; its nodes then enrol again. Stop the witness first
    Forget {
        cluster: String,
        /// Only this mirror
        mirror: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log::start(arguments.log_format);
    let outcome = match &arguments.command {
        None => witness::run(&Options {
            config: arguments.config,
            listen: arguments.listen,
        }),
        Some(Command::Check) => witness::check(&arguments.config).map(|found| print!("{found}")),
        Some(Command::Forget { cluster, mirror }) => {
            witness::forget(&arguments.config, cluster, mirror.as_deref())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mirror-witness: {}", chain::text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
