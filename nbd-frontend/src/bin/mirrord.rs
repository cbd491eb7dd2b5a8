//! `mirrord`: the data-plane daemon of one node. Only the command line is here.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nbd_frontend::chain;
use nbd_frontend::config::{PATH_DEFAULT, RUN_DIR_DEFAULT};
use nbd_frontend::daemon::{self, Options, log};

/// Serve the mirrors of this node.
///
/// Runs in the foreground, logs to standard error, and stops cleanly on SIGTERM, SIGINT or SIGHUP.
#[derive(Debug, Parser)]
#[command(name = "mirrord", version)]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = PATH_DEFAULT)]
    config: PathBuf,
    /// Which node of the configuration this is [default: the host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where sockets live
    #[arg(long, value_name = "DIR", default_value = RUN_DIR_DEFAULT)]
    run_dir: PathBuf,
    /// How logs are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: log::LogFormat,
}

fn main() -> ExitCode {
    // First of all, so that every thread started later inherits it.
    let io_flusher = mirror_core::io::flusher::become_io_flusher();
    let locked = mirror_core::io::memory::lock_memory();
    let arguments = Arguments::parse();
    log::start(arguments.log_format);
    if let Err(error) = io_flusher {
        tracing::debug!("not marked as an I/O flusher (it takes CAP_SYS_RESOURCE): {error}");
    }
    match locked {
        Ok(true) => tracing::debug!("memory is locked"),
        Ok(false) => tracing::debug!(
            "memory is not locked: there is a limit on it (LimitMEMLOCK=, `ulimit -l`)"
        ),
        Err(error) => {
            tracing::warn!("cannot lock memory: {error}; under memory pressure it may be slow")
        }
    }
    let options = Options {
        config: arguments.config,
        node: arguments.node,
        run_dir: arguments.run_dir,
    };
    match daemon::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mirrord: {}", chain::text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
