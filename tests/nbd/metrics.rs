//! What a node tells of its work: in `mdstat`, and as Prometheus reads it. The parser is the one of the people who define
//! the format.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use local_pair::{PYTHON, Pair, Side};
use mirror_core::control::Statistics;

use crate::client::{qemu_io, run};
use crate::{MIB, small, synced};

/// Prints each sample as a line, `NAME{LABEL=VALUE,...} NUMBER`, and fails where the text breaks a rule of the format.
const PARSER: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    assert family.documentation, family.name
    for sample in family.samples:
        labels = ','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))
        print(f'{sample.name}{{{labels}}} {sample.value}')
";

/// The samples of one side, by name and labels.
fn samples(pair: &Pair, side: Side) -> Result<BTreeMap<String, f64>> {
    let text = pair.ctl(side, &["metrics"]).done()?;
    let file = pair.folder().join("metrics");
    fs::write(&file, &text)?;
    let parsed = run(PYTHON, &["-c", PARSER, &file.display().to_string()])
        .with_context(|| format!("the text was:\n{text}"))?;
    parsed
        .lines()
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample has a value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

fn statistics(pair: &Pair, side: Side) -> Result<Statistics> {
    let status = pair.status(side)?;
    status.statistics.context("`mdstat --json` has statistics")
}

#[test]
fn figures_of_both_sides_move_with_the_work_of_clients() -> Result<()> {
    let pair = synced(&small())?;
    let before = samples(&pair, Side::First)?;
    qemu_io(
        &pair.uri(Side::First),
        &[
            "write -P 1 0 1M",
            "write -P 2 8M 1M",
            "read 0 512k",
            "flush",
        ],
    )?;
    let after = samples(&pair, Side::First)?;
    let grew = |name: &str| -> Result<f64> {
        let sample = |samples: &BTreeMap<String, f64>| {
            let found = samples.get(name).copied();
            found.with_context(|| format!("{name} is missing in {samples:?}"))
        };
        Ok(sample(&after)? - sample(&before)?)
    };
    let exactly = [
        ("mirror_requests_total{mirror=md1,operation=write}", 2),
        (
            "mirror_request_bytes_total{mirror=md1,operation=write}",
            2 * MIB,
        ),
        ("mirror_requests_total{mirror=md1,operation=read}", 1),
        (
            "mirror_request_duration_seconds_count{mirror=md1,operation=write}",
            2,
        ),
        (
            "mirror_request_duration_seconds_bucket{le=+Inf,mirror=md1,operation=write}",
            2,
        ),
        (
            "mirror_request_duration_seconds_count{mirror=md1,operation=read}",
            1,
        ),
        (
            "mirror_local_disk_bytes_total{mirror=md1,operation=write}",
            2 * MIB,
        ),
        (
            "mirror_local_disk_duration_seconds_count{mirror=md1,operation=write}",
            2,
        ),
        ("mirror_peer_write_duration_seconds_count{mirror=md1}", 2),
    ];
    for (name, by) in exactly {
        let found = grew(name)?;
        ensure!(found == by as f64, "{name} grew by {found}, not by {by}");
    }
    let at_least = [
        (
            "mirror_request_duration_seconds_count{mirror=md1,operation=flush}",
            1.0,
        ),
        (
            "mirror_local_disk_duration_seconds_count{mirror=md1,operation=flush}",
            1.0,
        ),
        (
            "mirror_log_transaction_duration_seconds_count{mirror=md1}",
            1.0,
        ),
        (
            "mirror_log_transaction_duration_seconds_sum{mirror=md1}",
            1e-9,
        ),
        (
            "mirror_request_duration_seconds_sum{mirror=md1,operation=write}",
            1e-9,
        ),
        (
            "mirror_link_bytes_total{direction=sent,mirror=md1}",
            (2 * MIB) as f64,
        ),
    ];
    for (name, by) in at_least {
        let found = grew(name)?;
        ensure!(found >= by, "{name} grew by {found}, less than {by}");
    }
    ensure!(after["mirror_primary{mirror=md1}"] == 1.0 && after["mirror_up{mirror=md1}"] == 1.0);
    ensure!(after["mirror_requests_in_flight{mirror=md1}"] == 0.0);
    ensure!(after["process_resident_memory_bytes{}"] > MIB as f64);

    let peer = statistics(&pair, Side::Second)?;
    ensure!(
        peer.latencies.local_write.count >= 2,
        "the peer wrote: {peer:?}"
    );
    ensure!(
        peer.latencies.write.count == 0,
        "no client is there: {peer:?}"
    );
    Ok(())
}

#[test]
fn times_fit_into_each_other_and_queues_and_memory_are_known() -> Result<()> {
    let pair = synced(&small())?;
    run(
        "fio",
        &[
            "--name=load",
            "--ioengine=nbd",
            &format!("--uri={}", pair.uri(Side::First)),
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--size=16m",
        ],
    )?;
    let found = statistics(&pair, Side::First)?;
    let times = &found.latencies;
    // Each write went to both sides, and its answer waited for both.
    let [whole, here, there] = [&times.write, &times.local_write, &times.peer_write];
    ensure!(
        [whole, here, there].iter().all(|part| part.count == 4096),
        "{times:?}"
    );
    ensure!(
        whole.sum_ns >= here.sum_ns && whole.sum_ns >= there.sum_ns,
        "{times:?}"
    );
    ensure!(
        0 < whole.p50_ns && whole.p50_ns <= whole.p99_ns && whole.p99_ns <= whole.max_ns,
        "{times:?}"
    );
    ensure!(
        (1..=8).contains(&found.request_queue.max),
        "{:?}",
        found.request_queue
    );
    ensure!(found.send_queue.max >= 1, "{:?}", found.send_queue);
    let memory = found.memory;
    ensure!(
        memory.buffer_bytes >= MIB && memory.bitmap_bytes > 0,
        "{memory:?}"
    );
    let shown = pair.ctl(Side::First, &["mdstat", "--stats"]).done()?;
    for part in [
        "writes",
        "16.00 MiB",
        "synchronisation",
        "ack of peer",
        "in RAM",
    ] {
        ensure!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
    Ok(())
}
