//! What a client may learn of a mirror. Plain facts, so that handshake and session need no driver to be tested.

/// A mirror as clients see it at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    pub name: String,
    /// One line for `nbdinfo --list`.
    pub description: String,
    pub size_bytes: u64,
    /// 512 or 4096: requests are multiples of it.
    pub logical_block_bytes: u32,
    /// Whether `WriteZeroes { fast: true }` may be asked for.
    pub fast_zero: bool,
    /// Why clients are refused, where they are: what holds and what would change it.
    pub serving: Result<(), String>,
}

/// A run of bytes with one allocation state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub length: u64,
    /// Unallocated, and reads as zeroes.
    pub hole: bool,
}
