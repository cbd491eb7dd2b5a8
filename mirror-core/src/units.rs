//! Newtypes for every identity and position that the engine passes around.
//!
//! A plain `u64` crosses no module boundary here: a block index, a byte offset and a request number
//! are different things, and mixing them up in a replicator costs data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes covered by one activity-log extent. Fixed by the format: 4 MiB.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Smallest unit of dirty tracking and of metadata I/O: 4 KiB.
pub const BLOCK_BYTES_MIN: u64 = 4096;
/// Largest read or write in one request: 1 MiB. Front ends split what is larger.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// A byte range of the data partition. `offset` and `length` are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset: u64,
    pub length: u32,
}

impl ByteRange {
    pub const fn new(offset: u64, length: u32) -> Self {
        Self { offset, length }
    }

    /// First byte after the range.
    pub const fn end(self) -> u64 {
        self.offset + self.length as u64
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The one extent that holds the range. Requests never straddle extents.
    pub const fn extent(self) -> ExtentIndex {
        ExtentIndex((self.offset / EXTENT_BYTES) as u32)
    }

    /// True if the range lies inside one extent, as every request given to a volume must.
    pub const fn within_one_extent(self) -> bool {
        self.length > 0 && self.offset / EXTENT_BYTES == (self.end() - 1) / EXTENT_BYTES
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.length)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);
    };
}

id!(
    /// Position of an extent on the data partition, counted in [`EXTENT_BYTES`].
    ExtentIndex(u32)
);
id!(
    /// One full copy of a mirror, from its start until the target has it all, however often it is cut.
    /// Drawn by the source. Zero: none.
    FullSyncId(u64)
);
id!(
    /// A client request. Unique for the life of the front end that made it.
    RequestId(u64)
);
id!(
    /// A disk or metadata operation that a volume asked for and that its driver will complete.
    IoToken(u64)
);
id!(
    /// One established replication link. Messages of another link are stale and dropped.
    LinkId(u64)
);
id!(
    /// An operator command; the driver gets its outcome under the same number.
    CommandId(u64)
);
id!(
    /// Number of an operation on the wire, unique within one link and one sender.
    Sequence(u64)
);
id!(
    /// Grows with each promotion; the fence against an old primary.
    Epoch(u64)
);

impl ExtentIndex {
    /// Offset of the extent's first byte.
    pub const fn offset(self) -> u64 {
        self.0 as u64 * EXTENT_BYTES
    }
}

impl FullSyncId {
    pub const NONE: Self = Self(0);

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Identity of one line of data history. Zero means "just initialised: no data yet".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

impl Generation {
    pub const NONE: Self = Self(0);

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A 128-bit identity: of a cluster, a mirror, a node or one run of a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The identity that a configured name stands for: the first 16 bytes of its BLAKE3 hash under
    /// `kind`, so that both nodes compute the same one from the same file.
    pub fn from_name(kind: &str, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mirror identity from configured name");
        hasher
            .update(kind.as_bytes())
            .update(&[0])
            .update(name.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(id)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The time of one step, read once by the driver. The engine reads no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Monotonic milliseconds since an arbitrary start. Every time-out is measured on it.
    pub monotonic_ms: u64,
    /// Seconds since the Unix epoch. Only ever recorded for people, never compared.
    pub unix_s: u64,
}
