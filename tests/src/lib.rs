//! Shared parts of the suites.

pub mod memory_export;
