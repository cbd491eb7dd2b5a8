//! The replication link as pure code. Sockets and encryption are in `io::link`.

pub mod preface;
