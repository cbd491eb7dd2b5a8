//! The cluster key file: 32 random bytes as 64 hexadecimal digits, which nobody but its owner may read or replace.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use mirror_core::link::preface::ClusterKey;

use super::trust::{self, Exposure};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Most that is read of a key file; a valid one is far shorter.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the cluster key {}: {source}; write one with `mirrorctl keygen {}` and copy it to both nodes", path.display(), path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("user {user}, as whom this process runs, may not read the cluster key {}; run `chown {user} {}`", path.display(), path.display())]
    Denied { path: PathBuf, user: u32 },
    #[error("cannot write the cluster key {}: {source}; choose a folder that exists and that you may write to", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} exists already; a new key would lock out nodes that have the old one, so remove the file first if that is what you want", path.display())]
    Exists { path: PathBuf },
    #[error("the cluster key {} {exposure}; {}", path.display(), exposure.remedy(path))]
    Exposed { path: PathBuf, exposure: Exposure },
    #[error("{} holds no cluster key (64 hexadecimal digits); write one with `mirrorctl keygen` or copy the other node's", path.display())]
    Content { path: PathBuf },
}

/// Reads a key, and refuses one that others can read or replace, or that somebody else owns.
pub fn load(path: &Path) -> Result<ClusterKey, KeyError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => KeyError::Denied {
            path: path.into(),
            user: nix::unistd::geteuid().as_raw(),
        },
        _ => KeyError::Read {
            path: path.into(),
            source,
        },
    };
    let (file, metadata) = trust::open(path).map_err(failed)?;
    trust::check_secret(path, &metadata).map_err(|exposure| KeyError::Exposed {
        path: path.into(),
        exposure,
    })?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let content = || KeyError::Content { path: path.into() };
    let text = std::str::from_utf8(&bytes).map_err(|_| content())?;
    decode(text.trim()).ok_or_else(content)
}

/// Writes a new random key with mode 0600. Never replaces a file.
pub fn generate(path: &Path) -> Result<(), KeyError> {
    let failed = |source| KeyError::Write {
        path: path.into(),
        source,
    };
    let mut key = [0; KEY_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(failed)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.into() },
            _ => failed(source),
        })?;
    let mut text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn decode(text: &str) -> Option<ClusterKey> {
    if text.len() != 2 * KEY_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    ClusterKey::new(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_generated_key_loads_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        generate(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let first = load(&path).unwrap();
        assert_eq!(first, load(&path).unwrap());
        let shown = format!("{first:?}");
        let secret = fs::read_to_string(&path).unwrap();
        assert!(!shown.contains(&secret[..8]), "{shown}");
    }

    #[test]
    fn an_existing_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        generate(&path).unwrap();
        let before = fs::read(&path).unwrap();
        let error = generate(&path).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(before, fs::read(&path).unwrap());
    }

    #[test]
    fn a_readable_key_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(
            error.contains("mode 0644") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn garbage_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"abc\n", &[0xff; 64], &[b'g'; 64]] {
            let path = folder.path().join("bad");
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("holds no cluster key"), "{error}");
        }
        let error = load(&folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("mirrorctl keygen"), "{error}");
    }
}
