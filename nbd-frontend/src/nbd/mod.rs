//! The NBD server.
//!
//! In the order in which bytes go through it: [`listener`] accepts, [`handshake`] agrees,
//! [`session`] turns requests into pieces for an [`export::Export`] and answers into [`reply`]s.
//! Handshake and session are pure; listener and connection do the I/O and decide nothing. With
//! [`tls`], a TCP client has to begin TLS first; handshake and session are the same inside.
//! `docs/nbd.md` says what is supported, with every limit.

#[cfg(feature = "daemon")]
mod connection;
#[cfg(feature = "daemon")]
pub mod export;
pub mod handshake;
mod info;
#[cfg(feature = "daemon")]
pub mod listener;
pub mod protocol;
pub mod rehearsal;
pub mod reply;
pub mod session;
#[cfg(feature = "daemon")]
mod stream;
#[cfg(feature = "daemon")]
pub mod tls;
#[cfg(feature = "daemon")]
mod tls_stream;
