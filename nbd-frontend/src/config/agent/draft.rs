//! The agent's sections as written: every key read and typed, with its line where a later check
//! points at it. Each kind of section is read by the module that knows its keys; what must hold
//! between them is for [`super::validate`].

use std::path::PathBuf;
use std::time::Duration;

use super::authority::{DraftArbiter, DraftForcedStop};
use super::group::DraftGroup;
use super::monitor::DraftMonitor;
use super::partition::{DraftHeartbeat, DraftPartition};
use super::{AgentConfig, delay};
use crate::config::Machine;
use crate::config::parts::Sieve;
use crate::config::problem::{Collector, Located};
use crate::config::section::{Section, text};
use crate::config::value::{duration, path, value_or};

const ALERT_LOG_DEFAULT: &str = "/var/log/mirror/alert.log";
const STARTUP_DELAY_RANGE: [Duration; 2] = [Duration::ZERO, Duration::from_secs(9999)];

#[derive(Debug, Default)]
pub struct AgentDraft {
    /// The first section of the agent that is there.
    pub first: Option<Located<&'static str>>,
    pub startup_delay: Option<Located<StartupDelay>>,
    pub alert_log: Option<Located<PathBuf>>,
    pub heartbeat: Option<DraftHeartbeat>,
    pub partition: DraftPartition,
    pub forced_stop: Option<DraftForcedStop>,
    pub arbiter: Option<DraftArbiter>,
    pub groups: Vec<DraftGroup>,
    pub monitors: Vec<DraftMonitor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupDelay {
    Auto,
    Written(Duration),
}

impl AgentDraft {
    pub fn read(root: &mut Section, problems: &mut Collector) -> Self {
        let mut draft = Self {
            first: first_section(root),
            ..Self::default()
        };
        if let Some(mut section) = root.section("agent", "[agent]", problems) {
            draft.startup_delay = section.optional("service_startup_delay", problems, |value| {
                match text(value)? {
                    "auto" => Ok(StartupDelay::Auto),
                    _ => duration(value, STARTUP_DELAY_RANGE).map(StartupDelay::Written),
                }
            });
            draft.alert_log = section.optional("alert_log", problems, path);
            section.refuse_unknown_keys(problems);
        }
        draft.heartbeat = DraftHeartbeat::read(root, problems);
        draft.partition = DraftPartition::read(root, problems);
        draft.forced_stop = DraftForcedStop::read(root, problems);
        draft.arbiter = DraftArbiter::read(root, problems);
        draft.groups = DraftGroup::read_all(root, problems);
        draft.monitors = DraftMonitor::read_all(root, problems);
        draft
    }

    /// Whether something outside the nodes can say what became of a lost peer, or see to it.
    pub fn finds_out_about_the_peer(&self) -> bool {
        self.heartbeat.is_some() && (self.arbiter.is_some() || self.forced_stop.is_some())
    }

    /// The checked settings, less what is not whole; `None` without heartbeats.
    pub fn finish(
        self,
        nodes: &[String; 2],
        machine: Machine,
        sieve: &mut Sieve,
    ) -> Option<AgentConfig> {
        let heartbeat = self.heartbeat?.finish(nodes, sieve);
        let has_arbiter = self.arbiter.is_some();
        let forced_stop = self
            .forced_stop
            .and_then(|stop| sieve.one(stop.finish(nodes, &heartbeat, has_arbiter)));
        let arbiter = self
            .arbiter
            .and_then(|arbiter| sieve.one(arbiter.finish(machine)));
        let mut groups = Vec::new();
        for group in &self.groups {
            let finished = group.finish(nodes, sieve);
            groups.extend(sieve.one(finished));
        }
        let monitors = self.monitors.iter();
        let monitors = sieve.all(monitors.map(|monitor| monitor.finish(nodes, &groups)));
        let needed = delay::Sum::of(forced_stop.as_ref(), &heartbeat).total();
        Some(AgentConfig {
            partition: self.partition.finish(&heartbeat, sieve),
            heartbeat,
            forced_stop,
            arbiter,
            groups,
            monitors,
            startup_delay: match value_or(self.startup_delay, StartupDelay::Auto) {
                StartupDelay::Auto => needed,
                StartupDelay::Written(delay) => delay,
            },
            startup_delay_needed: needed,
            alert_log: value_or(self.alert_log, ALERT_LOG_DEFAULT.into()),
        })
    }
}

fn first_section(root: &mut Section) -> Option<Located<&'static str>> {
    let names = [
        "agent",
        "heartbeat",
        "partition",
        "forced_stop",
        "arbiter",
        "group",
        "monitor",
    ];
    let mut found: Vec<_> = names
        .into_iter()
        .filter_map(|value| {
            let found = root.raw(value)?;
            let line = root.line_of(found);
            Some(Located { value, line })
        })
        .collect();
    found.sort_by_key(|section| section.line);
    found.into_iter().next()
}
