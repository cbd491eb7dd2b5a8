//! `mirror-bench`: figures as tables, never as a verdict. Everything runs on this one machine, so that only the
//! ratios between rows say something. QEMU's synchronous block mirror runs beside ours on the same files.

mod fio;
mod qemu_mirror;
mod sizes;
mod table;
mod throughput;

use anyhow::Result;
use clap::Parser;

/// Print the tables of figures.
#[derive(Debug, Parser)]
struct Arguments {
    /// Short runs on small files: shows that everything works, in under a minute
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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (seconds, file_bytes) = if arguments.smoke {
        (1, 256 << 20)
    } else {
        (5, 1 << 30)
    };
    if !arguments.sizes {
        throughput::print(arguments.seconds.unwrap_or(seconds), file_bytes)?;
    }
    if !arguments.throughput {
        sizes::print(arguments.smoke)?;
    }
    Ok(())
}
