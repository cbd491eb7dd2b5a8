//! Prints and checks the metadata of a mirror without a daemon. It opens everything for reading only
//! and never writes, so it may be pointed at a partition that is in use; what it shows may then be
//! a moment old.
//!
//! Exit codes: 0 everything passed its checks; 1 something did not, or cannot be read; 2 usage.

mod area;
mod compare;
mod inspection;
mod json;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use mirror_core::wire::message::InitialSync;

use crate::area::Area;
use crate::inspection::Inspection;

/// Print and check the metadata of a mirror offline
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Cluster partition or file; with --internal the data partition or file
    path: PathBuf,
    /// The metadata is kept at the end of the data
    #[arg(long)]
    internal: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print only what is wrong, and the rule with --against (JSON always holds everything)
    #[arg(long)]
    check: bool,
    /// Metadata of the other node: print the rule that a handshake would apply
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// The other node keeps its metadata at the end of its data
    #[arg(long, requires = "against")]
    against_internal: bool,
    /// The other node comes first in the order of the configuration
    #[arg(long, requires = "against")]
    peer_first: bool,
    /// The mirror's `initial_sync`, for the rule
    #[arg(long, requires = "against", default_value = "full", value_parser = ["full", "sparse", "skip"])]
    initial_sync: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mirror-inspect: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every check passed.
fn run(arguments: &Arguments) -> Result<bool> {
    let mine = inspect(&arguments.path, arguments.internal)?;
    let theirs = match &arguments.against {
        Some(path) => Some(inspect(path, arguments.against_internal)?),
        None => None,
    };
    let verdict = match &theirs {
        Some(theirs) => Some(compare::verdict(
            &mine,
            theirs,
            !arguments.peer_first,
            initial_sync(&arguments.initial_sync),
        )?),
        None => None,
    };
    let output = if arguments.json {
        json::render(&mine, verdict.as_ref())
    } else if arguments.check {
        text::problems(&mine) + &verdict.as_ref().map(text::rule).unwrap_or_default()
    } else {
        text::render(&mine, verdict.as_ref())
    };
    print(&output)?;
    if let Some(theirs) = theirs.filter(|theirs| !theirs.problems().is_empty()) {
        eprint!("{}", text::problems(&theirs));
        return Ok(false);
    }
    Ok(mine.problems().is_empty())
}

fn inspect(path: &std::path::Path, internal: bool) -> Result<Inspection> {
    let area = Area::open(path, internal)?;
    Inspection::of(area).with_context(|| format!("cannot read the metadata of {}", path.display()))
}

fn initial_sync(name: &str) -> InitialSync {
    match name {
        "sparse" => InitialSync::Sparse,
        "skip" => InitialSync::Skip,
        _ => InitialSync::Full,
    }
}

/// A reader that goes away early, as `head` does, is no failure.
fn print(output: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(output.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
