//! Whole clusters of real daemons, each server a machine of its own made of namespaces, with cuts, freezes
//! and power cuts. Every wait is for a state and has an end.

mod bed_itself;
mod frozen;
mod killed;
mod operated;
mod published;
mod witnessed;
mod writers;
