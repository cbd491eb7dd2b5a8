//! The high-availability agent: decides which node may mount the data, and carries that out.
//!
//! Heartbeats → [`membership`] → resolvers and arbiter → forced stop → [`group`] → resources. What is
//! decided, is decided in pure code: [`node::Node`] takes the time and one event and appends effects, as
//! a volume does. It knows no clock, socket, file or thread. [`io`] carries the effects out and decides
//! nothing. The agent never touches data: it speaks to `mirrord` through the control API alone, and the
//! mirror keeps its own rules whatever the agent does.

pub mod alert;
pub mod alert_log;
pub mod arbiter;
pub mod console;
pub mod control;
pub mod fencing;
pub mod group;
pub mod io;
pub mod membership;
pub mod monitor;
pub mod node;
