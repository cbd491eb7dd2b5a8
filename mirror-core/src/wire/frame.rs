//! The bytes of each message, and the way back.
//!
//! Bulk data is never copied: [`encode`] hands it on beside the head, and [`decode`] takes the buffer
//! that the payload was read into, or decompressed into. What comes back from [`decode`] is checked: ranges are not empty,
//! lie in one extent and inside the largest mirror, and counts match. Nothing later checks it again,
//! except against the mirror's actual size, which only the volume knows.

use crate::buffer::Buffer;
use crate::layout::geometry::{BLOCK_SHIFT_MAX, BLOCK_SHIFT_MIN, BLOCKS_MAX, USABLE_BYTES_MAX};
use crate::units::{ByteRange, EXTENT_BYTES, Epoch, FullSyncId, REQUEST_BYTES_MAX, Sequence};
use crate::wire::header::{
    ACKS_MAX, BITMAP_WORDS_MAX, DETACHED_EXTENTS_MAX, DOUBT_EXTENTS_MAX, Fields, FrameFault,
    HASHES_MAX, HEADER_BYTES, Header, Kind,
};
use crate::wire::lz4;
use crate::wire::message::{DiskState, Envelope, HASH_BYTES, Message, Role};

mod hello;

const BIT_0: u8 = 1;
const BIT_1: u8 = 2;

/// The head of a frame (header, then payload that is not data) and the data to send after it.
pub fn encode(envelope: &Envelope) -> (Vec<u8>, Option<Buffer>) {
    let mut head = Vec::with_capacity(HEADER_BYTES);
    let data = append(envelope, &mut head);
    (head, data)
}

/// As [`encode`], with the head at the end of `heads`.
pub fn append(envelope: &Envelope, heads: &mut Vec<u8>) -> Option<Buffer> {
    let (inline, data) = payload(&envelope.message);
    let header = header(envelope, data.as_deref().unwrap_or(&inline));
    let (min, max) = header.kind().payload_limits();
    assert!(
        (min..=max).contains(&header.payload_bytes),
        "{:?} with {} bytes of payload, outside {min} to {max}",
        header.kind(),
        header.payload_bytes
    );
    heads.extend_from_slice(&header.encode());
    heads.extend_from_slice(&inline);
    data
}

/// The header of a frame whose data follows as an LZ4 block of `block_bytes`. Panics for a message without data, and
/// for a block that saves nothing.
pub fn encode_compressed(envelope: &Envelope, block_bytes: usize) -> [u8; HEADER_BYTES] {
    let (_, data) = payload(&envelope.message);
    let data = data.expect("only data is compressed");
    assert!((1..data.len()).contains(&block_bytes), "a block is shorter");
    let header = Header {
        payload_bytes: block_bytes as u32,
        compressed: true,
        ..header(envelope, &data)
    };
    header.encode()
}

/// Fills `data`, of [`Header::content_bytes`], from the payload of a compressed frame.
pub fn decompress(header: &Header, payload: &[u8], data: &mut [u8]) -> Result<(), FrameFault> {
    check_length(header, payload, header.payload_bytes)?;
    match lz4::unpack(payload, data) {
        true => Ok(()),
        false => Err(FrameFault::Decompression {
            kind: header.kind(),
            length: header.fields.length,
        }),
    }
}

/// The message of a frame whose header passed and whose payload was read, and decompressed if need be.
pub fn decode(header: &Header, payload: Buffer) -> Result<Envelope, FrameFault> {
    let kind = header.kind();
    check_length(header, &payload, header.content_bytes())?;
    if crc32fast::hash(&payload) != header.payload_checksum {
        return Err(FrameFault::PayloadChecksum { kind });
    }
    let message = Reader {
        fields: header.fields,
        payload,
    }
    .message()?;
    // Bits and fields without a meaning did not make it into the message; so they show here.
    if fields(&message) != header.fields {
        return Err(FrameFault::Invalid {
            kind,
            field: "use of fields",
        });
    }
    Ok(Envelope {
        epoch: header.epoch,
        message,
    })
}

fn check_length(header: &Header, payload: &[u8], length: u32) -> Result<(), FrameFault> {
    match payload.len() as u64 == u64::from(length) {
        true => Ok(()),
        false => Err(FrameFault::Invalid {
            kind: header.kind(),
            field: "payload length",
        }),
    }
}

fn header(envelope: &Envelope, content: &[u8]) -> Header {
    Header {
        epoch: envelope.epoch,
        payload_bytes: content.len() as u32,
        payload_checksum: crc32fast::hash(content),
        compressed: false,
        fields: fields(&envelope.message),
    }
}

/// The header fields of a message.
fn fields(message: &Message) -> Fields {
    let of = Fields::of;
    let ranged = |kind, sequence: Sequence, range: ByteRange| Fields {
        sequence: sequence.0,
        offset: range.offset,
        length: range.length,
        ..of(kind)
    };
    let numbered = |kind, sequence: Sequence| Fields {
        sequence: sequence.0,
        ..of(kind)
    };
    let valued = |kind, value| Fields {
        offset: value,
        ..of(kind)
    };
    let flagged = |kind, flag| Fields {
        flags: u8::from(flag),
        ..of(kind)
    };
    match message {
        Message::Hello(_) => of(Kind::Hello),
        Message::Verdict { rule, strategy } => Fields {
            extra: u32::from(*rule) | u32::from(*strategy) << 16,
            ..of(Kind::Verdict)
        },
        Message::BitmapChunk {
            sequence,
            first_block,
            block_shift,
            ..
        } => Fields {
            offset: *first_block,
            extra: u32::from(*block_shift),
            ..numbered(Kind::BitmapChunk, *sequence)
        },
        Message::DoubtChunk { sequence, .. } => numbered(Kind::DoubtChunk, *sequence),
        Message::BitmapEnd => of(Kind::BitmapEnd),
        Message::Write {
            sequence,
            depends_on,
            range,
            fua,
            ..
        } => Fields {
            depends_on: depends_on.0,
            flags: bits(*fua, false),
            ..ranged(Kind::Write, *sequence, *range)
        },
        Message::Trim {
            sequence,
            depends_on,
            range,
            fua,
        } => Fields {
            depends_on: depends_on.0,
            flags: bits(*fua, false),
            ..ranged(Kind::Trim, *sequence, *range)
        },
        Message::WriteZeroes {
            sequence,
            depends_on,
            range,
            fua,
            no_hole,
        } => Fields {
            depends_on: depends_on.0,
            flags: bits(*fua, *no_hole),
            ..ranged(Kind::WriteZeroes, *sequence, *range)
        },
        Message::Flush { sequence } => numbered(Kind::Flush, *sequence),
        Message::Ack { .. } => of(Kind::Ack),
        Message::Received { .. } => of(Kind::Received),
        Message::Refused { sequence } => numbered(Kind::Refused, *sequence),
        Message::ReadRequest { sequence, range } => ranged(Kind::ReadRequest, *sequence, *range),
        Message::ReadReply {
            sequence, range, ..
        } => ranged(Kind::ReadReply, *sequence, *range),
        Message::ReadFailed { sequence } => numbered(Kind::ReadFailed, *sequence),
        Message::ResyncStart {
            total_bytes,
            full_sync,
        } => Fields {
            sequence: full_sync.0,
            ..valued(Kind::ResyncStart, *total_bytes)
        },
        Message::ResyncReady => of(Kind::ResyncReady),
        Message::ResyncData {
            sequence, range, ..
        } => ranged(Kind::ResyncData, *sequence, *range),
        Message::ResyncZeroes {
            sequence,
            range,
            no_hole,
        } => Fields {
            flags: bits(false, *no_hole),
            ..ranged(Kind::ResyncZeroes, *sequence, *range)
        },
        Message::Compare {
            sequence,
            range,
            block_bytes,
            verify,
            ..
        } => Fields {
            flags: bits(*verify, false),
            extra: *block_bytes,
            ..ranged(Kind::Compare, *sequence, *range)
        },
        Message::CompareResult { sequence, .. } => numbered(Kind::CompareResult, *sequence),
        Message::ResyncDone { .. } => of(Kind::ResyncDone),
        Message::ResyncDoneAck => of(Kind::ResyncDoneAck),
        Message::ResyncPaused { paused } => flagged(Kind::ResyncPaused, *paused),
        Message::State { role, disk } => Fields {
            extra: u32::from(role_code(*role)) | u32::from(disk_code(*disk)) << 8,
            ..of(Kind::State)
        },
        Message::PromoteRequest { sequence, epoch } => Fields {
            offset: epoch.0,
            ..numbered(Kind::PromoteRequest, *sequence)
        },
        Message::PromoteReply { sequence, granted } => Fields {
            flags: bits(*granted, false),
            ..numbered(Kind::PromoteReply, *sequence)
        },
        Message::Detached { sequence, .. } => numbered(Kind::Detached, *sequence),
        Message::Goodbye { clean } => flagged(Kind::Goodbye, *clean),
        Message::Ping { stamp_ms } => valued(Kind::Ping, *stamp_ms),
        Message::Confirm { number } => valued(Kind::Confirm, *number),
        Message::Confirmed { number } => valued(Kind::Confirmed, *number),
        Message::Pong { stamp_ms } => valued(Kind::Pong, *stamp_ms),
        Message::ResizePropose { usable_bytes } => valued(Kind::ResizePropose, *usable_bytes),
        Message::ResizeOffer { usable_bytes } => valued(Kind::ResizeOffer, *usable_bytes),
        Message::ResizeCommit { size_bytes } => valued(Kind::ResizeCommit, *size_bytes),
        Message::ResizeCommitted { size_bytes } => valued(Kind::ResizeCommitted, *size_bytes),
    }
}

/// The payload of a message: bytes made here, or data passed through.
fn payload(message: &Message) -> (Vec<u8>, Option<Buffer>) {
    let inline = match message {
        Message::Write { data, .. }
        | Message::ReadReply { data, .. }
        | Message::ResyncData { data, .. } => return (Vec::new(), Some(data.clone())),
        Message::Hello(hello) => hello::encode(hello),
        Message::BitmapChunk { words, .. } => u64_bytes(words.iter().copied()),
        Message::CompareResult { unequal, .. } => u64_bytes(unequal.iter().copied()),
        Message::Ack { sequences } | Message::Received { sequences } => {
            u64_bytes(sequences.iter().map(|sequence| sequence.0))
        }
        Message::DoubtChunk { extents, .. } | Message::Detached { extents, .. } => extents
            .iter()
            .flat_map(|extent| extent.to_le_bytes())
            .collect(),
        Message::Compare { hashes, .. } => hashes.concat(),
        Message::ResyncDone { generations } => hello::encode_generations(generations).to_vec(),
        _ => Vec::new(),
    };
    (inline, None)
}

/// A header and its payload on the way to a message.
struct Reader {
    fields: Fields,
    payload: Buffer,
}

impl Reader {
    fn message(self) -> Result<Message, FrameFault> {
        let sequence = Sequence(self.fields.sequence);
        let depends_on = Sequence(self.fields.depends_on);
        let bit_0 = self.fields.flags & BIT_0 != 0;
        let bit_1 = self.fields.flags & BIT_1 != 0;
        Ok(match self.fields.kind {
            Kind::Hello => Message::Hello(Box::new(hello::decode(&self.payload)?)),
            Kind::Verdict => {
                let [low, high, strategy, _] = self.fields.extra.to_le_bytes();
                Message::Verdict {
                    rule: u16::from_le_bytes([low, high]),
                    strategy,
                }
            }
            Kind::BitmapChunk => self.bitmap_chunk()?,
            Kind::DoubtChunk => Message::DoubtChunk {
                sequence,
                extents: self.u32s(DOUBT_EXTENTS_MAX)?,
            },
            Kind::BitmapEnd => Message::BitmapEnd,
            Kind::Write => Message::Write {
                sequence,
                depends_on,
                range: self.data_range()?,
                fua: bit_0,
                data: self.payload,
            },
            Kind::Trim => Message::Trim {
                sequence,
                depends_on,
                range: self.range()?,
                fua: bit_0,
            },
            Kind::WriteZeroes => Message::WriteZeroes {
                sequence,
                depends_on,
                range: self.range()?,
                fua: bit_0,
                no_hole: bit_1,
            },
            Kind::Flush => Message::Flush { sequence },
            Kind::Ack => Message::Ack {
                sequences: self.u64s(ACKS_MAX)?.into_iter().map(Sequence).collect(),
            },
            Kind::Received => Message::Received {
                sequences: self.u64s(ACKS_MAX)?.into_iter().map(Sequence).collect(),
            },
            Kind::Refused => Message::Refused { sequence },
            Kind::ReadRequest => Message::ReadRequest {
                sequence,
                range: self.data_range()?,
            },
            Kind::ReadReply => Message::ReadReply {
                sequence,
                range: self.data_range()?,
                data: self.payload,
            },
            Kind::ReadFailed => Message::ReadFailed { sequence },
            Kind::ResyncStart => Message::ResyncStart {
                total_bytes: self.size()?,
                full_sync: FullSyncId(self.fields.sequence),
            },
            Kind::ResyncReady => Message::ResyncReady,
            Kind::ResyncData => Message::ResyncData {
                sequence,
                range: self.data_range()?,
                data: self.payload,
            },
            Kind::ResyncZeroes => Message::ResyncZeroes {
                sequence,
                range: self.range()?,
                no_hole: bit_1,
            },
            Kind::Compare => self.compare(sequence, bit_0)?,
            Kind::CompareResult => Message::CompareResult {
                sequence,
                unequal: self.u64s(HASHES_MAX / 64)?,
            },
            Kind::ResyncDone => Message::ResyncDone {
                generations: hello::decode_generations(&self.payload)
                    .ok_or_else(|| self.invalid("generations"))?,
            },
            Kind::ResyncDoneAck => Message::ResyncDoneAck,
            Kind::ResyncPaused => Message::ResyncPaused { paused: bit_0 },
            Kind::State => {
                let [role, disk, _, _] = self.fields.extra.to_le_bytes();
                Message::State {
                    role: role_of(role).ok_or_else(|| self.invalid("role"))?,
                    disk: disk_of(disk).ok_or_else(|| self.invalid("disk state"))?,
                }
            }
            Kind::PromoteRequest => Message::PromoteRequest {
                sequence,
                epoch: Epoch(self.fields.offset),
            },
            Kind::PromoteReply => Message::PromoteReply {
                sequence,
                granted: bit_0,
            },
            Kind::Detached => Message::Detached {
                sequence,
                extents: self.u32s(DETACHED_EXTENTS_MAX)?,
            },
            Kind::Goodbye => Message::Goodbye { clean: bit_0 },
            Kind::Ping => Message::Ping {
                stamp_ms: self.fields.offset,
            },
            Kind::Pong => Message::Pong {
                stamp_ms: self.fields.offset,
            },
            Kind::Confirm => Message::Confirm {
                number: self.fields.offset,
            },
            Kind::Confirmed => Message::Confirmed {
                number: self.fields.offset,
            },
            Kind::ResizePropose => Message::ResizePropose {
                usable_bytes: self.size()?,
            },
            Kind::ResizeOffer => Message::ResizeOffer {
                usable_bytes: self.size()?,
            },
            Kind::ResizeCommit => Message::ResizeCommit {
                size_bytes: self.size()?,
            },
            Kind::ResizeCommitted => Message::ResizeCommitted {
                size_bytes: self.size()?,
            },
        })
    }

    fn bitmap_chunk(&self) -> Result<Message, FrameFault> {
        let shift = u8::try_from(self.fields.extra)
            .ok()
            .filter(|shift| (BLOCK_SHIFT_MIN..=BLOCK_SHIFT_MAX).contains(shift))
            .ok_or_else(|| self.invalid("block size"))?;
        if self.fields.offset >= BLOCKS_MAX {
            return Err(self.invalid("first block"));
        }
        Ok(Message::BitmapChunk {
            sequence: Sequence(self.fields.sequence),
            first_block: self.fields.offset,
            block_shift: shift,
            words: self.u64s(BITMAP_WORDS_MAX)?,
        })
    }

    fn compare(&self, sequence: Sequence, verify: bool) -> Result<Message, FrameFault> {
        let range = self.data_range()?;
        let block_bytes = self.fields.extra;
        if !block_bytes.is_power_of_two()
            || !(4096..=EXTENT_BYTES).contains(&u64::from(block_bytes))
        {
            return Err(self.invalid("block size"));
        }
        let (hashes, rest) = self.payload.as_chunks::<HASH_BYTES>();
        if !rest.is_empty() || hashes.len() != range.length.div_ceil(block_bytes) as usize {
            return Err(self.invalid("number of hashes"));
        }
        Ok(Message::Compare {
            sequence,
            range,
            block_bytes,
            verify,
            hashes: hashes.to_vec(),
        })
    }

    /// A range in one extent of the largest mirror.
    fn range(&self) -> Result<ByteRange, FrameFault> {
        let Fields { offset, length, .. } = self.fields;
        let range = ByteRange::new(offset, length);
        if offset >= USABLE_BYTES_MAX || !range.within_one_extent() {
            return Err(self.invalid("range"));
        }
        Ok(range)
    }

    /// A range whose bytes travel in one frame.
    fn data_range(&self) -> Result<ByteRange, FrameFault> {
        let range = self.range()?;
        if range.length > REQUEST_BYTES_MAX {
            return Err(self.invalid("range"));
        }
        Ok(range)
    }

    fn size(&self) -> Result<u64, FrameFault> {
        Some(self.fields.offset)
            .filter(|bytes| *bytes <= USABLE_BYTES_MAX)
            .ok_or_else(|| self.invalid("size"))
    }

    fn u32s(&self, max: usize) -> Result<Vec<u32>, FrameFault> {
        let (values, rest) = self.payload.as_chunks::<4>();
        if !rest.is_empty() || values.len() > max {
            return Err(self.invalid("list"));
        }
        Ok(values
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect())
    }

    fn u64s(&self, max: usize) -> Result<Vec<u64>, FrameFault> {
        let (values, rest) = self.payload.as_chunks::<8>();
        if !rest.is_empty() || values.len() > max {
            return Err(self.invalid("list"));
        }
        Ok(values
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect())
    }

    fn invalid(&self, field: &'static str) -> FrameFault {
        FrameFault::Invalid {
            kind: self.fields.kind,
            field,
        }
    }
}

fn bits(bit_0: bool, bit_1: bool) -> u8 {
    u8::from(bit_0) | (u8::from(bit_1) << 1)
}

fn u64_bytes(values: impl Iterator<Item = u64>) -> Vec<u8> {
    values.flat_map(u64::to_le_bytes).collect()
}

const ROLES: [Role; 3] = [Role::Unknown, Role::Primary, Role::Secondary];
const DISKS: [DiskState; 5] = [
    DiskState::Unknown,
    DiskState::UpToDate,
    DiskState::Outdated,
    DiskState::Inconsistent,
    DiskState::Failed,
];

fn role_code(role: Role) -> u8 {
    match role {
        Role::Unknown => 0,
        Role::Primary => 1,
        Role::Secondary => 2,
    }
}

fn role_of(code: u8) -> Option<Role> {
    ROLES.get(usize::from(code)).copied()
}

fn disk_code(disk: DiskState) -> u8 {
    match disk {
        DiskState::Unknown => 0,
        DiskState::UpToDate => 1,
        DiskState::Outdated => 2,
        DiskState::Inconsistent => 3,
        DiskState::Failed => 4,
    }
}

fn disk_of(code: u8) -> Option<DiskState> {
    DISKS.get(usize::from(code)).copied()
}

#[cfg(test)]
mod tests;
