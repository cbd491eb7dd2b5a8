//! Real kernels: whole machines with our programs in them, their power and their cables in the hand of the test.
//!
//! What is in the module `long` takes minutes and runs with `cargo xtask vm`; the rest is run by `ci`, too.

mod agents;
mod bed;
mod bed_itself;
mod crash_consistency;
mod kernel_attach;
mod load;
mod long;
mod memory;
mod power;
mod replay;
mod replayed_disk;
mod servers;
mod write_log;
