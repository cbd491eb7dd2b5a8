//! What a node's metadata would say if it were opened at this very moment.
//!
//! The checkers judge coverage (D1) and order (D5, D13) by this view alone: what a volume holds in
//! memory does not survive, so it does not count.

use mirror_core::layout::log_record::Trust;
use mirror_core::layout::metadata::{self, Loaded};
use mirror_core::layout::superblock::Superblock;
use mirror_core::units::EXTENT_BYTES;

#[derive(Debug)]
pub struct DurableView {
    pub superblock: Superblock,
    words: Vec<u64>,
    /// By extent: a start would turn it into dirty bits.
    hot: Vec<bool>,
    /// The log cannot be believed: everything counts as dirty.
    all: bool,
}

/// Reads an image as the daemon does at its start.
pub fn load(image: &[u8]) -> Result<Loaded, metadata::LoadFault> {
    metadata::parse(image.len() as u64, |offset, buffer| {
        let start = offset as usize;
        match image.get(start..start + buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    })
}

impl DurableView {
    /// `None` if both superblocks are bad, which the faults never bring about.
    pub fn of(image: &[u8]) -> Option<Self> {
        let loaded = load(image).ok()?;
        let mut hot = vec![false; loaded.geometry.extents() as usize];
        let active = loaded.superblock.flags.log_active;
        if active {
            for extent in loaded.log.slots.iter().flatten() {
                hot[extent.0 as usize] = true;
            }
        }
        Some(Self {
            all: active && loaded.log.trust == Trust::Doubtful,
            superblock: loaded.superblock,
            words: loaded.words,
            hot,
        })
    }

    /// The byte would be dirty or in doubt after a start.
    pub fn covers(&self, offset: u64) -> bool {
        self.all
            || self.has_bit(offset)
            || self
                .hot
                .get((offset / EXTENT_BYTES) as usize)
                .is_some_and(|hot| *hot)
    }

    pub fn has_bit(&self, offset: u64) -> bool {
        let block = offset >> self.superblock.block_shift;
        self.words
            .get((block / 64) as usize)
            .is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    pub fn hot_extents(&self) -> usize {
        self.hot.iter().filter(|hot| **hot).count()
    }

    /// Data that no handshake may take for whole and current.
    pub fn is_stale(&self) -> bool {
        let flags = &self.superblock.flags;
        flags.inconsistent || flags.outdated || flags.failed || flags.doubtful
    }
}
