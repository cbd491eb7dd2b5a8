//! Data in its compressed form: one LZ4 block a frame, without a frame of LZ4's own, since our header has both lengths.
//!
//! All memory is taken when a [`Packer`] is made. [`unpack`] takes bytes from outside: it writes no further than where
//! it was told to, and whatever does not come to exactly that length is refused.

use std::ops::Range;

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use crate::units::REQUEST_BYTES_MAX;

/// A block is kept if it is shorter than its data by this part of it.
const SAVING_PART: usize = 8;
/// Data of a batch of blocks: when it has this much, the mirror's other tasks have waited for long enough.
const BATCH_BYTES: usize = 256 << 10;
/// What is shorter takes the small table, which is the quicker one to empty.
const SMALL_BYTES: usize = u16::MAX as usize;

/// Makes blocks, and keeps those of one batch until they are sent.
pub struct Packer {
    small: CompressTable,
    large: CompressTable,
    blocks: Box<[u8]>,
    used: usize,
    /// Data that was looked at for this batch, whether or not a block came of it.
    batch_bytes: usize,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Self {
        // A batch that is not full takes data of any size once more.
        let room = BATCH_BYTES + get_maximum_output_size(REQUEST_BYTES_MAX as usize);
        Self {
            small: CompressTable::small(),
            large: CompressTable::large(),
            blocks: vec![0; room].into_boxed_slice(),
            used: 0,
            batch_bytes: 0,
        }
    }
}

impl Packer {
    /// Where the block for `data` lies in [`Self::blocks`]; none where it would not save enough. Panics if the batch
    /// is full already.
    pub fn pack(&mut self, data: &[u8]) -> Option<Range<usize>> {
        assert!(!self.is_full(), "a full batch is sent first");
        self.batch_bytes += data.len();
        let table = if data.len() < SMALL_BYTES {
            &mut self.small
        } else {
            &mut self.large
        };
        let room = &mut self.blocks[self.used..];
        let length = compress_into_with_table(data, room, table)
            .expect("a batch that is not full has room for the worst case of one frame");
        if length > data.len() - data.len() / SAVING_PART {
            return None;
        }
        let block = self.used..self.used + length;
        self.used = block.end;
        Some(block)
    }

    pub fn blocks(&self) -> &[u8] {
        &self.blocks
    }

    /// The batch is to be sent before anything more is packed.
    pub fn is_full(&self) -> bool {
        self.batch_bytes >= BATCH_BYTES
    }

    /// The batch is sent: its blocks are needed no more.
    pub fn clear(&mut self) {
        self.used = 0;
        self.batch_bytes = 0;
    }
}

/// Fills `data` from a block of exactly that; false where the block is not such a one.
pub fn unpack(block: &[u8], data: &mut [u8]) -> bool {
    decompress_into(block, data).is_ok_and(|length| length == data.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(packer: &mut Packer, data: &[u8]) -> Option<usize> {
        let block = packer.pack(data)?;
        let mut back = vec![0x5a; data.len()];
        assert!(unpack(&packer.blocks()[block.clone()], &mut back));
        assert_eq!(back, data);
        Some(block.len())
    }

    /// Data in which nothing is found to compress.
    pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        hash.finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn every_size_of_a_request_is_packed_and_comes_back() {
        let mut packer = Packer::default();
        for length in [
            1024,
            4096,
            65_534,
            65_535,
            65_536,
            REQUEST_BYTES_MAX as usize,
        ] {
            packer.clear();
            let zeroes = round_trip(&mut packer, &vec![0; length]).expect("zeroes shrink");
            assert!(zeroes < length / 16, "{zeroes} of {length}");
        }
    }

    #[test]
    fn a_block_that_saves_less_than_an_eighth_is_not_kept() {
        let mut packer = Packer::default();
        let mut data = noise(1, 4096);
        assert_eq!(round_trip(&mut packer, &data), None);
        data[..500].fill(0);
        assert_eq!(round_trip(&mut packer, &data), None);
        data[..600].fill(0);
        assert!(round_trip(&mut packer, &data).is_some());
    }

    #[test]
    fn a_batch_has_room_for_one_of_any_size_until_it_is_full() {
        let mut packer = Packer::default();
        let most = REQUEST_BYTES_MAX as usize;
        // Blocks that barely save enough take the most room.
        let barely = [noise(1, 3500), vec![0; 596]].concat();
        while packer.batch_bytes + barely.len() < BATCH_BYTES {
            assert!(packer.pack(&barely).is_some());
        }
        assert!(!packer.is_full());
        assert_eq!(packer.pack(&noise(2, most)), None);
        assert!(packer.is_full());
    }

    #[test]
    fn blocks_of_a_batch_stay_where_they_are() {
        let mut packer = Packer::default();
        let datas: Vec<Vec<u8>> = (0..16).map(|byte| vec![byte; 4096]).collect();
        let blocks: Vec<_> = datas.iter().map(|data| packer.pack(data)).collect();
        for (data, block) in datas.iter().zip(blocks) {
            let mut back = vec![0x5a; 4096];
            assert!(unpack(
                &packer.blocks()[block.expect("it shrinks")],
                &mut back
            ));
            assert_eq!(&back, data);
        }
    }

    #[test]
    fn a_block_of_another_length_is_refused() {
        let mut packer = Packer::default();
        let block = packer.pack(&[7; 4096]).expect("it shrinks");
        let block = &packer.blocks()[block];
        for (length, expected) in [(4095, false), (4096, true), (4097, false)] {
            assert_eq!(unpack(block, &mut vec![0; length]), expected, "{length}");
        }
        assert!(!unpack(&block[..block.len() - 1], &mut [0; 4096]));
        assert!(!unpack(&[], &mut [0; 4096]));
    }

    proptest! {
        #[test]
        fn any_data_comes_back(
            parts in prop::collection::vec((any::<u8>(), 1usize..3000, any::<bool>()), 1..12),
        ) {
            let mut packer = Packer::default();
            let data: Vec<u8> = parts
                .into_iter()
                .flat_map(|(byte, length, plain)| match plain {
                    true => vec![byte; length],
                    false => noise(length as u64, length),
                })
                .collect();
            round_trip(&mut packer, &data);
        }

        #[test]
        fn no_block_from_outside_panics_or_writes_past_its_place(
            block in prop::collection::vec(any::<u8>(), 0..400),
            length in 0usize..5000,
        ) {
            let mut memory = vec![0x5a; length + 64];
            unpack(&block, &mut memory[..length]);
            prop_assert!(memory[length..].iter().all(|byte| *byte == 0x5a));
        }
    }
}
