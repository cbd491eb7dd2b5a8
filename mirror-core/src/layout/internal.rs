//! Where metadata lies when it is kept at the end of the data partition itself.
//!
//! The area must be found again after the device grew, when its end is no longer the end of the
//! device. So it starts at a multiple of a grid that depends only on the power of two below the
//! device's size: few enough places to look at one by one, at the price of at most a 1024th of the
//! device left unused behind the area.

use crate::layout::geometry::{Geometry, GeometryFault, USABLE_BYTES_MAX};
use crate::layout::superblock::Superblock;

/// Finest grid.
const GRID_BYTES_MIN: u64 = 1 << 20;
/// Grid places in a device whose size is a power of two.
const GRID_STEPS: u64 = 2048;
/// Places that [`candidates`] names at most.
pub const CANDIDATES_MAX: usize = 60_000;

/// Where data ends and metadata begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Bytes left for data; also the offset of the metadata area on the device.
    pub usable_bytes: u64,
    pub geometry: Geometry,
}

impl Placement {
    pub const fn area_offset(self) -> u64 {
        self.usable_bytes
    }
}

/// Why metadata does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlacementFault {
    #[error(
        "{device_bytes} bytes are too few for data with internal metadata: at least 2 MiB are needed"
    )]
    TooSmall { device_bytes: u64 },
    #[error(transparent)]
    Geometry(#[from] GeometryFault),
}

/// Where internal metadata goes on a device of that size.
pub fn placement(device_bytes: u64) -> Result<Placement, PlacementFault> {
    let too_small = PlacementFault::TooSmall { device_bytes };
    if device_bytes < 2 * GRID_BYTES_MIN {
        return Err(too_small);
    }
    let grid = grid_bytes(device_bytes);
    let mut area_offset = device_bytes / grid * grid;
    // A smaller area may need a larger bitmap where the granularity changes, hence the loop; it ends
    // after a few rounds because an area is never larger than 67 MiB.
    loop {
        area_offset = area_offset.checked_sub(grid).ok_or(too_small)?;
        if area_offset == 0 {
            return Err(too_small);
        }
        let geometry = Geometry::for_usable(area_offset)?;
        if area_offset + geometry.area_bytes() <= device_bytes {
            return Ok(Placement {
                usable_bytes: area_offset,
                geometry,
            });
        }
    }
}

/// Every offset at which the metadata area of this device, or of a smaller one that grew into it, may
/// begin; highest first.
pub fn candidates(device_bytes: u64) -> impl Iterator<Item = u64> {
    // No area begins above the largest mirror.
    let device_bytes = device_bytes.min(2 * USABLE_BYTES_MAX);
    let top = device_bytes.checked_ilog2().unwrap_or(0);
    (GRID_BYTES_MIN.ilog2()..=top).rev().flat_map(move |power| {
        let grid = grid_bytes(1 << power);
        let end = (2u64 << power).min(device_bytes);
        let first = (1u64 << power) / grid;
        (first..end.div_ceil(grid))
            .rev()
            .map(move |step| step * grid)
    })
}

/// True if a superblock found at `area_offset` belongs there, and is not one that data happens to
/// contain: internal metadata begins exactly where the data it speaks of ends.
pub fn belongs(superblock: &Superblock, area_offset: u64) -> bool {
    superblock.usable_bytes == area_offset
}

fn grid_bytes(device_bytes: u64) -> u64 {
    let power = 1 << device_bytes.ilog2();
    GRID_BYTES_MIN.max(power / GRID_STEPS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;

    #[test]
    fn the_area_fits_behind_the_data() {
        for device in [
            2 * MIB,
            10 * MIB,
            1 << 30,
            TIB,
            2 * TIB,
            2 * TIB + 64 * MIB,
            16 * TIB,
        ] {
            let place = placement(device).expect("large enough");
            assert!(place.area_offset() + place.geometry.area_bytes() <= device);
            assert_eq!(place.geometry.usable_bytes(), place.usable_bytes);
            assert!(
                device - place.usable_bytes <= 80 * MIB + device / 512,
                "{device}"
            );
        }
    }

    #[test]
    fn a_device_without_room_is_refused() {
        assert!(matches!(
            placement(2 * MIB - 512),
            Err(PlacementFault::TooSmall { .. })
        ));
        assert!(matches!(placement(0), Err(PlacementFault::TooSmall { .. })));
        assert!(matches!(
            placement(u64::MAX),
            Err(PlacementFault::Geometry(GeometryFault::TooLarge { .. }))
        ));
        assert_eq!(candidates(0).count(), 0);
    }

    #[test]
    fn the_places_to_look_are_bounded_and_fall() {
        for device in [MIB, 3 * MIB, 1 << 30, TIB + 512, 1 << 51] {
            let all: Vec<_> = candidates(device).collect();
            assert!(all.len() <= CANDIDATES_MAX, "{}", all.len());
            assert!(all.is_sorted_by(|a, b| a > b));
            assert!(all.iter().all(|offset| *offset < device));
        }
    }

    proptest! {
        #[test]
        fn metadata_is_found_again_after_the_device_grew(
            power in 21u32..48, fraction in 0u64..1 << 20, growth in 0u64..1 << 42,
        ) {
            let device = ((1u64 << power) + ((1u64 << power) >> 20) * fraction) / 512 * 512;
            let place = placement(device).expect("large enough");
            prop_assert!(candidates(device).any(|offset| offset == place.area_offset()));
            prop_assert!(candidates(device + growth).any(|offset| offset == place.area_offset()));
        }

        #[test]
        fn no_size_panics(device in any::<u64>()) {
            let _ = placement(device);
            prop_assert!(candidates(device).count() <= CANDIDATES_MAX);
        }
    }
}
