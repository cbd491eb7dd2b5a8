//! Whole clusters of real daemons, each server a machine of its own made of namespaces, with cuts, freezes
//! and power cuts. Every wait is for a state and has an end.

mod bed;
mod bed_itself;
mod cleaner;
mod files;
mod frozen;
mod killed;
mod machine;
mod network;
mod operated;
mod power;
mod published;
mod setup;
mod witnessed;
mod writers;

/// The interpreter that Debian's python3-libnbd belongs to.
const PYTHON: &str = "/usr/bin/python3";
