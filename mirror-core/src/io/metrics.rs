//! How often and how long: counters and latencies of one mirror, measured where the driver starts things and sees
//! them end.
//!
//! The clock is the one of the steps: what a step starts begins at the time of that step, and what an event ends ends
//! at the time of the step that takes it up, so that measuring reads no clock of its own. All memory is taken at the
//! start, and a record costs a few nanoseconds. Nothing is decided by what is measured.

use std::cell::{Cell, RefCell};

use hdrhistogram::Histogram;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::control::{
    DiskCounters, LATENCY_BOUNDS_NS, Latencies, Latency, LatencyBucket, MemoryUse, QueueDepth,
    Statistics,
};
use crate::units::{ByteRange, Sequence};
use crate::wire::message::{Envelope, Message};

/// Shorter than anything that is timed here.
const LATENCY_NS_MIN: u64 = 256;
/// What takes longer counts as this long.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
const DIGITS: u8 = 2;
/// Replicated writes whose acknowledgement can be timed at once; those beyond are not. Far more than clients may have
/// in flight.
const AWAITED_MAX: usize = 8192;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    Write,
    Read,
    Flush,
    LocalWrite,
    LocalRead,
    LocalFlush,
    PeerWrite,
    LogTransaction,
    Heartbeat,
}

const TIMED: usize = Timed::Heartbeat as usize + 1;

/// Something that is timed has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    what: Timed,
    at_ns: u64,
}

#[derive(Debug)]
pub(super) struct Metrics {
    opened_ns: u64,
    /// The time of the step that runs, or ran last.
    now_ns: Cell<u64>,
    recorders: RefCell<[Recorder; TIMED]>,
    disk: Cell<DiskCounters>,
    /// When replicated writes were put in line.
    awaited: RefCell<FxHashMap<Sequence, u64>>,
    /// Stamp of the last keepalive, and when it was sent.
    pinged: Cell<Option<(u64, u64)>>,
    requests_max: Cell<usize>,
}

impl Metrics {
    pub fn new(now_ns: u64) -> Self {
        Self {
            opened_ns: now_ns,
            now_ns: Cell::new(now_ns),
            recorders: RefCell::new(std::array::from_fn(|_| Recorder::new())),
            disk: Cell::default(),
            awaited: RefCell::new(FxHashMap::with_capacity_and_hasher(
                AWAITED_MAX,
                FxBuildHasher,
            )),
            pinged: Cell::default(),
            requests_max: Cell::default(),
        }
    }

    /// A step begins.
    pub fn advance(&self, now_ns: u64) {
        self.now_ns.set(now_ns);
    }

    /// Begins at the time of the step that runs.
    pub fn begin(&self, what: Timed) -> Begun {
        let at_ns = self.now_ns.get();
        Begun { what, at_ns }
    }

    /// Begins before the step that takes it up.
    pub fn begin_at(&self, what: Timed, at_ns: u64) -> Begun {
        Begun { what, at_ns }
    }

    pub fn end(&self, begun: Begun) {
        let elapsed = self.now_ns.get().saturating_sub(begun.at_ns);
        self.recorders.borrow_mut()[begun.what as usize].record(elapsed);
    }

    pub fn begin_local_write(&self, range: ByteRange) -> Begun {
        let mut disk = self.disk.get();
        disk.writes += 1;
        disk.bytes_written += u64::from(range.length);
        self.disk.set(disk);
        self.begin(Timed::LocalWrite)
    }

    pub fn begin_local_read(&self, range: ByteRange) -> Begun {
        self.count_local_read(range);
        self.begin(Timed::LocalRead)
    }

    pub fn begin_local_flush(&self) -> Begun {
        let mut disk = self.disk.get();
        disk.flushes += 1;
        self.disk.set(disk);
        self.begin(Timed::LocalFlush)
    }

    /// One that is not timed: it may have been no more than a look at what is allocated.
    pub fn count_local_read(&self, range: ByteRange) {
        let mut disk = self.disk.get();
        disk.reads += 1;
        disk.bytes_read += u64::from(range.length);
        self.disk.set(disk);
    }

    pub fn note_requests(&self, open: usize) {
        self.requests_max.set(self.requests_max.get().max(open));
    }

    /// A message is put in line for the peer.
    pub fn on_send(&self, envelope: &Envelope) {
        match &envelope.message {
            Message::Write { sequence, .. } => {
                let mut awaited = self.awaited.borrow_mut();
                if awaited.len() < AWAITED_MAX {
                    awaited.insert(*sequence, self.now_ns.get());
                }
            }
            Message::Ping { stamp_ms } => self.pinged.set(Some((*stamp_ms, self.now_ns.get()))),
            _ => {}
        }
    }

    /// A message of the peer is taken up.
    pub fn on_message(&self, envelope: &Envelope) {
        match &envelope.message {
            Message::Ack { sequences } => {
                let mut awaited = self.awaited.borrow_mut();
                for sequence in sequences {
                    if let Some(at_ns) = awaited.remove(sequence) {
                        self.end(self.begin_at(Timed::PeerWrite, at_ns));
                    }
                }
            }
            Message::Pong { stamp_ms } => {
                if let Some((_, at_ns)) = self.pinged.get().filter(|(stamp, _)| stamp == stamp_ms) {
                    self.pinged.set(None);
                    self.end(self.begin_at(Timed::Heartbeat, at_ns));
                }
            }
            _ => {}
        }
    }

    /// What was out there is acknowledged no more.
    pub fn on_link_lost(&self) {
        self.awaited.borrow_mut().clear();
        self.pinged.set(None);
    }

    /// `now_ns`, and what others know: the queues and the memory of the rest.
    pub fn statistics(
        &self,
        now_ns: u64,
        send_queue: QueueDepth,
        requests: usize,
        memory: MemoryUse,
    ) -> Statistics {
        let recorders = self.recorders.borrow();
        let latency = |what: Timed| recorders[what as usize].latency();
        let histograms: usize = recorders.iter().map(Recorder::bytes).sum();
        let awaited = self.awaited.borrow().capacity() * size_of::<(Sequence, u64)>();
        Statistics {
            running_ms: now_ns.saturating_sub(self.opened_ns) / 1_000_000,
            local_disk: self.disk.get(),
            latencies: Latencies {
                write: latency(Timed::Write),
                read: latency(Timed::Read),
                flush: latency(Timed::Flush),
                local_write: latency(Timed::LocalWrite),
                local_read: latency(Timed::LocalRead),
                local_flush: latency(Timed::LocalFlush),
                peer_write: latency(Timed::PeerWrite),
                log_transaction: latency(Timed::LogTransaction),
                heartbeat: latency(Timed::Heartbeat),
            },
            send_queue,
            request_queue: QueueDepth {
                now: requests as u64,
                max: self.requests_max.get() as u64,
            },
            memory: MemoryUse {
                statistics_bytes: (histograms + awaited) as u64,
                ..memory
            },
        }
    }
}

/// One distribution. The histogram keeps two digits of each value; the sum is exact.
#[derive(Debug)]
struct Recorder {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

impl Recorder {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, DIGITS)
            .expect("the bounds are a factor of two apart, and two digits are allowed");
        Self {
            histogram,
            sum_ns: 0,
        }
    }

    fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    fn bytes(&self) -> usize {
        self.histogram.distinct_values() * size_of::<u64>()
    }

    fn latency(&self) -> Latency {
        let histogram = &self.histogram;
        let count = histogram.len();
        let mut counts = [0; LATENCY_BOUNDS_NS.len()];
        for value in histogram.iter_recorded() {
            let bucket =
                LATENCY_BOUNDS_NS.partition_point(|bound| *bound < value.value_iterated_to());
            if let Some(in_bucket) = counts.get_mut(bucket) {
                *in_bucket += value.count_since_last_iteration();
            }
        }
        let mut total = 0;
        let bucket = |(up_to_ns, in_bucket)| {
            total += in_bucket;
            LatencyBucket {
                up_to_ns,
                count: total,
            }
        };
        Latency {
            count,
            sum_ns: self.sum_ns,
            mean_ns: self.sum_ns.checked_div(count).unwrap_or(0),
            max_ns: histogram.max(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            buckets: LATENCY_BOUNDS_NS
                .into_iter()
                .zip(counts)
                .map(bucket)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Epoch;

    const US: u64 = 1000;

    fn envelope(message: Message) -> Envelope {
        Envelope {
            epoch: Epoch(1),
            message,
        }
    }

    fn write(sequence: u64) -> Envelope {
        envelope(Message::Write {
            sequence: Sequence(sequence),
            depends_on: Sequence(0),
            range: ByteRange::new(0, 512),
            fua: false,
            data: vec![0; 512].into(),
        })
    }

    fn ack(sequences: &[u64]) -> Envelope {
        let sequences = sequences.iter().copied().map(Sequence).collect();
        envelope(Message::Ack { sequences })
    }

    fn statistics(metrics: &Metrics) -> Statistics {
        let memory = MemoryUse::default();
        metrics.statistics(metrics.now_ns.get(), QueueDepth::default(), 0, memory)
    }

    #[test]
    fn percentiles_and_buckets_are_right_to_two_digits() {
        let mut recorder = Recorder::new();
        for us in 1..=1000 {
            recorder.record(us * US);
        }
        let latency = recorder.latency();
        let check = |found: u64, expected: u64| {
            assert!(
                found.abs_diff(expected) * 100 <= expected,
                "{found} for {expected}"
            );
        };
        assert_eq!(latency.count, 1000);
        assert_eq!(latency.sum_ns, 500_500 * US);
        assert_eq!(latency.mean_ns, 500_500);
        check(latency.p50_ns, 500 * US);
        check(latency.p90_ns, 900 * US);
        check(latency.p99_ns, 990 * US);
        check(latency.max_ns, 1000 * US);
        let up_to = |ns| {
            latency
                .buckets
                .iter()
                .find(|bucket| bucket.up_to_ns == ns)
                .unwrap()
                .count
        };
        check(up_to(250 * US), 250);
        check(up_to(500 * US), 500);
        assert_eq!(up_to(60_000_000 * US), 1000);
    }

    #[test]
    fn what_takes_longer_than_any_bound_is_counted_and_takes_no_memory() {
        let mut recorder = Recorder::new();
        let bytes = recorder.bytes();
        recorder.record(0);
        recorder.record(u64::MAX);
        assert_eq!(recorder.bytes(), bytes);
        let latency = recorder.latency();
        assert_eq!(latency.count, 2);
        assert_eq!(latency.buckets.last().unwrap().count, 1);
        assert!(bytes < 32 << 10, "{bytes}");
    }

    #[test]
    fn a_write_of_the_peer_takes_from_its_message_to_its_acknowledgement() {
        let metrics = Metrics::new(0);
        metrics.advance(100 * US);
        metrics.on_send(&write(7));
        metrics.on_send(&write(8));
        metrics.advance(300 * US);
        metrics.on_message(&ack(&[8, 9]));
        let found = statistics(&metrics).latencies.peer_write;
        assert_eq!((found.count, found.sum_ns), (1, 200 * US));
        metrics.on_link_lost();
        metrics.on_message(&ack(&[7]));
        assert_eq!(statistics(&metrics).latencies.peer_write.count, 1);
    }

    #[test]
    fn only_the_answer_to_the_last_keepalive_is_a_heartbeat() {
        let metrics = Metrics::new(0);
        metrics.on_send(&envelope(Message::Ping { stamp_ms: 5 }));
        metrics.advance(40 * US);
        metrics.on_message(&envelope(Message::Pong { stamp_ms: 4 }));
        assert_eq!(statistics(&metrics).latencies.heartbeat.count, 0);
        for _ in 0..2 {
            metrics.on_message(&envelope(Message::Pong { stamp_ms: 5 }));
        }
        let found = statistics(&metrics).latencies.heartbeat;
        assert_eq!((found.count, found.sum_ns), (1, 40 * US));
    }

    #[test]
    fn acknowledgements_beyond_the_limit_are_not_timed() {
        let metrics = Metrics::new(0);
        let before = statistics(&metrics).memory.statistics_bytes;
        for sequence in 0..2 * AWAITED_MAX as u64 {
            metrics.on_send(&write(sequence));
        }
        assert_eq!(metrics.awaited.borrow().len(), AWAITED_MAX);
        assert_eq!(statistics(&metrics).memory.statistics_bytes, before);
    }
}
