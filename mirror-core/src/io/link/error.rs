//! Why a link could not be made, or ended.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::link::preface::PrefaceError;
use crate::wire::header::FrameFault;
use crate::wire::message::Channel;

/// What was being done on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Tls,
    Preface,
    Proof,
    SecondConnection,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Tls => "the TLS handshake",
            Self::Preface => "the first exchange",
            Self::Proof => "the proof of the cluster key",
            Self::SecondConnection => "opening the second connection",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot reach the peer at {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{stage} took longer than {} s", .limit.as_secs())]
    Timeout { stage: Stage, limit: Duration },
    #[error("the peer closed the connection during {stage}; its log says why")]
    ClosedDuring { stage: Stage },
    #[error("the connection broke during {stage}: {source}")]
    BrokeDuring { stage: Stage, source: io::Error },
    #[error(transparent)]
    Preface(#[from] PrefaceError),
    #[error(
        "the TLS handshake failed ({0}); check that both nodes run this version and have \
         `encryption` set alike"
    )]
    Tls(rustls::Error),
    #[error("the peer closed the link")]
    Closed,
    #[error("the link broke: {0}")]
    Broken(io::Error),
    #[error("the link's encryption broke: {0}")]
    Decryption(rustls::Error),
    #[error("{0}")]
    Frame(#[from] FrameFault),
    #[error("the peer sent a {kind} frame on the {channel:?} connection")]
    WrongChannel { kind: String, channel: Channel },
    #[error("more than {limit} messages wait for the peer, which does not read them")]
    Overflow { limit: usize },
}

impl LinkError {
    /// A peer that refuses closes at once, which may arrive as a reset.
    pub(super) fn broke(stage: Stage, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::ClosedDuring { stage }
            }
            _ => Self::BrokeDuring { stage, source },
        }
    }
}
