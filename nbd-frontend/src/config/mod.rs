//! The configuration file: one TOML file, the same on both nodes, turned into typed and checked
//! values once at start.
//!
//! Text → [`draft`] (every key read, with its line) → [`validate`] (what must hold between keys) →
//! [`Config`]. Problems are collected, never stopped at, so that an operator mends a file in one
//! round. Nothing here looks at devices: that is the business of `mirrorctl init` and of the daemon.
//! The files that the configuration names as keys and certificates are read by [`key`] and
//! [`NbdTls::load`].

pub mod agent;
mod by_node;
mod convert;
mod draft;
pub mod key;
mod machine;
mod parts;
mod places;
mod problem;
mod section;
mod tls;
pub mod trust;
pub mod units;
mod validate;
mod value;
pub mod witness;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror_core::control::{InitialSync, Mode};
pub use mirror_core::io::open::MetadataPlace;
pub use mirror_core::volume::config::{Compression, PeerLoss, QueueFull};

use crate::kernel::found::DeviceNumber;
use crate::nbd::tls::ServerTls;
use agent::AgentConfig;
pub use key::{ClusterKey, KeyError};
pub use machine::Machine;
pub use parts::{Examined, Parts};
pub use places::Places;
pub use problem::{Located, Problem, Problems};
pub use tls::NbdTls;
use trust::Exposure;

/// Where the file is looked for when no path is given.
pub const PATH_DEFAULT: &str = "/etc/mirror/cluster.toml";
/// Where sockets live when no folder is given.
pub const RUN_DIR_DEFAULT: &str = "/run/mirror";
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A whole valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub path: PathBuf,
    pub cluster: String,
    pub key_file: PathBuf,
    /// Exactly two, in file order. The first one connects, the second accepts.
    pub nodes: [String; 2],
    pub mirrors: Vec<Mirror>,
    /// With it, all exports over TCP need TLS.
    pub nbd_tls: Option<NbdTls>,
    /// There if the file has `[heartbeat]`.
    pub agent: Option<AgentConfig>,
    /// Choices that the operator should know the price of.
    pub warnings: Vec<Problem>,
    /// Where in the file its keys are.
    pub places: Places,
}

/// One `[[mirror]]`.
#[derive(Debug, Clone)]
pub struct Mirror {
    pub name: String,
    pub mode: Mode,
    pub initial_sync: InitialSync,
    pub peer_loss: PeerLoss,
    pub encryption: Encryption,
    /// Without a sign of life for this long, the peer counts as lost.
    pub peer_timeout: Duration,
    /// Bytes per second below which a resync does not yield to clients; 0 is none. No more than the other counts.
    pub resync_rate_min: u64,
    /// Bytes per second; 0 is no limit.
    pub resync_rate_max: u64,
    /// Bytes of payload buffers, taken at start.
    pub buffer_memory: u64,
    /// How long its thread may look for the next event before it sleeps.
    pub busy_poll: Duration,
    /// Semisync and async: bytes that may be with the peer, or on their way, and not acknowledged.
    pub queue_size: u64,
    /// Async: what happens when these are used up.
    pub queue_full: QueueFull,
    /// Async: bytes a second that writes may take of the link; 0 is no limit.
    pub bandwidth_max: u64,
    /// What goes to the peer compressed.
    pub compression: Compression,
    /// How long a stop waits for what is in flight.
    pub stop_timeout: Duration,
    /// How long the kernel lets requests of a device wait for a `mirrord` that died.
    pub device_timeout: Duration,
    /// Between the kernel and `mirrord`.
    pub device_connections: usize,
    /// The two sides, in the order of [`Config::nodes`].
    pub sides: [Side; 2],
}

/// One `[mirror.on.NODE]`.
#[derive(Debug, Clone)]
pub struct Side {
    pub data: PathBuf,
    pub metadata: MetadataPlace,
    pub replication: SocketAddr,
    /// Attached to the kernel while primary.
    pub device: Option<DeviceNumber>,
    pub nbd: Vec<NbdListen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NbdListen {
    /// `<run-dir>/<mirror>.nbd`
    Unix,
    Tcp(SocketAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    Tls,
    Off,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; name another file with --config", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration {} {exposure}; {}", path.display(), exposure.remedy(path))]
    Exposed { path: PathBuf, exposure: Exposure },
    #[error(transparent)]
    Invalid(#[from] Problems),
    #[error("{}", unknown_node(.0))]
    UnknownNode(Box<UnknownNode>),
    #[error("cannot read the host name: {0}; say which node this is with --node")]
    HostName(std::io::Error),
}

/// A node name that the file does not have.
#[derive(Debug)]
pub struct UnknownNode {
    node: String,
    from_host_name: bool,
    path: PathBuf,
    nodes: [String; 2],
}

fn unknown_node(unknown: &UnknownNode) -> String {
    format!(
        "{} is no node of {} (there are {} and {}){}; choose one with --node",
        unknown.node,
        unknown.path.display(),
        unknown.nodes[0],
        unknown.nodes[1],
        if unknown.from_host_name {
            ", though it is the name of this host"
        } else {
            ""
        }
    )
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        Ok(Self::parse_for(Machine::of_this_host(), path, &text)?)
    }

    /// As [`Self::load`], for a daemon: it does what the file says, with all its rights, so nobody else may have
    /// written it.
    pub fn load_trusted(path: &Path) -> Result<Self, ConfigError> {
        refuse_exposed(path)?;
        Self::load(path)
    }

    /// Checks `text` with the defaults of a virtual machine, which are the stricter ones; `path` is
    /// only what problems call it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        Self::parse_for(Machine::Virtual, path, text)
    }

    /// Checks `text` with the defaults that are right on `machine`.
    pub fn parse_for(machine: Machine, path: &Path, text: &str) -> Result<Self, Problems> {
        let found = Self::examine_for(machine, path, text);
        Problems::none_in(found.problems)?;
        Ok(found
            .parts
            .into_config(path, found.places, found.warnings)
            .expect("a draft without problems is complete"))
    }

    /// Reads the file at `path` for all that is wrong with it and all that is good.
    pub fn examine(path: &Path) -> Result<Examined, ConfigError> {
        let text = read_text(path)?;
        Ok(Self::examine_for(Machine::of_this_host(), path, &text))
    }

    fn examine_for(machine: Machine, path: &Path, text: &str) -> Examined {
        let mut problems = problem::Collector::new(path);
        let mut warnings = problem::Collector::new(path);
        // Of a file that is not TOML nothing more is known, so that nothing more is said.
        let draft = match draft::read(text, &mut problems) {
            Some(draft) => {
                validate::check(&draft, &mut problems);
                validate::find_weaknesses(&draft, machine, &mut warnings);
                draft
            }
            None => draft::Draft::default(),
        };
        Examined {
            problems: problems.into_vec(),
            warnings: warnings.into_vec(),
            places: draft.places.clone(),
            parts: draft.finish(machine),
        }
    }

    /// Which of the two nodes this is: the one named, else the one with the name of the host.
    pub fn node_index(&self, named: Option<&str>) -> Result<usize, ConfigError> {
        node_index(&self.path, &self.nodes, named)
    }

    /// Reads the files of `[nbd.tls]`, where it is there.
    pub fn load_nbd_tls(&self) -> Result<Option<ServerTls>, Problems> {
        let load = |tls: &NbdTls| tls.load(&self.path);
        self.nbd_tls.as_ref().map(load).transpose()
    }

    pub fn mirror(&self, name: &str) -> Option<&Mirror> {
        self.mirrors.iter().find(|mirror| mirror.name == name)
    }
}

/// Which of `nodes`, those of the file at `file`, this is.
pub fn node_index(
    file: &Path,
    nodes: &[String; 2],
    named: Option<&str>,
) -> Result<usize, ConfigError> {
    let host;
    let name = match named {
        Some(name) => name,
        None => {
            host = nix::unistd::gethostname()
                .map_err(|errno| ConfigError::HostName(errno.into()))?
                .to_string_lossy()
                .into_owned();
            &host
        }
    };
    nodes.iter().position(|node| node == name).ok_or_else(|| {
        ConfigError::UnknownNode(Box::new(UnknownNode {
            node: name.into(),
            from_host_name: named.is_none(),
            path: file.into(),
            nodes: nodes.clone(),
        }))
    })
}

/// Refuses a configuration file that anybody but this user and root may change.
fn refuse_exposed(path: &Path) -> Result<(), ConfigError> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.into(),
                source,
            });
        }
    };
    trust::check_unchanged(path, &metadata).map_err(|exposure| ConfigError::Exposed {
        path: path.into(),
        exposure,
    })
}

/// The text of a configuration file, not longer than any that makes sense.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let (file, _) = trust::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut std::io::Read::take(file, FILE_BYTES_MAX + 1),
        &mut bytes,
    )
    .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    String::from_utf8(bytes).map_err(|_| failed(std::io::Error::other("it is not UTF-8 text")))
}

#[cfg(test)]
mod tests;
