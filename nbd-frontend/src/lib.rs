//! What stands between clients and the engine on one node: the configuration, the NBD server, the
//! control API and the `mirrord` daemon that ties them together.

pub mod chain;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod kernel;
pub mod nbd;
#[cfg(feature = "daemon")]
pub mod seldom;
