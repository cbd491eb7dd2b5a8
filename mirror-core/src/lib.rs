//! The replication engine of the mirror: decisions, formats and protocol as pure code, and in `io`
//! the drivers that carry the decisions out. Read `ARCHITECTURE.md` first.

pub mod buffer;
pub mod control;
pub mod dirty;
pub mod generation;
#[cfg(feature = "io")]
pub mod io;
pub mod layout;
pub mod link;
pub mod request;
pub mod resync;
pub mod units;
pub mod volume;
pub mod wire;
