//! On-disk metadata: superblock, activity log, dirty bitmap. Byte by byte in
//! `docs/metadata-format.md`; pinned by golden files.

pub mod superblock;
