//! What an NBD client sends, from the greeting or from the first request on.
//!
//! The first byte chooses the mirror, where the connection stands, and how its answers come.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_frontend::nbd::rehearsal::fuzz_bytes;

fuzz_target!(|bytes: &[u8]| fuzz_bytes(bytes));
