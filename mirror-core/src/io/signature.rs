//! Recognises what a partition already holds, so that `init` overwrites nothing by mistake.
//!
//! Reads the first megabyte and, where the end matters, the last. Never writes. What it does not know
//! it does not report: an unknown format looks like an empty partition, which is why `init` is
//! explicit about the path it was given.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes from the start that hold every signature known here.
const HEAD_BYTES: usize = 128 << 10;

/// Something recognisable on a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub kind: Kind,
    /// Where what was found ends, counted from the start of the partition. `None`: not known.
    pub end_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext,
    Xfs,
    Btrfs,
    Lvm,
    Luks,
    Swap,
    Gpt,
    Mbr,
    Fat,
    Ntfs,
    Raid,
    Iso9660,
    F2fs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "an ext2/ext3/ext4 file system",
            Self::Xfs => "an xfs file system",
            Self::Btrfs => "a btrfs file system",
            Self::Lvm => "an LVM physical volume",
            Self::Luks => "a LUKS container",
            Self::Swap => "swap space",
            Self::Gpt => "a GPT partition table",
            Self::Mbr => "an MBR partition table",
            Self::Fat => "a FAT file system",
            Self::Ntfs => "an NTFS file system",
            Self::Raid => "a member of a Linux software RAID",
            Self::Iso9660 => "an ISO 9660 image",
            Self::F2fs => "an f2fs file system",
        })
    }
}

/// What `path` holds, if it is something known.
pub fn signature(path: &Path) -> io::Result<Option<Signature>> {
    let file = File::open(path)?;
    let mut head = vec![0; HEAD_BYTES];
    let read = read_up_to(&file, &mut head)?;
    head.truncate(read);
    Ok(recognise(&head))
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The strongest signature in the first bytes of a partition. Containers come before what may be a
/// leftover inside them.
fn recognise(head: &[u8]) -> Option<Signature> {
    let known = |kind, end_bytes| Some(Signature { kind, end_bytes });
    if at(head, 0, b"LUKS\xba\xbe") {
        return known(Kind::Luks, None);
    }
    if (0..4).any(|sector| at(head, sector * 512, b"LABELONE")) {
        return known(Kind::Lvm, None);
    }
    if at(head, 0, b"\xfc\x4e\x2b\xa9") || at(head, 4096, b"\xfc\x4e\x2b\xa9") {
        return known(Kind::Raid, None);
    }
    if at(head, 0, b"XFSB") {
        return known(Kind::Xfs, xfs_end(head));
    }
    if at(head, 0x10040, b"_BHRfS_M") {
        return known(Kind::Btrfs, le64(head, 0x10070));
    }
    if at(head, 1080, &[0x53, 0xef]) {
        return known(Kind::Ext, ext_end(head));
    }
    if at(head, 1024, &[0x10, 0x20, 0xf5, 0xf2]) {
        return known(Kind::F2fs, None);
    }
    if [4096, 8192, 16384, 65536]
        .iter()
        .any(|page| at(head, page - 10, b"SWAPSPACE2"))
    {
        return known(Kind::Swap, None);
    }
    if at(head, 512, b"EFI PART") || at(head, 4096, b"EFI PART") {
        return known(Kind::Gpt, None);
    }
    if at(head, 3, b"NTFS    ") {
        return known(Kind::Ntfs, None);
    }
    if at(head, 510, &[0x55, 0xaa]) && (at(head, 54, b"FAT") || at(head, 82, b"FAT32")) {
        return known(Kind::Fat, None);
    }
    if at(head, 0x8001, b"CD001") {
        return known(Kind::Iso9660, None);
    }
    if at(head, 510, &[0x55, 0xaa]) && has_partitions(head) {
        return known(Kind::Mbr, None);
    }
    None
}

fn has_partitions(head: &[u8]) -> bool {
    head[446..510]
        .chunks(16)
        .any(|entry| entry[4] != 0 && matches!(entry[0], 0 | 0x80))
}

fn ext_end(head: &[u8]) -> Option<u64> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let blocks_low = le32(head, 1024 + 4)? as u64;
    let shift = le32(head, 1024 + 24)?;
    let blocks_high = match le32(head, 1024 + 96)? & INCOMPAT_64BIT {
        0 => 0,
        _ => le32(head, 1024 + 0x150)? as u64,
    };
    let blocks = blocks_low | blocks_high << 32;
    (shift <= 6)
        .then(|| blocks.checked_mul(1024 << shift))
        .flatten()
}

fn xfs_end(head: &[u8]) -> Option<u64> {
    let block_bytes = u32::from_be_bytes(head.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
    blocks.checked_mul(block_bytes as u64)
}

fn at(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..offset + magic.len()) == Some(magic)
}

fn le32(head: &[u8], offset: usize) -> Option<u32> {
    let bytes = head.get(offset..offset + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn le64(head: &[u8], offset: usize) -> Option<u64> {
    let bytes = head.get(offset..offset + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn check(parts: &[(usize, &[u8])], expected: Option<Kind>) {
        let mut head = vec![0; HEAD_BYTES];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(recognise(&head).map(|found| found.kind), expected);
    }

    #[test]
    fn each_known_format_is_recognised() {
        check(&[], None);
        check(&[(0, b"LUKS\xba\xbe")], Some(Kind::Luks));
        check(&[(512, b"LABELONE")], Some(Kind::Lvm));
        check(&[(4096, b"\xfc\x4e\x2b\xa9")], Some(Kind::Raid));
        check(&[(0, b"XFSB")], Some(Kind::Xfs));
        check(&[(0x10040, b"_BHRfS_M")], Some(Kind::Btrfs));
        check(&[(1080, b"\x53\xef")], Some(Kind::Ext));
        check(&[(4086, b"SWAPSPACE2")], Some(Kind::Swap));
        check(&[(512, b"EFI PART")], Some(Kind::Gpt));
        check(&[(3, b"NTFS    ")], Some(Kind::Ntfs));
        check(&[(510, b"\x55\xaa"), (82, b"FAT32")], Some(Kind::Fat));
        check(&[(510, b"\x55\xaa"), (450, b"\x83")], Some(Kind::Mbr));
        check(&[(510, b"\x55\xaa")], None);
    }

    #[test]
    fn a_short_partition_is_no_reason_to_panic() {
        for length in 0..2048 {
            recognise(&vec![0xff; length]);
            let mut head = vec![0; length];
            if length > 511 {
                head[510..512].copy_from_slice(&[0x55, 0xaa]);
            }
            recognise(&head);
        }
    }

    #[test]
    fn the_end_of_a_real_ext4_file_system_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(file.path())
            .arg("8M")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status()
            .expect("mkfs.ext4 of e2fsprogs is needed by this test");
        assert!(made.success());
        assert_eq!(
            signature(file.path()).unwrap(),
            Some(Signature {
                kind: Kind::Ext,
                end_bytes: Some(8 << 20)
            })
        );
    }
}
