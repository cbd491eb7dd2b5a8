//! Where everything lies in a metadata area, and what one dirty bit stands for.
//!
//! The area is: superblock copy A, the ring of the activity log, superblock copy B, the pages of the
//! dirty bitmap. The ring between the copies keeps one stray write from taking both. Only the number
//! of pages depends on the size of the data, so an area grows at its end and nothing moves.

use crate::layout::superblock::Superblock;
use crate::units::{BLOCK_BYTES_MIN, ByteRange, EXTENT_BYTES, ExtentIndex, REQUEST_BYTES_MAX};

/// Unit of every metadata read and write.
pub const METADATA_BLOCK_BYTES: u64 = 4096;
/// Blocks of the activity log's ring.
pub const LOG_BLOCKS: u64 = 64;
/// Slots of the activity log unless asked otherwise: 25 GiB of hot data.
pub const LOG_SLOTS_DEFAULT: u32 = 6433;
/// The contexts of the newest 60 transactions must cover every slot, so that a torn one may be lost.
pub const LOG_SLOTS_MAX: u32 = 48_000;
/// Bytes before the bits of a bitmap page.
pub const PAGE_HEADER_BYTES: usize = 128;
/// 64-bit words of bits in one bitmap page.
pub const WORDS_PER_PAGE: usize = 496;
/// Dirty bits in one bitmap page: 31 whole extents of 4 KiB blocks.
pub const BLOCKS_PER_PAGE: u64 = 31_744;
/// Bits at most: 64 MiB of them in memory.
pub const BLOCKS_MAX: u64 = 1 << 29;
/// Finest granularity: 4 KiB a bit.
pub const BLOCK_SHIFT_MIN: u8 = 12;
/// Coarsest granularity: 1 MiB a bit, which one request can copy.
pub const BLOCK_SHIFT_MAX: u8 = 20;
/// Largest mirror: 512 TiB.
pub const USABLE_BYTES_MAX: u64 = BLOCKS_MAX << BLOCK_SHIFT_MAX;

const SUPERBLOCK_A: u64 = 0;
const LOG: u64 = SUPERBLOCK_A + METADATA_BLOCK_BYTES;
const SUPERBLOCK_B: u64 = LOG + LOG_BLOCKS * METADATA_BLOCK_BYTES;
const BITMAP: u64 = SUPERBLOCK_B + METADATA_BLOCK_BYTES;

const _: () = {
    assert!(PAGE_HEADER_BYTES + WORDS_PER_PAGE * 8 == METADATA_BLOCK_BYTES as usize);
    assert!(BLOCKS_PER_PAGE == WORDS_PER_PAGE as u64 * 64);
    assert!(
        BLOCKS_PER_PAGE.is_multiple_of(EXTENT_BYTES >> BLOCK_SHIFT_MIN),
        "no extent straddles two pages"
    );
    assert!(1 << BLOCK_SHIFT_MIN == BLOCK_BYTES_MIN);
    assert!(1 << BLOCK_SHIFT_MAX == REQUEST_BYTES_MAX);
    assert!(
        USABLE_BYTES_MAX / EXTENT_BYTES < u32::MAX as u64,
        "every extent has an index, and one value is left for none"
    );
};

/// The places of one metadata area and the measures of its bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    usable_bytes: u64,
    block_shift: u8,
    log_slots: u32,
}

/// Why no geometry fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryFault {
    #[error(
        "{usable_bytes} usable bytes are too few: a mirror needs at least one block of 4096 bytes"
    )]
    TooSmall { usable_bytes: u64 },
    #[error("{usable_bytes} usable bytes are too many: a mirror holds at most {USABLE_BYTES_MAX}")]
    TooLarge { usable_bytes: u64 },
    #[error("{usable_bytes} usable bytes are no multiple of 512; round the size down")]
    Unaligned { usable_bytes: u64 },
    #[error(
        "{usable_bytes} usable bytes need more than {BLOCKS_MAX} dirty bits of {} bytes; \
         initialise the mirror anew for a coarser bitmap",
        1u64 << block_shift
    )]
    TooFine { usable_bytes: u64, block_shift: u8 },
    #[error("a dirty bit of 2^{block_shift} bytes is outside 2^12 to 2^22")]
    BlockShift { block_shift: u8 },
    #[error("{log_slots} activity-log slots are outside 1 to {LOG_SLOTS_MAX}")]
    LogSlots { log_slots: u32 },
}

impl Geometry {
    /// The geometry that a new mirror of that size gets: 4 KiB a bit, doubled until the bits fit.
    pub fn for_usable(usable_bytes: u64) -> Result<Self, GeometryFault> {
        let shift = (BLOCK_SHIFT_MIN..=BLOCK_SHIFT_MAX)
            .find(|shift| usable_bytes.div_ceil(1 << shift) <= BLOCKS_MAX)
            .ok_or(GeometryFault::TooLarge { usable_bytes })?;
        Self::new(usable_bytes, shift, LOG_SLOTS_DEFAULT)
    }

    /// The geometry that a superblock describes.
    pub fn of(superblock: &Superblock) -> Result<Self, GeometryFault> {
        Self::new(
            superblock.usable_bytes,
            superblock.block_shift,
            superblock.log_slots,
        )
    }

    pub fn new(usable_bytes: u64, block_shift: u8, log_slots: u32) -> Result<Self, GeometryFault> {
        if usable_bytes < BLOCK_BYTES_MIN {
            return Err(GeometryFault::TooSmall { usable_bytes });
        }
        if usable_bytes > USABLE_BYTES_MAX {
            return Err(GeometryFault::TooLarge { usable_bytes });
        }
        if !usable_bytes.is_multiple_of(512) {
            return Err(GeometryFault::Unaligned { usable_bytes });
        }
        if !(BLOCK_SHIFT_MIN..=BLOCK_SHIFT_MAX).contains(&block_shift) {
            return Err(GeometryFault::BlockShift { block_shift });
        }
        if !(1..=LOG_SLOTS_MAX).contains(&log_slots) {
            return Err(GeometryFault::LogSlots { log_slots });
        }
        if usable_bytes.div_ceil(1 << block_shift) > BLOCKS_MAX {
            return Err(GeometryFault::TooFine {
                usable_bytes,
                block_shift,
            });
        }
        Ok(Self {
            usable_bytes,
            block_shift,
            log_slots,
        })
    }

    /// The same mirror on a data partition of another size; bits keep their meaning.
    pub fn resized(self, usable_bytes: u64) -> Result<Self, GeometryFault> {
        Self::new(usable_bytes, self.block_shift, self.log_slots)
    }

    /// The most usable bytes that the same mirror can grow to within an area of that size.
    pub const fn usable_bytes_max(self, area_bytes: u64) -> u64 {
        let pages = area_bytes.saturating_sub(BITMAP) / METADATA_BLOCK_BYTES;
        let blocks = pages.saturating_mul(BLOCKS_PER_PAGE);
        (if blocks < BLOCKS_MAX {
            blocks
        } else {
            BLOCKS_MAX
        }) << self.block_shift
    }

    pub const fn usable_bytes(self) -> u64 {
        self.usable_bytes
    }

    pub const fn log_slots(self) -> u32 {
        self.log_slots
    }

    pub const fn block_shift(self) -> u8 {
        self.block_shift
    }

    /// Bytes that one dirty bit stands for.
    pub const fn block_bytes(self) -> u64 {
        1 << self.block_shift
    }

    /// Dirty bits in use; the last one may stand for a part of a block.
    pub const fn blocks(self) -> u64 {
        self.usable_bytes.div_ceil(1 << self.block_shift)
    }

    /// Extents of the data partition; the last one may be a part.
    pub const fn extents(self) -> u32 {
        self.usable_bytes.div_ceil(EXTENT_BYTES) as u32
    }

    /// Bitmap pages.
    pub const fn pages(self) -> u32 {
        self.blocks().div_ceil(BLOCKS_PER_PAGE) as u32
    }

    /// Words of a whole bitmap in memory, filled up to whole pages.
    pub const fn words(self) -> usize {
        self.pages() as usize * WORDS_PER_PAGE
    }

    /// The dirty bits that a byte range touches, as first and one past the last.
    pub const fn blocks_of(self, range: ByteRange) -> (u64, u64) {
        let first = range.offset >> self.block_shift;
        let end = range.end().div_ceil(1 << self.block_shift);
        (first, end)
    }

    /// The dirty bits of an extent, as first and one past the last.
    pub const fn blocks_of_extent(self, extent: ExtentIndex) -> (u64, u64) {
        let per_extent = EXTENT_BYTES >> self.block_shift;
        let first = extent.0 as u64 * per_extent;
        let end = first + per_extent;
        let blocks = self.blocks();
        (first, if end < blocks { end } else { blocks })
    }

    /// The page that holds a dirty bit.
    pub const fn page_of(self, block: u64) -> u32 {
        (block / BLOCKS_PER_PAGE) as u32
    }

    /// Copy A and copy B.
    pub const fn superblock_offsets(self) -> [u64; 2] {
        SUPERBLOCK_OFFSETS
    }

    pub const fn log_offset(self) -> u64 {
        LOG
    }

    /// Blocks of the activity log's ring.
    pub const fn log_blocks(self) -> u64 {
        LOG_BLOCKS
    }

    /// Where the log transaction of that number is written.
    pub const fn log_record_offset(self, number: u64) -> u64 {
        LOG + number % LOG_BLOCKS * METADATA_BLOCK_BYTES
    }

    /// A metadata block there is of the activity log.
    pub const fn is_in_log(self, offset: u64) -> bool {
        self.log_offset() <= offset && offset < self.bitmap_offset()
    }

    pub const fn bitmap_offset(self) -> u64 {
        BITMAP
    }

    pub const fn page_offset(self, page: u32) -> u64 {
        BITMAP + page as u64 * METADATA_BLOCK_BYTES
    }

    /// Bytes of the whole metadata area.
    pub const fn area_bytes(self) -> u64 {
        self.page_offset(self.pages())
    }
}

/// Copy A and copy B of every area, known before any superblock was read.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [SUPERBLOCK_A, SUPERBLOCK_B];

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    fn check(usable_bytes: u64, block_shift: u8, blocks: u64, pages: u32) {
        let geometry = Geometry::for_usable(usable_bytes).expect("a size in range");
        assert_eq!(geometry.block_shift(), block_shift);
        assert_eq!(geometry.blocks(), blocks);
        assert_eq!(geometry.pages(), pages);
        assert_eq!(
            geometry.area_bytes(),
            (66 + u64::from(pages)) * METADATA_BLOCK_BYTES
        );
    }

    #[test]
    fn bits_stay_fine_up_to_two_tebibytes_and_coarsen_above() {
        check(4096, 12, 1, 1);
        check(4096 + 512, 12, 2, 1);
        check(31 * EXTENT_BYTES, 12, BLOCKS_PER_PAGE, 1);
        check(31 * EXTENT_BYTES + 512, 12, BLOCKS_PER_PAGE + 1, 2);
        check(2 * TIB, 12, 1 << 29, 16_913);
        check(2 * TIB + 512, 13, (1 << 28) + 1, 8_457);
        check(16 * TIB, 15, 1 << 29, 16_913);
        check(USABLE_BYTES_MAX, 20, 1 << 29, 16_913);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        let fault = |usable| Geometry::for_usable(usable).expect_err("out of range");
        assert_eq!(fault(0), GeometryFault::TooSmall { usable_bytes: 0 });
        assert!(matches!(fault(4097), GeometryFault::Unaligned { .. }));
        assert!(matches!(
            fault(USABLE_BYTES_MAX + 512),
            GeometryFault::TooLarge { .. }
        ));
        let fine = Geometry::for_usable(TIB).expect("in range");
        assert!(matches!(
            fine.resized(3 * TIB),
            Err(GeometryFault::TooFine { .. })
        ));
    }

    #[test]
    fn a_mirror_grows_as_far_as_its_area_and_its_granularity_allow() {
        for usable in [TIB, 2 * TIB, 16 * TIB] {
            let geometry = Geometry::for_usable(usable).expect("in range");
            for area_bytes in [geometry.area_bytes(), 2 * geometry.area_bytes(), u64::MAX] {
                let max = geometry.usable_bytes_max(area_bytes);
                assert!(max >= usable);
                let grown = geometry.resized(max).expect("what was promised");
                assert!(grown.area_bytes() <= area_bytes);
            }
        }
        let geometry = Geometry::for_usable(TIB).expect("in range");
        assert_eq!(geometry.usable_bytes_max(u64::MAX), 2 * TIB);
        assert_eq!(geometry.usable_bytes_max(0), 0);
    }

    #[test]
    fn places_do_not_overlap() {
        let geometry = Geometry::for_usable(TIB).expect("in range");
        assert_eq!(geometry.superblock_offsets(), [0, 65 * 4096]);
        assert_eq!(geometry.log_record_offset(0), 4096);
        assert_eq!(geometry.log_record_offset(63), 64 * 4096);
        assert_eq!(geometry.log_record_offset(64), 4096);
        assert_eq!(geometry.page_offset(0), 66 * 4096);
    }

    #[test]
    fn an_extent_has_its_bits_in_one_page() {
        for usable in [TIB, 5 * TIB, USABLE_BYTES_MAX] {
            let geometry = Geometry::for_usable(usable).expect("in range");
            for extent in [0, 30, 31, 1000, geometry.extents() - 1] {
                let (first, end) = geometry.blocks_of_extent(ExtentIndex(extent));
                assert!(first < end && end <= geometry.blocks());
                assert_eq!(geometry.page_of(first), geometry.page_of(end - 1));
            }
        }
    }
}
