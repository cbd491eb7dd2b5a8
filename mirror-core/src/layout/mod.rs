//! On-disk metadata: superblock, activity log, dirty bitmap. Byte by byte in
//! `docs/metadata-format.md`; pinned by golden files.
//!
//! Everything here is pure: bytes in, checked values out, and back. What does not pass its checks is
//! never handed on as if it had (rule D9); what to do about it is for the volume to decide.

mod field;

pub mod bitmap_page;
pub mod geometry;
pub mod internal;
pub mod log_record;
pub mod metadata;
pub mod superblock;
