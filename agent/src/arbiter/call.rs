//! What a node asks of an arbiter, and what it is told. JSON on the wire; `docs/witness.md` has the rules.

use mirror_core::units::Epoch;
use serde::{Deserialize, Serialize};

/// One request. Mirrors and nodes go by their configured names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// "I am alive", and the leases that this node wants to keep.
    Beat { renew: Vec<Holding> },
    /// The right to be primary: an epoch above all before, and a lease. Granted only while no other
    /// node's lease may live, and only to a node with current data. Asking again within a grant of this
    /// node that nobody followed returns a higher epoch for the same node.
    ///
    /// `force`: an operator accepts that this node's data is the truth, though the record names only the other, or nobody
    /// is certain to have current data. No lease is cut short by it.
    Acquire {
        mirror: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Gives the lease back. The mirror is demoted already.
    Release { holding: Holding },
    /// Records who holds current data; only the holder of `holding.epoch` may.
    Record {
        holding: Holding,
        current: Vec<String>,
    },
    /// What this node knows durably of a mirror that the arbiter does not know. It is taken up when both
    /// nodes have said theirs.
    Enrol { mirror: String, claim: Claim },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    pub mirror: String,
    pub epoch: Epoch,
}

/// One node's durable knowledge of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub epoch: Epoch,
    /// The own disk is up to date, as far as this node knows.
    pub current: bool,
    /// The other side is recorded as outdated here.
    pub peer_outdated: bool,
    /// This node is primary now.
    pub primary: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Beat {
        /// How long ago the other node was heard; absent if never since the arbiter started.
        peer_heard_ms: Option<u64>,
        /// One for each lease that was to be renewed, in order.
        leases: Vec<Renewal>,
    },
    Granted {
        epoch: Epoch,
    },
    Released,
    Recorded,
    /// `complete`: both nodes have said theirs, and the mirror is known now.
    Enrolled {
        complete: bool,
    },
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "renewal", rename_all = "kebab-case")]
pub enum Renewal {
    /// Renewed, though it may have run out before: nobody was granted anything meanwhile.
    Renewed,
    /// Not this node's any more.
    Lost {
        epoch: Epoch,
        holder: Option<String>,
    },
    Unknown,
}

/// Why the arbiter does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    #[error("{holder} may still hold the lease for {remaining_ms} ms")]
    Held { holder: String, remaining_ms: u64 },
    #[error("its record says that this node's data is outdated; current is {}", current.join(", "))]
    Outdated { current: Vec<String> },
    #[error("epoch {} has been granted since", epoch.0)]
    Superseded { epoch: Epoch },
    #[error("the lease of epoch {} was given back; ask for a new one", epoch.0)]
    Released { epoch: Epoch },
    #[error("it does not know this mirror; both nodes must enrol it")]
    Unknown,
    #[error("it keeps at most {mirrors_max} mirrors of a cluster")]
    Full { mirrors_max: usize },
    #[error("what the two nodes say of the mirror does not fit: {reason}")]
    Conflict { reason: String },
}
