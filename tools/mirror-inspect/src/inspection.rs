//! Everything there is to say of one metadata area.

use anyhow::Result;
use mirror_core::layout::geometry::{
    Geometry, LOG_BLOCKS, METADATA_BLOCK_BYTES, SUPERBLOCK_OFFSETS,
};
use mirror_core::layout::log_record::{LogFault, LogRecord, Trust};
use mirror_core::layout::metadata::{LoadFault, Loaded, dirty_blocks, parse};
use mirror_core::layout::superblock::{Superblock, SuperblockFault};

use crate::area::Area;

pub struct Inspection {
    pub area: Area,
    /// Copy A and copy B, each as it is.
    pub copies: [Result<Superblock, SuperblockFault>; 2],
    /// What a daemon would start from, or why it would refuse.
    pub loaded: Result<Loaded, LoadFault>,
    /// What is in the blocks of the log's ring.
    pub ring: Vec<Result<LogRecord, LogFault>>,
}

/// Dirty bits and what they stand for.
pub struct Dirty {
    pub blocks: u64,
    pub bytes: u64,
    /// Runs of dirty blocks.
    pub runs: u64,
    /// Byte offset of the first and one past the last dirty block.
    pub span: Option<(u64, u64)>,
}

impl Inspection {
    pub fn of(area: Area) -> Result<Self> {
        let copies = SUPERBLOCK_OFFSETS.map(|offset| area.superblock(offset));
        let loaded = parse(area.bytes(), |offset, buffer| area.read(offset, buffer));
        let mut block = vec![0; METADATA_BLOCK_BYTES as usize];
        let ring = (1..=LOG_BLOCKS)
            .map(|index| {
                area.read(index * METADATA_BLOCK_BYTES, &mut block)
                    .map_err(|_| LogFault::Invalid { field: "reading" })
                    .and_then(|()| LogRecord::decode(&block))
            })
            .collect();
        Ok(Self {
            area,
            copies,
            loaded,
            ring,
        })
    }

    /// What failed a check, a line each, worst first.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let loaded = match &self.loaded {
            Ok(loaded) => loaded,
            Err(fault) => {
                problems.push(fault.to_string());
                return problems;
            }
        };
        for (copy, read) in ["A", "B"].iter().zip(&self.copies) {
            if let Err(fault) = read {
                problems.push(format!(
                    "superblock copy {copy}: {fault}; the data counts as possibly old until the \
                     peer confirms it"
                ));
            }
        }
        if let Some(features) = loaded.superblock.read_only_features() {
            problems.push(format!(
                "read-only features {features:#x} are unknown to this version, which may not \
                 write this metadata"
            ));
        }
        if loaded.log.trust == Trust::Doubtful {
            problems.push(
                "a transaction of the activity log is lost: after an unclean stop every block \
                 counts as dirty"
                    .to_owned(),
            );
        }
        if !loaded.bad_pages.is_empty() {
            problems.push(format!(
                "{} bitmap pages are bad, and all their blocks count as dirty: {}",
                loaded.bad_pages.len(),
                ranges(&loaded.bad_pages)
            ));
        }
        problems
    }

    /// Extents that the activity log names.
    pub fn hot_extents(&self) -> Vec<u32> {
        let Ok(loaded) = &self.loaded else {
            return Vec::new();
        };
        let mut extents: Vec<_> = loaded
            .log
            .slots
            .iter()
            .flatten()
            .map(|extent| extent.0)
            .collect();
        extents.sort_unstable();
        extents
    }
}

impl Dirty {
    pub fn of(geometry: Geometry, words: &[u64]) -> Self {
        let mut dirty = Self {
            blocks: dirty_blocks(words),
            bytes: 0,
            runs: 0,
            span: None,
        };
        let mut before = 0;
        let mut first = None;
        let mut end = 0;
        for (index, word) in (0u64..).zip(words) {
            // A run begins at each set bit whose lower neighbour is clear.
            dirty.runs += u64::from((word & !(word << 1 | before)).count_ones());
            before = word >> 63;
            if *word != 0 {
                let base = index * 64;
                first = first.or(Some(base + u64::from(word.trailing_zeros())));
                end = base + 64 - u64::from(word.leading_zeros());
            }
        }
        let block = geometry.block_bytes();
        let usable = geometry.usable_bytes();
        dirty.bytes = dirty.blocks * block;
        if end == geometry.blocks() {
            // The last block may be a part.
            dirty.bytes -= end * block - usable;
        }
        dirty.span = first.map(|first| (first * block, (end * block).min(usable)));
        dirty
    }
}

/// Ascending numbers as `1-3, 7`, cut short after some.
pub fn ranges(numbers: &[u32]) -> String {
    const SHOWN: usize = 12;
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let mut shown: Vec<_> = runs
        .iter()
        .take(SHOWN)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    if runs.len() > SHOWN {
        shown.push(format!("and {} more", runs.len() - SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1-3, 7, 9-10");
        let odd: Vec<u32> = (0..40).map(|n| n * 2).collect();
        assert!(ranges(&odd).ends_with("22, and 28 more"));
    }

    #[test]
    fn dirty_bits_are_counted_in_runs_and_bytes() {
        let geometry = Geometry::for_usable(200 * 4096 + 512).expect("a size in range");
        let mut words = vec![0; geometry.words()];
        words[0] = 0b1011 | 1 << 63;
        words[1] = 1;
        words[3] = 1 << 8;
        let dirty = Dirty::of(geometry, &words);
        assert_eq!((dirty.blocks, dirty.runs), (6, 4));
        assert_eq!(dirty.bytes, 5 * 4096 + 512);
        assert_eq!(dirty.span, Some((0, 200 * 4096 + 512)));
    }
}
