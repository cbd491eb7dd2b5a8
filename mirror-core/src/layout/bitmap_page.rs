//! One page of the dirty bitmap: 496 words of bits behind a header that names the page.
//!
//! A page is written whole. A crash may tear it; then its checksum fails and every block it speaks of
//! counts as dirty (rule D9), which is always safe.

use crate::layout::field::{put, u32_at};
use crate::layout::geometry::{METADATA_BLOCK_BYTES, PAGE_HEADER_BYTES, WORDS_PER_PAGE};

pub const PAGE_MAGIC: [u8; 8] = *b"MIRRORBM";
const INDEX: usize = 8;
const CHECKSUM: usize = PAGE_HEADER_BYTES - 4;
const BLOCK: usize = METADATA_BLOCK_BYTES as usize;

/// Why a page cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    #[error("no bitmap page is written there")]
    NotFound,
    #[error("the checksum of the bitmap page does not match")]
    Checksum,
    #[error("bitmap page {found} lies where page {expected} belongs")]
    Misplaced { expected: u32, found: u32 },
}

/// The block of page `index`. `words` holds exactly [`WORDS_PER_PAGE`].
pub fn encode(index: u32, words: &[u64]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    encode_into(index, words, &mut block);
    block
}

/// Like [`encode`], into a zeroed block.
pub fn encode_into(index: u32, words: &[u64], block: &mut [u8]) {
    assert_eq!(words.len(), WORDS_PER_PAGE, "a page is written whole");
    assert_eq!(block.len(), BLOCK, "a page fills one block");
    put(block, 0, &PAGE_MAGIC);
    put(block, INDEX, &index.to_le_bytes());
    for (bytes, word) in block[PAGE_HEADER_BYTES..].chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let checksum = checksum(block);
    put(block, CHECKSUM, &checksum.to_le_bytes());
}

/// Reads page `index` from its block into `words`, which is left alone if the page is bad.
pub fn decode(index: u32, block: &[u8], words: &mut [u64]) -> Result<(), PageFault> {
    assert_eq!(words.len(), WORDS_PER_PAGE, "a page is read whole");
    if block.len() != BLOCK || block[..PAGE_MAGIC.len()] != PAGE_MAGIC {
        return Err(PageFault::NotFound);
    }
    if u32_at(block, CHECKSUM) != checksum(block) {
        return Err(PageFault::Checksum);
    }
    let found = u32_at(block, INDEX);
    if found != index {
        return Err(PageFault::Misplaced {
            expected: index,
            found,
        });
    }
    for (word, bytes) in words
        .iter_mut()
        .zip(block[PAGE_HEADER_BYTES..].as_chunks::<8>().0)
    {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(())
}

/// Over everything but the checksum itself.
fn checksum(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CHECKSUM]);
    hasher.update(&block[PAGE_HEADER_BYTES..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> (Vec<u64>, Vec<u8>) {
        let words: Vec<u64> = (0..WORDS_PER_PAGE as u64)
            .map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        let block = encode(7, &words);
        (words, block)
    }

    #[test]
    fn a_page_round_trips() {
        let (words, block) = page();
        let mut read = vec![0; WORDS_PER_PAGE];
        assert_eq!(decode(7, &block, &mut read), Ok(()));
        assert_eq!(read, words);
    }

    #[test]
    fn any_changed_byte_is_noticed_and_leaves_the_words_alone() {
        let (_, block) = page();
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 0x10;
            let mut read = vec![5; WORDS_PER_PAGE];
            assert!(decode(7, &bad, &mut read).is_err(), "byte {at}");
            assert!(read.iter().all(|word| *word == 5));
        }
    }

    #[test]
    fn a_page_in_the_wrong_place_is_bad() {
        let (_, block) = page();
        let mut read = vec![0; WORDS_PER_PAGE];
        assert_eq!(
            decode(8, &block, &mut read),
            Err(PageFault::Misplaced {
                expected: 8,
                found: 7
            })
        );
        assert_eq!(decode(0, &[], &mut read), Err(PageFault::NotFound));
    }
}
