//! What a unit of disk holds, boiled down to a number.
//!
//! A unit is one logical block (512 or 4096 bytes): the smallest piece that a disk writes whole. Each
//! write of the simulated client fills its units with its own tag, so that a unit's bytes say which
//! write they come from. Tag 0 is all zeroes: never written, trimmed or zeroed.

use mirror_core::buffer::Buffer;

/// Which write a unit's bytes come from.
pub type Tag = u64;

/// Never written, trimmed or zeroed.
pub const ZEROES: Tag = 0;

/// The bytes of a run of units.
pub fn encode(unit_bytes: u32, tags: &[Tag]) -> Buffer {
    let unit = unit_bytes as usize;
    let mut bytes = vec![0; tags.len() * unit];
    for (unit, tag) in bytes.chunks_exact_mut(unit).zip(tags) {
        if *tag != ZEROES {
            for word in unit.chunks_exact_mut(8) {
                word.copy_from_slice(&tag.to_le_bytes());
            }
        }
    }
    Buffer::from(bytes)
}

/// The tags of a run of units. `None` where a unit is no whole write: bytes were mixed up.
pub fn decode(unit_bytes: u32, bytes: &[u8]) -> Option<Vec<Tag>> {
    let unit = unit_bytes as usize;
    if !bytes.len().is_multiple_of(unit) {
        return None;
    }
    bytes.chunks_exact(unit).map(decode_unit).collect()
}

fn decode_unit(unit: &[u8]) -> Option<Tag> {
    let (first, rest) = unit.split_first_chunk::<8>()?;
    let middle = &unit[unit.len() / 2..][..8];
    let whole = rest.ends_with(first) && middle == first;
    whole.then(|| u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_their_bytes() {
        for unit in [512, 4096] {
            let tags = [1, ZEROES, u64::MAX, 77];
            assert_eq!(decode(unit, &encode(unit, &tags)), Some(tags.to_vec()));
        }
    }

    #[test]
    fn a_sheared_unit_is_noticed() {
        let bytes = encode(512, &[1, 2]);
        assert_eq!(decode(512, &bytes[256..768]), None);
        assert_eq!(decode(512, &bytes[..700]), None);
    }
}
