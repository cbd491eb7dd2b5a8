//! How long a service is away, and what the agent costs while nothing happens: real servers in namespaces, with
//! ext4 on the mirror and a client that writes and syncs records.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use local_cluster::{Bed, Daemon, Files, GROUP, Guard, HEARTBEAT_TIMEOUT_MS, LEASE_MS, Setup};
use local_pair::Side;

use crate::process;
use crate::table;

/// Records before anything is done to the servers.
const WARM_RECORDS: usize = 20;
const SECONDS_MAX: u64 = 90;

pub fn print(smoke: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut row = |name: &str, found: String, goal: String| {
        eprintln!("  {name}: {found}");
        rows.push(vec![name.to_string(), found, goal]);
    };
    // A smoke run tries the first of each.
    let tried = if smoke { 1 } else { 2 };
    for (name, guard) in [
        (
            "kill -9 of the primary to the first synced write, witness",
            Guard::Witness,
        ),
        ("the same, forced stop by script", Guard::ForcedStop),
    ]
    .into_iter()
    .take(tried)
    {
        let seconds = failover(guard)?.as_secs_f64();
        // The arbiter counts a lease no longer than its holder, but for the drift that is allowed for.
        let silence_ms = match guard {
            Guard::Witness => HEARTBEAT_TIMEOUT_MS.max(LEASE_MS),
            Guard::Nobody | Guard::ForcedStop => HEARTBEAT_TIMEOUT_MS,
        };
        let silence = silence_ms as f64 / 1000.0;
        row(
            name,
            format!("{seconds:.2} s"),
            format!(
                "under {:.2} s: {silence:.2} s of silence and 1 s",
                silence + 1.0
            ),
        );
    }
    for (name, guard) in [
        (
            "planned switchover of a mounted ext4, witness",
            Guard::Witness,
        ),
        ("the same, forced stop by script", Guard::ForcedStop),
    ]
    .into_iter()
    .take(tried)
    {
        let (said, gap) = switchover(guard)?;
        row(
            name,
            format!("{:.2} s, {said} s by its own word", gap.as_secs_f64()),
            "under 3 s".into(),
        );
    }
    let span = Duration::from_secs(if smoke { 5 } else { 30 });
    for (pace, name) in [
        (
            Pace::Default,
            "agent that runs a group and watches, at its defaults: processor",
        ),
        (
            Pace::Tests,
            "the same with a heartbeat every 100 ms: processor",
        ),
    ] {
        let (cpu_percent, memory_mib) = idle(pace, span)?;
        row(
            name,
            format!("{cpu_percent:.2} % of one core"),
            "under 1 %".into(),
        );
        row(
            "the same, memory",
            format!("{memory_mib:.1} MiB"),
            "under 32 MiB".into(),
        );
    }
    table::print("Service and agent", &["", "found", "goal"], &rows);
    Ok(())
}

fn running(guard: Guard) -> Result<(Bed, Files)> {
    let mut bed = Bed::running(Setup {
        guard,
        mounted: true,
    })?;
    let files = Files::start(&bed)?;
    wait_records(&mut bed, &files, Side::First, WARM_RECORDS)?;
    Ok((bed, files))
}

fn wait_records(bed: &mut Bed, files: &Files, side: Side, more: usize) -> Result<()> {
    let goal = files.confirmed(side).len() + more;
    bed.until("records", SECONDS_MAX, |_| {
        Ok((files.confirmed(side).len() >= goal).then_some(()))
    })
}

/// Everything on the first server dies by `kill -9`; its power goes with it.
fn failover(guard: Guard) -> Result<Duration> {
    let (mut bed, files) = running(guard)?;
    let killed = Instant::now();
    bed.cut_power(Side::First)?;
    wait_records(&mut bed, &files, Side::Second, 1)?;
    Ok(killed.elapsed())
}

/// What `mirrorctl` says, and the time from its call to the first record on the other server. The client goes
/// first, as an application does that the group stops before its disk.
fn switchover(guard: Guard) -> Result<(String, Duration)> {
    let (mut bed, mut files) = running(guard)?;
    files.stop_on(Side::First);
    let called = Instant::now();
    let said = bed.ctl(Side::First, &["switchover", GROUP]).done()?;
    wait_records(&mut bed, &files, Side::Second, 1)?;
    let took = called.elapsed();
    let seconds = said
        .lines()
        .find_map(|line| line.strip_suffix(" s without service"))
        .with_context(|| format!("it said {said}"))?;
    Ok((seconds.to_string(), took))
}

/// How often an idle cluster looks, beats and renews.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Default,
    /// As the tests have it, for their short time-outs.
    Tests,
}

/// What the tests write for it, and the defaults in its place.
const OF_THE_TESTS: [&str; 3] = [
    "interval = \"100ms\"\ntimeout = \"2000ms\"\n",
    "lease = \"1500ms\"\ntimeout = \"300ms\"\n",
    "interval = \"500ms\"\ntimeout = \"500ms\"\n",
];

/// Share of one core in per cent, and resident memory in MiB, of the agent that runs the group.
fn idle(pace: Pace, span: Duration) -> Result<(f64, f64)> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: true,
    })?;
    if pace == Pace::Default {
        for written in OF_THE_TESTS {
            bed.configure(written, "")?;
        }
    }
    bed.bring_online()?;
    let agent = bed.process_id(Side::First, Daemon::Agent)?;
    let (before, began) = (process::processor_seconds(agent)?, Instant::now());
    std::thread::sleep(span);
    let used = process::processor_seconds(agent)? - before;
    let percent = 100.0 * used / began.elapsed().as_secs_f64();
    Ok((percent, process::resident_kib(agent)? as f64 / 1024.0))
}
