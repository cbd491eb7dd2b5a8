//! The drivers: the only place that does I/O, and the only one with `unsafe`.
//!
//! Nothing here decides. A driver turns completions into events, carries effects out, and moves
//! payload between sockets and disks in pooled memory without copying it.

mod boot;
pub mod buffers;
mod busy_poll;
pub mod claim;
pub mod disk;
mod driver;
pub mod error;
mod fault;
pub mod flusher;
pub mod init;
pub mod link;
pub mod local;
pub mod memory;
pub mod metadata_disk;
mod metrics;
pub mod mirror;
pub mod open;
pub mod outlet;
pub mod probe;
mod relocate;
pub mod ring;
pub mod signature;
pub mod store;
mod turns;
pub use driver::ExportState;
