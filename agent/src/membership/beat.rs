//! One heartbeat on the wire: bytes that nobody without the cluster key can make, and that count once.
//! `docs/heartbeat.md` has the layout.
//!
//! A recorded beat is worth nothing to whoever sends it again: within a run the sequence must grow, and a
//! beat speaks for its sender only where it names what the receiver itself said lately.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use mirror_core::link::preface::ClusterKey;
use mirror_core::units::Uuid;

/// Most bytes that a node says of itself in one beat.
pub const BODY_BYTES_MAX: usize = 1024;
/// Most bytes of a beat: it fits one frame of any network.
pub const BEAT_BYTES_MAX: usize = at::BODY + BODY_BYTES_MAX + MAC_BYTES;
const MAGIC: [u8; 4] = *b"MHB1";
const MAC_BYTES: usize = 32;
const KEY_LABEL: &str = "mirror heartbeat";

/// Offsets in a beat. What is not named is reserved and sent as zero.
mod at {
    pub const PATH: usize = 4;
    pub const KIND: usize = 5;
    pub const CLUSTER: usize = 8;
    pub const NODE: usize = 24;
    pub const RUN: usize = 40;
    pub const HEARD: usize = 48;
    pub const HEARD_SEQUENCE: usize = 56;
    pub const SEQUENCE: usize = 64;
    pub const BODY: usize = 72;

    const _: () = assert!(super::BEAT_BYTES_MAX <= 1200);
}

/// One run of an agent, drawn at its start. Zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Run(pub u64);

impl Run {
    pub const NONE: Self = Self(0);
}

/// What a node says of itself, and of the other, several times a time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    pub cluster: Uuid,
    pub node: Uuid,
    /// Index of the path in the configuration: a beat that strayed to another path does not count.
    pub path: u8,
    pub run: Run,
    /// The run of the receiver that the sender heard last, and the highest sequence of it that came.
    pub heard: Run,
    pub heard_sequence: u64,
    /// Grows with each beat of a run, over all paths.
    pub sequence: u64,
    pub kind: Kind,
    /// What the sender says of its groups and mirrors, at most [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Alive,
    /// The sender stops on purpose: its silence after this is no failure.
    Leaving,
    /// The receiver is not the one that the sender knows under its name. All that is to be taken from it is that
    /// there is another one.
    Doubting,
}

const KINDS: [Kind; 3] = [Kind::Alive, Kind::Leaving, Kind::Doubting];

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum BeatFault {
    #[error("it is not a heartbeat of this version")]
    NotABeat,
    #[error("it was not made with this cluster's key")]
    Forged,
    #[error("it is of a kind that this version does not know")]
    Kind,
}

impl Beat {
    pub fn encode(&self, key: &BeatKey) -> Vec<u8> {
        assert!(self.body.len() <= BODY_BYTES_MAX, "a body has a limit");
        let mut bytes = vec![0; at::BODY];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(at::PATH, &[self.path]);
        put(at::KIND, &[self.kind as u8]);
        put(at::CLUSTER, &self.cluster.0);
        put(at::NODE, &self.node.0);
        put(at::RUN, &self.run.0.to_le_bytes());
        put(at::HEARD, &self.heard.0.to_le_bytes());
        put(at::HEARD_SEQUENCE, &self.heard_sequence.to_le_bytes());
        put(at::SEQUENCE, &self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        let mut mac = key.mac();
        mac.update(&bytes);
        let proof = mac.finalize().into_bytes();
        bytes.extend_from_slice(&proof);
        bytes
    }

    /// Nothing of the content is looked at before the proof is.
    pub fn decode(bytes: &[u8], key: &BeatKey) -> Result<Self, BeatFault> {
        let sized = (at::BODY + MAC_BYTES..=BEAT_BYTES_MAX).contains(&bytes.len());
        if !sized || bytes[..MAGIC.len()] != MAGIC {
            return Err(BeatFault::NotABeat);
        }
        let (content, proof) = bytes.split_at(bytes.len() - MAC_BYTES);
        let mut mac = key.mac();
        mac.update(content);
        mac.verify_slice(proof).map_err(|_| BeatFault::Forged)?;
        let u64_at = |at: usize| u64::from_le_bytes(field(content, at));
        Ok(Self {
            cluster: Uuid(field(content, at::CLUSTER)),
            node: Uuid(field(content, at::NODE)),
            path: content[at::PATH],
            run: Run(u64_at(at::RUN)),
            heard: Run(u64_at(at::HEARD)),
            heard_sequence: u64_at(at::HEARD_SEQUENCE),
            sequence: u64_at(at::SEQUENCE),
            kind: *KINDS
                .get(usize::from(content[at::KIND]))
                .ok_or(BeatFault::Kind)?,
            body: content[at::BODY..].to_vec(),
        })
    }
}

/// `at + N` lies within the header.
fn field<const N: usize>(content: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&content[at..at + N]);
    field
}
