//! The NBD server.
//!
//! In the order in which bytes go through it: [`listener`] accepts, [`handshake`] agrees,
//! [`session`] turns requests into pieces for an [`export::Export`] and answers into [`reply`]s.
//! Handshake and session are pure; listener and connection do the I/O and decide nothing. With
//! [`tls`], a TCP client has to begin TLS first; handshake and session are the same inside.
//! `docs/nbd.md` says what is supported, with every limit.

mod connection;
pub mod export;
pub mod handshake;
pub mod listener;
pub mod protocol;
pub mod rehearsal;
pub mod reply;
pub mod session;
mod stream;
pub mod tls;
mod tls_stream;
