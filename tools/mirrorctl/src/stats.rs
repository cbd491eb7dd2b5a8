//! `mdstat --stats`: what a mirror has done since it was opened, and how long it took.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount};
use mirror_core::control::{Latency, MirrorStatus, NodeStatus, Statistics};

pub fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    for mirror in &status.mirrors {
        if let Some(statistics) = &mirror.statistics {
            render_mirror(&mut text, &status.node, mirror, statistics);
        }
    }
    for down in &status.down {
        let _ = writeln!(text, "{} : down on {}", down.name, status.node);
    }
    if let Some(bytes) = status.resident_bytes {
        let _ = writeln!(
            text,
            "mirrord of {} : {} in RAM",
            status.node,
            BinaryBytes(bytes)
        );
    }
    text
}

fn render_mirror(text: &mut String, node: &str, mirror: &MirrorStatus, statistics: &Statistics) {
    let open_for = Duration::from_secs(statistics.running_ms / 1000);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} : on {node}, open for {}",
        mirror.name,
        humantime::format_duration(open_for)
    );
    render_amounts(text, mirror, statistics);
    render_latencies(text, statistics);
    let (send, requests) = (statistics.send_queue, statistics.request_queue);
    let _ = writeln!(text, "      {:<20}{:>12}{:>12}", "queue", "now", "max");
    let _ = writeln!(
        text,
        "      {:<20}{:>12}{:>12}",
        "send (messages)", send.now, send.max
    );
    let _ = writeln!(
        text,
        "      {:<20}{:>12}{:>12}",
        "requests", requests.now, requests.max
    );
    let memory = statistics.memory;
    let _ = writeln!(
        text,
        "      memory: {} of buffers, {} in use, waited for {} times; bitmap {}; statistics {}",
        BinaryBytes(memory.buffer_bytes),
        BinaryBytes(memory.buffer_used_bytes),
        HumanCount(memory.buffer_waits),
        BinaryBytes(memory.bitmap_bytes),
        BinaryBytes(memory.statistics_bytes),
    );
}

fn render_amounts(text: &mut String, mirror: &MirrorStatus, statistics: &Statistics) {
    let (clients, disk) = (&mirror.counters, &statistics.local_disk);
    let amounts = [
        ("writes", Some(clients.writes), clients.bytes_written),
        ("reads", Some(clients.reads), clients.bytes_read),
        ("local disk writes", Some(disk.writes), disk.bytes_written),
        ("local disk reads", Some(disk.reads), disk.bytes_read),
        ("sent to peer", None, clients.bytes_sent),
        ("received from peer", None, clients.bytes_received),
    ];
    let _ = writeln!(
        text,
        "      {:<20}{:>12}{:>12}{:>14}",
        "", "count", "total", "average"
    );
    for (name, count, bytes) in amounts {
        let count = count.map_or(String::new(), |count| HumanCount(count).to_string());
        let total = BinaryBytes(bytes).to_string();
        let average = format!(
            "{}/s",
            BinaryBytes(per_second(bytes, statistics.running_ms))
        );
        let _ = writeln!(text, "      {name:<20}{count:>12}{total:>12}{average:>14}");
    }
    if let Some(ratio) = mirror.compression_ratio {
        let _ = writeln!(
            text,
            "      compression: {} to the peer sent as {}, {ratio:.2} to 1",
            BinaryBytes(clients.bytes_before_compression),
            BinaryBytes(clients.bytes_after_compression),
        );
    }
}

fn render_latencies(text: &mut String, statistics: &Statistics) {
    let latencies = &statistics.latencies;
    let rows = [
        ("synchronisation", &latencies.write),
        ("read", &latencies.read),
        ("flush", &latencies.flush),
        ("local disk write", &latencies.local_write),
        ("local disk read", &latencies.local_read),
        ("local disk flush", &latencies.local_flush),
        ("ack of peer", &latencies.peer_write),
        ("activity log", &latencies.log_transaction),
        ("heartbeat", &latencies.heartbeat),
    ];
    let _ = writeln!(
        text,
        "      {:<20}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}",
        "time", "count", "average", "median", "99 %", "99.9 %", "max"
    );
    for (name, latency) in rows {
        let Latency {
            count,
            mean_ns,
            p50_ns,
            p99_ns,
            p999_ns,
            max_ns,
            ..
        } = *latency;
        let count = HumanCount(count).to_string();
        let _ = write!(text, "      {name:<20}{count:>12}");
        for ns in [mean_ns, p50_ns, p99_ns, p999_ns, max_ns] {
            let time = match latency.count {
                0 => "-".into(),
                _ => format!("{:.1?}", Duration::from_nanos(ns)),
            };
            let _ = write!(text, "{time:>12}");
        }
        text.push('\n');
    }
}

fn per_second(bytes: u64, running_ms: u64) -> u64 {
    let rate = u128::from(bytes) * 1000 / u128::from(running_ms.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::control::{DiskCounters, MemoryUse, QueueDepth, Role};

    #[test]
    fn totals_averages_times_queues_and_memory_are_shown() {
        let mut mirror = MirrorStatus::in_step("md1", Role::Primary, "server2");
        mirror.counters.writes = 1234;
        mirror.counters.bytes_written = 20 << 20;
        mirror.counters.bytes_sent = 21 << 20;
        mirror.counters.bytes_before_compression = 60 << 20;
        mirror.counters.bytes_after_compression = 20 << 20;
        mirror.compression_ratio = Some(3.0);
        let mut statistics = Statistics {
            running_ms: 10_000,
            local_disk: DiskCounters {
                writes: 1300,
                bytes_written: 20 << 20,
                ..DiskCounters::default()
            },
            send_queue: QueueDepth { now: 1, max: 17 },
            request_queue: QueueDepth { now: 2, max: 32 },
            memory: MemoryUse {
                buffer_bytes: 64 << 20,
                buffer_used_bytes: 1 << 20,
                buffer_waits: 3,
                bitmap_bytes: 32 << 10,
                statistics_bytes: 400 << 10,
            },
            ..Statistics::default()
        };
        statistics.latencies.write = Latency {
            count: 1234,
            mean_ns: 81_250,
            p50_ns: 75_000,
            p99_ns: 1_250_000,
            p999_ns: 2_000_000,
            max_ns: 3_500_000_000,
            ..Latency::default()
        };
        mirror.statistics = Some(statistics);
        let text = render(&NodeStatus {
            node: "server1".into(),
            mirrors: vec![mirror],
            down: Vec::new(),
            resident_bytes: Some(90 << 20),
        });
        for line in [
            "md1 : on server1, open for 10s",
            "      writes                     1,234   20.00 MiB    2.00 MiB/s",
            "      local disk writes          1,300   20.00 MiB    2.00 MiB/s",
            "      sent to peer                       21.00 MiB    2.10 MiB/s",
            "      compression: 60.00 MiB to the peer sent as 20.00 MiB, 3.00 to 1",
            "      synchronisation            1,234      81.2µs      75.0µs       1.2ms       2.0ms        3.5s",
            "      ack of peer                    0           -           -           -           -           -",
            "      send (messages)                1          17",
            "      requests                       2          32",
            "mirrord of server1 : 90.00 MiB in RAM",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in:\n{text}"
            );
        }
        assert!(
            text.contains("64.00 MiB of buffers, 1.00 MiB in use, waited for 3 times"),
            "{text}"
        );
    }
}
