//! The replication link: two TCP connections to the peer, one for control and acknowledgements, one
//! for bulk data, so that an acknowledgement never waits behind bulk.
//!
//! Flow: `listen` or `connect` → `handshake` (TLS, preface, proof) → a [`Pair`] → [`connection`]
//! starts a reader (`reader`) and a writer (`writer`) on each of the two → messages.
//!
//! Nothing that has not proved that it has the cluster key reaches the frame parser.

pub mod connect;
pub mod connection;
pub mod error;
pub mod handshake;
pub mod listen;
mod outbox;
mod reader;
pub mod tls;
mod wanted;
mod writer;

pub use wanted::Wanted;

/// The two connections of a new link, both trusted.
#[derive(Debug)]
pub struct Pair {
    pub control: handshake::Trusted,
    pub data: handshake::Trusted,
}
