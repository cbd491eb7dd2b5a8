//! What a resync needs besides the volume's state: hashes and pace.

pub mod hash;
pub mod pace;
