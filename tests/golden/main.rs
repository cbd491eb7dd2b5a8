//! The formats as bytes. Every file in `data` is what this build writes and what every later build
//! must read. A difference here is a change of a format: it needs a feature bit or a protocol version,
//! a line in `docs/metadata-format.md` or `docs/protocol.md`, and a new file beside the old one.
//!
//! `UPDATE_GOLDEN=1 cargo test -p mirror-tests --test golden` writes the files anew.

mod frames;
mod metadata;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/data")
        .join(kind)
}

/// Compares `bytes` with the pinned file, and returns what the file holds.
fn check(kind: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = folder(kind).join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(folder(kind)).expect("golden folder can be made");
        fs::write(&path, bytes).expect("golden file can be written");
    }
    let pinned = fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run with UPDATE_GOLDEN=1", path.display()));
    if let Some(at) = pinned.iter().zip(bytes).position(|(a, b)| a != b) {
        panic!(
            "{} differs at byte {at}: pinned {:#04x}, written now {:#04x}",
            path.display(),
            pinned[at],
            bytes[at]
        );
    }
    assert_eq!(pinned.len(), bytes.len(), "length of {}", path.display());
    pinned
}

/// Every file there is belongs to a case, so that none is forgotten when a format grows.
fn check_complete(kind: &str, names: &BTreeSet<String>) {
    let present: BTreeSet<_> = fs::read_dir(folder(kind))
        .expect("golden folder can be listed")
        .map(|entry| entry.expect("golden folder can be listed").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    assert_eq!(&present, names, "files in {}", folder(kind).display());
}
