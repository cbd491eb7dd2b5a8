//! A disk with a cache that forgets: what was written and not flushed is lost with the power, in part and out of
//! order, as a real disk may lose it.
//!
//! Clients see all that was written. Only a flush, or a write that asks for it, makes it durable. At a power cut
//! each sector written since the last flush has one of three fates, drawn from a seed: all of the writes on it
//! reached the medium, none did, or those up to some point did. So writes are torn at sectors, and later ones may
//! be there where earlier ones are not.
//!
//! A sector itself is never torn: disks promise that, and so does everything that stands on them.

use std::collections::BTreeMap;

use local_machines::Loss;
use mirror_tests::random::Random;

pub const SECTOR: usize = 512;

#[derive(Debug)]
pub struct VolatileDisk {
    /// What a client reads.
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last flush, in the order in which they came.
    unflushed: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    offset: usize,
    length: usize,
    /// Nothing for zeroes.
    data: Option<Vec<u8>>,
}

impl Change {
    fn apply(&self, medium: &mut [u8]) {
        let target = &mut medium[self.offset..self.offset + self.length];
        match &self.data {
            Some(data) => target.copy_from_slice(data),
            None => target.fill(0),
        }
    }

    fn sector(&self, index: usize) -> Option<&[u8]> {
        let start = index * SECTOR - self.offset;
        self.data.as_ref().map(|data| &data[start..start + SECTOR])
    }
}

impl VolatileDisk {
    pub fn new(size_bytes: usize) -> Self {
        assert!(size_bytes.is_multiple_of(SECTOR));
        Self {
            // Both take memory only where they are written.
            seen: vec![0; size_bytes],
            durable: vec![0; size_bytes],
            unflushed: Vec::new(),
        }
    }

    pub fn size_bytes(&self) -> usize {
        self.seen.len()
    }

    pub fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.seen[offset..offset + into.len()]);
    }

    pub fn write(&mut self, offset: usize, data: &[u8], durably: bool) {
        self.change(offset, data.len(), Some(data.to_vec()), durably);
    }

    pub fn zero(&mut self, offset: usize, length: usize, durably: bool) {
        self.change(offset, length, None, durably);
    }

    fn change(&mut self, offset: usize, length: usize, data: Option<Vec<u8>>, durably: bool) {
        assert!(offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR));
        let change = Change {
            offset,
            length,
            data,
        };
        change.apply(&mut self.seen);
        self.unflushed.push(change);
        if durably {
            self.make_durable(offset, length);
        }
    }

    /// A write with FUA says of itself alone that it is durable; older data of the same sectors cannot come back.
    fn make_durable(&mut self, offset: usize, length: usize) {
        let range = offset..offset + length;
        self.durable[range.clone()].copy_from_slice(&self.seen[range.clone()]);
        let mut kept = Vec::with_capacity(self.unflushed.len());
        for change in self.unflushed.drain(..) {
            let end = change.offset + change.length;
            // What lies before and behind the range is still at risk.
            for (from, to) in [
                (change.offset, end.min(range.start)),
                (change.offset.max(range.end), end),
            ] {
                if from < to {
                    let part = from - change.offset..to - change.offset;
                    kept.push(Change {
                        offset: from,
                        length: to - from,
                        data: change.data.as_ref().map(|data| data[part].to_vec()),
                    });
                }
            }
        }
        self.unflushed = kept;
    }

    pub fn flush(&mut self) {
        for change in self.unflushed.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Something was written since the last flush.
    pub fn is_at_risk(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// The power goes, and what is on the medium is all there is.
    pub fn cut_power(&mut self, seed: u64) -> Loss {
        let mut random = Random::new(seed);
        let mut sectors: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, change) in self.unflushed.iter().enumerate() {
            let first = change.offset / SECTOR;
            for sector in first..first + change.length / SECTOR {
                sectors.entry(sector).or_default().push(number);
            }
        }
        let mut loss = Loss {
            sectors_at_risk: sectors.len(),
            sectors_lost: 0,
        };
        // A cut of one kind in a row: a cache loses runs, not only single sectors.
        let mut run = 0;
        let mut fate = 0;
        for (sector, changes) in &sectors {
            if run == 0 {
                run = random.skewed(1, 64);
                fate = random.below(3);
            }
            run -= 1;
            let survivors = match fate {
                0 => changes.len(),
                1 => 0,
                _ => random.below(changes.len() as u64 + 1) as usize,
            };
            let at = sector * SECTOR;
            if let Some(last) = changes[..survivors].last() {
                let target = &mut self.durable[at..at + SECTOR];
                match self.unflushed[*last].sector(*sector) {
                    Some(data) => target.copy_from_slice(data),
                    None => target.fill(0),
                }
            }
            let range = at..at + SECTOR;
            if self.durable[range.clone()] != self.seen[range.clone()] {
                loss.sectors_lost += 1;
                self.seen[range.clone()].copy_from_slice(&self.durable[range]);
            }
        }
        self.unflushed.clear();
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 64;

    fn read(disk: &VolatileDisk, sector: usize) -> u8 {
        let mut bytes = [0; SECTOR];
        disk.read(sector * SECTOR, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn sector");
        bytes[0]
    }

    fn write(disk: &mut VolatileDisk, sector: usize, value: u8, durably: bool) {
        disk.write(sector * SECTOR, &[value; SECTOR], durably);
    }

    #[test]
    fn what_was_flushed_survives_every_cut() {
        for seed in 0..100 {
            let mut disk = VolatileDisk::new(SECTORS * SECTOR);
            for sector in 0..SECTORS {
                write(&mut disk, sector, 1, false);
            }
            disk.flush();
            for sector in 0..SECTORS / 2 {
                write(&mut disk, sector, 2, false);
            }
            let loss = disk.cut_power(seed);
            assert_eq!(loss.sectors_at_risk, SECTORS / 2);
            let old = (0..SECTORS).filter(|sector| read(&disk, *sector) == 1);
            assert_eq!(old.count(), SECTORS / 2 + loss.sectors_lost);
        }
    }

    #[test]
    fn a_write_with_fua_survives_alone_and_is_not_overtaken_by_an_older_one() {
        for seed in 0..100 {
            let mut disk = VolatileDisk::new(SECTORS * SECTOR);
            disk.write(0, &[1; 4 * SECTOR], false);
            write(&mut disk, 1, 2, true);
            let loss = disk.cut_power(seed);
            assert_eq!(read(&disk, 1), 2);
            assert_eq!(loss.sectors_at_risk, 3);
        }
    }

    #[test]
    fn cuts_lose_tear_and_reorder() {
        let (mut all, mut none, mut reordered) = (false, false, false);
        for seed in 0..200 {
            let mut disk = VolatileDisk::new(SECTORS * SECTOR);
            for sector in 0..SECTORS {
                write(&mut disk, sector, 1, false);
            }
            let loss = disk.cut_power(seed);
            all |= loss.sectors_lost == 0;
            none |= loss.sectors_lost == SECTORS;
            reordered |= read(&disk, 0) == 0 && read(&disk, SECTORS - 1) == 1;
        }
        assert!(!none || !all || reordered);
        assert!(reordered, "a later write never survived an earlier one");
    }

    #[test]
    fn one_of_several_writes_to_a_sector_may_be_the_last_that_got_through() {
        let mut middle = false;
        for seed in 0..200 {
            let mut disk = VolatileDisk::new(SECTORS * SECTOR);
            for value in 1..=3 {
                write(&mut disk, 5, value, false);
            }
            disk.zero(6 * SECTOR, SECTOR, false);
            disk.cut_power(seed);
            middle |= read(&disk, 5) == 2;
        }
        assert!(middle);
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        let cut = |seed| {
            let mut disk = VolatileDisk::new(SECTORS * SECTOR);
            for sector in 0..SECTORS {
                write(&mut disk, sector, 1, false);
            }
            disk.cut_power(seed);
            (0..SECTORS)
                .map(|sector| read(&disk, sector))
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(3), cut(3));
    }
}
