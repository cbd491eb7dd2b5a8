//! The cluster partition in memory: writes are durable when they complete, and what is in flight at a
//! crash lands, is lost, or is torn between two sectors, block by block.

use mirror_core::layout::geometry::{LOG_BLOCKS, METADATA_BLOCK_BYTES};
use mirror_core::units::IoToken;
use mirror_core::volume::event::DiskFault;

use crate::random::Random;
use crate::sim::disk::Crash;

const SECTOR_BYTES: usize = 512;

/// What part of the metadata a write goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    SuperblockA,
    SuperblockB,
    Log,
    Bitmap,
}

impl Region {
    pub fn of(offset: u64) -> Self {
        match offset / METADATA_BLOCK_BYTES {
            0 => Self::SuperblockA,
            block if block <= LOG_BLOCKS => Self::Log,
            block if block == LOG_BLOCKS + 1 => Self::SuperblockB,
            _ => Self::Bitmap,
        }
    }
}

#[derive(Debug)]
pub struct MetadataWrite {
    number: u64,
    io: IoToken,
    pub offset: u64,
    bytes: Vec<u8>,
    fault: bool,
}

/// What becomes of metadata writes in flight at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlightFate {
    Random,
    Lost,
    Torn,
    Landed,
}

#[derive(Debug)]
pub struct MetadataDisk {
    image: Vec<u8>,
    in_flight: Vec<MetadataWrite>,
    next_number: u64,
    /// Grows whenever the durable image changes.
    pub version: u64,
    /// Writes completed, for the tests that count.
    pub writes: u64,
    /// Completes writes without making them durable: a mutation. Holds what a crash loses.
    pub volatile: Option<Vec<(u64, Vec<u8>)>>,
}

impl MetadataDisk {
    pub fn new(image: Vec<u8>) -> Self {
        Self {
            image,
            in_flight: Vec::new(),
            next_number: 0,
            version: 1,
            writes: 0,
            volatile: None,
        }
    }

    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Takes a write in; the caller decides when it completes.
    pub fn submit(&mut self, io: IoToken, offset: u64, bytes: Vec<u8>, fault: bool) -> u64 {
        assert!(
            offset.is_multiple_of(METADATA_BLOCK_BYTES)
                && (bytes.len() as u64).is_multiple_of(METADATA_BLOCK_BYTES)
                && !bytes.is_empty(),
            "metadata is written in whole blocks, not {} bytes at {offset}",
            bytes.len()
        );
        let end = offset + bytes.len() as u64;
        assert!(
            end <= self.image.len() as u64,
            "a metadata write ends at {end}, past the area"
        );
        assert!(
            !self
                .in_flight
                .iter()
                .any(|other| other.offset < end && offset < other.offset + other.bytes.len() as u64),
            "two metadata writes in flight overlap at {offset}: their order would be chance"
        );
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight.push(MetadataWrite {
            number,
            io,
            offset,
            bytes,
            fault,
        });
        number
    }

    /// Completes a write; `None` if it died with its process.
    pub fn complete(&mut self, number: u64) -> Option<(IoToken, Result<(), DiskFault>)> {
        let at = self
            .in_flight
            .iter()
            .position(|write| write.number == number)?;
        let write = self.in_flight.remove(at);
        if write.fault {
            return Some((write.io, Err(DiskFault::Io)));
        }
        self.writes += 1;
        match &mut self.volatile {
            Some(volatile) => volatile.push((write.offset, write.bytes)),
            None => self.land(write.offset, &write.bytes),
        }
        Some((write.io, Ok(())))
    }

    fn land(&mut self, offset: u64, bytes: &[u8]) {
        self.image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        self.version += 1;
    }

    pub fn crash(&mut self, crash: Crash, fate: InFlightFate, random: &mut Random) {
        if let Some(volatile) = &mut self.volatile {
            let lost = std::mem::take(volatile);
            if crash == Crash::Kill {
                for (offset, bytes) in lost {
                    self.land(offset, &bytes);
                }
            }
        }
        for write in std::mem::take(&mut self.in_flight) {
            for (at, block) in write
                .bytes
                .chunks_exact(METADATA_BLOCK_BYTES as usize)
                .enumerate()
            {
                let offset = write.offset as usize + at * METADATA_BLOCK_BYTES as usize;
                let fate = match fate {
                    InFlightFate::Random => *random.pick(&[
                        InFlightFate::Lost,
                        InFlightFate::Torn,
                        InFlightFate::Landed,
                    ]),
                    fixed => fixed,
                };
                for (sector, bytes) in block.chunks_exact(SECTOR_BYTES).enumerate() {
                    let lands = match fate {
                        InFlightFate::Lost => false,
                        InFlightFate::Landed => true,
                        // The first sector of a torn block lands, the last does not.
                        _ => sector == 0 || (sector < 7 && random.coin()),
                    };
                    if lands {
                        self.land((offset + sector * SECTOR_BYTES) as u64, bytes);
                    }
                }
            }
        }
    }

    /// Damages stored bytes that nobody is writing.
    pub fn corrupt(&mut self, offset: u64) {
        self.image[offset as usize] ^= 0x55;
        self.version += 1;
    }

    pub fn in_flight(&self) -> impl Iterator<Item = &MetadataWrite> {
        self.in_flight.iter()
    }

    pub fn writes_to(&self, region: Region) -> bool {
        self.in_flight
            .iter()
            .any(|write| Region::of(write.offset) == region)
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}
