//! What a mirror has done since it was opened, and how long each part of it took.
//!
//! Types only: the driver measures, and `mirrorctl mdstat --stats` and `/metrics` show. All durations are counted by the
//! clock that also runs while the machine is suspended.

use serde::{Deserialize, Serialize};

/// Upper bounds of [`Latency::buckets`]: from a write to memory to a disk that hangs.
pub const LATENCY_BOUNDS_NS: [u64; 20] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    60_000_000_000,
];

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Since the mirror was opened: what totals and averages are over.
    pub running_ms: u64,
    pub local_disk: DiskCounters,
    pub latencies: Latencies,
    /// Messages that wait to be sent to the peer.
    pub send_queue: QueueDepth,
    /// Requests of clients that are not answered yet.
    pub request_queue: QueueDepth,
    pub memory: MemoryUse,
}

/// What the data partition did, for clients, for the peer and for a resync. Zeroing and trims are not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    pub writes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
}

/// Only what succeeded is timed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// A client's write, from its arrival to its answer: in sync mode both sides have it.
    pub write: Latency,
    pub read: Latency,
    pub flush: Latency,
    /// Data partition of this node.
    pub local_write: Latency,
    pub local_read: Latency,
    pub local_flush: Latency,
    /// A replicated write, from being put in line for the peer to its acknowledgement.
    pub peer_write: Latency,
    /// A transaction of the activity log, until it is durable.
    pub log_transaction: Latency,
    /// A keepalive over the link and back.
    pub heartbeat: Latency,
}

/// A distribution of durations, each kept to two digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub sum_ns: u64,
    pub mean_ns: u64,
    pub max_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    /// Those up to each of [`LATENCY_BOUNDS_NS`]; what is above the last bound is in `count` alone.
    pub buckets: Vec<LatencyBucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyBucket {
    pub up_to_ns: u64,
    /// Of this bucket and all before it.
    pub count: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDepth {
    pub now: u64,
    pub max: u64,
}

/// Memory of one mirror, taken when it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Payload of requests, of the link and of a resync.
    pub buffer_bytes: u64,
    /// Part of `buffer_bytes` that is in use now.
    pub buffer_used_bytes: u64,
    /// How often somebody had to wait for buffer memory.
    pub buffer_waits: u64,
    pub bitmap_bytes: u64,
    /// These statistics themselves.
    pub statistics_bytes: u64,
}
