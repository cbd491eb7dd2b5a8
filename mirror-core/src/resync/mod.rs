//! What a resync needs besides the volume's state: hashes, pace and its measure.

pub mod hash;
pub mod meter;
pub mod pace;
