//! Whom this node hears, and over which paths: heartbeats in, "up" and "lost" out.
//!
//! A beat counts only if it is fresh: made with the cluster key, of a sequence not seen before, and in
//! answer to this very run of the receiver. So nothing recorded earlier can keep a dead node alive. A
//! node that knows nothing of the other's run yet is answered at once, and the next beat is fresh.
//!
//! Time is the driver's monotonic clock, suspended time included. A node that finds that it was itself
//! frozen longer than the time-out has learned nothing about its peer meanwhile; it says so first
//! ([`Effect::Frozen`]), and its peer gets a whole time-out before it may count as lost.

mod beat;
mod namesake;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use mirror_core::units::Uuid;

pub use beat::{BEAT_BYTES_MAX, BODY_BYTES_MAX, Beat, BeatFault, BeatKey, Run};
pub use namesake::Whose;
use namesake::{Namesakes, Newcomer};

/// Runs of the peer that have ended and are never believed again.
const ENDED_RUNS_MAX: usize = 64;

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
    Received { path: usize, bytes: Vec<u8> },
    /// Time passed. Expected several times an interval.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send {
        path: usize,
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
    /// A datagram on a path is no beat of this cluster; said once a path and reason.
    Refused {
        path: usize,
        reason: String,
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
    refused: Option<String>,
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
    /// Last sequence of the peer's run whose body was taken in, over all paths.
    body_sequence: u64,
    ended: VecDeque<Run>,
    namesakes: Namesakes,
    stepped_ms: u64,
    sent_ms: Option<u64>,
    heard_ms: u64,
}

impl Membership {
    /// `run` is drawn by the driver and is not zero.
    pub fn new(config: MembershipConfig, run: Run, now_ms: u64) -> Self {
        assert!(run != Run::NONE, "a run has a number");
        let paths = config.paths.iter().map(|_| Path::default()).collect();
        Self {
            namesakes: Namesakes::new(config.interval_ms, config.timeout_ms),
            config,
            run,
            sequence: 0,
            leaving: false,
            body: Vec::new(),
            paths,
            peer: Peer::Unknown,
            peer_run: Run::NONE,
            body_sequence: 0,
            ended: VecDeque::new(),
            stepped_ms: now_ms,
            sent_ms: None,
            heard_ms: now_ms,
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
        self.notice_freeze(now_ms, out);
        match event {
            Event::Received { path, bytes } => self.on_received(now_ms, *path, bytes, out),
            Event::Tick => {}
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

    fn on_received(&mut self, now_ms: u64, index: usize, bytes: &[u8], out: &mut Vec<Effect>) {
        let beat = match Beat::decode(bytes, &self.config.key) {
            Ok(beat) => beat,
            Err(fault) => return self.refuse(index, fault.to_string(), out),
        };
        if beat.cluster != self.config.cluster {
            return self.refuse(index, "it is of another cluster".into(), out);
        }
        if beat.node == self.config.node {
            // Its own beat come back is no second node.
            if beat.run != self.run && self.namesakes.notice(Whose::Mine, now_ms) {
                out.push(Effect::SameName {
                    path: index,
                    whose: Whose::Mine,
                });
            }
            return;
        }
        if beat.node != self.config.peer {
            return self.refuse(index, "it is of a node that is not configured".into(), out);
        }
        if usize::from(beat.path) != index {
            let name = self.config.paths.get(usize::from(beat.path));
            let name = name.map_or("unknown", String::as_str);
            return self.refuse(index, format!("it was meant for path {name}"), out);
        }
        if beat.heard != self.run {
            if beat.heard != Run::NONE && self.namesakes.on_overlooked(now_ms) {
                out.push(Effect::SameName {
                    path: index,
                    whose: Whose::Mine,
                });
            }
            self.answer_stranger(now_ms, index, beat.run, out);
            return;
        }
        if !self.take_run(now_ms, index, beat.run, out) {
            return;
        }
        let path = &mut self.paths[index];
        if beat.sequence <= path.sequence {
            return;
        }
        path.sequence = beat.sequence;
        path.heard_ms = Some(now_ms);
        path.refused = None;
        self.heard_ms = now_ms;
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
        if beat.leaving {
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

    /// The other end does not know this run yet: tell it, so that its next beat is fresh. At most once
    /// an interval and path, so that replayed beats are no lever.
    fn answer_stranger(&mut self, now_ms: u64, index: usize, run: Run, out: &mut Vec<Effect>) {
        let path = &mut self.paths[index];
        let soon = path
            .answered_ms
            .is_some_and(|answered| now_ms.saturating_sub(answered) < self.config.interval_ms);
        // An answer would tell a second machine under the peer's name that it is the peer.
        let doubtful = self.peer == Peer::Up
            && run != self.peer_run
            && !self.namesakes.is_silent(self.heard_ms, now_ms);
        if soon || doubtful || self.ended.contains(&run) {
            return;
        }
        path.answered_ms = Some(now_ms);
        let bytes = self.beat(index, run).encode(&self.config.key);
        out.push(Effect::Send { path: index, bytes });
    }

    /// False if the run has ended, or may not follow the present one yet. A new one begins its
    /// sequences anew.
    fn take_run(&mut self, now_ms: u64, index: usize, run: Run, out: &mut Vec<Effect>) -> bool {
        if run == self.peer_run {
            return true;
        }
        if self.ended.contains(&run) {
            return false;
        }
        if self.peer == Peer::Up {
            match self.namesakes.on_newcomer(run, self.heard_ms, now_ms) {
                Newcomer::Follows => {}
                Newcomer::Waits => return false,
                Newcomer::Namesake => {
                    out.push(Effect::SameName {
                        path: index,
                        whose: Whose::Peers,
                    });
                    return false;
                }
            }
        }
        if self.peer_run != Run::NONE {
            if self.ended.len() == ENDED_RUNS_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(self.peer_run);
        }
        self.peer_run = run;
        // It forgot what it was: whoever cares learns of the new run as of a new node.
        self.peer = Peer::Unknown;
        self.body_sequence = 0;
        for path in &mut self.paths {
            path.sequence = 0;
        }
        true
    }

    fn refuse(&mut self, index: usize, reason: String, out: &mut Vec<Effect>) {
        let path = &mut self.paths[index];
        if path.refused.as_ref() != Some(&reason) {
            path.refused = Some(reason.clone());
            out.push(Effect::Refused {
                path: index,
                reason,
            });
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
            let bytes = self.beat(path, self.peer_run).encode(&self.config.key);
            out.push(Effect::Send { path, bytes });
        }
    }

    fn beat(&mut self, path: usize, heard: Run) -> Beat {
        self.sequence += 1;
        Beat {
            cluster: self.config.cluster,
            node: self.config.node,
            path: u8::try_from(path).expect("the configuration bounds the number of paths"),
            run: self.run,
            heard,
            sequence: self.sequence,
            leaving: self.leaving,
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
