//! Which data crosses the link compressed, and when trying it is not worth the time.
//!
//! Each side decides for what it sends, and only where the other said that it understands it
//! ([`FEATURE_COMPRESSION`](crate::wire::message::FEATURE_COMPRESSION)). Data that did not shrink is sent plain, and
//! after it data of the same class is sent plain unseen for a while: as much as was tried in vain, and twice as much each
//! time that the next try is in vain too, up to [`PAUSE_FACTOR_MAX`] times the last. So encrypted or packed data costs
//! little, and data that shrinks again is found again.

use std::ops::Range;

use crate::wire::lz4::Packer;
use crate::wire::message::Message;

/// Shorter data is always sent plain: what it would save is less than one packet's worth.
pub const COMPRESS_BYTES_MIN: usize = 1024;
/// One try in this many is what data costs that never shrinks.
pub const PAUSE_FACTOR_MAX: u64 = 64;

/// What of the link's data is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// What clients write and read.
    Data,
    /// What a resync copies, or a verify repairs.
    Resync,
    Both,
}

impl Compression {
    const fn covers(self, class: Class) -> bool {
        match self {
            Self::None => false,
            Self::Data => matches!(class, Class::Data),
            Self::Resync => matches!(class, Class::Resync),
            Self::Both => true,
        }
    }
}

/// Kinds of data whose content has nothing to do with each other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Data,
    Resync,
}

const CLASSES: usize = 2;

/// Bytes of data that the setting covers, whether or not they went compressed in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Savings {
    pub before_bytes: u64,
    /// As they went to the wire.
    pub after_bytes: u64,
}

impl Savings {
    /// How many bytes went for each one on the wire, to two digits behind the point; none before there were any.
    pub fn ratio(&self) -> Option<f64> {
        let ratio = self.before_bytes as f64 / self.after_bytes as f64;
        (self.after_bytes > 0).then_some((ratio * 100.0).round() / 100.0)
    }

    pub fn add(&mut self, other: Self) {
        self.before_bytes += other.before_bytes;
        self.after_bytes += other.after_bytes;
    }
}

/// Compresses what one connection sends, a batch at a time.
#[derive(Debug)]
pub struct Compressor {
    compression: Compression,
    trials: [Trials; CLASSES],
    packer: Packer,
    savings: Savings,
}

impl Compressor {
    /// Takes all memory that it will ever need.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            trials: Default::default(),
            packer: Packer::default(),
            savings: Savings::default(),
        }
    }

    /// Where in [`Self::blocks`] the data of `message` lies compressed; none where it is to be sent as it is.
    pub fn compress(&mut self, message: &Message) -> Option<Range<usize>> {
        let (class, data) = match message {
            Message::Write { data, .. } | Message::ReadReply { data, .. } => (Class::Data, data),
            Message::ResyncData { data, .. } => (Class::Resync, data),
            _ => return None,
        };
        if !self.compression.covers(class) {
            return None;
        }
        let trials = &mut self.trials[class as usize];
        let block = if trials.is_due(data.len()) {
            let block = self.packer.pack(data);
            trials.note(data.len(), block.is_some());
            block
        } else {
            None
        };
        self.savings.add(Savings {
            before_bytes: data.len() as u64,
            after_bytes: block.as_ref().map_or(data.len(), Range::len) as u64,
        });
        block
    }

    pub fn blocks(&self) -> &[u8] {
        self.packer.blocks()
    }

    /// The batch has to be sent before the next message is compressed.
    pub fn is_full(&self) -> bool {
        self.packer.is_full()
    }

    /// The batch is sent. Gives what it saved.
    pub fn finish_batch(&mut self) -> Savings {
        self.packer.clear();
        std::mem::take(&mut self.savings)
    }
}

/// How it went with the data of one class lately.
#[derive(Debug)]
struct Trials {
    /// Data that is yet to be sent unseen.
    pause_bytes: u64,
    /// Length of the next pause, in lengths of the data that brings it on.
    factor: u64,
}

impl Default for Trials {
    fn default() -> Self {
        Self {
            pause_bytes: 0,
            factor: 1,
        }
    }
}

impl Trials {
    fn is_due(&mut self, bytes: usize) -> bool {
        if bytes < COMPRESS_BYTES_MIN {
            return false;
        }
        // What is longer than the rest of the pause is not held up by it.
        let is_due = self.pause_bytes < bytes as u64;
        self.pause_bytes = self.pause_bytes.saturating_sub(bytes as u64);
        is_due
    }

    fn note(&mut self, bytes: usize, has_shrunk: bool) {
        if has_shrunk {
            self.factor = 1;
        } else {
            self.pause_bytes = bytes as u64 * self.factor;
            self.factor = (self.factor * 2).min(PAUSE_FACTOR_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteRange, Sequence};
    use crate::wire::lz4::tests::noise;

    fn write(data: Vec<u8>) -> Message {
        Message::Write {
            sequence: Sequence(1),
            depends_on: Sequence(0),
            range: ByteRange::new(0, data.len() as u32),
            fua: false,
            data: data.into(),
        }
    }

    fn read_reply(data: Vec<u8>) -> Message {
        Message::ReadReply {
            sequence: Sequence(1),
            range: ByteRange::new(0, data.len() as u32),
            data: data.into(),
        }
    }

    fn resync(data: Vec<u8>) -> Message {
        Message::ResyncData {
            sequence: Sequence(1),
            range: ByteRange::new(0, data.len() as u32),
            data: data.into(),
        }
    }

    #[test]
    fn each_setting_covers_what_it_is_named_after() {
        let cases = [
            (Compression::None, [false, false, false]),
            (Compression::Data, [true, true, false]),
            (Compression::Resync, [false, false, true]),
            (Compression::Both, [true, true, true]),
        ];
        for (compression, expected) in cases {
            let mut compressor = Compressor::new(compression);
            let messages = [write, read_reply, resync].map(|message| message(vec![7; 4096]));
            let found = messages.map(|message| compressor.compress(&message).is_some());
            assert_eq!(found, expected, "{compression:?}");
            let savings = compressor.finish_batch();
            let covered = expected.iter().filter(|covered| **covered).count() as u64;
            assert_eq!(savings.before_bytes, covered * 4096);
            assert!(savings.after_bytes <= covered * 100);
        }
        let mut compressor = Compressor::new(Compression::Both);
        assert_eq!(compressor.compress(&Message::Ping { stamp_ms: 1 }), None);
    }

    #[test]
    fn short_data_is_sent_as_it_is() {
        let mut compressor = Compressor::new(Compression::Both);
        assert!(compressor.compress(&write(vec![7; 1023])).is_none());
        assert!(compressor.compress(&write(vec![7; 1024])).is_some());
        let savings = compressor.finish_batch();
        assert_eq!(savings.before_bytes, 2047);
        assert!((1023..1100).contains(&savings.after_bytes));
    }

    #[test]
    fn data_that_never_shrinks_is_tried_ever_more_rarely_and_never_given_up() {
        let mut trials = Trials::default();
        let mut tried = Vec::new();
        for number in 0u64..1000 {
            if trials.is_due(4096) {
                tried.push(number);
                trials.note(4096, false);
            }
        }
        let gaps: Vec<u64> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..7], [2, 3, 5, 9, 17, 33, 65]);
        assert!(gaps[6..].iter().all(|gap| *gap == PAUSE_FACTOR_MAX + 1));
    }

    #[test]
    fn data_that_shrinks_again_is_compressed_again_within_one_pause() {
        let mut compressor = Compressor::new(Compression::Both);
        for seed in 0..200 {
            assert!(compressor.compress(&write(noise(seed, 4096))).is_none());
            compressor.finish_batch();
        }
        let plain = (0..)
            .take_while(|_| {
                let is_plain = compressor.compress(&write(vec![7; 4096])).is_none();
                compressor.finish_batch();
                is_plain
            })
            .count();
        assert!(plain as u64 <= PAUSE_FACTOR_MAX, "{plain}");
        for _ in 0..100 {
            assert!(compressor.compress(&write(vec![7; 4096])).is_some());
            compressor.finish_batch();
        }
    }

    #[test]
    fn one_that_does_not_shrink_among_others_costs_them_one_turn() {
        let mut trials = Trials::default();
        for _ in 0..10 {
            assert!(trials.is_due(4096));
            trials.note(4096, false);
            assert!(!trials.is_due(4096));
            assert!(trials.is_due(4096));
            trials.note(4096, true);
        }
    }

    #[test]
    fn long_data_is_not_held_up_by_short_data_that_did_not_shrink() {
        let mut trials = Trials::default();
        for _ in 0..20 {
            if trials.is_due(4096) {
                trials.note(4096, false);
            }
        }
        assert!(trials.pause_bytes > 0 && trials.is_due(1 << 20));
    }

    #[test]
    fn what_a_resync_finds_says_nothing_about_the_clients() {
        let mut compressor = Compressor::new(Compression::Both);
        for seed in 0..10 {
            compressor.compress(&resync(noise(seed, 4096)));
        }
        assert!(compressor.compress(&write(vec![7; 4096])).is_some());
    }
}
