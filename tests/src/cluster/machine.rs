//! One host: its clock, its processes, and what really runs on it, whatever its agent believes.

use std::collections::VecDeque;

use agent::group::Action;
use agent::node::Node;
use agent::node::event::{Event, MirrorView, Permit};

/// Datagrams that a socket keeps for a process that does not run.
const SOCKET_MAX: usize = 50;

/// Counts from boot, a little fast or slow, and stands still while the machine is paused from outside.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    pub offset_ms: u64,
    /// Parts in a million too fast.
    pub drift_ppm: i64,
    paused_ms: u64,
    paused_at_ms: Option<u64>,
}

impl Clock {
    pub fn new(offset_ms: u64, drift_ppm: i64) -> Self {
        Self {
            offset_ms,
            drift_ppm,
            ..Self::default()
        }
    }

    pub fn read(&self, now_ms: u64) -> u64 {
        let until_ms = self.paused_at_ms.unwrap_or(now_ms);
        let ran_ms = (until_ms - self.paused_ms) as i64;
        self.offset_ms + (ran_ms + ran_ms * self.drift_ppm / 1_000_000) as u64
    }

    fn pause(&mut self, now_ms: u64) {
        self.paused_at_ms.get_or_insert(now_ms);
    }

    fn go_on(&mut self, now_ms: u64) {
        if let Some(since_ms) = self.paused_at_ms.take() {
            self.paused_ms += now_ms - since_ms;
        }
    }
}

/// A resource action that is being carried out.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Of the agent that asked; another one gets no answer.
    pub run: u64,
    pub group: usize,
    pub number: u64,
    pub resource: usize,
    pub action: Action,
    pub permit: Permit,
    pub due_ms: u64,
    pub late_ms: u64,
    pub stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Begin,
    /// `mirrord` was told to promote, under this number.
    Promoting(u64),
    Mounting,
}

/// What is wrong with resources here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    pub start_fails: bool,
    pub start_hangs: bool,
    pub probe_fails: bool,
    pub stop_fails: bool,
    pub stop_slow_ms: u64,
}

#[derive(Debug)]
pub struct Agent {
    pub node: Node,
    pub run: u64,
    pub tick_ms: u64,
    pub viewed: Option<Option<MirrorView>>,
    pub view_ms: u64,
}

#[derive(Debug, Default)]
pub struct Machine {
    pub powered: bool,
    pub clock: Clock,
    pub agent: Option<Agent>,
    pub agent_frozen_until_ms: u64,
    pub mirror_frozen_until_ms: u64,
    paused_until_ms: u64,
    pub inbox: VecDeque<Event>,
    pub jobs: Vec<Job>,
    pub mounted: bool,
    pub application: bool,
    pub probe_port: bool,
    pub trouble: Trouble,
    pub boot_ms: Option<u64>,
    pub agent_start_ms: Option<u64>,
    pub mirror_start_ms: Option<u64>,
    /// When the arbiter confirmed what was asked for then: node time, true time.
    pub confirmed: VecDeque<(u64, u64)>,
}

impl Machine {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            ..Self::default()
        }
    }

    pub fn pause(&mut self, now_ms: u64, until_ms: u64) {
        self.clock.pause(now_ms);
        self.paused_until_ms = self.paused_until_ms.max(until_ms);
    }

    pub fn wake(&mut self, now_ms: u64) {
        if now_ms >= self.paused_until_ms {
            self.clock.go_on(now_ms);
        }
    }

    pub fn thaw(&mut self, now_ms: u64) {
        self.agent_frozen_until_ms = 0;
        self.mirror_frozen_until_ms = 0;
        self.paused_until_ms = 0;
        self.clock.go_on(now_ms);
    }

    pub fn is_running(&self, now_ms: u64) -> bool {
        self.powered && now_ms >= self.paused_until_ms
    }

    pub fn agent_runs(&self, now_ms: u64) -> bool {
        self.is_running(now_ms) && now_ms >= self.agent_frozen_until_ms
    }

    pub fn mirror_runs(&self, now_ms: u64) -> bool {
        self.is_running(now_ms) && now_ms >= self.mirror_frozen_until_ms
    }

    /// For an agent that does not run at the moment. A socket overflows; answers do not get lost.
    pub fn keep(&mut self, event: Event) {
        let datagram = matches!(event, Event::Received { .. });
        if !datagram || self.inbox.len() < SOCKET_MAX {
            self.inbox.push_back(event);
        }
    }

    /// Everything but the disk is gone.
    pub fn power_off(&mut self) {
        self.powered = false;
        self.agent = None;
        self.inbox.clear();
        self.jobs.clear();
        self.mounted = false;
        self.application = false;
        self.probe_port = false;
        self.confirmed.clear();
        self.agent_start_ms = None;
        self.mirror_start_ms = None;
    }

    pub fn kill_agent(&mut self) {
        self.agent = None;
        self.probe_port = false;
        self.inbox.clear();
    }
}
