//! Shared parts of the suites.

pub mod memory_export;
pub mod random;
pub mod sim;
