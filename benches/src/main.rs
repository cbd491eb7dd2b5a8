//! `mirror-bench`: figures as tables, never as a verdict. Everything runs on this one machine, so that only the
//! ratios between rows say something. QEMU's synchronous block mirror runs beside ours on the same files.

mod fio;
mod process;
mod qemu_mirror;
mod service;
mod sizes;
mod table;
mod throughput;

use anyhow::Result;
use clap::Parser;

/// Print the tables of figures.
#[derive(Debug, Parser)]
struct Arguments {
    /// Short runs on small files: shows that everything works, in some two minutes
    #[arg(long)]
    smoke: bool,
    /// Seconds of each row of the throughput table
    #[arg(long)]
    seconds: Option<u64>,
    /// Only the throughput table
    #[arg(long)]
    throughput: bool,
    /// Only the figures about metadata, resync, memory and opening
    #[arg(long, conflicts_with = "throughput")]
    sizes: bool,
    /// Only failover, switchover and the agent. Needs root: the servers are made of namespaces
    #[arg(long, conflicts_with_all = ["throughput", "sizes"])]
    service: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (seconds, file_bytes) = if arguments.smoke {
        (1, 256 << 20)
    } else {
        (5, 1 << 30)
    };
    let all = !arguments.throughput && !arguments.sizes && !arguments.service;
    if all || arguments.throughput {
        throughput::print(arguments.seconds.unwrap_or(seconds), file_bytes)?;
    }
    if all || arguments.sizes {
        sizes::print(arguments.smoke)?;
    }
    if all && !nix::unistd::geteuid().is_root() {
        println!("\nService and agent: measured as root only, in servers made of namespaces");
    } else if all || arguments.service {
        service::print(arguments.smoke)?;
    }
    Ok(())
}
