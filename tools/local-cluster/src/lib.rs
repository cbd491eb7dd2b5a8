//! Two real servers and a witness, each a machine of its own made of namespaces: what the tests of whole clusters
//! and the benches share.
//!
//! A [`Bed`] owns its machines, networks and disks. When it is dropped, also by a panic, nothing of them is left;
//! when the whole program is killed, a process of its own cleans up after it. It speaks to a server as an operator
//! does, through `mirrorctl`, and cuts its power and its cables as nobody should. It needs root and `nbdfuse`.

mod bed;
mod disks;
mod files;
mod machine;
mod network;
mod power;
mod setup;

pub use bed::{Bed, Daemon};
pub use disks::{Disks, FAILING};
pub use files::Files;
pub use machine::{Machine, Process, tail};
pub use network::{Net, Network, ROUTER};
pub use setup::{GROUP, Guard, HEARTBEAT_TIMEOUT_MS, LEASE_MS, Setup};
