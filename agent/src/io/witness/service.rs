//! Answers the calls of all clusters: proved request → session → registry → file → reply.
//!
//! One lock a cluster is held from the check of the session to the durable write, so that calls of a
//! cluster count in the order in which they are answered. Clusters share only the file.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use super::state_file::{ClusterState, StateFile};
use crate::arbiter::call::{Reply, Request};
use crate::arbiter::envelope::{Answer, Ask, Call, LEASE_MS_MAX, WitnessKey};
use crate::arbiter::registry::{Caller, Overview, Registry};
use crate::arbiter::session::{Admission, Sessions};

/// Longest name of a node or mirror.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug)]
pub struct Service {
    clusters: BTreeMap<String, Cluster>,
    file: StateFile,
    /// The clock of leases, in milliseconds.
    now_ms: fn() -> u64,
}

#[derive(Debug)]
struct Cluster {
    key: WitnessKey,
    desk: Mutex<Desk>,
}

#[derive(Debug)]
struct Desk {
    sessions: Sessions,
    registry: Registry,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the record of cluster {cluster} was made under another key, so it may be another cluster's: if the key was \
     replaced on purpose, run `mirror-witness forget {cluster}`, and its nodes enrol again; if not, mend `name` or \
     `key_file` of this [[cluster]]"
)]
pub struct OtherKey {
    pub cluster: String,
}

/// What a witness knows, for people.
#[derive(Debug, Serialize)]
pub struct Status {
    pub clusters: Vec<ClusterStatus>,
}

#[derive(Debug, Serialize)]
pub struct ClusterStatus {
    pub cluster: String,
    pub nodes: Vec<NodeStatus>,
    pub mirrors: Vec<Overview>,
}

#[derive(Debug, Serialize)]
pub struct NodeStatus {
    pub node: String,
    pub heard_ms_ago: u64,
}

impl Service {
    /// `run` is unlike that of any start before.
    pub fn new(
        keys: Vec<WitnessKey>,
        file: StateFile,
        run: &str,
        now_ms: fn() -> u64,
    ) -> Result<Self, OtherKey> {
        let mut recorded = file.state();
        let mut clusters = BTreeMap::new();
        for key in keys {
            let cluster = key.cluster().to_owned();
            let records = match recorded.remove(&cluster) {
                Some(part) if part.key != key.id() => return Err(OtherKey { cluster }),
                Some(part) => part.mirrors,
                None => BTreeMap::new(),
            };
            if records.is_empty() {
                tracing::info!(cluster, "nothing is recorded; its nodes have to enrol");
            }
            let desk = Desk {
                sessions: Sessions::new(run),
                registry: Registry::restore(records, now_ms()),
            };
            let desk = Mutex::new(desk);
            clusters.insert(cluster, Cluster { key, desk });
        }
        for cluster in recorded.keys() {
            tracing::warn!(
                cluster,
                "recorded here, but not configured; its record is kept until it is forgotten"
            );
        }
        Ok(Self {
            clusters,
            file,
            now_ms,
        })
    }

    pub fn key(&self, cluster: &str) -> Option<&WitnessKey> {
        self.clusters.get(cluster).map(|cluster| &cluster.key)
    }

    /// The answer to a request whose proof was right. Returns when all that it says is durable; may wait
    /// for the disk. `None`: there is no such cluster.
    pub fn answer(&self, name: &str, ask: &Ask) -> Option<Answer> {
        let cluster = self.clusters.get(name)?;
        let answer = match ask {
            Ask::Hello { node, .. } => match check_name("node", node) {
                Err(reason) => Answer::BadCall { reason },
                Ok(()) => Answer::Welcome {
                    session: cluster.desk().sessions.hand_out(),
                },
            },
            Ask::Call(call) => match check(call) {
                Err(reason) => Answer::BadCall { reason },
                Ok(()) => self.answer_call(name, cluster, call),
            },
        };
        log(name, ask, &answer);
        Some(answer)
    }

    fn answer_call(&self, name: &str, cluster: &Cluster, call: &Call) -> Answer {
        let mut desk = cluster.desk();
        match desk.sessions.admit(call) {
            Admission::Counts => {}
            Admission::UnknownSession => return Answer::UnknownSession,
            Admission::Displaced => return Answer::Displaced,
            Admission::Replayed => return Answer::Replayed,
            Admission::TooManyNodes => {
                return Answer::BadCall {
                    reason: "too many nodes of this cluster have spoken; see that each agent \
                             keeps its name, and restart mirror-witness"
                        .into(),
                };
            }
        }
        let not_recorded = |error: std::io::Error| Answer::NotRecorded {
            reason: error.to_string(),
        };
        // Before the first word after a write of unknown outcome, that has to be certain.
        if let Err(error) = self.file.settle() {
            return not_recorded(error);
        }
        let caller = Caller {
            node: &call.node,
            lease_ms: call.lease_ms,
        };
        let mut next = desk.registry.clone();
        let step = next.step((self.now_ms)(), caller, &call.request);
        if step.changed {
            let part = ClusterState {
                key: cluster.key.id(),
                mirrors: next.records(),
            };
            if let Err(error) = self.file.store(name, part) {
                return not_recorded(error);
            }
        }
        desk.registry = next;
        Answer::Replied { reply: step.reply }
    }

    pub fn status(&self) -> Status {
        let now_ms = (self.now_ms)();
        let status = |(name, cluster): (&String, &Cluster)| {
            let desk = cluster.desk();
            let heard = desk.registry.heard(now_ms);
            ClusterStatus {
                cluster: name.clone(),
                nodes: heard
                    .map(|(node, heard_ms_ago)| NodeStatus {
                        node: node.into(),
                        heard_ms_ago,
                    })
                    .collect(),
                mirrors: desk.registry.overview(now_ms),
            }
        };
        Status {
            clusters: self.clusters.iter().map(status).collect(),
        }
    }
}

impl Cluster {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk
            .lock()
            .expect("a panic in the middle of a change leaves nothing to rely on")
    }
}

/// What is wrong with a call, whatever is known of its mirror.
fn check(call: &Call) -> Result<(), String> {
    check_name("node", &call.node)?;
    if !(1..=LEASE_MS_MAX).contains(&call.lease_ms) {
        return Err(format!(
            "a lease of {} ms is not between 1 and {LEASE_MS_MAX} ms",
            call.lease_ms
        ));
    }
    match &call.request {
        Request::Beat { renew } => renew
            .iter()
            .try_for_each(|holding| check_name("mirror", &holding.mirror)),
        Request::Acquire { mirror, .. } | Request::Enrol { mirror, .. } => {
            check_name("mirror", mirror)
        }
        Request::Release { holding } => check_name("mirror", &holding.mirror),
        Request::Record { holding, current } => {
            check_name("mirror", &holding.mirror)?;
            current.iter().try_for_each(|node| check_name("node", node))
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(format!("{name:?} is no name of a {what}"));
    }
    Ok(())
}

/// Everything but beats is rare, and what an operator will want to see afterwards.
fn log(cluster: &str, ask: &Ask, answer: &Answer) {
    match (ask, answer) {
        (_, Answer::NotRecorded { reason }) => {
            tracing::error!(
                cluster,
                "cannot store the record, so nothing changes: {reason}"
            );
        }
        (Ask::Call(call), Answer::Displaced | Answer::Replayed) => {
            tracing::warn!(cluster, node = call.node, "refused a call: {answer:?}");
        }
        // Nodes that ask for nothing see to it that they are known.
        (
            Ask::Call(call),
            Answer::Replied {
                reply: Reply::Enrolled { complete: true },
            },
        ) => {
            tracing::debug!(cluster, node = call.node, "{:?}: {answer:?}", call.request);
        }
        (Ask::Call(call), _) if matches!(call.request, Request::Beat { .. }) => {
            tracing::debug!(cluster, node = call.node, "{:?}: {answer:?}", call.request);
        }
        (Ask::Call(call), Answer::Replied { reply }) => {
            tracing::info!(cluster, node = call.node, "{:?}: {reply:?}", call.request);
        }
        (Ask::Hello { node, .. }, _) => tracing::info!(cluster, node, "a session begins"),
        (Ask::Call(call), _) => {
            tracing::info!(cluster, node = call.node, "{:?}: {answer:?}", call.request);
        }
    }
}
