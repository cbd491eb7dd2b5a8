//! The drivers: clocks, sockets, processes, files. They carry out and decide nothing.

pub mod arbiter;
pub mod clock;
pub mod forced_stop;
pub mod witness;
