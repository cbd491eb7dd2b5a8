//! The replication protocol: typed messages and their bytes. See `docs/protocol.md`.

pub mod frame;
pub mod header;
pub mod lz4;
pub mod message;
