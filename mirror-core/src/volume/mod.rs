//! The volume: one mirror on one node, as a pure state machine.

pub mod effect;
pub mod event;
pub mod notice;
pub mod refusal;
