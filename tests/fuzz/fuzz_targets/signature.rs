//! What lies on a partition before it is initialised, perhaps put there by somebody else.
//!
//! The input is a list of pieces: one byte that says where a piece goes, one of length, and its bytes.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use mirror_core::io::signature::signature;
use nix::sys::memfd::{MFdFlags, memfd_create};

const SIZE_BYTES: u64 = 1 << 20;
/// Where the formats have their magic numbers and sizes, and the last block.
const PLACES: [u64; 16] = [
    0,
    3,
    54,
    82,
    446,
    510,
    512,
    1024,
    1080,
    4086,
    0x1000,
    0x8001,
    0x1_0040,
    0x1_0000,
    SIZE_BYTES - 4096,
    SIZE_BYTES - 65536,
];

thread_local! {
    static FILE: RefCell<File> =
        RefCell::new(memfd_create(c"partition", MFdFlags::empty()).expect("memory").into());
}

fuzz_target!(|input: &[u8]| {
    FILE.with_borrow(|file| {
        file.set_len(0).expect("it shrinks");
        file.set_len(SIZE_BYTES).expect("it grows, all zeroes");
        let mut rest = input;
        while let [place, length, bytes @ ..] = rest {
            let (bytes, next) = bytes.split_at(usize::from(*length).min(bytes.len()));
            rest = next;
            let place = PLACES[usize::from(place & 0xf)] + u64::from(place >> 4);
            file.write_all_at(bytes, place).expect("it has room");
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let found = signature(&path).expect("it can be read");
        if let Some(found) = found {
            assert!(!found.kind.to_string().is_empty());
        }
    });
});
