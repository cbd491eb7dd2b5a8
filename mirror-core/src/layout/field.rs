//! Little-endian fields at fixed offsets of one metadata block.
//!
//! Offsets are constants of the format modules, so a field outside its block is a bug of ours and
//! panics; no length or offset that came from outside reaches this file.

use crate::units::Uuid;

pub(super) fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(block, offset))
}

pub(super) fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(block, offset))
}

pub(super) fn u64_at(block: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(block, offset))
}

pub(super) fn uuid_at(block: &[u8], offset: usize) -> Uuid {
    Uuid(array_at(block, offset))
}

pub(super) fn put(block: &mut [u8], offset: usize, bytes: &[u8]) {
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn array_at<const N: usize>(block: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&block[offset..offset + N]);
    array
}
