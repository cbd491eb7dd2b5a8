//! What an arbiter knows of one cluster, and how it answers: epochs, leases, and who holds current data.
//!
//! [`Registry::step`] takes the time and one request. What it changes in [`Registry::records`] must be
//! durable before the reply is sent; a driver that cannot make it durable drops the changed registry and
//! keeps the one from before. Everything else is forgotten in a restart, and missed by nobody: after
//! [`Registry::restore`] every recorded lease counts as just granted.
//!
//! What always holds: an epoch of a mirror is granted once, and each is above all before; one is granted
//! only while no other node's lease may live; only the holder of the newest epoch changes who is current;
//! and a node that is not current is granted nothing, unless an operator gives up for it what the others have.
//!
//! It does not know who may ask (the caller is proved and in order already), nor any clock or file.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use mirror_core::units::Epoch;
use serde::{Deserialize, Serialize};

use super::call::{Claim, Holding, Refusal, Renewal, Reply, Request};
use super::enrolment::{Enrolment, Misfit, unite};

/// Mirrors of one cluster, claimed ones included.
pub const MIRRORS_MAX: usize = 256;
/// Names of nodes that are remembered as heard.
const NODES_MAX: usize = 16;
/// How long a claim waits for the other node's. A node that can enrol says so again much sooner.
pub const CLAIM_MS_MAX: u64 = 60_000;

/// One mirror, as it must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The newest that was granted, or that a node knew when it enrolled.
    pub epoch: Epoch,
    /// Whose that epoch is; absent once it was given back.
    pub holder: Option<String>,
    /// At least what is left of the longest lease that the holder was promised.
    pub lease_ms: u64,
    /// Subset of the nodes, never empty.
    pub current: BTreeSet<String>,
    /// The two that enrolled.
    pub nodes: BTreeSet<String>,
}

impl Record {
    /// Whether it may be relied on at all: two nodes, of whom somebody is current.
    pub fn is_sound(&self) -> bool {
        self.nodes.len() == 2
            && !self.current.is_empty()
            && self.current.is_subset(&self.nodes)
            && self.holder.iter().all(|holder| self.nodes.contains(holder))
    }
}

/// By name of the mirror.
pub type Records = BTreeMap<String, Record>;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub node: &'a str,
    /// How long leases last that this call is granted.
    pub lease_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub reply: Reply,
    /// The records changed, and must be durable before the reply is sent.
    pub changed: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Registry {
    mirrors: BTreeMap<String, Mirror>,
    claims: BTreeMap<String, BTreeMap<String, PendingClaim>>,
    heard_ms: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct Mirror {
    record: Record,
    /// The holder's lease may live up to and including this time.
    lease_end_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct PendingClaim {
    claim: Claim,
    lease_ms: u64,
    made_ms: u64,
}

/// A mirror at a moment, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overview {
    pub mirror: String,
    pub epoch: Epoch,
    pub holder: Option<String>,
    /// Zero: it has run out, or nobody holds it.
    pub lease_remaining_ms: u64,
    pub current: BTreeSet<String>,
}

impl Registry {
    /// Knows nothing: every mirror has to be enrolled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues from durable records. Any lease in them may have been granted just before the end.
    pub fn restore(records: Records, now_ms: u64) -> Self {
        let restore = |record: Record| Mirror {
            lease_end_ms: now_ms.saturating_add(record.lease_ms),
            record,
        };
        Self {
            mirrors: records
                .into_iter()
                .map(|(name, record)| (name, restore(record)))
                .collect(),
            ..Self::default()
        }
    }

    /// What must be durable.
    pub fn records(&self) -> Records {
        self.mirrors
            .iter()
            .map(|(name, mirror)| (name.clone(), mirror.record.clone()))
            .collect()
    }

    pub fn overview(&self, now_ms: u64) -> Vec<Overview> {
        let overview = |(name, mirror): (&String, &Mirror)| Overview {
            mirror: name.clone(),
            epoch: mirror.record.epoch,
            holder: mirror.record.holder.clone(),
            lease_remaining_ms: mirror
                .record
                .holder
                .as_ref()
                .map_or(0, |_| mirror.lease_end_ms.saturating_sub(now_ms)),
            current: mirror.record.current.clone(),
        };
        self.mirrors.iter().map(overview).collect()
    }

    /// How long ago each node was heard.
    pub fn heard(&self, now_ms: u64) -> impl Iterator<Item = (&str, u64)> {
        self.heard_ms
            .iter()
            .map(move |(node, heard_ms)| (node.as_str(), now_ms.saturating_sub(*heard_ms)))
    }

    /// `now_ms` never goes back.
    pub fn step(&mut self, now_ms: u64, caller: Caller, request: &Request) -> Step {
        self.hear(now_ms, caller.node);
        let mut changed = false;
        let reply = match request {
            Request::Beat { renew } => Reply::Beat {
                peer_heard_ms: self.peer_heard_ms(now_ms, caller.node),
                leases: renew
                    .iter()
                    .map(|holding| self.renew(now_ms, caller, holding, &mut changed))
                    .collect(),
            },
            Request::Acquire { mirror, force } => {
                settle(self.acquire(now_ms, caller, mirror, *force, &mut changed))
            }
            Request::Release { holding } => settle(self.release(caller, holding, &mut changed)),
            Request::Record { holding, current } => {
                settle(self.record(caller, holding, current, &mut changed))
            }
            Request::Enrol { mirror, claim } => {
                settle(self.enrol(now_ms, caller, mirror, *claim, &mut changed))
            }
        };
        Step { reply, changed }
    }

    /// Panics if what must always hold does not.
    pub fn check_invariants(&self) {
        for (name, mirror) in &self.mirrors {
            assert!(mirror.record.is_sound(), "{name}: {:?}", mirror.record);
            assert!(
                !self.claims.contains_key(name),
                "{name}: known, so not claimed"
            );
        }
    }

    fn hear(&mut self, now_ms: u64, node: &str) {
        if let Some(heard_ms) = self.heard_ms.get_mut(node) {
            *heard_ms = now_ms;
        } else if self.heard_ms.len() < NODES_MAX {
            self.heard_ms.insert(node.into(), now_ms);
        }
    }

    fn peer_heard_ms(&self, now_ms: u64, node: &str) -> Option<u64> {
        self.heard(now_ms)
            .filter(|(name, _)| *name != node)
            .map(|(_, ago_ms)| ago_ms)
            .min()
    }

    fn renew(
        &mut self,
        now_ms: u64,
        caller: Caller,
        holding: &Holding,
        changed: &mut bool,
    ) -> Renewal {
        match self.held(caller, holding, changed) {
            Ok(mirror) => {
                mirror.promise(now_ms, caller.lease_ms, changed);
                Renewal::Renewed
            }
            Err(Refusal::Unknown) => Renewal::Unknown,
            Err(_) => {
                let record = &self.mirrors[&holding.mirror].record;
                Renewal::Lost {
                    epoch: record.epoch,
                    holder: record.holder.clone(),
                }
            }
        }
    }

    fn acquire(
        &mut self,
        now_ms: u64,
        caller: Caller,
        name: &str,
        force: bool,
        changed: &mut bool,
    ) -> Result<Reply, Refusal> {
        if force && !self.mirrors.contains_key(name) {
            self.found(now_ms, caller, name, changed)?;
        }
        let mirror = self.mirrors.get_mut(name).ok_or(Refusal::Unknown)?;
        let record = &mut mirror.record;
        let is_current = record.current.contains(caller.node);
        if !is_current && (!force || !record.nodes.contains(caller.node)) {
            return Err(Refusal::Outdated {
                current: record.current.iter().cloned().collect(),
            });
        }
        match &record.holder {
            Some(holder) if holder == caller.node => {}
            Some(holder) if now_ms <= mirror.lease_end_ms => {
                return Err(Refusal::Held {
                    holder: holder.clone(),
                    remaining_ms: mirror.lease_end_ms - now_ms + 1,
                });
            }
            _ => {
                record.holder = Some(caller.node.into());
                mirror.lease_end_ms = now_ms;
            }
        }
        if !is_current {
            // What the other has beyond it is given up, and is not current any more.
            record.current = BTreeSet::from([caller.node.into()]);
        }
        // Out of epochs after 10^19 promotions; it must not begin again at zero.
        let epoch = record.epoch.0.checked_add(1).ok_or(Refusal::Superseded {
            epoch: record.epoch,
        })?;
        record.epoch = Epoch(epoch);
        // Set anew by the promise, which keeps what is left of an earlier one.
        record.lease_ms = 0;
        *changed = true;
        mirror.promise(now_ms, caller.lease_ms, changed);
        Ok(Reply::Granted {
            epoch: Epoch(epoch),
        })
    }

    /// Takes up a mirror of which neither node is certain to have current data, where both said so lately: that of the
    /// caller is.
    fn found(
        &mut self,
        now_ms: u64,
        caller: Caller,
        name: &str,
        changed: &mut bool,
    ) -> Result<(), Refusal> {
        self.drop_old_claims(now_ms);
        let claims = self.claims.get(name).ok_or(Refusal::Unknown)?;
        let mine = claims.get(caller.node).ok_or(Refusal::Unknown)?;
        let (other, theirs) = other_claim(claims, caller.node).ok_or(Refusal::Unknown)?;
        let enrolment = match unite([(caller.node, mine.claim), (other, theirs.claim)]) {
            Err(Misfit::NobodyIsCurrent) if !mine.claim.primary && !theirs.claim.primary => {
                Enrolment {
                    epoch: mine.claim.epoch.max(theirs.claim.epoch),
                    current: BTreeSet::from([caller.node.into()]),
                    holder: None,
                }
            }
            enrolment => enrolment?,
        };
        self.take_up(now_ms, name, enrolment, changed);
        Ok(())
    }

    fn release(
        &mut self,
        caller: Caller,
        holding: &Holding,
        changed: &mut bool,
    ) -> Result<Reply, Refusal> {
        match self.held(caller, holding, changed) {
            Ok(mirror) => {
                mirror.record.holder = None;
                mirror.record.lease_ms = 0;
                *changed = true;
                Ok(Reply::Released)
            }
            // Asked again because the first reply was lost.
            Err(Refusal::Released { .. }) => Ok(Reply::Released),
            Err(refusal) => Err(refusal),
        }
    }

    fn record(
        &mut self,
        caller: Caller,
        holding: &Holding,
        current: &[String],
        changed: &mut bool,
    ) -> Result<Reply, Refusal> {
        let record = &mut self.held(caller, holding, changed)?.record;
        let current: BTreeSet<String> = current.iter().cloned().collect();
        if current.is_empty() {
            return Err(Refusal::Conflict {
                reason: "no node would be left with current data".into(),
            });
        }
        if let Some(stranger) = current.difference(&record.nodes).next() {
            return Err(Refusal::Conflict {
                reason: format!("{stranger} has not enrolled it"),
            });
        }
        if record.current != current {
            record.current = current;
            *changed = true;
        }
        Ok(Reply::Recorded)
    }

    fn enrol(
        &mut self,
        now_ms: u64,
        caller: Caller,
        name: &str,
        claim: Claim,
        changed: &mut bool,
    ) -> Result<Reply, Refusal> {
        if let Some(mirror) = self.mirrors.get(name) {
            if claim.epoch <= mirror.record.epoch {
                return Ok(Reply::Enrolled { complete: true });
            }
            self.forget(name, changed);
        }
        self.drop_old_claims(now_ms);
        let claimed = self.claims.contains_key(name);
        if !claimed && self.mirrors.len() + self.claims.len() >= MIRRORS_MAX {
            return Err(Refusal::Full {
                mirrors_max: MIRRORS_MAX,
            });
        }
        let claims = self.claims.entry(name.into()).or_default();
        if claims.len() == 2 && !claims.contains_key(caller.node) {
            let names: Vec<&str> = claims.keys().map(String::as_str).collect();
            return Err(Refusal::Conflict {
                reason: format!("{} is a third beside {}", caller.node, names.join(" and ")),
            });
        }
        let pending = PendingClaim {
            claim,
            lease_ms: caller.lease_ms,
            made_ms: now_ms,
        };
        claims.insert(caller.node.into(), pending);
        let Some((other, theirs)) = other_claim(claims, caller.node) else {
            return Ok(Reply::Enrolled { complete: false });
        };
        let enrolment = unite([(caller.node, claim), (other, theirs.claim)])?;
        self.take_up(now_ms, name, enrolment, changed);
        Ok(Reply::Enrolled { complete: true })
    }

    /// What both claims came to is the record from now on.
    fn take_up(&mut self, now_ms: u64, name: &str, enrolment: Enrolment, changed: &mut bool) {
        let claims = self.claims.remove(name).unwrap_or_default();
        let mirror = Mirror::enrolled(now_ms, enrolment, &claims);
        self.mirrors.insert(name.into(), mirror);
        *changed = true;
    }

    fn drop_old_claims(&mut self, now_ms: u64) {
        self.claims.retain(|_, claims| {
            claims.retain(|_, pending| now_ms.saturating_sub(pending.made_ms) <= CLAIM_MS_MAX);
            !claims.is_empty()
        });
    }

    /// The mirror, if the caller is the holder of its newest epoch. An epoch above the record proves that
    /// the record is an old copy: nothing in it may be relied on, and it is forgotten.
    fn held(
        &mut self,
        caller: Caller,
        holding: &Holding,
        changed: &mut bool,
    ) -> Result<&mut Mirror, Refusal> {
        let known = self.mirrors.get(&holding.mirror).ok_or(Refusal::Unknown)?;
        let epoch = known.record.epoch;
        if holding.epoch > epoch {
            self.forget(&holding.mirror, changed);
            return Err(Refusal::Unknown);
        }
        let mirror = self
            .mirrors
            .get_mut(&holding.mirror)
            .ok_or(Refusal::Unknown)?;
        if holding.epoch < epoch {
            return Err(Refusal::Superseded { epoch });
        }
        match &mirror.record.holder {
            Some(holder) if holder == caller.node => Ok(mirror),
            Some(_) => Err(Refusal::Superseded { epoch }),
            None => Err(Refusal::Released { epoch }),
        }
    }

    fn forget(&mut self, name: &str, changed: &mut bool) {
        self.mirrors.remove(name);
        *changed = true;
    }
}

impl Mirror {
    fn enrolled(
        now_ms: u64,
        enrolment: Enrolment,
        claims: &BTreeMap<String, PendingClaim>,
    ) -> Self {
        let lease_ms = enrolment
            .holder
            .as_ref()
            .map_or(0, |holder| claims[holder].lease_ms);
        Self {
            record: Record {
                epoch: enrolment.epoch,
                holder: enrolment.holder,
                lease_ms,
                current: enrolment.current,
                nodes: claims.keys().cloned().collect(),
            },
            lease_end_ms: now_ms.saturating_add(lease_ms),
        }
    }

    /// Extends the holder's lease, and never takes back what is promised already.
    fn promise(&mut self, now_ms: u64, lease_ms: u64, changed: &mut bool) {
        self.lease_end_ms = self.lease_end_ms.max(now_ms.saturating_add(lease_ms));
        let left_ms = self.lease_end_ms - now_ms;
        if self.record.lease_ms < left_ms {
            self.record.lease_ms = left_ms;
            *changed = true;
        }
    }
}

fn other_claim<'a>(
    claims: &'a BTreeMap<String, PendingClaim>,
    node: &str,
) -> Option<(&'a str, &'a PendingClaim)> {
    let mut others = claims.iter().filter(|(name, _)| *name != node);
    others.next().map(|(name, claim)| (name.as_str(), claim))
}

impl From<Misfit> for Refusal {
    fn from(misfit: Misfit) -> Self {
        Self::Conflict {
            reason: misfit.to_string(),
        }
    }
}

fn settle(outcome: Result<Reply, Refusal>) -> Reply {
    outcome.unwrap_or_else(Reply::Refused)
}
