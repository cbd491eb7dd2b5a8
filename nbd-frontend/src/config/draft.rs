//! The file as written: every key read and typed, with its line, nothing yet compared with anything
//! else. A value that could not be read is absent here and a problem already.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mirror_core::control::{InitialSync, Mode};
use toml::de::{DeTable, DeValue};

use super::agent::draft::AgentDraft;
use super::machine::Machine;
use super::parts::{Parts, Sieve};
use super::places::Places;
use super::problem::{Collector, Located};
use super::section::{
    Complaint, Lines, Section, article, boolean, parse, table, tables, text, wrong_shape,
};
use super::value::{address, choice, duration, integer, name, path, value_or};
use crate::kernel::found::DeviceNumber;

use super::{
    Compression, Encryption, MetadataPlace, Mirror, NbdListen, NbdTls, PeerLoss, QueueFull, Side,
    units,
};

const PEER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(6);
const PEER_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(600)];
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
const DEVICE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const DEVICE_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
const DEVICE_CONNECTIONS_RANGE: [u32; 2] = [1, 16];
/// A third of the slowest link that makes sense, 100 Mbit/s, and nothing to others; and a full resync of 1 TiB is over in
/// three days, however busy its clients are.
const RESYNC_RATE_MIN_DEFAULT: u64 = 4 << 20;
const BUFFER_MEMORY_DEFAULT: u64 = 48 << 20;
const BUFFER_MEMORY_RANGE: [u64; 2] = [16 << 20, 16 << 30];
/// The way to a node in the same building and back, and its work in between.
const BUSY_POLL_DEFAULT: Duration = Duration::from_micros(200);
const BUSY_POLL_RANGE: [Duration; 2] = [Duration::ZERO, Duration::from_millis(1)];
const QUEUE_SIZE_DEFAULT: u64 = 64 << 20;
const QUEUE_SIZE_RANGE: [u64; 2] = [1 << 20, 16 << 30];
const BANDWIDTH_MIN: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Draft {
    pub cluster: Option<Located<String>>,
    pub key_file: Option<Located<PathBuf>>,
    pub nodes: Vec<Located<String>>,
    pub mirrors: Vec<DraftMirror>,
    pub nbd_tls: Option<DraftNbdTls>,
    pub agent: AgentDraft,
    pub places: Places,
}

#[derive(Debug)]
pub(super) struct DraftNbdTls {
    pub certificate_file: Option<Located<PathBuf>>,
    pub key_file: Option<Located<PathBuf>>,
    pub client_ca_file: Option<Located<PathBuf>>,
}

#[derive(Debug)]
pub(super) struct DraftMirror {
    pub line: usize,
    pub name: Option<Located<String>>,
    pub mode: Located<Mode>,
    pub initial_sync: InitialSync,
    /// Absent: see [`Draft::peer_loss`].
    pub peer_loss: Option<Located<PeerLoss>>,
    pub encryption: Encryption,
    pub peer_timeout: Duration,
    pub resync_rate_min: Option<Located<u64>>,
    pub resync_rate_max: Option<Located<u64>>,
    pub buffer_memory: u64,
    pub busy_poll: Duration,
    pub queue_size: Option<Located<u64>>,
    pub queue_full: Option<Located<QueueFull>>,
    pub bandwidth_max: Option<Located<u64>>,
    pub compression: Compression,
    pub stop_timeout: Duration,
    pub device_timeout: Duration,
    pub device_connections: usize,
    pub insecure: bool,
    pub sides: Vec<DraftSide>,
}

#[derive(Debug)]
pub(super) struct DraftSide {
    pub node: Located<String>,
    pub data: Option<Located<PathBuf>>,
    pub metadata: Option<Located<MetadataPlace>>,
    pub replication: Option<Located<SocketAddr>>,
    pub device: Option<Located<DeviceNumber>>,
    pub nbd: Vec<Located<NbdListen>>,
}

impl Draft {
    /// What `mirror` does without its peer. Where somebody can find out what became of the peer, it
    /// waits for that; where nobody can, it would wait for an operator, and goes on instead.
    pub fn peer_loss(&self, mirror: &DraftMirror) -> PeerLoss {
        match &mirror.peer_loss {
            Some(written) => written.value,
            None if self.agent.finds_out_about_the_peer() => PeerLoss::Hold,
            None => PeerLoss::Continue,
        }
    }
}

impl DraftMirror {
    /// What problems call this mirror.
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("mirror {:?}", name.value),
            None => "mirror".into(),
        }
    }
}

/// Reads the whole text. `None` where it is not TOML: of the rest no more than a part is known then, and what it
/// lacks may only be missing because of that.
pub(super) fn read(source: &str, problems: &mut Collector) -> Option<Draft> {
    let table = parse(source, problems)?;
    let lines = Lines(source);
    let mut root = Section::new("", 1, lines, table.get_ref());
    let mut draft = Draft {
        places: Places::of(table.get_ref(), lines),
        ..Draft::default()
    };
    read_cluster(&mut root, lines, problems, &mut draft);
    for (entry, line) in tables(&mut root, "node", "[[node]]", lines, problems) {
        let mut section = Section::new("node", line, lines, entry);
        draft
            .nodes
            .extend(section.required("name", "\"server1\"", problems, name));
        section.refuse_unknown_keys(problems);
    }
    draft.nbd_tls = read_nbd(&mut root, lines, problems);
    for (entry, line) in tables(&mut root, "mirror", "[[mirror]]", lines, problems) {
        draft
            .mirrors
            .push(read_mirror(entry, line, lines, problems));
    }
    draft.agent = AgentDraft::read(&mut root, problems);
    root.refuse_unknown_keys(problems);
    Some(draft)
}

fn read_cluster(root: &mut Section, lines: Lines, problems: &mut Collector, draft: &mut Draft) {
    if root.raw("cluster").is_none() {
        problems.add(
            None,
            "cluster",
            "the section is missing",
            "add [cluster] with name and key_file",
        );
    }
    let Some((table, line)) = table(root, "cluster", "[cluster]", lines, problems) else {
        return;
    };
    let mut section = Section::new("cluster", line, lines, table);
    draft.cluster = section.required("name", "\"cluster1\"", problems, name);
    draft.key_file = section.required("key_file", "\"/etc/mirror/cluster.key\"", problems, path);
    section.refuse_unknown_keys(problems);
}

fn read_nbd(root: &mut Section, lines: Lines, problems: &mut Collector) -> Option<DraftNbdTls> {
    let (table, line) = table(root, "nbd", "[nbd]", lines, problems)?;
    let mut section = Section::new("nbd", line, lines, table);
    let tls = read_nbd_tls(&mut section, lines, problems);
    section.refuse_unknown_keys(problems);
    tls
}

fn read_nbd_tls(nbd: &mut Section, lines: Lines, problems: &mut Collector) -> Option<DraftNbdTls> {
    let (table, line) = table(nbd, "tls", "[nbd.tls]", lines, problems)?;
    let mut section = Section::new("nbd.tls", line, lines, table);
    let example = "\"/etc/mirror/nbd/server-cert.pem\"";
    let certificate_file = section.required("certificate_file", example, problems, path);
    let example = "\"/etc/mirror/nbd/server-key.pem\"";
    let key_file = section.required("key_file", example, problems, path);
    let client_ca_file = section.optional("client_ca_file", problems, path);
    section.refuse_unknown_keys(problems);
    Some(DraftNbdTls {
        certificate_file,
        key_file,
        client_ca_file,
    })
}

fn read_mirror(
    table: &DeTable,
    line: usize,
    lines: Lines,
    problems: &mut Collector,
) -> DraftMirror {
    let title = match table.get("name").and_then(|name| name.get_ref().as_str()) {
        Some(name) => format!("mirror {name:?}"),
        None => "mirror".into(),
    };
    let mut section = Section::new(title.clone(), line, lines, table);
    let name = section.required("name", "\"md1\"", problems, name);
    let mode = section
        .optional("mode", problems, |value| {
            choice(
                value,
                &[
                    ("sync", Mode::Sync),
                    ("semisync", Mode::Semisync),
                    ("async", Mode::Async),
                ],
            )
        })
        .unwrap_or(Located {
            value: Mode::Sync,
            line,
        });
    let initial_sync = section.optional("initial_sync", problems, |value| {
        choice(
            value,
            &[
                ("full", InitialSync::Full),
                ("sparse", InitialSync::Sparse),
                ("skip", InitialSync::Skip),
            ],
        )
    });
    let peer_loss = section.optional("peer_loss", problems, |value| {
        choice(
            value,
            &[("hold", PeerLoss::Hold), ("continue", PeerLoss::Continue)],
        )
    });
    let encryption = section.optional("encryption", problems, |value| {
        choice(value, &[("tls", Encryption::Tls), ("off", Encryption::Off)])
    });
    let peer_timeout = section.optional("peer_timeout", problems, |value| {
        duration(value, PEER_TIMEOUT_RANGE)
    });
    let stop_timeout = section.optional("stop_timeout", problems, |value| {
        duration(value, STOP_TIMEOUT_RANGE)
    });
    let device_timeout = section.optional("device_timeout", problems, |value| {
        duration(value, DEVICE_TIMEOUT_RANGE)
    });
    let device_connections = section.optional("device_connections", problems, |value| {
        integer(value, DEVICE_CONNECTIONS_RANGE)
    });
    let resync_rate_min = section.optional("resync_rate_min", problems, rate);
    let resync_rate_max = section.optional("resync_rate_max", problems, rate);
    let buffer_memory = section.optional("buffer_memory", problems, |value| {
        memory(value, BUFFER_MEMORY_RANGE, "choose between 16MiB and 16GiB")
    });
    let busy_poll = section.optional("busy_poll", problems, |value| {
        duration(value, BUSY_POLL_RANGE)
    });
    let queue_size = section.optional("queue_size", problems, |value| {
        memory(value, QUEUE_SIZE_RANGE, "choose between 1MiB and 16GiB")
    });
    let queue_full = section.optional("queue_full", problems, |value| {
        choice(
            value,
            &[("block", QueueFull::Block), ("degrade", QueueFull::Degrade)],
        )
    });
    let bandwidth_max = section.optional("bandwidth_max", problems, bandwidth);
    let compression = section.optional("compression", problems, |value| {
        choice(
            value,
            &[
                ("none", Compression::None),
                ("data", Compression::Data),
                ("resync", Compression::Resync),
                ("both", Compression::Both),
            ],
        )
    });
    let insecure = section.optional("insecure", problems, boolean);
    let sides = read_sides(&mut section, &title, lines, problems);
    section.refuse_unknown_keys(problems);
    DraftMirror {
        line,
        name,
        mode,
        initial_sync: value_or(initial_sync, InitialSync::Full),
        peer_loss,
        encryption: value_or(encryption, Encryption::Tls),
        peer_timeout: value_or(peer_timeout, PEER_TIMEOUT_DEFAULT),
        resync_rate_min,
        resync_rate_max,
        buffer_memory: value_or(buffer_memory, BUFFER_MEMORY_DEFAULT),
        busy_poll: value_or(busy_poll, BUSY_POLL_DEFAULT),
        queue_size,
        queue_full,
        bandwidth_max,
        compression: value_or(compression, Compression::None),
        stop_timeout: value_or(stop_timeout, STOP_TIMEOUT_DEFAULT),
        device_timeout: value_or(device_timeout, DEVICE_TIMEOUT_DEFAULT),
        device_connections: value_or(device_connections, 1) as usize,
        insecure: value_or(insecure, false),
        sides,
    }
}

fn read_sides(
    mirror: &mut Section,
    title: &str,
    lines: Lines,
    problems: &mut Collector,
) -> Vec<DraftSide> {
    let Some(found) = mirror.raw("on") else {
        return Vec::new();
    };
    let Some(nodes) = found.get_ref().as_table() else {
        let line = lines.at(found.span().start);
        wrong_shape(title, "[mirror.on.NODE]", line, found.get_ref(), problems);
        return Vec::new();
    };
    let mut sides = Vec::new();
    for (node, side) in nodes.iter() {
        let line = lines.at(node.span().start);
        let Some(table) = side.get_ref().as_table() else {
            wrong_shape(title, "[mirror.on.NODE]", line, side.get_ref(), problems);
            continue;
        };
        let node = Located {
            value: node.get_ref().to_string(),
            line,
        };
        sides.push(read_side(node, title, table, lines, problems));
    }
    sides.sort_by_key(|side| side.node.line);
    sides
}

fn read_side(
    node: Located<String>,
    title: &str,
    table: &DeTable,
    lines: Lines,
    problems: &mut Collector,
) -> DraftSide {
    let mut section = Section::new(
        format!("{title} on {:?}", node.value),
        node.line,
        lines,
        table,
    );
    let side = DraftSide {
        data: section.required("data", "\"/dev/vdb1\"", problems, path),
        metadata: section.required("metadata", "\"internal\"", problems, |value| {
            match text(value)? {
                "internal" => Ok(MetadataPlace::Internal),
                _ => path(value).map(MetadataPlace::Path),
            }
        }),
        replication: section.required("replication", "\"10.5.0.5:29051\"", problems, |value| {
            address(text(value)?)
        }),
        device: section.optional("device", problems, |value| {
            DeviceNumber::of(&path(value)?).map_err(|_| {
                Complaint::new(
                    "only NBD devices of the kernel can be attached",
                    "write \"/dev/nbd0\", or another number",
                )
            })
        }),
        nbd: read_exports(&mut section, lines, problems),
        node,
    };
    section.refuse_unknown_keys(problems);
    side
}

/// The `nbd` list. Absent means the Unix socket alone.
fn read_exports(
    section: &mut Section,
    lines: Lines,
    problems: &mut Collector,
) -> Vec<Located<NbdListen>> {
    let key = format!("{} nbd", section.name);
    let default_line = section.line;
    let Some(found) = section.raw("nbd") else {
        return vec![Located {
            value: NbdListen::Unix,
            line: default_line,
        }];
    };
    let line = lines.at(found.span().start);
    let Some(entries) = found.get_ref().as_array() else {
        problems.add(
            Some(line),
            key,
            format!("this is {}, not a list", article(found.get_ref())),
            "write a list such as [\"unix\", \"tcp:127.0.0.1:10809\"]",
        );
        return Vec::new();
    };
    let mut exports = Vec::new();
    for entry in entries.iter() {
        let line = lines.at(entry.span().start);
        match export(entry.get_ref()) {
            Ok(value) => exports.push(Located { value, line }),
            Err(complaint) => {
                problems.add(Some(line), key.clone(), complaint.message, complaint.remedy);
            }
        }
    }
    exports
}

fn export(value: &DeValue) -> Result<NbdListen, Complaint> {
    let text = text(value)?;
    match text.strip_prefix("tcp:") {
        Some(rest) => address(rest).map(NbdListen::Tcp),
        None if text == "unix" => Ok(NbdListen::Unix),
        None => Err(Complaint::new(
            format!("{text:?} is no kind of export"),
            "write \"unix\" or \"tcp:ADDRESS:PORT\"",
        )),
    }
}

/// A slower line would leave a single write unacknowledged for so long that the peer counts as lost.
fn rate(value: &DeValue) -> Result<u64, Complaint> {
    Ok(units::parse_rate(text(value)?)?)
}

fn bandwidth(value: &DeValue) -> Result<u64, Complaint> {
    let rate = rate(value)?;
    if (1..BANDWIDTH_MIN).contains(&rate) {
        return Err(Complaint::new(
            format!("{rate} bytes a second is too little"),
            "write 1MiB/s or more, or 0 for no limit",
        ));
    }
    Ok(rate)
}

fn memory(value: &DeValue, range: [u64; 2], remedy: &'static str) -> Result<u64, Complaint> {
    let bytes = units::parse_size(text(value)?)?;
    if !(range[0]..=range[1]).contains(&bytes) {
        return Err(Complaint::new(
            format!("{bytes} bytes is out of range"),
            remedy,
        ));
    }
    Ok(bytes)
}

impl Draft {
    /// All that is whole; what is not, a check has reported.
    pub(super) fn finish(self, machine: Machine) -> Parts {
        let mut sieve = Sieve::default();
        let nodes = sieve.one(self.node_pair());
        let nbd_tls = self
            .nbd_tls
            .as_ref()
            .and_then(|tls| sieve.one(finish_tls(tls)));
        let mut parts = Parts {
            cluster: self.cluster.as_ref().map(|name| name.value.clone()),
            key_file: self.key_file.as_ref().map(|path| path.value.clone()),
            nbd_tls,
            ..Parts::default()
        };
        if let Some(nodes) = nodes {
            let mirrors = self.mirrors.iter();
            parts.mirrors = sieve
                .all(mirrors.map(|mirror| finish_mirror(mirror, self.peer_loss(mirror), &nodes)));
            parts.agent = self.agent.finish(&nodes, machine, &mut sieve);
            parts.nodes = Some(nodes);
        }
        parts.left_out = sieve.left_out;
        parts
    }

    /// The nodes, if they are two.
    pub fn node_pair(&self) -> Option<[String; 2]> {
        match &self.nodes[..] {
            [first, second] if first.value != second.value => {
                Some([first.value.clone(), second.value.clone()])
            }
            _ => None,
        }
    }
}

fn finish_tls(tls: &DraftNbdTls) -> Option<NbdTls> {
    Some(NbdTls {
        certificate_file: tls.certificate_file.clone()?,
        key_file: tls.key_file.clone()?,
        client_ca_file: tls.client_ca_file.clone(),
    })
}

fn finish_mirror(mirror: &DraftMirror, peer_loss: PeerLoss, nodes: &[String; 2]) -> Option<Mirror> {
    let side = |node: &str| {
        let mut sides = mirror.sides.iter();
        let side = sides.find(|side| side.node.value == node)?;
        Some(Side {
            data: side.data.as_ref()?.value.clone(),
            metadata: side.metadata.as_ref()?.value.clone(),
            replication: side.replication.as_ref()?.value,
            device: side.device.as_ref().map(|device| device.value),
            nbd: side.nbd.iter().map(|export| export.value).collect(),
        })
    };
    let value_of = |written: &Option<Located<u64>>, default| {
        written.as_ref().map_or(default, |written| written.value)
    };
    Some(Mirror {
        name: mirror.name.as_ref()?.value.clone(),
        mode: mirror.mode.value,
        initial_sync: mirror.initial_sync,
        peer_loss,
        encryption: mirror.encryption,
        peer_timeout: mirror.peer_timeout,
        resync_rate_min: value_of(&mirror.resync_rate_min, RESYNC_RATE_MIN_DEFAULT),
        resync_rate_max: value_of(&mirror.resync_rate_max, 0),
        buffer_memory: mirror.buffer_memory,
        busy_poll: mirror.busy_poll,
        queue_size: value_of(&mirror.queue_size, QUEUE_SIZE_DEFAULT),
        queue_full: mirror
            .queue_full
            .as_ref()
            .map_or(QueueFull::Block, |full| full.value),
        bandwidth_max: value_of(&mirror.bandwidth_max, 0),
        compression: mirror.compression,
        stop_timeout: mirror.stop_timeout,
        device_timeout: mirror.device_timeout,
        device_connections: mirror.device_connections,
        sides: [side(&nodes[0])?, side(&nodes[1])?],
    })
}
