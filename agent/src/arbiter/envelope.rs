//! How a call travels to a witness and back: who asks, in which session, with a proof of the cluster
//! key on both ways. Pure: values and bytes. `docs/witness.md` has the argument.
//!
//! Every message is JSON with an HMAC-SHA-256 beside it. A request's proof covers the cluster's name
//! and the body; a reply's covers the request's proof and the body, so that it answers this request
//! and no other. A session is handed out by the witness and its numbers only grow; within it every
//! call has a sequence number that counts once. So a recorded message changes nothing.

use std::fmt;

use hmac::{Hmac, Mac};
use mirror_core::link::preface::ClusterKey;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::call::{Reply, Request};

/// Header with the proof of a message, as hexadecimal digits.
pub const PROOF_HEADER: &str = "mirror-witness-proof";
/// Largest message in either direction.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest lease that a witness promises: a mistaken one would lock the other node out for as long.
pub const LEASE_MS_MAX: u64 = 3_600_000;

const KEY_LABEL: &str = "mirror witness";
const REQUEST_LABEL: &[u8] = b"mirror witness request 1";
const REPLY_LABEL: &[u8] = b"mirror witness reply 1";
const KEY_ID_LABEL: &[u8] = b"mirror witness key id 1";

/// Where a cluster's calls go, below the witness's URL.
pub fn path_of(cluster: &str) -> String {
    format!("/v1/clusters/{cluster}")
}

/// What a node sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// "Give me a session." `nonce` makes the request, and with it the reply, unlike any other.
    Hello {
        node: String,
        nonce: String,
    },
    Call(Call),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub node: String,
    pub session: Session,
    /// Grows with each call of a session.
    pub sequence: u64,
    /// How long a lease that this call is granted or renews is to last. A primary that enrols names no
    /// shorter one than that it still lives on.
    pub lease_ms: u64,
    pub request: Request,
}

/// A later session of a node ends its earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// One run of the witness, drawn at its start.
    pub run: String,
    pub number: u64,
}

/// What a witness answers, with a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    Welcome {
        session: Session,
    },
    Replied {
        reply: Reply,
    },
    /// The session is of another run of the witness, or was never handed out: say hello again.
    UnknownSession,
    /// A later session of this node has been used.
    Displaced,
    /// The sequence number counted already, or is older than one that did.
    Replayed,
    /// The witness cannot make it durable; nothing changed.
    NotRecorded {
        reason: String,
    },
    /// The call itself makes no sense.
    BadCall {
        reason: String,
    },
}

/// What a witness answers to whom it does not know. No proof: there is no key to make it with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    pub denied: DenialKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenialKind {
    UnknownCluster,
    WrongKey,
    BadRequest,
}

/// Proof of one message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; 32]);

impl Proof {
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({self})")
    }
}

/// The key between the nodes of one cluster and its witness.
#[derive(Clone)]
pub struct WitnessKey {
    cluster: String,
    secret: [u8; 32],
}

impl fmt::Debug for WitnessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WitnessKey({})", self.cluster)
    }
}

impl WitnessKey {
    pub fn new(cluster: &str, key: &ClusterKey) -> Self {
        Self {
            cluster: cluster.into(),
            secret: key.derive(KEY_LABEL),
        }
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Says which key is meant, without telling it.
    pub fn id(&self) -> String {
        let id = self.mac(KEY_ID_LABEL).finalize().into_bytes();
        id[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn prove_request(&self, body: &[u8]) -> Proof {
        Proof(self.request_mac(body).finalize().into_bytes().into())
    }

    /// In constant time.
    pub fn is_request(&self, body: &[u8], proof: &Proof) -> bool {
        self.request_mac(body).verify_slice(&proof.0).is_ok()
    }

    pub fn prove_reply(&self, request: &Proof, body: &[u8]) -> Proof {
        Proof(self.reply_mac(request, body).finalize().into_bytes().into())
    }

    /// In constant time.
    pub fn is_reply(&self, request: &Proof, body: &[u8], proof: &Proof) -> bool {
        self.reply_mac(request, body).verify_slice(&proof.0).is_ok()
    }

    fn request_mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac(REQUEST_LABEL);
        // No name contains a line end, so nothing can move between name and body.
        mac.update(b"\nPOST\n");
        mac.update(self.cluster.as_bytes());
        mac.update(b"\n");
        mac.update(body);
        mac
    }

    fn reply_mac(&self, request: &Proof, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac(REPLY_LABEL);
        mac.update(&request.0);
        mac.update(body);
        mac
    }

    fn mac(&self, label: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(label);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::call::{Claim, Holding, Refusal, Renewal};
    use mirror_core::units::Epoch;
    use proptest::prelude::*;

    fn key(cluster: &str, secret: u8) -> WitnessKey {
        WitnessKey::new(cluster, &ClusterKey::new(&[secret; 32]).unwrap())
    }

    #[test]
    fn a_proof_holds_for_one_key_cluster_and_body() {
        let ours = key("one", 1);
        let proof = ours.prove_request(b"body");
        assert!(ours.is_request(b"body", &proof));
        assert!(!ours.is_request(b"bodY", &proof));
        assert!(!key("one", 2).is_request(b"body", &proof));
        assert!(!key("two", 1).is_request(b"body", &proof), "same key");
    }

    #[test]
    fn a_reply_answers_one_request() {
        let ours = key("one", 1);
        let (first, second) = (ours.prove_request(b"1"), ours.prove_request(b"2"));
        let reply = ours.prove_reply(&first, b"yes");
        assert!(ours.is_reply(&first, b"yes", &reply));
        assert!(!ours.is_reply(&second, b"yes", &reply));
        assert!(!ours.is_reply(&first, b"no", &reply));
    }

    #[test]
    fn a_request_sent_back_is_no_reply() {
        let ours = key("one", 1);
        let proof = ours.prove_request(b"body");
        assert!(!ours.is_reply(&proof, b"body", &proof));
    }

    #[test]
    fn a_proof_round_trips_as_text() {
        let proof = key("one", 1).prove_request(b"body");
        assert_eq!(Proof::parse(&proof.to_string()), Some(proof));
        for text in ["", "ab", &"g".repeat(64), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(Proof::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_message_round_trips() {
        let holding = Holding {
            mirror: "md1".into(),
            epoch: Epoch(u64::MAX),
        };
        let requests = [
            Request::Beat {
                renew: vec![holding.clone()],
            },
            Request::Acquire {
                mirror: "md1".into(),
                force: false,
            },
            Request::Acquire {
                mirror: "md1".into(),
                force: true,
            },
            Request::Release {
                holding: holding.clone(),
            },
            Request::Record {
                holding,
                current: vec!["a".into()],
            },
            Request::Enrol {
                mirror: "md1".into(),
                claim: Claim {
                    epoch: Epoch(3),
                    current: true,
                    peer_outdated: false,
                    primary: true,
                },
            },
        ];
        let session = Session {
            run: "r".into(),
            number: 7,
        };
        for request in requests {
            let ask = Ask::Call(Call {
                node: "a".into(),
                session: session.clone(),
                sequence: 9,
                lease_ms: 10_000,
                request,
            });
            let text = serde_json::to_string(&ask).unwrap();
            assert_eq!(serde_json::from_str::<Ask>(&text).unwrap(), ask, "{text}");
        }
        let replies = [
            Reply::Beat {
                peer_heard_ms: None,
                leases: vec![
                    Renewal::Renewed,
                    Renewal::Lost {
                        epoch: Epoch(4),
                        holder: None,
                    },
                    Renewal::Unknown,
                ],
            },
            Reply::Granted { epoch: Epoch(1) },
            Reply::Released,
            Reply::Recorded,
            Reply::Enrolled { complete: false },
            Reply::Refused(Refusal::Held {
                holder: "a".into(),
                remaining_ms: 5,
            }),
            Reply::Refused(Refusal::Outdated {
                current: vec!["b".into()],
            }),
            Reply::Refused(Refusal::Unknown),
        ];
        for reply in replies {
            let answer = Answer::Replied { reply };
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(
                serde_json::from_str::<Answer>(&text).unwrap(),
                answer,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_ask(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(serde_json::from_slice::<Ask>(&bytes).is_err());
        }
    }
}
