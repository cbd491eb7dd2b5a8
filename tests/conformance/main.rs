//! The NBD server against clients that nobody here wrote, and against clients that misbehave.
//!
//! Each test starts a server of its own on memory, in a temporary directory, and stops it. A tool
//! that is missing fails the test and names the Debian package: a skipped check is not a passed one.

mod lifecycle;
mod misbehaving;
mod raw;
mod server;
mod standard_clients;
mod tls;
mod tools;
