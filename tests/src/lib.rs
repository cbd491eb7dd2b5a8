//! Shared parts of the suites.

pub mod cluster;
pub mod memory_export;
pub mod random;
pub mod sim;
pub mod soak;
