//! What is measured side by side: the bare file, servers without replication, QEMU's mirror, and ours in its modes.
//! All of them run at the same time, each on files of its own; only one is asked for anything at a time.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use local_pair::{MIRROR, Pair, PairOptions, Placement, Programs, Side};

use crate::files::preallocated;
use crate::process;
use crate::qemu_mirror::{QemuMirror, wait_listening};

pub const NBDKIT: &str = "nbdkit";
pub const QEMU_NBD: &str = "qemu-nbd";
pub const QEMU_MIRROR: &str = "QEMU mirror";

/// Ours, in one of its modes.
#[derive(Debug, Clone, Copy)]
struct Ours {
    name: &'static str,
    mode: &'static str,
    peer: bool,
    encryption: bool,
    /// More lines of the mirror's table.
    extra: &'static [&'static str],
}

const SYNC: Ours = Ours {
    name: "ours, sync",
    mode: "sync",
    peer: true,
    encryption: false,
    extra: &[],
};

/// A new mode is one more line here.
const OURS: [Ours; 6] = [
    Ours {
        name: "ours, no peer",
        peer: false,
        ..SYNC
    },
    SYNC,
    Ours {
        name: "ours, semisync",
        mode: "semisync",
        ..SYNC
    },
    Ours {
        name: "ours, async",
        mode: "async",
        ..SYNC
    },
    Ours {
        name: "ours, sync + TLS",
        encryption: true,
        ..SYNC
    },
    Ours {
        name: "ours, sync + compression",
        extra: &["compression = \"both\""],
        ..SYNC
    },
];

/// What `fio` works on.
#[derive(Debug)]
pub enum Target {
    File(PathBuf),
    Nbd(String),
}

impl Target {
    pub fn fio_words(&self) -> Vec<String> {
        match self {
            Self::File(path) => vec![
                "--ioengine=io_uring".into(),
                "--direct=1".into(),
                format!("--filename={}", path.display()),
            ],
            Self::Nbd(uri) => vec!["--ioengine=nbd".into(), format!("--uri={uri}")],
        }
    }
}

#[derive(Debug)]
enum Running {
    File(PathBuf),
    Server { child: Child, socket: PathBuf },
    Mirror(QemuMirror),
    Ours(Box<Pair>),
}

#[derive(Debug)]
pub struct Contender {
    pub name: &'static str,
    running: Running,
}

/// Where the files of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Medium {
    Memory,
    /// Opened with O_DIRECT.
    Disk,
}

impl Medium {
    pub const BOTH: [Self; 2] = [Self::Memory, Self::Disk];

    pub fn title(self) -> &'static str {
        match self {
            Self::Memory => "Files in memory (tmpfs)",
            Self::Disk => "Files on the disk, O_DIRECT",
        }
    }

    pub fn placement(self) -> Placement {
        match self {
            Self::Memory => Placement::Memory,
            Self::Disk => Placement::Disk,
        }
    }

    pub fn folder(self) -> PathBuf {
        match self {
            Self::Memory => "/dev/shm".into(),
            Self::Disk => std::env::temp_dir(),
        }
    }
}

/// Starts all of them; `folder` is for the files of those that are not ours, and outlives them.
pub fn start_all(medium: Medium, folder: &Path, bytes: u64) -> Result<Vec<Contender>> {
    let file = |name: &str| preallocated(folder, name, bytes);
    let mut all = vec![Contender {
        name: "file",
        running: Running::File(file("raw")?),
    }];
    // It has no O_DIRECT, so that on a disk it would show the page cache.
    if medium == Medium::Memory {
        let socket = folder.join("nbdkit.sock");
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "nbdkit",
                "--foreground",
                "--unix",
            ])
            .arg(&socket)
            .arg("file")
            .arg(file("nbdkit")?);
        all.push(Contender::server(NBDKIT, command, socket)?);
    }
    let socket = folder.join("qemu-nbd.sock");
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "qemu-nbd", "--persistent"])
        .args(["--format=raw", "--cache=none", "--aio=io_uring"])
        .arg(format!("--socket={}", socket.display()))
        .arg(file("qemu-nbd")?);
    all.push(Contender::server(QEMU_NBD, command, socket)?);
    all.push(Contender {
        name: QEMU_MIRROR,
        running: Running::Mirror(QemuMirror::start(
            folder,
            &file("primary")?,
            &file("secondary")?,
        )?),
    });
    for ours in OURS {
        let pair = ours.start(medium, bytes).context(ours.name)?;
        all.push(Contender {
            name: ours.name,
            running: Running::Ours(Box::new(pair)),
        });
    }
    Ok(all)
}

/// A mirror in sync mode without encryption, on files of its own.
pub fn plain_pair(options: PairOptions) -> Result<Pair> {
    Pair::synced(
        Programs::fresh()?,
        &PairOptions {
            encryption: false,
            ..options
        },
    )
}

impl Ours {
    fn start(&self, medium: Medium, bytes: u64) -> Result<Pair> {
        let options = PairOptions {
            placement: medium.placement(),
            mode: self.mode,
            encryption: self.encryption,
            // Both files are known to be zero.
            initial_sync: "skip",
            extra: self.extra.iter().map(ToString::to_string).collect(),
            ..PairOptions::sized(bytes)
        };
        if self.peer {
            return Pair::synced(Programs::fresh()?, &options);
        }
        let mut pair = Pair::create(Programs::fresh()?, &options)?;
        pair.init(Side::First, &[]).done()?;
        pair.start(Side::First)?;
        pair.ctl(Side::First, &["promote", MIRROR, "--force"])
            .done()?;
        Ok(pair)
    }
}

impl Contender {
    fn server(name: &'static str, mut command: Command, socket: PathBuf) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}; it is in the package of that name"))?;
        let server = Self {
            name,
            running: Running::Server {
                child,
                socket: socket.clone(),
            },
        };
        wait_listening(&socket)?;
        Ok(server)
    }

    pub fn target(&self) -> Target {
        match &self.running {
            Running::File(path) => Target::File(path.clone()),
            Running::Server { socket, .. } => {
                Target::Nbd(format!("nbd+unix:///?socket={}", socket.display()))
            }
            Running::Mirror(mirror) => Target::Nbd(mirror.uri()),
            Running::Ours(pair) => Target::Nbd(pair.uri(Side::First)),
        }
    }

    pub fn has_servers(&self) -> bool {
        !matches!(self.running, Running::File(_))
    }

    /// What all its servers have used so far.
    pub fn processor_seconds(&self) -> Result<f64> {
        let ids: Vec<u32> = match &self.running {
            Running::File(_) => Vec::new(),
            Running::Server { child, .. } => vec![child.id()],
            Running::Mirror(mirror) => mirror.process_ids().collect(),
            Running::Ours(pair) => Side::BOTH
                .iter()
                .filter_map(|side| pair.node(*side).process_id())
                .collect(),
        };
        ids.into_iter().map(process::processor_seconds).sum()
    }

    /// Both sides are still equal, where there are two.
    pub fn check(&self) -> Result<()> {
        match &self.running {
            Running::Ours(pair) if pair.node(Side::Second).process_id().is_some() => {
                pair.wait_synced()
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Running::Server { child, .. } = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
