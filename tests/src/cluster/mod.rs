//! Whole clusters in virtual time: two agents' `Node`s, a mirror between them, a witness, resolver
//! targets and a forced stop, under every fault that people have met. One seed replays one cluster.
//!
//! | file | what it is |
//! |---|---|
//! | `settings` | the kinds of cluster, and their configuration |
//! | `data` | which numbered writes a disk holds |
//! | `mirror` | a model of one side of a mirror, and the gate before its answers |
//! | `handshake` | what two sides of the model agree on when they meet |
//! | `network` | who reaches whom |
//! | `witness` | the real registry behind a file that may be lost |
//! | `machine` | one host: clock, processes, what really runs |
//! | `faults` | what goes wrong, drawn from the seed |
//! | `checker` | what must never be, looked at from above |
//! | `world` | one step of time; the agents' drivers |
//! | `run` | a seed from beginning to verdict |
//!
//! The real agent decides; everything else here only does what it is told, late, twice or not at all.

pub mod checker;
pub mod data;
pub mod faults;
pub mod handshake;
pub mod machine;
pub mod mirror;
pub mod network;
pub mod run;
pub mod settings;
pub mod witness;
pub mod world;
