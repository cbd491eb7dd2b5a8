//! The replication link as pure code: who may speak, and what two nodes decide before data flows.
//! Sockets and encryption are in `io::link`.

pub mod handshake;
pub mod preface;
