//! Where the time of one small write goes: the same again with something left out, and what it takes of the processors.

use anyhow::{Context, Result, bail};
use local_machines::Machine;
use local_pair::Side;

use super::{DISK_BYTES, DRBD, NBDKIT, OURS, ROUNDS, Target, VIRTIO, on_device};
use crate::fio::{self, Reached};
use crate::table;
use crate::throughput::{self, ALONE};

/// Of a run on this host, beside the time that it measures.
const NATIVE_SECONDS_MAX: u64 = 60;

pub fn print(machine: &Machine, seconds: f64) -> Result<()> {
    eprintln!("  {}, taken apart", ALONE.name);
    let device = |target: &Target| on_device(target, &ALONE, seconds);
    let socket = "--ioengine=nbd --uri=nbd+unix:///plain?socket=/run/server1/plain.nbd";
    let socket = format!("{socket} {}", ALONE.words(seconds).join(" "));
    let whole = [
        (VIRTIO.name, device(&VIRTIO)),
        ("nbdkit, over the kernel's NBD client", device(&NBDKIT)),
        (DRBD.name, device(&DRBD)),
        (OURS.name, device(&OURS)),
        ("ours, without the kernel's NBD client", socket),
    ];
    let mut rows = Vec::new();
    let [_, _, drbd, ours, by_socket] = take_rounds(machine, seconds, &whole, &mut rows)?;
    machine.run(
        "set -e
        drbdsetup-84 disconnect ipv4:127.0.0.1:7789 ipv4:127.0.0.1:7790
        kill -9 $(cat /run/server2.pid)
        mirrorctl --node server1 --run-dir /run/server1 mdstat >&2",
    )?;
    let alone = [
        ("DRBD, its other side away", device(&DRBD)),
        ("ours, its other side away", device(&OURS)),
    ];
    let [drbd_alone, ours_alone] = take_rounds(machine, seconds, &alone, &mut rows)?;
    table::print(
        &format!(
            "{}, taken apart: microseconds an operation, in the median round of {ROUNDS}",
            ALONE.name
        ),
        &[
            "",
            "latency",
            "processors",
            "mirrord 1 user",
            "system",
            "mirrord 2 user",
            "system",
        ],
        &rows,
    );
    let native = native(seconds)?;
    println!(
        "\n  The link and the other side: DRBD {:.0}, ours {:.0}. The kernel's NBD client: {:.0}.",
        drbd - drbd_alone,
        ours - ours_alone,
        ours - by_socket
    );
    println!(
        "  Emulation: without it, on files in memory and without the kernel's NBD client, ours takes {native:.0}, {:.0} times less.",
        by_socket / native
    );
    Ok(())
}

/// Each in turn, round after round, and a row for the round of the median latency of each. Gives those latencies.
fn take_rounds<const N: usize>(
    machine: &Machine,
    seconds: f64,
    measured: &[(&str, String); N],
    rows: &mut Vec<Vec<String>>,
) -> Result<[f64; N]> {
    let mut rounds = [(); N].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        for ((name, words), spent) in measured.iter().zip(&mut rounds) {
            spent.push(spend(machine, words, seconds).with_context(|| (*name).to_owned())?);
        }
    }
    let medians = rounds.map(|mut rounds| {
        rounds.sort_by(|one, other| one.latency_us.total_cmp(&other.latency_us));
        rounds.swap_remove(ROUNDS / 2)
    });
    for ((name, _), spent) in measured.iter().zip(&medians) {
        let per_operation = |ticks: f64| format!("{:.0}", ticks * 1e4 / spent.operations);
        rows.push(vec![
            (*name).to_owned(),
            format!("{:.0}", spent.latency_us),
            per_operation(spent.all),
            per_operation(spent.primary.user),
            per_operation(spent.primary.system),
            per_operation(spent.secondary.user),
            per_operation(spent.secondary.system),
        ]);
    }
    Ok(medians.map(|spent| spent.latency_us))
}

/// The same programs on this host.
fn native(seconds: f64) -> Result<f64> {
    let pair = throughput::start_ours(DISK_BYTES as u64, false)?;
    let limit = seconds as u64 + NATIVE_SECONDS_MAX;
    let reached = fio::run(&pair.uri(Side::First), limit, &ALONE.words(seconds))?;
    Ok(reached.latency_us)
}

/// Time of the processors, in ticks of 10 ms.
#[derive(Debug, Default, Clone, Copy)]
struct Ticks {
    user: f64,
    system: f64,
}

#[derive(Debug)]
struct Spent {
    latency_us: f64,
    operations: f64,
    /// Of all processors, by everybody.
    all: f64,
    primary: Ticks,
    secondary: Ticks,
}

fn spend(machine: &Machine, words: &str, seconds: f64) -> Result<Spent> {
    // proc(5): what all processors did, and user and system time of a process that may be gone.
    let look = "head -n 1 /proc/stat
        for server in server1 server2; do
            cut -d ' ' -f 14,15 /proc/$(cat /run/$server.pid)/stat 2>/dev/null || echo 0 0
        done";
    let script = format!(
        "{look}\nfio --name=bench --output-format=json --output=/run/fio {words}\n{look}\ncat /run/fio"
    );
    let said = machine.run(&script)?;
    let numbers: Vec<Vec<f64>> = said
        .lines()
        .take_while(|line| !line.starts_with('{'))
        .map(|line| {
            line.split(' ')
                .filter_map(|word| word.parse().ok())
                .collect()
        })
        .filter(|numbers: &Vec<f64>| numbers.len() >= 2)
        .collect();
    let [
        all_before,
        primary_before,
        secondary_before,
        all,
        primary,
        secondary,
    ] = &numbers[..]
    else {
        bail!("the machine said {said}");
    };
    // user, nice, system, idle, iowait, irq, softirq
    let busy = |numbers: &[f64]| numbers.iter().sum::<f64>() - numbers[3] - numbers[4];
    let ticks = |after: &[f64], before: &[f64]| Ticks {
        user: (after[0] - before[0]).max(0.0),
        system: (after[1] - before[1]).max(0.0),
    };
    let reached = Reached::of(&fio::parse(&said)?);
    Ok(Spent {
        latency_us: reached.latency_us,
        operations: reached.operations_per_s * seconds,
        all: busy(all) - busy(all_before),
        primary: ticks(primary, primary_before),
        secondary: ticks(secondary, secondary_before),
    })
}
