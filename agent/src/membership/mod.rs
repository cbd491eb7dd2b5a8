//! Whom this node hears, and over which paths: heartbeats in, "up" and "lost" out.
//!
//! A beat counts only if it is fresh: made with the cluster key, of a sequence not seen before, and in answer to
//! what this very run of the receiver sent lately. So nothing recorded earlier can keep a dead node alive, also
//! where it was held back and never arrived; and a node is heard only where it hears. One that knows nothing of
//! the other's run yet is answered at once, and the next beat is fresh.
//!
//! Time is the driver's monotonic clock, suspended time included. A node that finds that it was itself
//! frozen longer than the time-out has learned nothing about its peer meanwhile; it says so first
//! ([`Effect::Frozen`]), and its peer gets a whole time-out before it may count as lost.

mod beat;
mod namesake;
mod recent;
mod refusal;
mod sieve;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use mirror_core::units::Uuid;

pub use beat::{BEAT_BYTES_MAX, BODY_BYTES_MAX, Beat, BeatFault, BeatKey, Kind, Run};
pub use namesake::Whose;
use namesake::{Namesakes, SILENT_INTERVALS};
use recent::Recent;
pub use refusal::Refusal;
use refusal::Refusals;
pub use sieve::Sieve;

/// Runs of the peer that have ended and are never believed again.
const ENDED_RUNS_MAX: usize = 64;
/// A run that is not known yet has to name what was sent within this part of the time-out, or [`SILENT_INTERVALS`]:
/// longer than a network takes there and back, and shorter than a node may be silent.
const JUST_NOW_IN_TIMEOUT: u64 = 3;

#[derive(Debug)]
pub struct MembershipConfig {
    pub key: BeatKey,
    pub cluster: Uuid,
    pub node: Uuid,
    pub peer: Uuid,
    /// Every heartbeat goes over all of them; they are named in this order.
    pub paths: Vec<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A datagram came on a path.
    Received {
        path: usize,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Time passed. Expected several times an interval.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send {
        path: usize,
        /// None: to the other node's address of the path.
        to: Option<SocketAddr>,
        bytes: Vec<u8>,
    },
    PathUp {
        path: usize,
    },
    PathLost {
        path: usize,
    },
    /// Heard over at least one path, in a run that was not known before.
    PeerUp,
    /// What it says of itself, newer than all before.
    Body(Vec<u8>),
    /// Silent on every path for the whole time-out.
    PeerLost {
        silent_ms: u64,
    },
    /// It said that it stops.
    PeerLeft,
    /// This node itself did not run for so long: whatever right it held may have passed on.
    Frozen {
        for_ms: u64,
    },
    /// Two machines speak under one name; said again only after it was quiet for the time-out.
    SameName {
        path: usize,
        whose: Whose,
    },
    /// Datagrams on a path that count for nothing: so many for this reason since it was last said.
    Refused {
        path: usize,
        refusal: Refusal,
        times: u64,
    },
}

#[derive(Debug, Default)]
struct Path {
    heard_ms: Option<u64>,
    up: bool,
    /// Last sequence of the peer's run that was taken in here.
    sequence: u64,
    /// Last time that a run which does not know this one was answered.
    answered_ms: Option<u64>,
    /// Last time that somebody was told to be a second machine under a name.
    doubted_ms: Option<u64>,
    refusals: Refusals,
}

/// A beat that came, and where.
#[derive(Debug)]
struct Came {
    path: usize,
    from: SocketAddr,
    beat: Beat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Not heard since this run began.
    Unknown,
    Up,
    Lost,
    Left,
}

#[derive(Debug)]
pub struct Membership {
    config: MembershipConfig,
    run: Run,
    sequence: u64,
    leaving: bool,
    body: Vec<u8>,
    paths: Vec<Path>,
    peer: Peer,
    peer_run: Run,
    /// Highest sequence of the peer's run that came, whether it counted or not.
    peer_sequence: u64,
    /// Last sequence of the peer's run whose body was taken in, over all paths.
    body_sequence: u64,
    /// What of this run a beat has to name: of the run that is known, and of any other, which may be a recording
    /// of one that was never known.
    lately: Recent,
    just_now: Recent,
    /// Since when beats of the peer have answered nothing of the kind.
    stale_since_ms: Option<u64>,
    ended: VecDeque<Run>,
    namesakes: Namesakes,
    /// Of the present step, once it has begun.
    stepped_ms: u64,
    sent_ms: Option<u64>,
    heard_ms: u64,
}

impl Membership {
    /// `run` is drawn by the driver and is not zero.
    pub fn new(config: MembershipConfig, run: Run, now_ms: u64) -> Self {
        assert!(run != Run::NONE, "a run has a number");
        let paths = config.paths.iter().map(|_| Path::default()).collect();
        let just_now_ms = config.timeout_ms / JUST_NOW_IN_TIMEOUT;
        Self {
            namesakes: Namesakes::new(config.interval_ms, config.timeout_ms),
            run,
            sequence: 0,
            leaving: false,
            body: Vec::new(),
            paths,
            peer: Peer::Unknown,
            peer_run: Run::NONE,
            peer_sequence: 0,
            body_sequence: 0,
            lately: Recent::new(config.timeout_ms),
            just_now: Recent::new(just_now_ms.max(SILENT_INTERVALS * config.interval_ms)),
            stale_since_ms: None,
            ended: VecDeque::new(),
            stepped_ms: now_ms,
            sent_ms: None,
            heard_ms: now_ms,
            config,
        }
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    pub fn interval_ms(&self) -> u64 {
        self.config.interval_ms
    }

    pub fn timeout_ms(&self) -> u64 {
        self.config.timeout_ms
    }

    pub fn path_name(&self, path: usize) -> &str {
        &self.config.paths[path]
    }

    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    pub fn is_path_up(&self, path: usize) -> bool {
        self.paths[path].up
    }

    /// The latest reason why something on a path counted for nothing, for a while.
    pub fn refused(&self, path: usize) -> Option<Refusal> {
        self.paths[path].refusals.latest(self.stepped_ms)
    }

    /// Another machine spoke under that name within the time-out.
    pub fn has_namesake(&self, whose: Whose) -> bool {
        self.namesakes.is_seen(whose, self.stepped_ms)
    }

    /// What the next beats say of this node. `at_once`: they go with the next step.
    pub fn describe(&mut self, leaving: bool, body: Vec<u8>, at_once: bool) {
        self.leaving = leaving;
        self.body = body;
        if at_once {
            self.sent_ms = None;
        }
    }

    pub fn step(&mut self, now_ms: u64, event: &Event, out: &mut Vec<Effect>) {
        let before_ms = self.stepped_ms;
        for recent in [&mut self.lately, &mut self.just_now] {
            recent.pass(before_ms, now_ms, self.sequence);
        }
        self.notice_freeze(now_ms, out);
        if let Event::Received { path, from, bytes } = event {
            let heard = self.on_received(*path, *from, bytes, out);
            if let Err(refusal) = heard
                && let Some(times) = self.paths[*path].refusals.add(now_ms, refusal)
            {
                out.push(Effect::Refused {
                    path: *path,
                    refusal,
                    times,
                });
            }
        }
        self.send_due(now_ms, out);
        self.notice_silence(now_ms, out);
    }

    fn notice_freeze(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let for_ms = now_ms.saturating_sub(self.stepped_ms);
        self.stepped_ms = now_ms;
        if for_ms < self.config.timeout_ms {
            return;
        }
        out.push(Effect::Frozen { for_ms });
        self.heard_ms = now_ms;
        for path in &mut self.paths {
            path.heard_ms = path.heard_ms.map(|_| now_ms);
        }
    }

    /// An error where the datagram counts for nothing.
    fn on_received(
        &mut self,
        path: usize,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let beat = Beat::decode(bytes, &self.config.key)?;
        let came = Came { path, from, beat };
        let beat = &came.beat;
        if beat.cluster != self.config.cluster {
            return Err(Refusal::OtherCluster);
        }
        if beat.node == self.config.node {
            return self.on_own_name(&came, out);
        }
        if beat.node != self.config.peer {
            return Err(Refusal::OtherNode);
        }
        if usize::from(beat.path) != path {
            return Err(Refusal::OtherPath(beat.path));
        }
        if beat.kind == Kind::Doubting {
            return self.on_doubted(&came, out);
        }
        if self.ended.contains(&beat.run) {
            return Err(Refusal::Ended);
        }
        let known = beat.run == self.peer_run;
        if known && beat.sequence <= self.paths[path].sequence {
            // The network may double a datagram or change the order of two, but not by so much.
            return if self.answers(beat, &self.just_now) {
                Ok(())
            } else {
                Err(Refusal::Replayed)
            };
        }
        if known {
            // Also where it does not count: the next beat from here then names it, and the one after that is fresh.
            self.peer_sequence = self.peer_sequence.max(beat.sequence);
        }
        let wanted = if known { &self.lately } else { &self.just_now };
        if !self.answers(beat, wanted) {
            self.answer_stranger(&came, out);
            return self.judge_stale(beat);
        }
        if !known && !self.take_run(&came, out) {
            return Ok(());
        }
        self.take_in(path, came.beat, out);
        Ok(())
    }

    /// It names what this run sent within that span.
    fn answers(&self, beat: &Beat, within: &Recent) -> bool {
        beat.heard == self.run && within.has(self.stepped_ms, beat.heard_sequence)
    }

    /// A fresh beat of the peer.
    fn take_in(&mut self, index: usize, beat: Beat, out: &mut Vec<Effect>) {
        let now_ms = self.stepped_ms;
        let path = &mut self.paths[index];
        path.sequence = beat.sequence;
        path.heard_ms = Some(now_ms);
        self.heard_ms = now_ms;
        self.stale_since_ms = None;
        self.namesakes.on_named();
        if !std::mem::replace(&mut path.up, true) {
            out.push(Effect::PathUp { path: index });
        }
        let newest = beat.sequence > self.body_sequence;
        if newest {
            self.body_sequence = beat.sequence;
        } else if self.peer == Peer::Left || self.peer == Peer::Up {
            // An older word over a slower path: a sign of life and no more.
            return;
        }
        if beat.kind == Kind::Leaving {
            if self.peer != Peer::Left {
                self.peer = Peer::Left;
                out.push(Effect::PeerLeft);
            }
        } else if self.peer != Peer::Up {
            self.peer = Peer::Up;
            out.push(Effect::PeerUp);
        }
        if newest {
            out.push(Effect::Body(beat.body));
        }
    }

    fn send_due(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let due = self
            .sent_ms
            .is_none_or(|sent| now_ms.saturating_sub(sent) >= self.config.interval_ms);
        if !due {
            return;
        }
        self.sent_ms = Some(now_ms);
        for path in 0..self.paths.len() {
            let beat = self.beat(path, self.peer_run, self.peer_sequence);
            out.push(Effect::Send {
                path,
                to: None,
                bytes: beat.encode(&self.config.key),
            });
        }
    }

    fn beat(&mut self, path: usize, heard: Run, heard_sequence: u64) -> Beat {
        self.sequence += 1;
        Beat {
            cluster: self.config.cluster,
            node: self.config.node,
            path: u8::try_from(path).expect("the configuration bounds the number of paths"),
            run: self.run,
            heard,
            heard_sequence,
            sequence: self.sequence,
            kind: if self.leaving {
                Kind::Leaving
            } else {
                Kind::Alive
            },
            body: self.body.clone(),
        }
    }

    fn notice_silence(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let timeout_ms = self.config.timeout_ms;
        for (index, path) in self.paths.iter_mut().enumerate() {
            let silent = path
                .heard_ms
                .is_some_and(|heard| now_ms.saturating_sub(heard) >= timeout_ms);
            if path.up && silent {
                path.up = false;
                out.push(Effect::PathLost { path: index });
            }
        }
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        if self.peer == Peer::Up && silent_ms >= timeout_ms {
            self.peer = Peer::Lost;
            out.push(Effect::PeerLost { silent_ms });
        }
    }
}
