//! Comparing blocks without sending them.

use crate::wire::message::HASH_BYTES;

/// Bytes that one hash of a verify stands for: what differs is named as exactly as it was written.
pub const VERIFY_BYTES: u32 = 4096;
/// Bytes that one hash of a resync or a recheck stands for. BLAKE3 goes through so many at more than twice the speed at
/// which it goes through 4 KiB, which are too few for its sixteen lanes; and what was in doubt hardly ever differs, so
/// that it costs little to send all of them for one block.
pub const COMPARE_BYTES: u32 = 16 << 10;

/// The hash of each `block_bytes` of `data`; the last piece may be short. BLAKE3 cut to 128 bits:
/// a collision would leave a difference in place, so a checksum is not enough.
pub fn block_hashes(data: &[u8], block_bytes: u32) -> Vec<[u8; HASH_BYTES]> {
    data.chunks(block_bytes as usize)
        .map(|block| {
            let mut cut = [0; HASH_BYTES];
            cut.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH_BYTES]);
            cut
        })
        .collect()
}

/// One bit for each block of `mine`, lowest first, set where the hashes differ. A missing hash of
/// `theirs` differs.
pub fn unequal_blocks(mine: &[[u8; HASH_BYTES]], theirs: &[[u8; HASH_BYTES]]) -> Vec<u64> {
    let mut unequal = vec![0; mine.len().div_ceil(64)];
    for (block, hash) in mine.iter().enumerate() {
        if theirs.get(block) != Some(hash) {
            unequal[block / 64] |= 1 << (block % 64);
        }
    }
    unequal
}

pub fn is_zero(data: &[u8]) -> bool {
    // Words first: most data differs from zero early.
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_blocks_are_named_and_equal_ones_are_not() {
        let mine = vec![1; 3 * 4096 + 512];
        let mut theirs = mine.clone();
        theirs[4096] = 2;
        theirs[3 * 4096 + 511] = 2;
        let unequal = unequal_blocks(&block_hashes(&mine, 4096), &block_hashes(&theirs, 4096));
        assert_eq!(unequal, [0b1010]);
        assert_eq!(unequal_blocks(&block_hashes(&mine, 4096), &[]), [0b1111]);
    }

    #[test]
    fn zero_is_seen_through_odd_lengths() {
        assert!(is_zero(&[0; 4097]));
        let mut data = [0; 4097];
        data[4096] = 1;
        assert!(!is_zero(&data));
    }
}
