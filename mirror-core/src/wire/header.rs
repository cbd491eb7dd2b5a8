//! The fixed header of a frame: what follows, how long it may be, and whether it is whole.
//!
//! A header is checked on its own, before a byte of payload is read or memory for it is taken: the
//! kind decides how long the payload may be. Every kind uses the fields it needs and leaves the
//! others zero; `frame` refuses what is set without a meaning.

use crate::units::{Epoch, REQUEST_BYTES_MAX};
use crate::wire::message::Channel;

pub const HEADER_BYTES: usize = 64;
/// `MIRF`, little-endian.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"MIRF");
/// Version of the header itself. What the messages mean is negotiated by the hello.
pub const FRAME_VERSION: u16 = 1;
/// No payload of any kind is longer: 1 MiB + 64 KiB.
pub const PAYLOAD_BYTES_MAX: u32 = (1 << 20) + (64 << 10);

/// A bitmap chunk carries at most one bitmap page.
pub const BITMAP_WORDS_MAX: usize = 496;
pub const DOUBT_EXTENTS_MAX: usize = 1024;
pub const ACKS_MAX: usize = 1024;
/// Every slot of the largest activity log.
pub const DETACHED_EXTENTS_MAX: usize = 48_000;
/// One extent in blocks of 4 KiB.
pub const HASHES_MAX: usize = 1024;
/// Hellos of later versions may be longer than ours, up to this.
pub const HELLO_BYTES_MAX: u32 = 4096;
pub(super) const HELLO_BYTES: usize = 256;
pub(super) const GENERATIONS_BYTES: usize = 80;

/// Bit of the flags, the same for every kind that carries data.
const COMPRESSED: u8 = 1 << 7;

macro_rules! kinds {
    ($($name:ident = $code:literal),* $(,)?) => {
        /// What a frame is. The codes are part of the protocol and never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($name = $code),*
        }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn code(self) -> u8 {
                self as u8
            }

            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    Hello = 1,
    Verdict = 2,
    BitmapChunk = 3,
    DoubtChunk = 4,
    BitmapEnd = 5,
    Write = 16,
    Trim = 17,
    WriteZeroes = 18,
    Flush = 19,
    Ack = 20,
    Refused = 21,
    Received = 22,
    ReadRequest = 24,
    ReadReply = 25,
    ReadFailed = 26,
    ResyncStart = 32,
    ResyncReady = 33,
    ResyncData = 34,
    ResyncZeroes = 35,
    Compare = 36,
    CompareResult = 37,
    ResyncDone = 38,
    ResyncDoneAck = 39,
    ResyncPaused = 40,
    State = 48,
    PromoteRequest = 49,
    PromoteReply = 50,
    Detached = 51,
    Goodbye = 52,
    Ping = 53,
    Pong = 54,
    Confirm = 55,
    Confirmed = 56,
    ResizePropose = 64,
    ResizeOffer = 65,
    ResizeCommit = 66,
    ResizeCommitted = 67,
}

impl Kind {
    /// Least and greatest payload.
    pub const fn payload_limits(self) -> (u32, u32) {
        match self {
            Self::Hello => (HELLO_BYTES as u32, HELLO_BYTES_MAX),
            Self::BitmapChunk => (8, BITMAP_WORDS_MAX as u32 * 8),
            Self::DoubtChunk => (0, DOUBT_EXTENTS_MAX as u32 * 4),
            Self::Write | Self::ReadReply | Self::ResyncData => (1, REQUEST_BYTES_MAX),
            Self::Ack | Self::Received => (0, ACKS_MAX as u32 * 8),
            Self::Compare => (16, HASHES_MAX as u32 * 16),
            Self::CompareResult => (8, HASHES_MAX as u32 / 8),
            Self::ResyncDone => (GENERATIONS_BYTES as u32, GENERATIONS_BYTES as u32),
            Self::Detached => (0, DETACHED_EXTENTS_MAX as u32 * 4),
            _ => (0, 0),
        }
    }

    /// True for the kinds whose payload is data for or from the disk, exactly `length` bytes of it.
    pub const fn carries_data(self) -> bool {
        matches!(self, Self::Write | Self::ReadReply | Self::ResyncData)
    }

    /// The connection it must come on.
    pub const fn channel(self) -> Channel {
        match self {
            Self::Write
            | Self::Trim
            | Self::WriteZeroes
            | Self::Flush
            | Self::ReadReply
            | Self::ResyncData
            | Self::ResyncZeroes
            | Self::Compare => Channel::Data,
            _ => Channel::Control,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Kind::ALL.len() {
        let (min, max) = Kind::ALL[index].payload_limits();
        assert!(min <= max && max <= PAYLOAD_BYTES_MAX);
        index += 1;
    }
};

/// Why a frame is refused. The link that brought it is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    #[error(
        "the peer sent {found:#010x} where a frame must begin; it is no mirror, or out of step"
    )]
    Magic { found: u32 },
    #[error(
        "the peer's frames are of version {found}, this build reads {FRAME_VERSION}; upgrade the older node"
    )]
    Version { found: u16 },
    #[error(
        "the peer speaks protocol versions {min} to {max}, this build {} to {}; upgrade the older node",
        crate::wire::message::VERSION_MIN,
        crate::wire::message::VERSION_MAX
    )]
    Protocol { min: u16, max: u16 },
    #[error("the checksum of a frame's header does not match")]
    HeaderChecksum,
    #[error("the checksum of a {kind:?} frame's payload does not match")]
    PayloadChecksum { kind: Kind },
    #[error("frame type {code} is unknown")]
    UnknownKind { code: u8 },
    #[error("a {kind:?} frame has {payload_bytes} bytes of payload, outside {min} to {max}")]
    PayloadBytes {
        kind: Kind,
        payload_bytes: u32,
        min: u32,
        max: u32,
    },
    #[error(
        "a {kind:?} frame has {payload_bytes} bytes of payload compressed from {length}, which must be more than \
         that and no more than {REQUEST_BYTES_MAX}"
    )]
    Compressed {
        kind: Kind,
        payload_bytes: u32,
        length: u32,
    },
    #[error(
        "the payload of a {kind:?} frame does not decompress to the {length} bytes that its header names"
    )]
    Decompression { kind: Kind, length: u32 },
    #[error("the {field} of a {kind:?} frame makes no sense")]
    Invalid { kind: Kind, field: &'static str },
}

/// A header that passed its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub epoch: Epoch,
    pub payload_bytes: u32,
    /// Over the payload; over the data itself where that travels compressed.
    pub payload_checksum: u32,
    /// The payload is an LZ4 block of `length` bytes of data.
    pub compressed: bool,
    pub fields: Fields,
}

/// The part of a header that depends on the message alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    pub kind: Kind,
    /// Meaning depends on the kind; bits without one are zero.
    pub flags: u8,
    pub sequence: u64,
    /// Byte offset, or the one 64-bit value of kinds without a range.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u32,
    pub depends_on: u64,
    /// Small values of some kinds.
    pub extra: u32,
}

impl Fields {
    pub(super) const fn of(kind: Kind) -> Self {
        Self {
            kind,
            flags: 0,
            sequence: 0,
            offset: 0,
            length: 0,
            depends_on: 0,
            extra: 0,
        }
    }
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &FRAME_MAGIC.to_le_bytes());
        put(4, &FRAME_VERSION.to_le_bytes());
        let compressed = if self.compressed { COMPRESSED } else { 0 };
        put(
            6,
            &[self.fields.kind.code(), self.fields.flags | compressed],
        );
        put(8, &self.epoch.0.to_le_bytes());
        put(16, &self.fields.sequence.to_le_bytes());
        put(24, &self.fields.offset.to_le_bytes());
        put(32, &self.fields.length.to_le_bytes());
        put(36, &self.payload_bytes.to_le_bytes());
        put(40, &self.fields.depends_on.to_le_bytes());
        put(48, &self.payload_checksum.to_le_bytes());
        put(52, &self.fields.extra.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Checks everything that can be known before the payload is there, its length above all.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameFault> {
        let found = u32_at(bytes, 0);
        if found != FRAME_MAGIC {
            return Err(FrameFault::Magic { found });
        }
        if u32_at(bytes, HEADER_BYTES - 4) != crc32fast::hash(&bytes[..HEADER_BYTES - 4]) {
            return Err(FrameFault::HeaderChecksum);
        }
        let found = u16::from_le_bytes([bytes[4], bytes[5]]);
        if found != FRAME_VERSION {
            return Err(FrameFault::Version { found });
        }
        let kind = Kind::from_code(bytes[6]).ok_or(FrameFault::UnknownKind { code: bytes[6] })?;
        let header = Self {
            epoch: Epoch(u64_at(bytes, 8)),
            payload_bytes: u32_at(bytes, 36),
            payload_checksum: u32_at(bytes, 48),
            compressed: bytes[7] & COMPRESSED != 0,
            fields: Fields {
                kind,
                flags: bytes[7] & !COMPRESSED,
                sequence: u64_at(bytes, 16),
                offset: u64_at(bytes, 24),
                length: u32_at(bytes, 32),
                depends_on: u64_at(bytes, 40),
                extra: u32_at(bytes, 52),
            },
        };
        if u32_at(bytes, 56) != 0 {
            return Err(FrameFault::Invalid {
                kind,
                field: "reserved field",
            });
        }
        let (min, max) = kind.payload_limits();
        if !(min..=max).contains(&header.payload_bytes) {
            return Err(FrameFault::PayloadBytes {
                kind,
                payload_bytes: header.payload_bytes,
                min,
                max,
            });
        }
        let invalid = |field| FrameFault::Invalid { kind, field };
        let (payload_bytes, length) = (header.payload_bytes, header.fields.length);
        match (kind.carries_data(), header.compressed) {
            (false, false) => Ok(header),
            (false, true) => Err(invalid("compression")),
            (true, false) if payload_bytes == length => Ok(header),
            (true, false) => Err(invalid("length")),
            (true, true) if payload_bytes < length && length <= max => Ok(header),
            (true, true) => Err(FrameFault::Compressed {
                kind,
                payload_bytes,
                length,
            }),
        }
    }

    /// Bytes of payload once it is decompressed.
    pub const fn content_bytes(&self) -> u32 {
        if self.compressed {
            self.fields.length
        } else {
            self.payload_bytes
        }
    }

    pub const fn kind(&self) -> Kind {
        self.fields.kind
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
