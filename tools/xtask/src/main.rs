//! `cargo xtask`: the one door for build, test and bench tasks. It only arranges; what a task checks lives in
//! the crates it calls, and every task exits non-zero when anything in it failed.

mod advisories;
mod aws;
mod check;
mod ci;
mod command;
mod dependencies;
mod fuzz;
mod packages;
mod steps;
mod suites;
mod tail;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::ci::Length;
use crate::suites::Profile;
use crate::workspace::Selection;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Build, test and bench tasks of the project"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Format, clippy, unit tests, documentation and licences
    Check,
    /// Runs one group of tests, or all of them
    Test {
        /// golden, crash, conformance, programs, link, sim, cluster, nbd, ha, vm or aws
        group: Option<String>,
        /// Passed on to the test binary, after `--`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Explores seeded two-node worlds in virtual time
    Sim {
        /// Passed on to the simulator: `--minutes N`, `--seed S`, `--help`; `--cluster` first for whole clusters
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Stops at every sync point with torn and lost writes, opens again and checks
    Crash,
    /// Real servers under load, one fault after the other, and a report
    Soak {
        /// Passed on: `--minutes N`, `--seed S`, `--report FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the fuzz targets
    Fuzz {
        /// One target; all of them when left out
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Runs all cases in virtual machines; those of `test vm`, and the long ones
    Vm {
        /// Passed on to the test binary, after `--`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Prints the tables of figures
    Bench {
        /// Passed on: `--smoke` takes some two minutes, `--drbd` some six, `--full` some twenty, `--help` shows the rest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Two nodes on loopback mirror a file system, one dies, the other carries on
    Demo {
        /// Passed on to `mirrorctl demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Makes the list of known advisories anew from a checkout of the RustSec database
    Advisories {
        checkout: std::path::PathBuf,
        /// The day of the checkout, YYYY-MM-DD
        day: String,
    },
    /// Builds what is installed on servers, the agent with every forced stop, in the release profile
    Release,
    /// Everything above but `release` and `soak` in short form; under 30 minutes on two cores from a clean checkout
    Ci {
        /// Also ten minutes of the fault campaign, and every case in virtual machines; once a night, say
        #[arg(long)]
        extended: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Check => check::run_check(),
        Task::Test { group, arguments } => suites::test(group.as_deref(), &arguments),
        Task::Sim { arguments } => suites::sim(Selection::Usual, &arguments),
        Task::Crash => suites::test(Some("crash"), &[]),
        Task::Soak { arguments } => suites::soak(Selection::Usual, &arguments),
        Task::Fuzz { target, seconds } => fuzz::run_targets(target.as_deref(), seconds),
        Task::Bench { arguments } => suites::bench(Profile::Release, Selection::Usual, &arguments),
        Task::Demo { arguments } => suites::demo(Profile::Release, Selection::Usual, &arguments),
        Task::Advisories { checkout, day } => advisories::renew(&checkout, &day),
        Task::Vm { arguments } => suites::all_machines(&arguments),
        Task::Release => suites::build_for_servers(),
        Task::Ci { extended: false } => ci::run(Length::Usual),
        Task::Ci { extended: true } => ci::run(Length::Extended),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
