//! What is watched, and what follows from a fault: restart → failover → final action (A6).

#[derive(Debug, Clone)]
pub struct MonitorConfig {
    pub name: String,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// Faults in a row, after the first, before anything is done.
    pub retries: u32,
    /// It runs only while this group is online here.
    pub group: Option<usize>,
    /// What is restarted; none: the whole group.
    pub resource: Option<usize>,
    pub restarts_max: u32,
    pub failovers_max: u32,
    pub warn_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Answer to [`Effect::Probe`] with this number.
    Probed {
        number: u64,
        result: Result<(), String>,
    },
    GroupOnline {
        group: usize,
    },
    /// It is on its way down or gone: monitors of it rest.
    GroupGone {
        group: usize,
    },
    Suspend,
    Resume,
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Probe {
        number: u64,
        monitor: usize,
        timeout_ms: u64,
    },
    Warn {
        monitor: usize,
        reason: String,
    },
    Recovered {
        monitor: usize,
    },
    /// Restart the resource, or the group where it is none.
    Restart {
        monitor: usize,
        group: usize,
        resource: Option<usize>,
        reason: String,
    },
    Failover {
        monitor: usize,
        group: usize,
        reason: String,
    },
    FinalAction {
        monitor: usize,
        reason: String,
    },
}
