//! What two daemons say to each other before a single frame is parsed: who they are, for which
//! mirror and channel, and a proof that each has the cluster key. Pure: bytes in, bytes out.
//!
//! Order on each of the two connections of a link, inside TLS when encryption is on:
//!
//! 1. connector → acceptor: [`Preface`] with a fresh nonce
//! 2. acceptor → connector: [`Preface`] with a fresh nonce and the same token, mirror and channel
//! 3. connector → acceptor: [`Proof`]
//! 4. acceptor → connector: [`Proof`]
//!
//! A preface is [`PREFACE_BYTES`] long, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `MIRRORPF` |
//! | 8 | 2 | preface version, 1 |
//! | 10 | 1 | flags: bit 0 = encryption is on |
//! | 11 | 1 | side: 1 connector, 2 acceptor |
//! | 12 | 1 | channel: 1 control, 2 data |
//! | 13 | 3 | zero |
//! | 16 | 16 | mirror |
//! | 32 | 16 | session token, chosen by the connector, the same on both connections |
//! | 48 | 32 | nonce |
//! | 80 | 8 | key id: says which key is meant, without telling it |
//! | 88 | 8 | zero |
//!
//! A proof is HMAC-SHA-256 with the cluster key over: the label, the prover's side, the 32-byte TLS
//! exporter (zeroes without encryption), the connector's preface, the acceptor's preface. All that
//! was said is thereby covered, so nothing can be altered, replayed, reflected or moved to another
//! connection, and encryption cannot be talked away.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::units::Uuid;
use crate::wire::message::Channel;

pub const PREFACE_BYTES: usize = 96;
pub const PROOF_BYTES: usize = 32;
pub const NONCE_BYTES: usize = 32;
/// Label and length of the TLS exporter that ties a proof to its connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-mirror-link-1";
pub const EXPORTER_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"MIRRORPF";
const VERSION: u16 = 1;
const FLAG_ENCRYPTED: u8 = 1;
const PROOF_LABEL: &[u8] = b"mirror link proof 1";
const DERIVE_LABEL: &[u8] = b"mirror derived key: ";
const KEY_ID_LABEL: &[u8] = b"mirror key id 1";

/// First byte of a TLS record with a handshake in it: how the acceptor tells TLS from plain.
pub const TLS_HANDSHAKE_BYTE: u8 = 0x16;
/// First byte of a preface.
pub const PREFACE_FIRST_BYTE: u8 = MAGIC[0];

pub type Exporter = [u8; EXPORTER_BYTES];
pub type Proof = [u8; PROOF_BYTES];

/// The secret that both nodes share (`mirrorctl keygen`).
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey(Box<[u8]>);

impl ClusterKey {
    /// Fewest bytes that a key may have.
    pub const BYTES_MIN: usize = 16;

    /// `None` when the secret is shorter than [`Self::BYTES_MIN`].
    pub fn new(secret: &[u8]) -> Option<Self> {
        (secret.len() >= Self::BYTES_MIN).then(|| Self(secret.into()))
    }

    /// A key of its own for another purpose; `label` names the purpose and is never used for two.
    pub fn derive(&self, label: &str) -> [u8; 32] {
        let mut mac = self.mac();
        mac.update(DERIVE_LABEL);
        mac.update(label.as_bytes());
        mac.finalize().into_bytes().into()
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.0).expect("HMAC takes a key of any length")
    }

    fn id(&self) -> [u8; 8] {
        let mut mac = self.mac();
        mac.update(KEY_ID_LABEL);
        let mut id = [0; 8];
        id.copy_from_slice(&mac.finalize().into_bytes()[..8]);
        id
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

/// Which end of a connection: who connected and who accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Connector,
    Acceptor,
}

impl Side {
    pub const fn other(self) -> Self {
        match self {
            Self::Connector => Self::Acceptor,
            Self::Acceptor => Self::Connector,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Connector => 1,
            Self::Acceptor => 2,
        }
    }
}

/// Ties the two connections of one link together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken(pub [u8; 16]);

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &self.0[..4])
    }
}

/// Why a peer was turned away before any frame was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    #[error(
        "what connected does not speak the replication protocol; check that the address and port \
         belong to the peer's `replication`"
    )]
    NotAMirror,
    #[error(
        "the peer speaks version {theirs} of the link preface and this node version {VERSION}; \
         upgrade the older node"
    )]
    Version { theirs: u16 },
    #[error(
        "the peer has another cluster key; copy the key file of one node to the other and restart"
    )]
    WrongKey,
    #[error(
        "the peer replicates another mirror on this port ({theirs} instead of {ours}); check \
         `replication` and the mirror's name on both nodes"
    )]
    WrongMirror { ours: Uuid, theirs: Uuid },
    #[error(
        "encryption is {} here and {} at the peer; set `encryption` alike on both nodes",
        on_or_off(.ours),
        on_or_off(&!.ours)
    )]
    Encryption { ours: bool },
    #[error("the peer took the same side of the connection; check the node order on both nodes")]
    WrongSide,
    #[error("the peer answered for another channel or link than was opened")]
    WrongChannel,
    #[error("the peer sent this node's own words back; something reflects the connection")]
    Reflected,
    #[error(
        "the peer could not prove that it has the cluster key: the exchange was altered or is a \
         replay of an older one"
    )]
    BadProof,
}

fn on_or_off(on: &bool) -> &'static str {
    if *on { "on" } else { "off" }
}

/// The first words of one end of a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Preface {
    bytes: [u8; PREFACE_BYTES],
    pub channel: Channel,
    pub token: SessionToken,
}

impl fmt::Debug for Preface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preface")
            .field("channel", &self.channel)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// What one end knows and demands of the other.
#[derive(Debug, Clone)]
pub struct Terms {
    pub key: ClusterKey,
    pub mirror: Uuid,
    pub encrypted: bool,
}

impl Terms {
    /// This end's words. `nonce` must be fresh and unpredictable.
    pub fn preface(
        &self,
        side: Side,
        channel: Channel,
        token: SessionToken,
        nonce: [u8; NONCE_BYTES],
    ) -> Preface {
        let mut bytes = [0; PREFACE_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = if self.encrypted { FLAG_ENCRYPTED } else { 0 };
        bytes[11] = side.code();
        bytes[12] = match channel {
            Channel::Control => 1,
            Channel::Data => 2,
        };
        bytes[16..32].copy_from_slice(&self.mirror.0);
        bytes[32..48].copy_from_slice(&token.0);
        bytes[48..80].copy_from_slice(&nonce);
        bytes[80..88].copy_from_slice(&self.key.id());
        Preface {
            bytes,
            channel,
            token,
        }
    }

    /// Checks the other end's words on their own; `theirs` is the side it has to be.
    pub fn check(
        &self,
        theirs: Side,
        bytes: &[u8; PREFACE_BYTES],
    ) -> Result<Preface, PrefaceError> {
        if bytes[0..8] != MAGIC {
            return Err(PrefaceError::NotAMirror);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(PrefaceError::Version { theirs: version });
        }
        let reserved = bytes[13..16].iter().chain(&bytes[88..]);
        if bytes[10] & !FLAG_ENCRYPTED != 0 || reserved.copied().any(|byte| byte != 0) {
            return Err(PrefaceError::NotAMirror);
        }
        if (bytes[10] & FLAG_ENCRYPTED != 0) != self.encrypted {
            return Err(PrefaceError::Encryption {
                ours: self.encrypted,
            });
        }
        if bytes[11] != theirs.code() {
            return Err(PrefaceError::WrongSide);
        }
        let channel = match bytes[12] {
            1 => Channel::Control,
            2 => Channel::Data,
            _ => return Err(PrefaceError::WrongChannel),
        };
        if bytes[80..88] != self.key.id() {
            return Err(PrefaceError::WrongKey);
        }
        let mirror = Uuid(array(&bytes[16..32]));
        if mirror != self.mirror {
            return Err(PrefaceError::WrongMirror {
                ours: self.mirror,
                theirs: mirror,
            });
        }
        Ok(Preface {
            bytes: *bytes,
            channel,
            token: SessionToken(array(&bytes[32..48])),
        })
    }

    /// Checks an acceptor's words against what this connector asked for.
    pub fn check_reply(
        &self,
        asked: &Preface,
        bytes: &[u8; PREFACE_BYTES],
    ) -> Result<Preface, PrefaceError> {
        if bytes[48..80] == asked.bytes[48..80] {
            return Err(PrefaceError::Reflected);
        }
        let reply = self.check(Side::Acceptor, bytes)?;
        if reply.channel != asked.channel || reply.token != asked.token {
            return Err(PrefaceError::WrongChannel);
        }
        Ok(reply)
    }

    /// The proof that `prover` has to give for this exchange.
    pub fn prove(
        &self,
        prover: Side,
        exporter: &Exporter,
        connector: &Preface,
        acceptor: &Preface,
    ) -> Proof {
        self.proof_mac(prover, exporter, connector, acceptor)
            .finalize()
            .into_bytes()
            .into()
    }

    /// Checks the proof of `prover`, in constant time.
    pub fn verify(
        &self,
        prover: Side,
        exporter: &Exporter,
        connector: &Preface,
        acceptor: &Preface,
        proof: &Proof,
    ) -> Result<(), PrefaceError> {
        self.proof_mac(prover, exporter, connector, acceptor)
            .verify_slice(proof)
            .map_err(|_| PrefaceError::BadProof)
    }

    fn proof_mac(
        &self,
        prover: Side,
        exporter: &Exporter,
        connector: &Preface,
        acceptor: &Preface,
    ) -> Hmac<Sha256> {
        let mut mac = self.key.mac();
        mac.update(PROOF_LABEL);
        mac.update(&[prover.code()]);
        mac.update(exporter);
        mac.update(&connector.bytes);
        mac.update(&acceptor.bytes);
        mac
    }
}

impl Preface {
    pub fn bytes(&self) -> &[u8; PREFACE_BYTES] {
        &self.bytes
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: SessionToken = SessionToken([7; 16]);
    const PLAIN: Exporter = [0; EXPORTER_BYTES];

    fn terms(secret: u8, mirror: &str, encrypted: bool) -> Terms {
        Terms {
            key: ClusterKey::new(&[secret; 32]).unwrap(),
            mirror: Uuid::from_name("mirror", mirror),
            encrypted,
        }
    }

    fn connector(terms: &Terms) -> Preface {
        terms.preface(Side::Connector, Channel::Data, TOKEN, [1; 32])
    }

    fn acceptor(terms: &Terms) -> Preface {
        terms.preface(Side::Acceptor, Channel::Data, TOKEN, [2; 32])
    }

    /// What an acceptor with the usual terms says to the words of a connector.
    fn check(words: &Preface, expected: Result<(), PrefaceError>) {
        let ours = terms(1, "md1", false);
        let outcome = ours.check(Side::Connector, words.bytes()).map(|_| ());
        assert_eq!(outcome, expected);
    }

    #[test]
    fn the_two_sides_of_a_mirror_accept_each_other() {
        let (here, there) = (terms(1, "md1", true), terms(1, "md1", true));
        let asked = connector(&here);
        let heard = there.check(Side::Connector, asked.bytes()).unwrap();
        assert_eq!((heard.channel, heard.token), (Channel::Data, TOKEN));
        let replied = acceptor(&there);
        let reply = here.check_reply(&asked, replied.bytes()).unwrap();
        let exporter = [9; EXPORTER_BYTES];
        let proof = here.prove(Side::Connector, &exporter, &asked, &reply);
        there
            .verify(Side::Connector, &exporter, &heard, &replied, &proof)
            .unwrap();
        let proof = there.prove(Side::Acceptor, &exporter, &heard, &replied);
        here.verify(Side::Acceptor, &exporter, &asked, &reply, &proof)
            .unwrap();
    }

    #[test]
    fn another_key_is_named() {
        check(
            &connector(&terms(2, "md1", false)),
            Err(PrefaceError::WrongKey),
        );
    }

    #[test]
    fn another_mirror_is_named() {
        let theirs = terms(1, "md2", false);
        check(
            &connector(&theirs),
            Err(PrefaceError::WrongMirror {
                ours: Uuid::from_name("mirror", "md1"),
                theirs: theirs.mirror,
            }),
        );
    }

    #[test]
    fn a_peer_on_the_same_side_is_named() {
        check(
            &acceptor(&terms(1, "md1", false)),
            Err(PrefaceError::WrongSide),
        );
    }

    #[test]
    fn another_setting_of_encryption_is_named() {
        check(
            &connector(&terms(1, "md1", true)),
            Err(PrefaceError::Encryption { ours: false }),
        );
    }

    #[test]
    fn garbage_and_other_versions_are_named() {
        let mut words = connector(&terms(1, "md1", false));
        words.bytes[8] = 9;
        check(&words, Err(PrefaceError::Version { theirs: 9 }));
        words.bytes[0] ^= 1;
        check(&words, Err(PrefaceError::NotAMirror));
        let mut words = connector(&terms(1, "md1", false));
        words.bytes[95] = 1;
        check(&words, Err(PrefaceError::NotAMirror));
        let mut words = connector(&terms(1, "md1", false));
        words.bytes[12] = 3;
        check(&words, Err(PrefaceError::WrongChannel));
    }

    #[test]
    fn a_reply_for_another_channel_or_link_is_refused() {
        let ours = terms(1, "md1", false);
        let asked = connector(&ours);
        let other = ours.preface(Side::Acceptor, Channel::Control, TOKEN, [2; 32]);
        assert_eq!(
            ours.check_reply(&asked, other.bytes()),
            Err(PrefaceError::WrongChannel)
        );
        let other = ours.preface(
            Side::Acceptor,
            Channel::Data,
            SessionToken([8; 16]),
            [2; 32],
        );
        assert_eq!(
            ours.check_reply(&asked, other.bytes()),
            Err(PrefaceError::WrongChannel)
        );
    }

    #[test]
    fn reflected_words_are_refused() {
        let ours = terms(1, "md1", false);
        let asked = connector(&ours);
        assert_eq!(
            ours.check_reply(&asked, asked.bytes()),
            Err(PrefaceError::Reflected)
        );
    }

    #[test]
    fn a_proof_holds_for_one_exchange_and_one_side_only() {
        let ours = terms(1, "md1", false);
        let (asked, replied) = (connector(&ours), acceptor(&ours));
        let proof = ours.prove(Side::Connector, &PLAIN, &asked, &replied);
        let fresh = ours.preface(Side::Acceptor, Channel::Data, TOKEN, [3; 32]);
        let refused = Err(PrefaceError::BadProof);
        let verify = |side, exporter: &Exporter, acceptor: &Preface| {
            ours.verify(side, exporter, &asked, acceptor, &proof)
        };
        assert_eq!(verify(Side::Connector, &PLAIN, &replied), Ok(()));
        assert_eq!(
            verify(Side::Connector, &PLAIN, &fresh),
            refused,
            "a replay meets a fresh nonce"
        );
        assert_eq!(verify(Side::Acceptor, &PLAIN, &replied), refused);
        assert_eq!(
            verify(Side::Connector, &[1; 32], &replied),
            refused,
            "a relay ends its own TLS connection"
        );
    }

    #[test]
    fn encryption_cannot_be_talked_away() {
        let (here, there) = (terms(1, "md1", true), terms(1, "md1", true));
        let mut asked = connector(&here);
        asked.bytes[10] = 0;
        assert_eq!(
            there.check(Side::Connector, asked.bytes()).map(|_| ()),
            Err(PrefaceError::Encryption { ours: true })
        );
    }

    #[test]
    fn a_key_is_never_printed() {
        let printed = format!("{:?}", terms(0x41, "md1", true));
        assert!(
            !printed.contains("65") && !printed.contains("AAAA"),
            "{printed}"
        );
    }
}
