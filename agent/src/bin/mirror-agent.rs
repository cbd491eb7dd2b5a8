//! `mirror-agent`: the high-availability daemon of one node. Only the command line is here.

use std::path::PathBuf;
use std::process::ExitCode;

use agent::io::driver::{self, Options};
use agent::io::final_action::{Backstop, Machine};
use clap::Parser;
use nbd_frontend::chain;
use nbd_frontend::config::{PATH_DEFAULT, RUN_DIR_DEFAULT};
use nbd_frontend::daemon::log;

/// Decide which node may mount the data, and see that it does.
///
/// Runs in the foreground, logs to standard error. SIGTERM and SIGINT stop the groups of this node and
/// tell the other, which takes them over. SIGHUP opens the alert log anew.
#[derive(Debug, Parser)]
#[command(name = "mirror-agent", version)]
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
    /// For tests: write final actions to this file instead of taking them
    #[arg(long, value_name = "FILE", hide = true)]
    record_actions: Option<PathBuf>,
    /// What a final action starts: wait, and end this machine if it still runs then
    #[arg(long, value_name = "END", hide = true, exclusive = true)]
    backstop: Option<Backstop>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log::start(arguments.log_format);
    let machine = match arguments.record_actions {
        Some(file) => Machine::Recording(file),
        None => Machine::Real,
    };
    if let Some(backstop) = arguments.backstop {
        return exit_code(backstop.wait_and_end_the_machine());
    }
    let options = Options {
        config: arguments.config,
        node: arguments.node,
        run_dir: arguments.run_dir,
    };
    exit_code(driver::run(&options, machine))
}

fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mirror-agent: {}", chain::text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
