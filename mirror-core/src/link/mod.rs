//! The replication link as pure code: who may speak, and what two nodes decide before data flows, and
//! what goes compressed.
//! Sockets and encryption are in `io::link`.

pub mod compression;
pub mod handshake;
pub mod preface;
