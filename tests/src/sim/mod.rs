//! The simulator: two volumes of `mirror-core`, two disks each, a network, clients and an operator, in
//! virtual time and from one seed. What it checks and how is told in `docs/testing.md`.
//!
//! | file | owns |
//! |---|---|
//! | `settings` | what kind of world a seed makes |
//! | `world` | time, the queue of happenings, the life of a node |
//! | `build` | the two nodes before their first start |
//! | `effects` | what a volume asks of its disks and its driver |
//! | `requests` | what clients and operators ask of a volume |
//! | `traffic` | messages on their way, links made and cut |
//! | `node` | one node: its volume while it runs, its disks always |
//! | `disk`, `metadata_disk` | storage that loses, tears and fails |
//! | `network` | the link: order, delay, cuts |
//! | `content`, `oracle` | what units hold, and what clients may see |
//! | `durable` | what a node's metadata would say after a crash now |
//! | `checker` | the rules, judged after every step |
//! | `client`, `operator`, `faults` | who acts upon the world |
//! | `arbiter` | epochs and leases, the agents that ask for them, pauses |
//! | `mutation` | deliberate bugs that the checkers must catch |
//! | `scene` | what tests bring about by hand |
//! | `run` | a whole world from its seed to its verdict |

pub mod ahead;
pub mod arbiter;
mod build;
pub mod checker;
pub mod client;
pub mod content;
pub mod disk;
pub mod durable;
mod effects;
pub mod faults;
pub mod metadata_disk;
pub mod mutation;
pub mod network;
pub mod node;
pub mod operator;
pub mod oracle;
mod requests;
pub mod run;
pub mod scene;
pub mod settings;
mod traffic;
pub mod world;
