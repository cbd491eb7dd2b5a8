//! Real nodes on loopback, driven by clients that nobody here wrote: libnbd's tools, QEMU's, fio, Python's libnbd.
//! Each test has a pair of nodes of its own; every wait is for a state and has an end.

mod ahead;
mod bad_input;
mod client;
mod compression;
mod demo;
mod disk_faults;
mod forced;
mod hostile;
mod metrics;
mod mounted;
mod node_loss;
mod refusals;
mod rights;
mod secrets;
mod split_brain;
mod standard_clients;
mod syncing;
mod tls;
mod turns;

use anyhow::{Result, ensure};
use local_pair::{Pair, PairOptions, Programs, Side};

const MIB: u64 = 1 << 20;

/// Connected, the first side primary, both up to date.
fn synced(options: &PairOptions) -> Result<Pair> {
    Pair::synced(Programs::fresh()?, options)
}

fn small() -> PairOptions {
    PairOptions::sized(64 * MIB)
}

/// Stops both nodes and compares every byte of their data files.
fn assert_same_data(pair: &mut Pair) -> Result<()> {
    for side in Side::BOTH {
        pair.node_mut(side).stop()?;
    }
    let [first, second] = Side::BOTH.map(|side| pair.node(side).data.display().to_string());
    let output = client::run("cmp", &[&first, &second])?;
    ensure!(output.is_empty(), "the data differs: {output}");
    Ok(())
}
