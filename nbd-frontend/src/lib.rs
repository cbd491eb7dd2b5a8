//! What stands between clients and the engine on one node: the configuration, the NBD server, the
//! control API and the `mirrord` daemon that ties them together.

pub mod config;
pub mod control;
pub mod daemon;
pub mod nbd;
