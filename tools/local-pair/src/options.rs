//! What a pair is made of, and its configuration file.

use std::fmt::Write;
use std::path::PathBuf;

/// Where the files of a pair are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The folder for temporary files, on a disk as a rule.
    Disk,
    /// `/dev/shm`, in memory.
    Memory,
}

/// What `[nbd.tls]` names.
#[derive(Debug, Clone)]
pub struct NbdTlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct PairOptions {
    pub placement: Placement,
    /// Data bytes of each side, in the order of the nodes.
    pub data_bytes: [u64; 2],
    /// Take the space of the data files now, so that no write can run out of it.
    pub preallocate: bool,
    /// `sync`, `semisync` or `async`.
    pub mode: &'static str,
    pub encryption: bool,
    pub initial_sync: &'static str,
    pub peer_loss: &'static str,
    /// TLS for the exports over TCP. The files need not be there before a node starts.
    pub nbd_tls: Option<NbdTlsFiles>,
    /// More lines for the `[[mirror]]` table.
    pub extra: Vec<String>,
    /// Metadata at the end of the data file.
    pub internal_metadata: bool,
    /// Data somewhere else than in the node's own folder, a small file system for instance. What is there already
    /// is taken as it is.
    pub data_path: [Option<PathBuf>; 2],
    /// The same for the metadata, where they are not at the end of the data.
    pub metadata_path: [Option<PathBuf>; 2],
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            placement: Placement::Disk,
            data_bytes: [64 << 20; 2],
            preallocate: true,
            mode: "sync",
            encryption: true,
            initial_sync: "sparse",
            peer_loss: "continue",
            nbd_tls: None,
            extra: Vec::new(),
            internal_metadata: false,
            data_path: [None, None],
            metadata_path: [None, None],
        }
    }
}

impl PairOptions {
    pub fn sized(bytes: u64) -> Self {
        Self {
            data_bytes: [bytes; 2],
            ..Self::default()
        }
    }

    /// Enough for both superblocks, the log, and a bitmap of 4 KiB a bit (64 MiB at most).
    pub fn metadata_bytes(&self) -> u64 {
        let largest = self.data_bytes[0].max(self.data_bytes[1]);
        let bitmap = (largest / 4096 / 8).min(64 << 20);
        (1 << 20) + (bitmap + bitmap / 16).next_multiple_of(4096)
    }
}

/// One `[mirror.on.NAME]` table.
#[derive(Debug)]
pub(crate) struct NodeLines<'a> {
    pub name: &'a str,
    pub data: String,
    pub metadata: String,
    pub replication: String,
    pub nbd: Vec<String>,
}

/// Writes the configuration file of the whole pair.
pub(crate) fn config_text(
    options: &PairOptions,
    mirror: &str,
    key_file: &str,
    nodes: &[NodeLines<'_>],
) -> String {
    let mut text = format!("[cluster]\nname = \"local\"\nkey_file = {key_file:?}\n");
    for node in nodes {
        let _ = write!(text, "\n[[node]]\nname = {:?}\n", node.name);
    }
    if let Some(tls) = &options.nbd_tls {
        let _ = write!(
            text,
            "\n[nbd.tls]\ncertificate_file = {:?}\nkey_file = {:?}\n",
            tls.certificate, tls.key
        );
        if let Some(client_ca) = &tls.client_ca {
            let _ = writeln!(text, "client_ca_file = {client_ca:?}");
        }
    }
    let _ = write!(
        text,
        "\n[[mirror]]\nname = {mirror:?}\nmode = {:?}\ninitial_sync = {:?}\npeer_loss = {:?}\n",
        options.mode, options.initial_sync, options.peer_loss
    );
    if !options.encryption {
        text.push_str("encryption = \"off\"\n");
    }
    for line in &options.extra {
        let _ = writeln!(text, "{line}");
    }
    for node in nodes {
        let _ = write!(
            text,
            "\n[mirror.on.{}]\ndata = {:?}\nmetadata = {:?}\nreplication = {:?}\nnbd = {:?}\n",
            node.name, node.data, node.metadata, node.replication, node.nbd
        );
    }
    text
}
