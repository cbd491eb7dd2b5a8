//! `[heartbeat]` and `[partition]`: who is heard how, and whom a node asks that hears nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use toml::de::DeValue;

use super::{FinalAction, Heartbeat, HeartbeatPath, Need, Partition, Resolver, ResolverKind};
use crate::config::by_node::ByNode;
use crate::config::parts::Sieve;
use crate::config::problem::{Collector, Located};
use crate::config::section::{Complaint, Section, text};
use crate::config::value::{address, choice, duration, ip, name, url, value_or};

const HEARTBEAT_INTERVAL_DEFAULT: Duration = Duration::from_secs(3);
const HEARTBEAT_INTERVAL_RANGE: [Duration; 2] =
    [Duration::from_millis(10), Duration::from_secs(60)];
const HEARTBEAT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(90);
const HEARTBEAT_TIMEOUT_RANGE: [Duration; 2] =
    [Duration::from_millis(30), Duration::from_secs(3600)];
/// Most `[[heartbeat.path]]` sections.
pub(super) const HEARTBEAT_PATHS_MAX: usize = 8;
/// Most `[[partition.resolver]]` sections, and most targets of one.
pub(super) const RESOLVERS_MAX: usize = 8;

const ISOLATION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const ISOLATION_TIMEOUT_RANGE: [Duration; 2] = [Duration::ZERO, Duration::from_secs(3600)];
const RESOLVER_INTERVAL_RANGE: [Duration; 2] =
    [Duration::from_millis(10), Duration::from_secs(600)];
const RESOLVER_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(600)];

#[derive(Debug)]
pub struct DraftHeartbeat {
    pub line: usize,
    pub interval: Located<Duration>,
    pub timeout: Located<Duration>,
    pub paths: Vec<DraftPath>,
}

#[derive(Debug)]
pub struct DraftPath {
    pub line: usize,
    pub name: Option<Located<String>>,
    pub on: Option<ByNode<SocketAddr>>,
}

impl DraftHeartbeat {
    pub fn read(root: &mut Section, problems: &mut Collector) -> Option<Self> {
        let mut section = root.section("heartbeat", "[heartbeat]", problems)?;
        let line = section.line;
        let interval = section.optional("interval", problems, |value| {
            duration(value, HEARTBEAT_INTERVAL_RANGE)
        });
        let timeout = section.optional("timeout", problems, |value| {
            duration(value, HEARTBEAT_TIMEOUT_RANGE)
        });
        let paths = section
            .sections("path", "[[heartbeat.path]]", "heartbeat.path", problems)
            .into_iter()
            .map(|section| read_path(section, problems))
            .collect();
        section.refuse_unknown_keys(problems);
        Some(Self {
            line,
            interval: located_or(interval, HEARTBEAT_INTERVAL_DEFAULT, line),
            timeout: located_or(timeout, HEARTBEAT_TIMEOUT_DEFAULT, line),
            paths,
        })
    }

    pub fn finish(self, nodes: &[String; 2], sieve: &mut Sieve) -> Heartbeat {
        let finish = |path: DraftPath| {
            Some(HeartbeatPath {
                name: path.name?.value,
                addresses: path.on?.in_order(nodes)?,
            })
        };
        Heartbeat {
            interval: self.interval.value,
            timeout: self.timeout.value,
            paths: sieve.all(self.paths.into_iter().map(finish)),
        }
    }
}

fn read_path(mut section: Section, problems: &mut Collector) -> DraftPath {
    let path = DraftPath {
        line: section.line,
        name: section.required("name", "\"interconnect\"", problems, name),
        on: ByNode::each(
            &mut section,
            "on",
            "on = { server1 = \"10.0.0.1:29002\", server2 = \"10.0.0.2:29002\" }",
            problems,
            |value| address(text(value)?),
        ),
    };
    section.refuse_unknown_keys(problems);
    path
}

impl DraftPath {
    /// What problems call this path.
    pub fn title(&self) -> String {
        titled("heartbeat.path", self.name.as_ref())
    }
}

#[derive(Debug, Default)]
pub struct DraftPartition {
    pub line: Option<usize>,
    pub need: Option<Located<Need>>,
    pub isolation_timeout: Option<Located<Duration>>,
    pub action: Option<Located<FinalAction>>,
    pub resolvers: Vec<DraftResolver>,
}

#[derive(Debug)]
pub struct DraftResolver {
    pub line: usize,
    /// As written, else the kind.
    pub name: Option<Located<String>>,
    pub kind: Option<Located<DraftResolverKind>>,
    pub interval: Option<Located<Duration>>,
    pub timeout: Option<Located<Duration>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DraftResolverKind {
    Ping {
        targets: Vec<Located<IpAddr>>,
        need: Need,
    },
    Http {
        targets: Vec<Located<String>>,
        need: Need,
    },
    Witness,
    Majority,
    None,
}

impl DraftPartition {
    pub fn read(root: &mut Section, problems: &mut Collector) -> Self {
        let Some(mut section) = root.section("partition", "[partition]", problems) else {
            return Self::default();
        };
        let resolvers = section.sections(
            "resolver",
            "[[partition.resolver]]",
            "partition.resolver",
            problems,
        );
        let partition = Self {
            line: Some(section.line),
            need: section.optional("need", problems, need),
            isolation_timeout: section.optional("isolation_timeout", problems, |value| {
                duration(value, ISOLATION_TIMEOUT_RANGE)
            }),
            action: section.optional("action", problems, |value| choice(value, &NODE_ACTIONS)),
            resolvers: resolvers
                .into_iter()
                .map(|section| read_resolver(section, problems))
                .collect(),
        };
        section.refuse_unknown_keys(problems);
        partition
    }

    pub fn finish(self, heartbeat: &Heartbeat, sieve: &mut Sieve) -> Partition {
        let finish = |resolver: DraftResolver| {
            Some(Resolver {
                name: resolver.name?.value,
                kind: resolver.kind?.value.finish(),
                interval: value_or(resolver.interval, heartbeat.interval),
                timeout: value_or(resolver.timeout, heartbeat.interval),
            })
        };
        Partition {
            resolvers: sieve.all(self.resolvers.into_iter().map(finish)),
            need: value_or(self.need, Need::Any),
            isolation_timeout: value_or(self.isolation_timeout, ISOLATION_TIMEOUT_DEFAULT),
            action: value_or(self.action, FinalAction::StopService),
        }
    }
}

impl DraftResolver {
    /// What problems call this resolver.
    pub fn title(&self) -> String {
        titled("partition.resolver", self.name.as_ref())
    }
}

impl DraftResolverKind {
    fn finish(self) -> ResolverKind {
        match self {
            Self::Ping { targets, need } => ResolverKind::Ping {
                targets: targets.into_iter().map(|target| target.value).collect(),
                need,
            },
            Self::Http { targets, need } => ResolverKind::Http {
                urls: targets.into_iter().map(|target| target.value).collect(),
                need,
            },
            Self::Witness => ResolverKind::Witness,
            Self::Majority => ResolverKind::Majority,
            Self::None => ResolverKind::None,
        }
    }
}

fn read_resolver(mut section: Section, problems: &mut Collector) -> DraftResolver {
    let line = section.line;
    let written = section.optional("name", problems, name);
    let word = section.required("kind", "\"ping\"", problems, |value| {
        let kinds = ["ping", "http", "witness", "majority", "none"];
        choice(value, &kinds.map(|kind| (kind, kind)))
    });
    let interval = section.optional("interval", problems, |value| {
        duration(value, RESOLVER_INTERVAL_RANGE)
    });
    let timeout = section.optional("timeout", problems, |value| {
        duration(value, RESOLVER_TIMEOUT_RANGE)
    });
    let kind = word.as_ref().map(|word| {
        let value = match word.value {
            "ping" => DraftResolverKind::Ping {
                targets: targets(&mut section, "[\"10.5.0.1\"]", problems, ip),
                need: value_or(section.optional("need", problems, need), Need::Any),
            },
            "http" => DraftResolverKind::Http {
                targets: targets(&mut section, "[\"http://10.5.0.1/\"]", problems, url),
                need: value_or(section.optional("need", problems, need), Need::Any),
            },
            "witness" => DraftResolverKind::Witness,
            "majority" => DraftResolverKind::Majority,
            _ => DraftResolverKind::None,
        };
        let line = word.line;
        Located { value, line }
    });
    if kind.is_some() {
        section.refuse_unknown_keys(problems);
    }
    DraftResolver {
        line,
        name: written.or(word.map(|word| Located {
            value: word.value.into(),
            line: word.line,
        })),
        kind,
        interval,
        timeout,
    }
}

fn targets<'i, T: PartialEq>(
    section: &mut Section<'_, 'i>,
    example: &str,
    problems: &mut Collector,
    read: impl FnMut(&DeValue<'i>) -> Result<T, Complaint>,
) -> Vec<Located<T>> {
    let had = problems.len();
    let Some(list) = section.list("targets", example, problems, read) else {
        if problems.len() == had {
            problems.add(
                Some(section.line),
                section.key("targets"),
                "the key is missing",
                format!("add a line such as: targets = {example}"),
            );
        }
        return Vec::new();
    };
    let count = list.value.len();
    if problems.len() == had && !(1..=RESOLVERS_MAX).contains(&count) {
        problems.add(
            Some(list.line),
            section.key("targets"),
            format!("there are {count} targets"),
            format!("name 1 to {RESOLVERS_MAX}, such as {example}"),
        );
    }
    for (position, target) in list.value.iter().enumerate() {
        if list.value[..position]
            .iter()
            .any(|other| other.value == target.value)
        {
            problems.add(
                Some(target.line),
                section.key("targets"),
                "the same target is listed twice",
                "remove one",
            );
        }
    }
    list.value
}

pub(super) fn need(value: &DeValue) -> Result<Need, Complaint> {
    choice(value, &[("any", Need::Any), ("all", Need::All)])
}

/// What a whole node can be told to do last.
pub(super) const NODE_ACTIONS: [(&str, FinalAction); 6] = [
    ("none", FinalAction::None),
    ("stop-service", FinalAction::StopService),
    (
        "stop-service-and-shutdown",
        FinalAction::StopServiceAndShutdown,
    ),
    ("reboot", FinalAction::Reboot),
    ("sysrq-panic", FinalAction::SysrqPanic),
    ("watchdog-reset", FinalAction::WatchdogReset),
];

/// The same where there is a group to stop.
pub(super) const GROUP_ACTIONS: [(&str, FinalAction); 7] = [
    NODE_ACTIONS[0],
    ("stop-group", FinalAction::StopGroup),
    NODE_ACTIONS[1],
    NODE_ACTIONS[2],
    NODE_ACTIONS[3],
    NODE_ACTIONS[4],
    NODE_ACTIONS[5],
];

pub(super) fn located_or<T>(found: Option<Located<T>>, value: T, line: usize) -> Located<T> {
    found.unwrap_or(Located { value, line })
}

pub(super) fn titled(word: &str, name: Option<&Located<String>>) -> String {
    match name {
        Some(name) => format!("{word} {:?}", name.value),
        None => word.into(),
    }
}
