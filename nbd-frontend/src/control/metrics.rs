//! The state of a node as Prometheus reads it: OpenMetrics text at `GET /metrics`.
//!
//! `docs/operations/metrics.md` lists every metric; a test compares the two. Label values are names from the
//! configuration, which holds only letters, digits and `-_.`, and words from here, so none needs escaping.

use std::fmt;

use mirror_core::control::{
    Connection, Counters, DiskCounters, DiskState, Latencies, Latency, MirrorStatus, NodeStatus,
    Role, Statistics, SyncStatus,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Value of the header `Content-Type`.
pub const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NS_PER_S: f64 = 1e9;

/// `node` with the statistics of its mirrors.
pub fn text(node: &NodeStatus) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(node.clone())));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("writing to a string cannot fail");
    text
}

type Labels<'a> = Vec<(&'static str, &'a str)>;
type Samples<'a, V> = Vec<(Labels<'a>, V)>;

#[derive(Debug)]
struct Exposition(NodeStatus);

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Families(encoder);
        self.encode_state(&mut to)?;
        self.encode_sync(&mut to)?;
        self.encode_counters(&mut to)?;
        self.encode_queues_and_memory(&mut to)?;
        self.encode_latencies(&mut to)
    }
}

impl Exposition {
    /// One sample of each mirror that has one.
    fn each<V>(&self, value: impl Fn(&MirrorStatus) -> Option<V>) -> Samples<'_, V> {
        let mirrors = self.0.mirrors.iter();
        mirrors
            .filter_map(|mirror| Some((vec![("mirror", mirror.name.as_str())], value(mirror)?)))
            .collect()
    }

    fn measured<V>(&self, value: impl Fn(&Statistics) -> V) -> Samples<'_, V> {
        self.each(|mirror| mirror.statistics.as_ref().map(&value))
    }

    /// Those of several kinds of one thing, each under a word of its own.
    fn split<'a, V>(
        label: &'static str,
        kinds: impl IntoIterator<Item = (&'static str, Samples<'a, V>)>,
    ) -> Samples<'a, V> {
        let mut all = Vec::new();
        for (word, samples) in kinds {
            all.extend(samples.into_iter().map(|(mut labels, value)| {
                labels.push((label, word));
                (labels, value)
            }));
        }
        // Samples of one mirror stay together, as the format wants it.
        all.sort_by(|(one, _), (other, _)| one[0].cmp(&other[0]));
        all
    }

    fn encode_state(&self, to: &mut Families) -> fmt::Result {
        let is = |holds: fn(&MirrorStatus) -> bool| self.each(|m| Some(u32::from(holds(m))));
        let mut up = is(|_| true);
        let down = self.0.down.iter();
        up.extend(down.map(|down| (vec![("mirror", down.name.as_str())], 0)));
        to.gauge("mirror_up", "1 if the mirror runs on this node", up)?;
        to.gauge(
            "mirror_primary",
            "1 if this node is primary",
            is(|mirror| mirror.role == Role::Primary),
        )?;
        to.gauge(
            "mirror_connected",
            "1 if the link to the peer stands and both sides agree",
            is(|mirror| mirror.connection == Connection::Connected),
        )?;
        to.gauge(
            "mirror_split_brain",
            "1 if both sides wrote by themselves and somebody must choose",
            is(|mirror| mirror.connection == Connection::SplitBrain),
        )?;
        to.gauge(
            "mirror_disk_up_to_date",
            "1 if the data of this node is current",
            is(|mirror| mirror.disk == DiskState::UpToDate),
        )?;
        to.gauge(
            "mirror_peer_disk_up_to_date",
            "1 if the data of the peer is known to be current",
            is(|mirror| mirror.peer.disk == DiskState::UpToDate),
        )?;
        to.gauge(
            "mirror_io_suspended",
            "1 while answers to clients wait for word about the lost peer",
            is(|mirror| mirror.io_suspended),
        )?;
        to.gauge(
            "mirror_frozen",
            "1 while nothing is answered, by order or for want of a lease",
            is(|mirror| mirror.frozen),
        )?;
        to.gauge(
            "mirror_size_bytes",
            "Size of the mirror",
            self.each(|mirror| Some(mirror.size_bytes)),
        )?;
        to.gauge(
            "mirror_out_of_sync_bytes",
            "Bytes in blocks that may differ between the sides",
            self.each(|mirror| Some(mirror.out_of_sync_bytes)),
        )?;
        to.gauge(
            "mirror_lag_bytes",
            "Answered bytes that the peer does not have yet",
            self.each(|mirror| Some(mirror.lag_bytes)),
        )?;
        to.gauge(
            "mirror_lag_seconds",
            "Age of the oldest answered write that the peer does not have yet",
            self.each(|mirror| Some(mirror.lag_ms as f64 / 1e3)),
        )?;
        to.gauge(
            "mirror_peer_silent_seconds",
            "Time since the peer was heard over the link",
            self.each(|mirror| Some(mirror.peer_heard_ms? as f64 / 1e3)),
        )?;
        to.gauge(
            "mirror_epoch",
            "Grows with each promotion",
            self.each(|mirror| Some(mirror.epoch)),
        )
    }

    fn encode_sync(&self, to: &mut Families) -> fmt::Result {
        let running = |value: fn(&SyncStatus) -> u64| {
            let mut samples = Vec::new();
            for mirror in &self.0.mirrors {
                let Some(sync) = &mirror.sync else { continue };
                let labels = vec![
                    ("mirror", mirror.name.as_str()),
                    ("kind", sync.kind.name()),
                    ("direction", sync.direction.name()),
                ];
                samples.push((labels, value(sync)));
            }
            samples
        };
        to.gauge(
            "mirror_sync_total_bytes",
            "What the resync or verify that runs has to look at",
            running(|sync| sync.total_bytes),
        )?;
        to.gauge(
            "mirror_sync_done_bytes",
            "What it has done of that",
            running(|sync| sync.done_bytes),
        )?;
        to.gauge(
            "mirror_sync_paused",
            "1 while it is paused",
            running(|sync| u64::from(sync.paused)),
        )
    }

    fn encode_counters(&self, to: &mut Families) -> fmt::Result {
        let counted =
            |value: fn(&Counters) -> u64| self.each(|mirror| Some(value(&mirror.counters)));
        let disk = |value: fn(&DiskCounters) -> u64| {
            self.measured(|statistics| value(&statistics.local_disk))
        };
        to.counter(
            "mirror_requests",
            "Requests of clients",
            Self::split(
                "operation",
                [
                    ("write", counted(|counters| counters.writes)),
                    ("read", counted(|counters| counters.reads)),
                    ("flush", counted(|counters| counters.flushes)),
                ],
            ),
        )?;
        to.counter(
            "mirror_request_bytes",
            "Bytes that clients wrote and read",
            Self::split(
                "operation",
                [
                    ("write", counted(|counters| counters.bytes_written)),
                    ("read", counted(|counters| counters.bytes_read)),
                ],
            ),
        )?;
        to.counter(
            "mirror_local_disk_operations",
            "Operations on the data partition of this node, for clients, peer and resync",
            Self::split(
                "operation",
                [
                    ("write", disk(|disk| disk.writes)),
                    ("read", disk(|disk| disk.reads)),
                    ("flush", disk(|disk| disk.flushes)),
                ],
            ),
        )?;
        to.counter(
            "mirror_local_disk_bytes",
            "Bytes of these operations",
            Self::split(
                "operation",
                [
                    ("write", disk(|disk| disk.bytes_written)),
                    ("read", disk(|disk| disk.bytes_read)),
                ],
            ),
        )?;
        to.counter(
            "mirror_metadata_writes",
            "Writes to the metadata: activity log, bitmap and superblock",
            counted(|counters| counters.metadata_writes),
        )?;
        to.counter(
            "mirror_link_bytes",
            "Bytes on the wire between the nodes",
            Self::split(
                "direction",
                [
                    ("sent", counted(|counters| counters.bytes_sent)),
                    ("received", counted(|counters| counters.bytes_received)),
                ],
            ),
        )?;
        to.counter(
            "mirror_compression_bytes",
            "Data for the peer that compression covers, before it and as it was sent",
            Self::split(
                "moment",
                [
                    (
                        "before",
                        counted(|counters| counters.bytes_before_compression),
                    ),
                    (
                        "after",
                        counted(|counters| counters.bytes_after_compression),
                    ),
                ],
            ),
        )
    }

    fn encode_queues_and_memory(&self, to: &mut Families) -> fmt::Result {
        to.gauge(
            "mirror_send_queue_messages",
            "Messages that wait to be sent to the peer",
            self.measured(|statistics| statistics.send_queue.now),
        )?;
        to.gauge(
            "mirror_send_queue_messages_max",
            "Most that ever waited at once",
            self.measured(|statistics| statistics.send_queue.max),
        )?;
        to.gauge(
            "mirror_requests_in_flight",
            "Requests of clients that are not answered yet",
            self.measured(|statistics| statistics.request_queue.now),
        )?;
        to.gauge(
            "mirror_requests_in_flight_max",
            "Most that ever were at once",
            self.measured(|statistics| statistics.request_queue.max),
        )?;
        to.gauge(
            "mirror_buffer_bytes",
            "Memory for payload, taken when the mirror was opened",
            self.measured(|statistics| statistics.memory.buffer_bytes),
        )?;
        to.gauge(
            "mirror_buffer_used_bytes",
            "Part of it that is in use",
            self.measured(|statistics| statistics.memory.buffer_used_bytes),
        )?;
        to.counter(
            "mirror_buffer_waits",
            "How often somebody had to wait for such memory",
            self.measured(|statistics| statistics.memory.buffer_waits),
        )?;
        to.gauge(
            "mirror_bitmap_bytes",
            "Memory of the dirty bitmap",
            self.measured(|statistics| statistics.memory.bitmap_bytes),
        )?;
        to.gauge(
            "mirror_statistics_bytes",
            "Memory of these statistics",
            self.measured(|statistics| statistics.memory.statistics_bytes),
        )?;
        let resident = self.0.resident_bytes;
        to.gauge(
            "process_resident_memory_bytes",
            "Memory of the daemon that is in RAM",
            resident.map(|bytes| (Vec::new(), bytes)),
        )
    }

    fn encode_latencies(&self, to: &mut Families) -> fmt::Result {
        let took = |which: fn(&Latencies) -> &Latency| {
            self.each(|mirror| Some(which(&mirror.statistics.as_ref()?.latencies).clone()))
        };
        to.histogram(
            "mirror_request_duration_seconds",
            "Requests of clients, from their arrival to their answer",
            Self::split(
                "operation",
                [
                    ("write", took(|latencies| &latencies.write)),
                    ("read", took(|latencies| &latencies.read)),
                    ("flush", took(|latencies| &latencies.flush)),
                ],
            ),
        )?;
        to.histogram(
            "mirror_local_disk_duration_seconds",
            "Operations on the data partition of this node",
            Self::split(
                "operation",
                [
                    ("write", took(|latencies| &latencies.local_write)),
                    ("read", took(|latencies| &latencies.local_read)),
                    ("flush", took(|latencies| &latencies.local_flush)),
                ],
            ),
        )?;
        to.histogram(
            "mirror_peer_write_duration_seconds",
            "Replicated writes, from being put in line for the peer to their acknowledgement",
            took(|latencies| &latencies.peer_write),
        )?;
        to.histogram(
            "mirror_log_transaction_duration_seconds",
            "Transactions of the activity log, until they are durable",
            took(|latencies| &latencies.log_transaction),
        )?;
        to.histogram(
            "mirror_heartbeat_duration_seconds",
            "Keepalives over the link and back",
            took(|latencies| &latencies.heartbeat),
        )
    }
}

/// Writes families: a name, what it means, and its samples. A family without samples is left out.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<'s, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, V)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    /// The name is written with `_total` behind it.
    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: Samples<V>,
    ) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.iter().try_for_each(|(labels, value)| {
            let mut sample = family.encode_family(labels)?;
            sample.encode_counter::<NoLabelSet, V, u64>(value, None)
        })
    }

    fn histogram(&mut self, name: &str, help: &str, samples: Samples<Latency>) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        samples.iter().try_for_each(|(labels, latency)| {
            let bounds = latency.buckets.iter();
            // The largest number there is stands for "and all above". The library adds up by itself.
            let mut below = 0;
            let buckets: Vec<(f64, u64)> = bounds
                .map(|bucket| (bucket.up_to_ns as f64 / NS_PER_S, bucket.count))
                .chain([(f64::MAX, latency.count)])
                .map(|(bound, count)| (bound, count - std::mem::replace(&mut below, count)))
                .collect();
            family
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(
                    latency.sum_ns as f64 / NS_PER_S,
                    latency.count,
                    &buckets,
                    None,
                )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::control::{DownMirror, LatencyBucket};

    fn node() -> NodeStatus {
        let mut mirror = MirrorStatus::in_step("md1", Role::Primary, "server2");
        mirror.counters.writes = 7;
        let mut statistics = Statistics::default();
        statistics.latencies.write = Latency {
            count: 7,
            sum_ns: 1_500_000,
            buckets: vec![
                LatencyBucket {
                    up_to_ns: 100_000,
                    count: 2,
                },
                LatencyBucket {
                    up_to_ns: 250_000_000,
                    count: 6,
                },
            ],
            ..Latency::default()
        };
        mirror.statistics = Some(statistics);
        NodeStatus {
            node: "server1".into(),
            mirrors: vec![mirror],
            down: vec![DownMirror {
                name: "md2".into(),
                reason: "no metadata".into(),
            }],
            resident_bytes: Some(4096),
        }
    }

    #[track_caller]
    fn check(expected: &[&str]) {
        let text = text(&node());
        for line in expected {
            assert!(
                text.lines().any(|found| found == *line),
                "no {line} in:\n{text}"
            );
        }
    }

    #[test]
    fn a_metric_has_its_help_its_type_and_a_sample_of_each_mirror() {
        check(&[
            "# HELP mirror_up 1 if the mirror runs on this node",
            "# TYPE mirror_up gauge",
            "mirror_up{mirror=\"md1\"} 1",
            "mirror_up{mirror=\"md2\"} 0",
            "# TYPE mirror_requests counter",
            "mirror_requests_total{mirror=\"md1\",operation=\"write\"} 7",
            "process_resident_memory_bytes{} 4096",
            "# EOF",
        ]);
    }

    #[test]
    fn buckets_of_a_histogram_add_up_to_its_count() {
        let series = |le: &str, count: u64| {
            format!(
                "mirror_request_duration_seconds_bucket{{le=\"{le}\",mirror=\"md1\",operation=\"write\"}} {count}"
            )
        };
        let buckets = [series("0.0001", 2), series("0.25", 6), series("+Inf", 7)];
        check(&buckets.each_ref().map(String::as_str));
        check(&[
            "# TYPE mirror_request_duration_seconds histogram",
            "mirror_request_duration_seconds_sum{mirror=\"md1\",operation=\"write\"} 0.0015",
            "mirror_request_duration_seconds_count{mirror=\"md1\",operation=\"write\"} 7",
        ]);
    }
}
