//! `mirror-bench`: figures as tables, never as a verdict. Everything runs on this one machine, so that only the
//! ratios between rows say something. QEMU's synchronous block mirror runs beside ours on the same files.

mod drbd;
mod files;
mod fio;
mod full;
mod process;
mod qemu_mirror;
mod service;
mod sizes;
mod slow_link;
mod table;
mod throughput;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use full::{Medium, Plan};

/// Print the tables of figures.
#[derive(Debug, Parser)]
struct Arguments {
    /// Short runs on small files: shows that everything works, in some two minutes
    #[arg(long)]
    smoke: bool,
    /// Seconds of each row of a throughput table, for example 0.5
    #[arg(long)]
    seconds: Option<f64>,
    /// Only the throughput table
    #[arg(long)]
    throughput: bool,
    /// Only the figures about metadata, resync, memory and opening
    #[arg(long, conflicts_with = "throughput")]
    sizes: bool,
    /// Only failover, switchover and the agent. Needs root: the servers are made of namespaces
    #[arg(long, conflicts_with_all = ["throughput", "sizes"])]
    service: bool,
    /// Only the modes and resyncs on links with little bandwidth or a long way; some ten minutes. Needs root: the
    /// servers are made of namespaces
    #[arg(long, conflicts_with_all = ["throughput", "sizes", "service"])]
    slow_link: bool,
    /// Only beside DRBD, in a virtual machine; some six minutes
    #[arg(long, conflicts_with_all = ["throughput", "sizes", "service", "slow_link", "smoke"])]
    drbd: bool,
    /// Every row on every contender, resyncs and memory, as a report; some twenty minutes
    #[arg(long, conflicts_with_all = ["throughput", "sizes", "service", "slow_link", "drbd"])]
    full: bool,
    /// Of the full report only these rows, by their ids; a wrong one names all there are
    #[arg(long, requires = "full", value_delimiter = ',', value_name = "IDS")]
    only: Vec<String>,
    /// Of the full report only files in memory, or on the disk
    #[arg(long, requires = "full")]
    medium: Option<Medium>,
    /// MiB of each file of the full report; a resync has four times as much
    #[arg(long, requires = "full", value_parser = clap::value_parser!(u64).range(16..))]
    file_mib: Option<u64>,
    /// Rounds of the full report
    #[arg(long, requires = "full", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Seconds of random load of its memory row
    #[arg(long, requires = "full")]
    memory_seconds: Option<u64>,
    /// Where the full report goes, as Markdown; a plot is laid beside it
    #[arg(
        long,
        requires = "full",
        value_name = "FILE",
        default_value = "target/bench/report.md"
    )]
    report: PathBuf,
}

impl Arguments {
    fn plan(&self) -> Plan {
        let plan = Plan::full(self.report.clone());
        Plan {
            rounds: self.rounds.unwrap_or(plan.rounds),
            run: self.seconds.map_or(plan.run, Duration::from_secs_f64),
            media: self.medium.map_or(plan.media, |medium| vec![medium]),
            file_bytes: self.file_mib.map_or(plan.file_bytes, |mib| mib << 20),
            only: self.only.clone(),
            memory: self.memory_seconds.map_or(plan.memory, Duration::from_secs),
            ..plan
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.full && !arguments.smoke {
        let plan = arguments.plan();
        full::print(&plan)?;
        println!("written to {}", plan.report.display());
        return Ok(());
    }
    if arguments.full {
        return print_smoke_of_full();
    }
    if arguments.slow_link {
        return slow_link::print(arguments.smoke, arguments.seconds);
    }
    if arguments.drbd {
        return drbd::print(arguments.seconds);
    }
    let (seconds, file_bytes) = if arguments.smoke {
        (1.0, 256 << 20)
    } else {
        (5.0, 1 << 30)
    };
    let all = !arguments.throughput && !arguments.sizes && !arguments.service;
    if all || arguments.throughput {
        throughput::print(arguments.seconds.unwrap_or(seconds), file_bytes)?;
    }
    if all || arguments.sizes {
        sizes::print(arguments.smoke)?;
    }
    if all && arguments.smoke {
        print_smoke_of_full()?;
    }
    if all && !nix::unistd::geteuid().is_root() {
        println!(
            "\nService, agent and slow links: measured as root only, in servers made of namespaces"
        );
        return Ok(());
    }
    if all || arguments.service {
        service::print(arguments.smoke)?;
    }
    // The whole takes ten minutes, and is asked for by name.
    if all && arguments.smoke {
        slow_link::print(true, None)?;
    }
    Ok(())
}

/// Its report is shown and not kept.
fn print_smoke_of_full() -> Result<()> {
    let folder = tempfile::tempdir()?;
    full::print(&Plan::smoke(folder.path().join("report.md")))
}
