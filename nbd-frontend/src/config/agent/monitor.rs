//! `[[monitor]]`: what is watched, and what follows from a fault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::partition::{GROUP_ACTIONS, titled};
use super::{FinalAction, Group, Monitor, MonitorKind};
use crate::config::by_node::ByNode;
use crate::config::problem::{Collector, Located};
use crate::config::section::{Section, boolean, text};
use crate::config::value::{
    address, choice, command, duration, integer, interface, name, path, url, value_or,
};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
/// Well within the time of any watchdog.
const STALL_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const PERIOD_RANGE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(86_400)];
const RETRIES_DEFAULT: u32 = 1;
const RESTARTS_DEFAULT: u32 = 3;
const FAILOVERS_DEFAULT: u32 = 1;
const COUNT_RANGE: [u32; 2] = [0, 1000];
const PROCESSES_RANGE: [u32; 2] = [1, 100_000];
const HTTP_STATUS_DEFAULT: u32 = 200;
const HTTP_STATUS_RANGE: [u32; 2] = [200, 599];

const KINDS: [&str; 9] = [
    "mirror-disk",
    "mirror-link",
    "process",
    "exec",
    "tcp",
    "http",
    "network-link",
    "disk",
    "stall",
];

#[derive(Debug)]
pub struct DraftMonitor {
    pub name: Option<Located<String>>,
    pub kind: Option<DraftMonitorKind>,
    pub interval: Located<Duration>,
    pub timeout: Option<Located<Duration>>,
    pub retries: u32,
    pub group: Option<Located<String>>,
    pub resource: Option<Located<String>>,
    pub restarts_max: Option<Located<u32>>,
    pub failovers_max: Option<Located<u32>>,
    pub final_action: Option<Located<FinalAction>>,
    pub warn_only: Option<Located<bool>>,
}

#[derive(Debug)]
pub enum DraftMonitorKind {
    MirrorDisk {
        mirror: Option<Located<String>>,
    },
    MirrorLink {
        mirror: Option<Located<String>>,
    },
    Process {
        command: Option<Located<String>>,
        count_min: u32,
    },
    Exec {
        command: Option<Located<Vec<String>>>,
    },
    Tcp {
        address: Option<Located<SocketAddr>>,
    },
    Http {
        url: Option<Located<String>>,
        status: u32,
    },
    NetworkLink {
        interface: Option<ByNode<String>>,
    },
    Disk {
        folder: Option<Located<PathBuf>>,
    },
    Stall {
        watchdog: Option<Located<PathBuf>>,
    },
}

impl DraftMonitor {
    pub fn read_all(root: &mut Section, problems: &mut Collector) -> Vec<Self> {
        let sections = root.sections("monitor", "[[monitor]]", "monitor", problems);
        let read = |section| Self::read(section, problems);
        sections.into_iter().map(read).collect()
    }

    fn read(mut section: Section, problems: &mut Collector) -> Self {
        let line = section.line;
        let kind = section.required("kind", "\"process\"", problems, |value| {
            choice(value, &KINDS.map(|kind| (kind, kind)))
        });
        let period = |value: &DeValue| duration(value, PERIOD_RANGE);
        let count = |value: &DeValue| integer(value, COUNT_RANGE);
        let retries = section.optional("retries", problems, count);
        let interval = section.optional("interval", problems, period);
        let interval_default = match &kind {
            Some(kind) if kind.value == "stall" => STALL_INTERVAL_DEFAULT,
            _ => INTERVAL_DEFAULT,
        };
        let monitor = Self {
            name: section.required("name", "\"app\"", problems, name),
            interval: super::partition::located_or(interval, interval_default, line),
            timeout: section.optional("timeout", problems, period),
            retries: value_or(retries, RETRIES_DEFAULT),
            group: section.optional("group", problems, name),
            resource: section.optional("resource", problems, name),
            restarts_max: section.optional("restarts_max", problems, count),
            failovers_max: section.optional("failovers_max", problems, count),
            final_action: section.optional("final_action", problems, |value| {
                choice(value, &GROUP_ACTIONS)
            }),
            warn_only: section.optional("warn_only", problems, boolean),
            kind: kind.map(|kind| read_kind(kind.value, &mut section, problems)),
        };
        // Which keys there are is not known for an unknown kind.
        if monitor.kind.is_some() {
            section.refuse_unknown_keys(problems);
        }
        monitor
    }

    /// What problems call this monitor.
    pub fn title(&self) -> String {
        titled("monitor", self.name.as_ref())
    }

    /// A cut link is no fault of the node that notices it: moving the group would not mend it.
    pub fn only_warns(&self) -> bool {
        match &self.warn_only {
            Some(written) => written.value,
            None => matches!(self.kind, Some(DraftMonitorKind::MirrorLink { .. })),
        }
    }

    pub fn finish(&self, nodes: &[String; 2], groups: &[Group]) -> Option<Monitor> {
        let group = match &self.group {
            None => None,
            Some(name) => Some(groups.iter().position(|group| group.name == name.value)?),
        };
        let resource = match (&self.resource, group) {
            (None, _) => None,
            (Some(name), Some(group)) => {
                let mut resources = groups[group].resources.iter();
                Some(resources.position(|resource| resource.name == name.value)?)
            }
            (Some(_), None) => return None,
        };
        let count = |written: &Option<Located<u32>>, default| match (written, group) {
            (Some(written), _) => written.value,
            (None, Some(_)) => default,
            // There is nothing that could be restarted or moved.
            (None, None) => 0,
        };
        Some(Monitor {
            name: self.name.as_ref()?.value.clone(),
            kind: self.kind.as_ref()?.finish(nodes)?,
            interval: self.interval.value,
            timeout: match &self.timeout {
                Some(written) => written.value,
                None => TIMEOUT_DEFAULT.min(self.interval.value),
            },
            retries: self.retries,
            group,
            resource,
            restarts_max: count(&self.restarts_max, RESTARTS_DEFAULT),
            failovers_max: count(&self.failovers_max, FAILOVERS_DEFAULT),
            final_action: match (&self.final_action, group) {
                (Some(written), _) => written.value,
                (None, Some(_)) => FinalAction::StopGroup,
                (None, None) => FinalAction::None,
            },
            warn_only: self.only_warns(),
        })
    }
}

impl DraftMonitorKind {
    fn finish(&self, nodes: &[String; 2]) -> Option<MonitorKind> {
        Some(match self {
            Self::MirrorDisk { mirror } => MonitorKind::MirrorDisk {
                mirror: mirror.as_ref()?.value.clone(),
            },
            Self::MirrorLink { mirror } => MonitorKind::MirrorLink {
                mirror: mirror.as_ref()?.value.clone(),
            },
            Self::Process { command, count_min } => MonitorKind::Process {
                command: command.as_ref()?.value.clone(),
                count_min: *count_min,
            },
            Self::Exec { command } => MonitorKind::Exec {
                command: command.as_ref()?.value.clone(),
            },
            Self::Tcp { address } => MonitorKind::Tcp {
                address: address.as_ref()?.value,
            },
            Self::Http { url, status } => MonitorKind::Http {
                url: url.as_ref()?.value.clone(),
                status: u16::try_from(*status).ok()?,
            },
            Self::NetworkLink { interface } => MonitorKind::NetworkLink {
                interfaces: interface.as_ref()?.in_order(nodes)?,
            },
            Self::Disk { folder } => MonitorKind::Disk {
                folder: folder.as_ref()?.value.clone(),
            },
            Self::Stall { watchdog } => MonitorKind::Stall {
                watchdog: watchdog.as_ref().map(|path| path.value.clone()),
            },
        })
    }
}

fn read_kind(kind: &str, section: &mut Section, problems: &mut Collector) -> DraftMonitorKind {
    match kind {
        "mirror-disk" => DraftMonitorKind::MirrorDisk {
            mirror: section.required("mirror", "\"md1\"", problems, name),
        },
        "mirror-link" => DraftMonitorKind::MirrorLink {
            mirror: section.required("mirror", "\"md1\"", problems, name),
        },
        "process" => DraftMonitorKind::Process {
            command: section.required("command", "\"/usr/sbin/app\"", problems, |value| {
                Ok(text(value)?.to_owned())
            }),
            count_min: {
                let count = section.optional("count_min", problems, |value| {
                    integer(value, PROCESSES_RANGE)
                });
                value_or(count, 1)
            },
        },
        "exec" => DraftMonitorKind::Exec {
            command: section.required(
                "command",
                "[\"/usr/local/bin/app\", \"check\"]",
                problems,
                command,
            ),
        },
        "tcp" => DraftMonitorKind::Tcp {
            address: section.required("address", "\"127.0.0.1:5432\"", problems, |value| {
                address(text(value)?)
            }),
        },
        "http" => DraftMonitorKind::Http {
            url: section.required("url", "\"http://127.0.0.1:8080/health\"", problems, url),
            status: {
                let status = section.optional("status", problems, |value| {
                    integer(value, HTTP_STATUS_RANGE)
                });
                value_or(status, HTTP_STATUS_DEFAULT)
            },
        },
        "network-link" => DraftMonitorKind::NetworkLink {
            interface: ByNode::one_or_each(section, "interface", "\"eth0\"", problems, interface),
        },
        "disk" => DraftMonitorKind::Disk {
            folder: section.required("folder", "\"/srv/data/.mirror-check\"", problems, path),
        },
        _ => DraftMonitorKind::Stall {
            watchdog: section.optional("watchdog", problems, path),
        },
    }
}
