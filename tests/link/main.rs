//! The replication link over real sockets, and two real mirrors on one machine: what trusted peers
//! say to each other arrives, and what anyone else says is refused with its reason.

mod between;
mod faults;
mod mirrors;
mod older;
mod party;
mod transport;
