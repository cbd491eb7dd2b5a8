//! Why a mirror cannot be opened on this node: each with the thing it is about and the next step.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::io::probe::ProbeError;
use crate::layout::metadata::LoadFault;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Ring(#[from] ProbeError),
    #[error("{path} does not exist; create it or correct the path in the configuration")]
    NotFound { path: PathBuf },
    #[error("{path} is neither a block device nor a regular file; name one of these")]
    NotAStore { path: PathBuf },
    #[error("{path} is in use: {user}")]
    Mounted { path: PathBuf, user: String },
    #[error(
        "{path} is claimed by {}; stop that first",
        .holder.as_deref().unwrap_or("another process (see `lsof` or `fuser -v`)")
    )]
    InUse {
        path: PathBuf,
        holder: Option<String>,
    },
    #[error("cannot {action} {path}")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    #[error(
        "{path} has {actual_bytes} bytes and needs at least {needed_bytes}; enlarge it or restore \
         the right one"
    )]
    TooSmall {
        path: PathBuf,
        actual_bytes: u64,
        needed_bytes: u64,
    },
    #[error(
        "{path} has logical blocks of {logical_block_bytes} bytes; at most 4096 are supported, so \
         put another device under the mirror"
    )]
    BlockTooLarge {
        path: PathBuf,
        logical_block_bytes: u32,
    },
    #[error(
        "{path} is named both as data and as metadata; give each its own, or set metadata = \
         \"internal\""
    )]
    SameStore { path: PathBuf },
    #[error("the metadata on {path} cannot be used; look at it with `mirror-inspect {path}`")]
    Metadata {
        path: PathBuf,
        source: Box<LoadFault>,
    },
    #[error(
        "the metadata on {path} may be read and not written: it has read-only features {features:#x} \
         that this version does not know; use the version that wrote it, or look at it with \
         `mirror-inspect {path}`"
    )]
    ReadOnly { path: PathBuf, features: u64 },
    #[error("{path} has no internal metadata; write it with `mirrorctl init`")]
    NoMetadata { path: PathBuf },
    #[error(
        "the metadata on {path} belongs to another {what} than {mirror} on node {node}; correct \
         the path, or run `mirrorctl init --force` to give up what it says"
    )]
    Foreign {
        path: PathBuf,
        what: &'static str,
        mirror: String,
        node: String,
    },
    #[error("the mirror's thread ended before it was open")]
    ThreadEnded,
    #[error(
        "cannot listen on {address} for the peer; check that `replication` is an address of this \
         node, that --node names this node, and that nothing else uses the port"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot prepare the encryption of the replication link")]
    Encryption(#[source] rustls::Error),
    #[error("cannot {action}")]
    System {
        action: &'static str,
        source: io::Error,
    },
}
