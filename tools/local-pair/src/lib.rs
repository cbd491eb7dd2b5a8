//! Two real nodes on loopback in a temporary folder: what the demo, the end-to-end tests and the benches share.
//!
//! A [`Pair`] owns its folder and its processes. When it is dropped, also by a panic, the nodes are killed and the
//! folder is removed; when the whole program is killed, the kernel kills the nodes with it. It knows nothing of
//! file systems, and it speaks to a node only as an operator does, through `mirrorctl`. [`Writers`] are clients that know
//! afterwards which of their writes were answered.

mod addresses;
mod authority;
mod node;
mod options;
mod outcome;
mod pair;
mod programs;
mod tool;
mod wait;
mod writers;

pub use addresses::loopback_addresses;
pub use authority::Authority;
pub use node::Node;
pub use options::{NbdTlsFiles, PairOptions, Placement};
pub use outcome::Outcome;
pub use pair::{MIRROR, Pair, Side};
pub use programs::{PROGRAM_DIR_VARIABLE, Programs};
pub use tool::{run_failing_tool, run_tool};
pub use wait::{Deadline, interrupt, run_bounded};
pub use writers::{Answer, PYTHON, WhenLost, Writers, now_ns};
