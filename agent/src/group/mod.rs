//! The resources that run together on one node: their order, their states, their limits (A6).
//!
//! [`Group::step`] takes the time and one event and appends effects. It starts resources as soon as
//! those that they depend on are online, and stops them in reverse. It does not know on which node it
//! should run; that is [`crate::node`]'s.

pub use crate::control::State;

#[derive(Debug, Clone)]
pub struct GroupConfig {
    pub name: String,
    pub resources: Vec<ResourceConfig>,
}

#[derive(Debug, Clone)]
pub struct ResourceConfig {
    pub name: String,
    /// Indices of earlier resources.
    pub depends_on: Vec<usize>,
    pub start_timeout_ms: u64,
    pub stop_timeout_ms: u64,
    pub start_retries: u32,
}

/// What a driver is to do with one resource. It answers every one of them once, within the time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Start,
    /// `force`: users of it are killed, and what cannot be done cleanly is done anyway.
    Stop {
        force: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Start,
    /// `force`: nothing waits for users of the resources. Also turns a running stop into a forced one.
    Stop {
        force: bool,
    },
    /// Stop one resource and what depends on it, and start them again.
    Restart {
        resource: usize,
    },
    /// The driver's answer to [`Effect::Run`] with this number.
    Done {
        number: u64,
        result: Result<(), String>,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Run {
        number: u64,
        resource: usize,
        action: Action,
        timeout_ms: u64,
    },
    /// All resources are online.
    Started,
    /// A resource could not be started; what had started is being stopped again.
    StartFailed { resource: usize, reason: String },
    /// All resources are offline. `after_failure`: the start or a restart had failed.
    Stopped { after_failure: bool },
    /// A resource does not stop, forced or not. The group is failed, and counts as running here.
    StopFailed { resource: usize, reason: String },
}
