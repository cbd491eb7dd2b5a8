//! The run directory: one daemon of each kind owns it, by a lock that dies with the process. Only the owner
//! of the lock may remove sockets that an earlier daemon of its kind left behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use super::Daemon;
use crate::config::trust::{self, Exposure};

/// Longest path of a Unix socket that Linux takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A claimed run directory. The claim ends when this is dropped or the process dies.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("the run directory {} is in use by {} ({daemon}); stop that daemon, or choose another folder with --run-dir", path.display(), owner_text(*owner))]
    InUse {
        path: PathBuf,
        daemon: &'static str,
        owner: Option<i32>,
    },
    #[error("cannot use the run directory {}: {source}; choose a folder that this user may write to with --run-dir", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the run directory {} {exposure}; {}, or choose another folder with --run-dir", path.display(), exposure.remedy(path))]
    Exposed { path: PathBuf, exposure: Exposure },
    #[error("cannot listen on {}: {source}; look whether another program holds it", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the socket path {} is {} bytes long and Linux takes {SOCKET_PATH_BYTES_MAX}; choose a shorter --run-dir", path.display(), path.as_os_str().len())]
    TooLong { path: PathBuf },
}

fn owner_text(owner: Option<i32>) -> String {
    match owner {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

impl RunDir {
    /// Makes the folder if it is missing and claims it for `daemon`.
    pub fn claim(path: &Path, daemon: &Daemon) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Folder {
            path: path.into(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(failed)?;
        // Whoever may write there could put links in the way of lock and sockets.
        trust::check_path(path)
            .map_err(failed)?
            .map_err(|exposure| RunDirError::Exposed {
                path: path.into(),
                exposure,
            })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(format!("{}.lock", daemon.name)))
            .map_err(failed)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(RunDirError::InUse {
                    path: path.into(),
                    daemon: daemon.name,
                    owner: read_pid(&mut file),
                });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        lock.set_len(0).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A socket of this folder, with a check that its path is not too long for Linux.
    pub fn socket_path(&self, name: &str) -> Result<PathBuf, RunDirError> {
        let path = self.path.join(name);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(RunDirError::TooLong { path });
        }
        Ok(path)
    }

    /// Listens on a socket that only this user can open, in place of one left by an earlier daemon.
    /// Changes the umask for a moment, so it is called before threads start.
    pub fn listen(&self, name: &str) -> Result<UnixListener, RunDirError> {
        let path = self.socket_path(name)?;
        let failed = |source| RunDirError::Socket {
            path: path.clone(),
            source,
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&path);
        umask(before);
        let listener = bound.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// Removes a socket at a clean stop. One that is gone already is fine.
    pub fn remove(&self, name: &str) {
        let path = self.path.join(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MIRRORD;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_claim_names_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let claim = RunDir::claim(folder.path(), &MIRRORD).unwrap();
        let error = RunDir::claim(folder.path(), &MIRRORD)
            .unwrap_err()
            .to_string();
        let pid = std::process::id().to_string();
        assert!(
            error.contains("in use") && error.contains(&pid) && error.contains("--run-dir"),
            "{error}"
        );
        drop(claim);
        RunDir::claim(folder.path(), &MIRRORD).unwrap();
    }

    #[test]
    fn daemons_of_two_kinds_share_a_folder() {
        const OTHER: Daemon = Daemon {
            name: "other",
            ..MIRRORD
        };
        let folder = tempfile::tempdir().unwrap();
        let _first = RunDir::claim(folder.path(), &MIRRORD).unwrap();
        let _second = RunDir::claim(folder.path(), &OTHER).unwrap();
        let error = RunDir::claim(folder.path(), &OTHER).unwrap_err();
        assert!(error.to_string().contains("(other)"), "{error}");
    }

    #[test]
    fn a_missing_folder_is_made_and_a_stale_socket_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let claim = RunDir::claim(&folder.path().join("new/run"), &MIRRORD).unwrap();
        drop(claim.listen("mirrord.sock").unwrap());
        let path = claim.path().join("mirrord.sock");
        assert!(path.exists(), "the socket outlives its listener");
        let _listener = claim.listen("mirrord.sock").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        claim.remove("mirrord.sock");
        assert!(!path.exists());
        claim.remove("mirrord.sock");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = RunDir::claim(folder.path(), &MIRRORD)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("mode 0777") && error.contains("chmod go-w"),
            "{error}"
        );
        assert!(!folder.path().join("mirrord.lock").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_and_a_path_too_long_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RunDir::claim(&file, &MIRRORD).unwrap_err().to_string();
        assert!(error.contains("cannot use the run directory"), "{error}");
        let claim = RunDir::claim(&folder.path().join("x".repeat(100)), &MIRRORD).unwrap();
        let error = claim.listen("mirrord.sock").unwrap_err().to_string();
        assert!(error.contains("shorter --run-dir"), "{error}");
    }
}
