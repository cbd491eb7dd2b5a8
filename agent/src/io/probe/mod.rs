//! Tries what is to be watched: the targets of resolvers, and what monitors look at. One try a call, within
//! the configured time; what follows from the outcome is decided elsewhere.

mod disk;
mod http;
mod mirror;
mod monitor;
mod ping;
mod resolver;
mod stall;

pub use monitor::MonitorProbe;
pub use resolver::ResolverProbe;
