//! The drivers: clocks, sockets, processes, files. They carry out and decide nothing.

pub mod arbiter;
pub mod blocking;
pub mod clock;
pub mod command;
pub mod driver;
pub mod final_action;
pub mod forced_stop;
pub mod places;
pub mod probe;
pub mod resource;
pub mod witness;
