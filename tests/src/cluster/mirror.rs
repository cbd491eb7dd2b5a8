//! A model of one side of a mirror: what an agent may rely on, and no more.
//!
//! It stands for these rules of `mirror-core`, whose own simulator proves that volumes keep them:
//!
//! * a write is done when both sides have it, or when it is on record here that the peer is outdated (D5);
//! * with `hold` that record is made only after a word that the peer is down, or after its goodbye;
//! * a promotion needs current data and the peer's leave, and without a grant a peer that is not primary itself;
//!   without a link it needs a grant, or the word that the peer is down and a peer that was seen in this run;
//! * without a link an operator's force makes the data here current, whatever it is, and the peer outdated;
//! * with an arbiter a promotion needs an epoch above any that this side has seen, and a side that gave
//!   its word to a lost primary waits until that word is over;
//! * every answer passes a gate: open, frozen or failing by order; with an arbiter it needs a live lease,
//!   a lease confirmed on a request made after the work, or the peer's word of a moment ago (A3);
//! * a later epoch seen ends the role, and the data here is outdated;
//! * a daemon that restarts is secondary, has seen no peer, and holds no lease; where it has a device to go on with,
//!   it is primary again in its epoch once the peer has agreed.
//!
//! It knows nothing of blocks, extents or disks that lose power: a write that was applied is durable.

mod exchange;
mod gate;
mod promotion;

use std::collections::{BTreeMap, VecDeque};

use agent::node::event::{Grant, MirrorCommand, MirrorView, Permit};

use super::data::Writes;

/// How long a word of the peer counts, and how long whoever gave one waits (`WORD_MS`, `WORD_OVER_MS`).
const WORD_MS: u64 = 1_000;
const WORD_OVER_MS: u64 = 1_100;
/// A link on which nothing was heard for so long is given up.
const PEER_TIMEOUT_MS: u64 = 1_000;
const KEEPALIVE_MS: u64 = 200;
/// A promotion that waits for the peer, or for a word to be over, waits no longer.
const PROMOTE_MS_MAX: u64 = 3_000;
/// Bytes that one write stands for.
const WRITE_BYTES: u64 = 4096;

/// What outlives the process.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub epoch: u64,
    pub generation: u64,
    pub ancestors: Vec<u64>,
    /// Written alone since this generation; zero: not.
    pub base: u64,
    pub outdated: bool,
    pub inconsistent: bool,
    pub primary: bool,
    pub last_primary: bool,
    pub peer_outdated: bool,
    pub peer_confirmed_down: bool,
    pub discard_local: bool,
    pub data: Writes,
}

impl Disk {
    pub fn is_current(&self) -> bool {
        !self.outdated && !self.inconsistent
    }

    /// From here on there is data that only this side has.
    fn leave_peer_behind(&mut self, next_generation: &mut u64) {
        *next_generation += 1;
        self.peer_outdated = true;
        self.ancestors.push(self.generation);
        if self.base == 0 {
            self.base = self.generation;
        }
        self.generation = *next_generation;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    KeepAlive,
    /// The sender broke the link.
    End,
    State {
        primary: bool,
        current: bool,
    },
    Write {
        number: usize,
        asked_ms: u64,
    },
    /// `given_ms` is true time, for the checker.
    Ack {
        number: usize,
        asked_ms: u64,
        given_ms: u64,
    },
    Confirm {
        question: u64,
        asked_ms: u64,
    },
    Confirmed {
        question: u64,
        asked_ms: u64,
        given_ms: u64,
    },
    PromoteRequest {
        epoch: u64,
    },
    PromoteReply {
        granted: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Link {
    pub session: u64,
    pub heard_ms: u64,
    said_ms: u64,
    pub replicating: bool,
    pub peer_primary: bool,
    pub peer_current: bool,
}

impl Link {
    pub fn new(
        session: u64,
        now_ms: u64,
        replicating: bool,
        peer_primary: bool,
        peer_current: bool,
    ) -> Self {
        Self {
            session,
            heard_ms: now_ms,
            said_ms: now_ms,
            replicating,
            peer_primary,
            peer_current,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Open,
    Frozen,
    Failing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Write(usize),
    /// `stale`: a write that had been answered when this read was done, and that it did not see.
    Read {
        stale: Option<usize>,
    },
}

/// An answer to a client.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub what: What,
    pub ok: bool,
    /// The promotion by which this side answers.
    pub promotion: u64,
    pub epoch: u64,
    /// True time at which it was certain that this side might answer.
    pub proved_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The peer has been asked.
    AtPeer,
    /// The peer will not have it.
    Alone,
    /// Done; the peer acknowledged it, asked then.
    Done { word: Option<Word> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    asked_ms: u64,
    given_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    what: What,
    work: Work,
    /// First question to the peer that is put after the work was done; zero: none yet.
    question: u64,
    ticket: u64,
}

#[derive(Debug, Clone, Copy)]
struct Promoting {
    id: u64,
    permit: Permit,
    since_ms: u64,
    asked: bool,
}

/// What dies with `mirrord`.
#[derive(Debug)]
pub struct Process {
    pub primary: bool,
    /// Number of the present promotion, over the whole cluster.
    pub promotion: u64,
    pub link: Option<Link>,
    pub peer_seen: bool,
    pub split_brain: bool,
    /// No new link before that.
    pub retry_ms: u64,
    alone_durable: bool,
    /// The epoch in which it was primary when it died.
    reinstatable: Option<u64>,
    promoting: Option<Promoting>,
    pub outcomes: BTreeMap<u64, Result<(), String>>,
    order: Order,
    lease: Option<Grant>,
    pending: VecDeque<Pending>,
    question: u64,
    question_ms: Option<u64>,
    ticket: u64,
    vouched_ms: u64,
    pub outbox: Vec<Message>,
    pub answers: Vec<Answer>,
    /// Copied to, or from; until then.
    pub resync_until_ms: Option<u64>,
    pub is_source: bool,
}

/// How the mirror is configured.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub arbiter: bool,
    pub round_trip: bool,
    pub reinstates: bool,
    pub hold: bool,
    /// First in the order of the configuration.
    pub first: bool,
    /// A mistake on purpose: answers need no lease.
    pub no_gate: bool,
}

#[derive(Debug)]
pub struct Mirror {
    pub rules: Rules,
    pub disk: Disk,
    pub process: Option<Process>,
}

impl Process {
    fn new(now_ms: u64) -> Self {
        Self {
            primary: false,
            promotion: 0,
            link: None,
            peer_seen: false,
            split_brain: false,
            retry_ms: now_ms + 200,
            alone_durable: false,
            reinstatable: None,
            promoting: None,
            outcomes: BTreeMap::new(),
            order: Order::Open,
            lease: None,
            pending: VecDeque::new(),
            question: 0,
            question_ms: None,
            ticket: now_ms << 10,
            vouched_ms: now_ms,
            outbox: Vec::new(),
            answers: Vec::new(),
            resync_until_ms: None,
            is_source: false,
        }
    }

    /// The peer has everything.
    pub fn end_alone(&mut self) {
        self.alone_durable = false;
        for pending in &mut self.pending {
            if pending.work == Work::Alone {
                pending.work = Work::Done { word: None };
            }
        }
    }

    fn is_replicating(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.replicating)
    }
}

impl Mirror {
    pub fn new(rules: Rules) -> Self {
        let disk = Disk {
            epoch: 1,
            generation: 1,
            ..Disk::default()
        };
        Self {
            rules,
            disk,
            process: None,
        }
    }

    pub fn start(&mut self, now_ms: u64) {
        if self.process.is_none() {
            let primary = self.disk.primary && self.rules.reinstates;
            self.process = Some(Process {
                reinstatable: primary.then_some(self.disk.epoch),
                ..Process::new(now_ms)
            });
        }
    }

    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn is_primary(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.primary)
    }

    pub fn view(&self, now_ms: u64) -> Option<MirrorView> {
        let process = self.process.as_ref()?;
        let link = process.link.as_ref();
        let copying = process.resync_until_ms.is_some();
        Some(MirrorView {
            primary: process.primary,
            peer_primary: link.is_some_and(|link| link.peer_primary),
            connected: link.is_some(),
            split_brain: process.split_brain,
            current: self.disk.is_current(),
            peer_current: link.is_some_and(|link| link.peer_current),
            outdated: self.disk.outdated && !self.disk.inconsistent,
            peer_outdated: self.disk.peer_outdated,
            out_of_sync_bytes: if copying || (link.is_none() && self.disk.peer_outdated) {
                WRITE_BYTES
            } else {
                0
            },
            suspended: self.is_suspended(),
            frozen: self.is_frozen(now_ms),
            resuming: !process.primary && self.may_be_reinstated(),
            epoch: self.disk.epoch,
            confirm_wanted: if self.rules.arbiter {
                process.ticket
            } else {
                0
            },
            heard_ms: link.map(|link| now_ms.saturating_sub(link.heard_ms)),
        })
    }

    fn is_suspended(&self) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        process.primary
            && self.rules.hold
            && !process.is_replicating()
            && !process.alone_durable
            && !self.may_go_alone()
    }

    fn may_go_alone(&self) -> bool {
        !self.rules.hold || self.disk.peer_confirmed_down
    }

    /// A mount gets what it asks for.
    pub fn is_serving(&self, now_ms: u64) -> bool {
        self.is_primary() && !self.is_frozen(now_ms) && !self.is_suspended()
    }

    /// The block device answers at all, late or not.
    pub fn is_in_service(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.primary && process.order != Order::Failing)
    }

    pub fn command(&mut self, now_ms: u64, command: MirrorCommand) -> Result<(), String> {
        let arbiter = self.rules.arbiter;
        let Some(process) = &mut self.process else {
            return Err("mirrord does not answer".into());
        };
        match command {
            MirrorCommand::Lease {
                epoch,
                deadline_ms,
                confirmed,
            } => {
                if !arbiter || !process.primary || epoch != self.disk.epoch {
                    return Err("not-its-epoch".into());
                }
                let deadline_ms = match process.lease {
                    Some(lease) if lease.epoch == epoch => lease.deadline_ms.max(deadline_ms),
                    _ => deadline_ms,
                };
                process.lease = Some(Grant { epoch, deadline_ms });
                self.on_confirmed_lease(now_ms, confirmed);
                Ok(())
            }
            MirrorCommand::Freeze => {
                if process.order == Order::Open {
                    process.order = Order::Frozen;
                }
                Ok(())
            }
            MirrorCommand::Thaw => {
                process.order = Order::Open;
                Ok(())
            }
            MirrorCommand::FailIo => {
                process.order = Order::Failing;
                self.fail_all();
                Ok(())
            }
            MirrorCommand::Outdate => {
                if process.primary || process.promoting.is_some() {
                    return Err("is-primary".into());
                }
                if self.disk.peer_outdated && self.disk.is_current() {
                    return Err("is-ahead".into());
                }
                self.disk.outdated = true;
                self.break_link(now_ms);
                Ok(())
            }
            MirrorCommand::PeerDown => {
                if !process.primary {
                    return Err("not-primary".into());
                }
                if process.link.is_none() {
                    self.disk.peer_confirmed_down = true;
                }
                Ok(())
            }
            MirrorCommand::Demote => match self.demote(false) {
                true => Ok(()),
                false => Err("requests wait for answers".into()),
            },
            MirrorCommand::EpochSeen { epoch } => {
                if !arbiter {
                    return Err("no-arbiter".into());
                }
                if epoch > self.disk.epoch {
                    self.step_aside();
                    self.break_link(now_ms);
                }
                Ok(())
            }
            MirrorCommand::DiscardLocal => {
                if process.primary {
                    return Err("primary".into());
                }
                if process.link.is_some() {
                    return Err("no-split-brain".into());
                }
                self.disk.discard_local = true;
                process.split_brain = false;
                process.retry_ms = now_ms;
                Ok(())
            }
        }
    }

    /// One moment of a process that runs.
    pub fn tick(
        &mut self,
        now_ms: u64,
        true_ms: u64,
        next_promotion: &mut u64,
        next_generation: &mut u64,
    ) {
        self.watch_link(now_ms);
        self.reinstate(next_promotion);
        self.advance_promotion(now_ms, next_promotion, next_generation);
        self.go_alone(next_generation);
        self.advance_gate(now_ms, true_ms);
    }
}
