//! `[[group]]` and `[[group.resource]]`: what runs together, where, and in which order.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::partition::{GROUP_ACTIONS, titled};
use super::{
    Attach, Filesystem, FinalAction, FloatingIp, Fsck, Group, MirrorDisk, ProbePort, Resource,
    ResourceKind,
};
use crate::config::by_node::ByNode;
use crate::config::parts::Sieve;
use crate::config::problem::{Collector, Located};
use crate::config::section::{Complaint, Section, boolean, text};
use crate::config::value::{
    address, choice, choice_or, command, duration, integer, interface, ip_with_prefix, name, path,
    unit, value_or,
};

const FAILOVERS_DEFAULT: u32 = 3;
const FAILOVERS_RANGE: [u32; 2] = [0, 1000];
const WINDOW_DEFAULT: Duration = Duration::from_secs(3600);
const WINDOW_RANGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30 * 86_400)];

/// Zero: not by itself.
const RESET_DEFAULT: Duration = Duration::from_secs(3600);
const RESET_RANGE: [Duration; 2] = [Duration::ZERO, WINDOW_RANGE[1]];

const ACTION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(180);
const ACTION_TIMEOUT_RANGE: [Duration; 2] =
    [Duration::from_millis(100), Duration::from_secs(86_400)];
const RETRIES_RANGE: [u32; 2] = [0, 100];

const FSCK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(7200);
/// What promotion, attaching and mounting may take beside fsck.
const MOUNT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);
const MOUNT_OPTIONS_DEFAULT: &str = "rw";
const UNMOUNT_RETRIES_DEFAULT: u32 = 3;
const UNMOUNT_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const UNMOUNT_INTERVAL_RANGE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(600)];

#[derive(Debug)]
pub struct DraftGroup {
    pub line: usize,
    pub name: Option<Located<String>>,
    pub nodes: Option<Located<Vec<Located<String>>>>,
    pub automatic_start: bool,
    pub failover: bool,
    pub failback: bool,
    pub failovers_max: u32,
    pub failover_window: Duration,
    pub failure_reset: Duration,
    pub final_action: FinalAction,
    pub resources: Vec<DraftResource>,
}

#[derive(Debug)]
pub struct DraftResource {
    pub line: usize,
    pub name: Option<Located<String>>,
    pub kind: Option<DraftResourceKind>,
    /// Absent: the resource before it.
    pub depends_on: Option<Vec<Located<String>>>,
    pub start_timeout: Option<Located<Duration>>,
    pub stop_timeout: Option<Located<Duration>>,
    pub start_retries: u32,
}

#[derive(Debug)]
pub enum DraftResourceKind {
    MirrorDisk(DraftMirrorDisk),
    FloatingIp {
        address: Option<Located<(IpAddr, u8)>>,
        interface: Option<ByNode<String>>,
    },
    Exec {
        start: Option<Located<Vec<String>>>,
        stop: Option<Located<Vec<String>>>,
        check: Option<Located<Vec<String>>>,
    },
    Systemd {
        unit: Option<Located<String>>,
    },
    ProbePort {
        tcp: Option<Located<SocketAddr>>,
        http: Option<Located<SocketAddr>>,
    },
}

#[derive(Debug)]
pub struct DraftMirrorDisk {
    pub mirror: Option<Located<String>>,
    pub attach: Attach,
    pub mount: Option<Located<PathBuf>>,
    pub filesystem: Filesystem,
    pub options: String,
    pub fsck: Fsck,
    pub fsck_timeout: Duration,
    pub unmount_retries: u32,
    pub unmount_interval: Duration,
}

impl DraftGroup {
    pub fn read_all(root: &mut Section, problems: &mut Collector) -> Vec<Self> {
        let sections = root.sections("group", "[[group]]", "group", problems);
        let read = |section| Self::read(section, problems);
        sections.into_iter().map(read).collect()
    }

    fn read(mut section: Section, problems: &mut Collector) -> Self {
        let resources = section.sections(
            "resource",
            "[[group.resource]]",
            &format!("{} resource", section.name),
            problems,
        );
        let start = section.optional("start", problems, |value| {
            choice(value, &[("automatic", true), ("manual", false)])
        });
        let failover = section.optional("failover", problems, boolean);
        let failback = section.optional("failback", problems, boolean);
        let failovers_max = section.optional("failovers_max", problems, |value| {
            integer(value, FAILOVERS_RANGE)
        });
        let failover_window = section.optional("failover_window", problems, |value| {
            duration(value, WINDOW_RANGE)
        });
        let failure_reset = section.optional("failure_reset", problems, |value| {
            duration(value, RESET_RANGE)
        });
        let final_action = section.optional("final_action", problems, |value| {
            choice(value, &GROUP_ACTIONS)
        });
        let group = Self {
            line: section.line,
            name: section.required("name", "\"failover1\"", problems, name),
            nodes: section.list("nodes", "[\"server1\", \"server2\"]", problems, name),
            automatic_start: value_or(start, true),
            failover: value_or(failover, true),
            failback: value_or(failback, false),
            failovers_max: value_or(failovers_max, FAILOVERS_DEFAULT),
            failover_window: value_or(failover_window, WINDOW_DEFAULT),
            failure_reset: value_or(failure_reset, RESET_DEFAULT),
            final_action: value_or(final_action, FinalAction::StopGroup),
            resources: resources
                .into_iter()
                .map(|section| DraftResource::read(section, problems))
                .collect(),
        };
        section.refuse_unknown_keys(problems);
        group
    }

    /// What problems call this group.
    pub fn title(&self) -> String {
        titled("group", self.name.as_ref())
    }

    /// What problems call one of its resources.
    pub fn resource_title(&self, resource: &DraftResource) -> String {
        titled(
            &format!("{} resource", self.title()),
            resource.name.as_ref(),
        )
    }

    /// Position of the resource called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        let mut names = self.resources.iter().map(|resource| &resource.name);
        names.position(|found| found.as_ref().is_some_and(|found| found.value == name))
    }

    pub fn finish(&self, nodes: &[String; 2], sieve: &mut Sieve) -> Option<Group> {
        let own = match &self.nodes {
            None => vec![0, 1],
            Some(list) => list
                .value
                .iter()
                .map(|name| nodes.iter().position(|node| *node == name.value))
                .collect::<Option<_>>()?,
        };
        let resources = self
            .resources
            .iter()
            .enumerate()
            .map(|(position, resource)| resource.finish(self, position, nodes));
        let mut resources = sieve.all(resources);
        if resources.len() < self.resources.len() {
            // The positions are those of the file, where there are more.
            for resource in &mut resources {
                resource.depends_on.clear();
            }
        }
        Some(Group {
            name: self.name.as_ref()?.value.clone(),
            nodes: own,
            automatic_start: self.automatic_start,
            failover: self.failover,
            failback: self.failback,
            failovers_max: self.failovers_max,
            failover_window: self.failover_window,
            failure_reset: (!self.failure_reset.is_zero()).then_some(self.failure_reset),
            final_action: self.final_action,
            resources,
        })
    }
}

impl DraftResource {
    fn read(mut section: Section, problems: &mut Collector) -> Self {
        let kind = section.required("kind", "\"mirror-disk\"", problems, |value| {
            let kinds = [
                "mirror-disk",
                "floating-ip",
                "exec",
                "systemd",
                "probe-port",
            ];
            choice_or(value, &kinds.map(|kind| (kind, kind)), other_name)
        });
        let timeout = |value: &DeValue| duration(value, ACTION_TIMEOUT_RANGE);
        let start_retries = section.optional("start_retries", problems, |value| {
            integer(value, RETRIES_RANGE)
        });
        let resource = Self {
            line: section.line,
            name: section.required("name", "\"disk1\"", problems, name),
            depends_on: section
                .list("depends_on", "[\"disk1\"]", problems, name)
                .map(|list| list.value),
            start_timeout: section.optional("start_timeout", problems, timeout),
            stop_timeout: section.optional("stop_timeout", problems, timeout),
            start_retries: value_or(start_retries, 0),
            kind: kind.map(|kind| read_kind(kind.value, &mut section, problems)),
        };
        // Which keys there are is not known for an unknown kind.
        if resource.kind.is_some() {
            section.refuse_unknown_keys(problems);
        }
        resource
    }

    fn finish(&self, group: &DraftGroup, position: usize, nodes: &[String; 2]) -> Option<Resource> {
        let depends_on = match &self.depends_on {
            None => position.checked_sub(1).into_iter().collect(),
            Some(names) => names
                .iter()
                .map(|name| group.position(&name.value))
                .collect::<Option<_>>()?,
        };
        let kind = self.kind.as_ref()?;
        Some(Resource {
            name: self.name.as_ref()?.value.clone(),
            kind: kind.finish(nodes)?,
            depends_on,
            start_timeout: match &self.start_timeout {
                Some(written) => written.value,
                None => kind.start_timeout_default(),
            },
            stop_timeout: match &self.stop_timeout {
                Some(written) => written.value,
                None => ACTION_TIMEOUT_DEFAULT,
            },
            start_retries: self.start_retries,
        })
    }
}

/// What others call the kinds of resources.
fn other_name(kind: &str) -> &'static str {
    match kind {
        "virtual-ip" | "vip" | "fip" | "ip" | "ip-address" | "IPaddr2" => {
            "write \"floating-ip\" for an address that moves with the group"
        }
        "disk" | "mirror" | "md" | "volume" | "filesystem" | "mount" => {
            "write \"mirror-disk\" for a mirror and the file system on it"
        }
        "service" | "unit" => "write \"systemd\" for a unit of systemd",
        "script" | "command" | "process" | "program" => {
            "write \"exec\" for commands that start and stop something"
        }
        _ => {
            "write one of these; \"exec\", with a command to start and one to stop, is for all else"
        }
    }
}

impl DraftResourceKind {
    fn start_timeout_default(&self) -> Duration {
        match self {
            Self::MirrorDisk(disk) => disk.fsck_timeout + MOUNT_TIMEOUT_DEFAULT,
            _ => ACTION_TIMEOUT_DEFAULT,
        }
    }

    fn finish(&self, nodes: &[String; 2]) -> Option<ResourceKind> {
        let words = |command: &Option<Located<Vec<String>>>| Some(command.as_ref()?.value.clone());
        Some(match self {
            Self::MirrorDisk(disk) => ResourceKind::MirrorDisk(MirrorDisk {
                mirror: disk.mirror.as_ref()?.value.clone(),
                attach: disk.attach,
                mount: disk.mount.as_ref().map(|mount| mount.value.clone()),
                filesystem: disk.filesystem,
                options: disk.options.clone(),
                fsck: disk.fsck,
                fsck_timeout: disk.fsck_timeout,
                unmount_retries: disk.unmount_retries,
                unmount_interval: disk.unmount_interval,
            }),
            Self::FloatingIp { address, interface } => {
                let (address, prefix) = address.as_ref()?.value;
                ResourceKind::FloatingIp(FloatingIp {
                    address,
                    prefix,
                    interfaces: interface.as_ref()?.in_order(nodes)?,
                })
            }
            Self::Exec { start, stop, check } => ResourceKind::Exec {
                start: words(start)?,
                stop: words(stop)?,
                check: words(check),
            },
            Self::Systemd { unit } => ResourceKind::Systemd {
                unit: unit.as_ref()?.value.clone(),
            },
            Self::ProbePort { tcp, http } => ResourceKind::ProbePort(ProbePort {
                tcp: tcp.as_ref().map(|tcp| tcp.value),
                http: http.as_ref().map(|http| http.value),
            }),
        })
    }
}

fn read_kind(kind: &str, section: &mut Section, problems: &mut Collector) -> DraftResourceKind {
    let listen = |value: &DeValue| address(text(value)?);
    match kind {
        "mirror-disk" => DraftResourceKind::MirrorDisk(read_mirror_disk(section, problems)),
        "floating-ip" => DraftResourceKind::FloatingIp {
            address: section.required("address", "\"10.5.0.100/24\"", problems, ip_with_prefix),
            interface: ByNode::one_or_each(section, "interface", "\"eth0\"", problems, interface),
        },
        "exec" => DraftResourceKind::Exec {
            start: section.required(
                "start",
                "[\"/usr/local/bin/app\", \"start\"]",
                problems,
                command,
            ),
            stop: section.required(
                "stop",
                "[\"/usr/local/bin/app\", \"stop\"]",
                problems,
                command,
            ),
            check: section.optional("check", problems, command),
        },
        "systemd" => DraftResourceKind::Systemd {
            unit: section.required("unit", "\"postgresql.service\"", problems, unit),
        },
        _ => DraftResourceKind::ProbePort {
            tcp: section.optional("tcp", problems, listen),
            http: section.optional("http", problems, listen),
        },
    }
}

fn read_mirror_disk(section: &mut Section, problems: &mut Collector) -> DraftMirrorDisk {
    let attach = section.optional("attach", problems, |value| {
        choice(value, &[("kernel", Attach::Kernel), ("fuse", Attach::Fuse)])
    });
    let mount = section.optional("mount", problems, mount_point);
    if mount.is_none() && !section.has("mount") {
        refuse_without_mount(section, problems);
    }
    let filesystem = section.optional("filesystem", problems, |value| {
        choice(
            value,
            &[("ext4", Filesystem::Ext4), ("xfs", Filesystem::Xfs)],
        )
    });
    let options = section.optional("options", problems, |value| Ok(text(value)?.to_owned()));
    let fsck = section.optional("fsck", problems, |value| {
        let kinds = [
            ("always", Fsck::Always),
            ("auto", Fsck::Auto),
            ("never", Fsck::Never),
        ];
        choice(value, &kinds)
    });
    let fsck_timeout = section.optional("fsck_timeout", problems, |value| {
        duration(value, ACTION_TIMEOUT_RANGE)
    });
    let unmount_retries = section.optional("unmount_retries", problems, |value| {
        integer(value, RETRIES_RANGE)
    });
    let unmount_interval = section.optional("unmount_interval", problems, |value| {
        duration(value, UNMOUNT_INTERVAL_RANGE)
    });
    DraftMirrorDisk {
        mirror: section.required("mirror", "\"md1\"", problems, name),
        attach: value_or(attach, Attach::Fuse),
        mount,
        filesystem: value_or(filesystem, Filesystem::Ext4),
        options: value_or(options, MOUNT_OPTIONS_DEFAULT.into()),
        fsck: value_or(fsck, Fsck::Auto),
        fsck_timeout: value_or(fsck_timeout, FSCK_TIMEOUT_DEFAULT),
        unmount_retries: value_or(unmount_retries, UNMOUNT_RETRIES_DEFAULT),
        unmount_interval: value_or(unmount_interval, UNMOUNT_INTERVAL_DEFAULT),
    }
}

/// Keys that would be ignored read as if they did something.
fn refuse_without_mount(section: &mut Section, problems: &mut Collector) {
    let keys = [
        "filesystem",
        "options",
        "fsck",
        "fsck_timeout",
        "unmount_retries",
        "unmount_interval",
    ];
    for key in keys {
        let Some(found) = section.raw(key) else {
            continue;
        };
        problems.add(
            Some(section.line_of(found)),
            section.key(key),
            "nothing is mounted, so this has no effect",
            "add a line such as mount = \"/srv/data\", or remove this one",
        );
    }
}

fn mount_point(value: &DeValue) -> Result<PathBuf, Complaint> {
    let mount = path(value)?;
    let plain = mount
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    if mount.parent().is_none() || !plain {
        return Err(Complaint::new(
            format!("{} is no place to mount a mirror", mount.display()),
            "write a folder of its own, such as \"/srv/data\"",
        ));
    }
    Ok(mount)
}
