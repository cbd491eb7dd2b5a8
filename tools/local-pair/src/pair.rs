//! The two nodes together, and what an operator does with them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mirror_core::control::{Connection, DiskState, Explanation, MirrorStatus, NodeStatus, Role};
use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::addresses::loopback_addresses;
use crate::node::Node;
use crate::options::{NodeLines, PairOptions, Placement, config_text};
use crate::outcome::Outcome;
use crate::programs::Programs;
use crate::wait::{Deadline, run_bounded};

/// The name of the one mirror of a pair.
pub const MIRROR: &str = "md1";
const NAMES: [&str; 2] = ["server1", "server2"];

/// Longest run of one `mirrorctl`.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for a node to answer after its start.
const START_SECONDS_MAX: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The node that comes first in the configuration, and so the one that connects.
    First,
    Second,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::First, Side::Second];

    pub fn other(self) -> Side {
        match self {
            Side::First => Side::Second,
            Side::Second => Side::First,
        }
    }

    pub fn index(self) -> usize {
        match self {
            Side::First => 0,
            Side::Second => 1,
        }
    }
}

#[derive(Debug)]
pub struct Pair {
    // Before the folder: a node must be gone before its files are.
    nodes: [Node; 2],
    programs: Programs,
    /// Words in front of a node's command line, `ip netns exec NAME` for instance.
    wrappers: [Vec<String>; 2],
    nbd_tls: bool,
    folder: TempDir,
}

impl Pair {
    /// Writes key, configuration and data files. No metadata yet, and nothing runs.
    pub fn create(programs: Programs, options: &PairOptions) -> Result<Self> {
        let [a, b, c, d] = loopback_addresses()?;
        Self::create_at(programs, options, [(a, b), (c, d)])
    }

    /// The same with addresses of one's own: replication and NBD of each side.
    pub fn create_at(
        programs: Programs,
        options: &PairOptions,
        addresses: [(String, String); 2],
    ) -> Result<Self> {
        let parent = match options.placement {
            Placement::Disk => std::env::temp_dir(),
            Placement::Memory => PathBuf::from("/dev/shm"),
        };
        let folder = tempfile::Builder::new()
            .prefix("mirror-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let config = folder.path().join("cluster.toml");
        let key = folder.path().join("cluster.key");
        let mut nodes = Vec::new();
        for (index, (replication, nbd_tcp)) in addresses.into_iter().enumerate() {
            let node_folder = folder.path().join(NAMES[index]);
            fs::create_dir(&node_folder)?;
            let data = options.data_path[index]
                .clone()
                .unwrap_or_else(|| node_folder.join("data"));
            let bytes = options.data_bytes[index];
            if options.data_path[index].is_none() || !data.exists() {
                make_file(&data, bytes, options.preallocate)?;
            }
            let metadata = (!options.internal_metadata).then(|| {
                let elsewhere = options.metadata_path[index].clone();
                elsewhere.unwrap_or_else(|| node_folder.join("metadata"))
            });
            if let Some(path) = metadata.as_ref().filter(|path| !path.exists()) {
                make_file(path, options.metadata_bytes(), options.preallocate)?;
            }
            nodes.push(Node::new(
                NAMES[index],
                node_folder,
                data,
                metadata,
                config.clone(),
                replication,
                nbd_tcp,
            ));
        }
        let nodes: [Node; 2] = nodes
            .try_into()
            .map_err(|_| anyhow::anyhow!("a pair has two nodes"))?;
        let lines = nodes.each_ref().map(|node| NodeLines {
            name: node.name,
            data: node.data.display().to_string(),
            metadata: node
                .metadata
                .as_ref()
                .map_or("internal".into(), |path| path.display().to_string()),
            replication: node.replication.clone(),
            nbd: vec!["unix".into(), format!("tcp:{}", node.nbd_tcp)],
        });
        let text = config_text(options, MIRROR, &key.display().to_string(), &lines);
        fs::write(&config, text)?;
        let pair = Self {
            nodes,
            programs,
            wrappers: [Vec::new(), Vec::new()],
            nbd_tls: options.nbd_tls.is_some(),
            folder,
        };
        pair.keygen(&key)?;
        Ok(pair)
    }

    /// Both sides initialised, started and connected; the first is primary and both are up to date.
    pub fn synced(programs: Programs, options: &PairOptions) -> Result<Self> {
        let mut pair = Self::connected(programs, options)?;
        pair.promote_first()?;
        Ok(pair)
    }

    /// Both sides initialised, started and connected; nobody is primary and nothing is synced.
    pub fn connected(programs: Programs, options: &PairOptions) -> Result<Self> {
        let mut pair = Self::create(programs, options)?;
        pair.bring_up()?;
        Ok(pair)
    }

    /// Initialises and starts both sides and waits for their connection.
    pub fn bring_up(&mut self) -> Result<()> {
        for side in Side::BOTH {
            self.init(side, &[]).done()?;
        }
        for side in Side::BOTH {
            self.start(side)?;
        }
        self.wait_connected()
    }

    /// Declares the first side's data the truth and waits for the first sync.
    pub fn promote_first(&mut self) -> Result<()> {
        self.ctl(Side::First, &["promote", MIRROR, "--force"])
            .done()?;
        self.wait_synced()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    pub fn node(&self, side: Side) -> &Node {
        &self.nodes[side.index()]
    }

    pub fn node_mut(&mut self, side: Side) -> &mut Node {
        &mut self.nodes[side.index()]
    }

    pub fn set_wrapper(&mut self, side: Side, words: &[&str]) {
        self.wrappers[side.index()] = words.iter().map(ToString::to_string).collect();
    }

    /// The export of a side over its Unix socket.
    pub fn uri(&self, side: Side) -> String {
        let socket = self.node(side).nbd_socket(MIRROR);
        format!("nbd+unix:///{MIRROR}?socket={}", socket.display())
    }

    pub fn tcp_uri(&self, side: Side) -> String {
        let scheme = if self.nbd_tls { "nbds" } else { "nbd" };
        format!("{scheme}://{}/{MIRROR}", self.node(side).nbd_tcp)
    }

    // ---- Processes

    /// Starts a node without waiting for it.
    pub fn spawn(&mut self, side: Side) -> Result<()> {
        let index = side.index();
        self.nodes[index].spawn(&self.programs.mirrord, &self.wrappers[index])
    }

    /// Starts a node and waits until it answers.
    pub fn start(&mut self, side: Side) -> Result<()> {
        self.spawn(side)?;
        let name = self.node(side).name;
        Deadline::after_seconds(START_SECONDS_MAX).until(&format!("the start of {name}"), || {
            if let Some(status) = self.node_mut(side).ended()? {
                bail!(
                    "{name} ended with {status}; its log ends:\n{}",
                    self.node(side).log_tail()
                );
            }
            let outcome = self.ctl(side, &["--json", "mdstat"]);
            match outcome.code {
                Some(0) => Ok(Some(())),
                Some(3) => Ok(None),
                _ => outcome.done().map(|_| None),
            }
        })
    }

    // ---- Commands

    /// A command on one node, as an operator gives it.
    pub fn ctl(&self, side: Side, words: &[&str]) -> Outcome {
        let node = self.node(side);
        let mut command = Command::new(&self.programs.mirrorctl);
        command
            .arg("--config")
            .arg(&node.config)
            .args(["--node", node.name, "--run-dir"])
            .arg(node.run_dir())
            .args(words);
        outcome(&mut command, words)
    }

    pub fn init(&self, side: Side, flags: &[&str]) -> Outcome {
        let mut words = vec!["init", MIRROR];
        words.extend(flags);
        self.ctl(side, &words)
    }

    fn keygen(&self, file: &Path) -> Result<()> {
        let mut command = Command::new(&self.programs.mirrorctl);
        outcome(command.arg("keygen").arg(file), &["keygen"]).done()?;
        Ok(())
    }

    pub fn status(&self, side: Side) -> Result<MirrorStatus> {
        let text = self.ctl(side, &["--json", "mdstat", MIRROR]).done()?;
        let node: NodeStatus = serde_json::from_str(&text)
            .with_context(|| format!("`mdstat --json` of {}: {text}", self.node(side).name))?;
        node.mirrors
            .into_iter()
            .find(|mirror| mirror.name == MIRROR)
            .with_context(|| format!("`mdstat --json` of {} lacks {MIRROR}", self.node(side).name))
    }

    pub fn explain(&self, side: Side) -> Result<Explanation> {
        let text = self.ctl(side, &["--json", "explain", MIRROR]).done()?;
        serde_json::from_str(&text).with_context(|| format!("`explain --json`: {text}"))
    }

    // ---- States

    /// Waits for a state of one side; an error shows the state that was found instead.
    pub fn wait_for(
        &self,
        side: Side,
        what: &str,
        seconds: u64,
        holds: impl Fn(&MirrorStatus) -> bool,
    ) -> Result<MirrorStatus> {
        let name = self.node(side).name;
        let mut last = None;
        let found = Deadline::after_seconds(seconds).until(&format!("{what} on {name}"), || {
            let status = self.status(side)?;
            let met = holds(&status);
            last = Some(status.clone());
            Ok(met.then_some(status))
        });
        found.with_context(|| {
            format!(
                "{name} last said {last:?}; the logs end:\n-- server1\n{}\n-- server2\n{}",
                self.nodes[0].log_tail(),
                self.nodes[1].log_tail()
            )
        })
    }

    pub fn wait_connected(&self) -> Result<()> {
        for side in Side::BOTH {
            self.wait_for(side, "a connection", 30, |s| {
                s.connection == Connection::Connected
            })?;
        }
        Ok(())
    }

    /// Waits until both sides are connected, up to date, and owe each other nothing.
    pub fn wait_synced(&self) -> Result<()> {
        for side in Side::BOTH {
            self.wait_for(side, "the end of the sync", 120, is_synced)?;
        }
        Ok(())
    }

    /// Whether both sides are so now.
    pub fn is_synced(&self) -> Result<bool> {
        for side in Side::BOTH {
            if !is_synced(&self.status(side)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// [`Pair::wait_synced`], showing each state of one side on the way.
    pub fn watch_synced(&self, side: Side, show: impl Fn(&MirrorStatus)) -> Result<()> {
        self.wait_for(side, "the end of the sync", 120, |status| {
            show(status);
            is_synced(status)
        })?;
        self.wait_synced()
    }

    /// Waits until a side knows that its peer is gone.
    pub fn wait_alone(&self, side: Side) -> Result<MirrorStatus> {
        self.wait_for(side, "the loss of the peer", 30, |s| {
            s.connection != Connection::Connected
        })
    }

    /// Runs a verify on a side to its end and gives the bytes in blocks that differed.
    pub fn verify(&self, side: Side, flags: &[&str]) -> Result<u64> {
        let mut words = vec!["--json", "--timeout", "50s", "verify", MIRROR];
        words.extend(flags);
        let outcome = self.ctl(side, &words);
        // Blocks that differ are a failure of `verify`; here they are its result.
        let found: Option<serde_json::Value> = serde_json::from_str(&outcome.stdout).ok();
        match found.and_then(|report| report["mismatch_bytes"].as_u64()) {
            Some(bytes) => Ok(bytes),
            None => {
                outcome.done()?;
                bail!("`mirrorctl verify --json` does not say how many bytes differ")
            }
        }
    }
}

pub(crate) fn is_synced(status: &MirrorStatus) -> bool {
    status.connection == Connection::Connected
        && status.disk == DiskState::UpToDate
        && status.peer.disk == DiskState::UpToDate
        && status.out_of_sync_bytes == 0
        && status.sync.is_none()
        && (status.role == Role::Primary || status.peer.role == Role::Primary)
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("-- the log of {} ends:\n{}", node.name, node.log_tail());
            }
        }
    }
}

fn outcome(command: &mut Command, words: &[&str]) -> Outcome {
    let (code, stdout, stderr) = match run_bounded(command, COMMAND_LIMIT) {
        Ok(output) => (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ),
        Err(error) => (None, String::new(), format!("{error:#}")),
    };
    Outcome {
        command: words.join(" "),
        code,
        stdout,
        stderr,
    }
}

fn make_file(path: &Path, bytes: u64, preallocate: bool) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(bytes)?;
    if preallocate && bytes > 0 {
        let length = i64::try_from(bytes).context("a file larger than 8 EiB")?;
        fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)
            .with_context(|| format!("cannot take {bytes} bytes for {}", path.display()))?;
    }
    Ok(())
}
