//! One heartbeat on the wire: 128 bytes that nobody without the cluster key can make, and that count
//! once. `docs/heartbeat.md` has the bytes.
//!
//! A recorded beat is worth nothing to whoever sends it again: within a run the sequence must grow,
//! and a beat speaks for its sender only while it names the run of the receiver that it answers.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use mirror_core::link::preface::ClusterKey;
use mirror_core::units::{Epoch, Uuid};

/// Bytes of a beat.
pub const BEAT_BYTES: usize = 128;
const MAGIC: [u8; 4] = *b"MHB1";
const MAC_BYTES: usize = 32;
const KEY_LABEL: &str = "mirror heartbeat";

/// Offsets in a beat. What is not named is reserved and sent as zero.
mod at {
    pub const PATH: usize = 4;
    pub const FLAGS: usize = 5;
    pub const CLUSTER: usize = 8;
    pub const NODE: usize = 24;
    pub const RUN: usize = 40;
    pub const HEARD: usize = 48;
    pub const SEQUENCE: usize = 56;
    pub const EPOCH: usize = 64;
    pub const MAC: usize = 96;

    const _: () = assert!(MAC + super::MAC_BYTES == super::BEAT_BYTES);
}

/// One run of an agent, drawn at its start. Zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Run(pub u64);

impl Run {
    pub const NONE: Self = Self(0);
}

/// What a node says of itself, and of the other, several times a time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub cluster: Uuid,
    pub node: Uuid,
    /// Index of the path in the configuration: a beat that strayed to another path does not count.
    pub path: u8,
    pub run: Run,
    /// The run of the receiver that the sender heard last.
    pub heard: Run,
    /// Grows with each beat of a run, over all paths.
    pub sequence: u64,
    /// The highest epoch that the sender knows.
    pub epoch: Epoch,
    pub flags: BeatFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BeatFlags {
    /// Takes no groups: told so by an operator.
    pub standby: bool,
    /// Runs groups, or may start some.
    pub has_groups: bool,
    /// Stops on purpose: its silence after this is no failure.
    pub leaving: bool,
}

/// The key of heartbeats, derived from the cluster's.
pub struct BeatKey([u8; 32]);

impl fmt::Debug for BeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeatKey(..)")
    }
}

impl BeatKey {
    pub fn new(cluster: &ClusterKey) -> Self {
        Self(cluster.derive(KEY_LABEL))
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.0).expect("HMAC takes a key of any length")
    }
}

/// Why a datagram is no beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BeatFault {
    #[error("it is not a heartbeat of this version")]
    NotABeat,
    #[error("it was not made with this cluster's key")]
    Forged,
    #[error("it sets flags that this version does not know")]
    Flags,
}

impl Beat {
    pub fn encode(&self, key: &BeatKey) -> [u8; BEAT_BYTES] {
        let mut bytes = [0; BEAT_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(at::PATH, &[self.path, self.flags.bits()]);
        put(at::CLUSTER, &self.cluster.0);
        put(at::NODE, &self.node.0);
        put(at::RUN, &self.run.0.to_le_bytes());
        put(at::HEARD, &self.heard.0.to_le_bytes());
        put(at::SEQUENCE, &self.sequence.to_le_bytes());
        put(at::EPOCH, &self.epoch.0.to_le_bytes());
        let mut mac = key.mac();
        mac.update(&bytes[..at::MAC]);
        let proof = mac.finalize().into_bytes();
        bytes[at::MAC..].copy_from_slice(&proof);
        bytes
    }

    /// Nothing of the content is looked at before the proof is.
    pub fn decode(bytes: &[u8], key: &BeatKey) -> Result<Self, BeatFault> {
        let bytes: &[u8; BEAT_BYTES] = bytes.try_into().map_err(|_| BeatFault::NotABeat)?;
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(BeatFault::NotABeat);
        }
        let mut mac = key.mac();
        mac.update(&bytes[..at::MAC]);
        mac.verify_slice(&bytes[at::MAC..])
            .map_err(|_| BeatFault::Forged)?;
        let u64_at = |at: usize| u64::from_le_bytes(field(bytes, at));
        Ok(Self {
            cluster: Uuid(field(bytes, at::CLUSTER)),
            node: Uuid(field(bytes, at::NODE)),
            path: bytes[at::PATH],
            run: Run(u64_at(at::RUN)),
            heard: Run(u64_at(at::HEARD)),
            sequence: u64_at(at::SEQUENCE),
            epoch: Epoch(u64_at(at::EPOCH)),
            flags: BeatFlags::from_bits(bytes[at::FLAGS]).ok_or(BeatFault::Flags)?,
        })
    }
}

impl BeatFlags {
    const fn bits(self) -> u8 {
        self.standby as u8 | (self.has_groups as u8) << 1 | (self.leaving as u8) << 2
    }

    fn from_bits(bits: u8) -> Option<Self> {
        (bits < 8).then_some(Self {
            standby: bits & 1 != 0,
            has_groups: bits & 2 != 0,
            leaving: bits & 4 != 0,
        })
    }
}

fn field<const N: usize>(bytes: &[u8; BEAT_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
