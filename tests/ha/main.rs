//! Whole clusters of real daemons, each server a machine of its own made of namespaces, with cuts, freezes
//! and power cuts. Every wait is for a state and has an end.

mod alerts;
mod alone;
mod bed_itself;
mod founded;
mod frozen;
mod killed;
mod last_actions;
mod misconfigured;
mod monitored;
mod operated;
mod published;
mod recordings;
mod strangers;
mod witnessed;
mod writers;
