//! Who else may read or change a file that a daemon relies on: a key, the configuration, a program, a socket's folder.
//!
//! What the file system says of owners and modes becomes an [`Exposure`] with the command that mends it. A file is
//! as good as the folders above it: who may write to one of them can put another file in its place. Root relies
//! on all of them; other users have folders of their own above, so that for them the file itself counts.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// What anybody but the owner may do.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
/// In such a folder everybody may make files, and only touch their own.
const STICKY: u32 = 0o1000;

/// Why a file cannot be relied on. Shown after the file's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    Owner {
        owner: u32,
        user: u32,
    },
    Readable {
        mode: u32,
    },
    Writable {
        mode: u32,
    },
    /// Others may replace what lies in this folder.
    Folder {
        folder: PathBuf,
        owner: u32,
        mode: u32,
    },
}

impl Exposure {
    /// What to do, for the file at `path`.
    pub fn remedy(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Owner { user, .. } => format!("run `chown {user} {path}`"),
            Self::Readable { .. } => format!("run `chmod 600 {path}`"),
            Self::Writable { .. } => format!("run `chmod go-w {path}`"),
            Self::Folder { folder, mode, .. } if mode & OTHERS_WRITE != 0 => {
                format!("run `chmod go-w {}`", folder.display())
            }
            Self::Folder { folder, .. } => {
                format!(
                    "move it elsewhere, or run `chown root {}`",
                    folder.display()
                )
            }
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { owner, user } => write!(
                f,
                "belongs to user {owner}, but this process runs as user {user}"
            ),
            Self::Readable { mode } => write!(f, "has mode {mode:04o}, so others may read it"),
            Self::Writable { mode } => write!(f, "has mode {mode:04o}, so others may change it"),
            Self::Folder {
                folder,
                owner,
                mode,
            } => write!(
                f,
                "lies below {}, which belongs to user {owner} with mode {mode:04o}, so others may replace it",
                folder.display()
            ),
        }
    }
}

/// Opens a regular file for reading. Anything else is an error at once: a pipe would wait for its other end.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok((file, metadata))
}

/// For a secret: nobody else may read, change or replace it.
pub fn check_secret(path: &Path, metadata: &Metadata) -> Result<(), Exposure> {
    check_owner(metadata)?;
    let mode = mode_of(metadata);
    if mode & OTHERS != 0 {
        return Err(Exposure::Readable { mode });
    }
    check_folders(path)
}

/// For what a daemon does as it says: nobody else may change or replace it.
pub fn check_unchanged(path: &Path, metadata: &Metadata) -> Result<(), Exposure> {
    check_owner(metadata)?;
    let mode = mode_of(metadata);
    if mode & OTHERS_WRITE != 0 {
        return Err(Exposure::Writable { mode });
    }
    check_folders(path)
}

/// As [`check_unchanged`], for what is not opened: a folder whose files are the daemon's alone, a program that it runs.
pub fn check_path(path: &Path) -> io::Result<Result<(), Exposure>> {
    let metadata = std::fs::metadata(path)?;
    Ok(check_unchanged(path, &metadata))
}

fn check_owner(metadata: &Metadata) -> Result<(), Exposure> {
    let user = user();
    match metadata.uid() {
        owner if owner == user || owner == 0 => Ok(()),
        owner => Err(Exposure::Owner { owner, user }),
    }
}

/// Both on the way that was written and on the one it really leads.
fn check_folders(path: &Path) -> Result<(), Exposure> {
    if user() != 0 {
        return Ok(());
    }
    let ways = [std::path::absolute(path), std::fs::canonicalize(path)];
    let ways = ways.iter().flatten();
    for folder in ways.flat_map(|way| way.ancestors().skip(1)) {
        // One that cannot be looked at by root is no way for anybody else.
        let Ok(metadata) = std::fs::metadata(folder) else {
            continue;
        };
        let (owner, mode) = (metadata.uid(), mode_of(&metadata));
        let is_open = mode & OTHERS_WRITE != 0 && mode & STICKY == 0;
        if owner != 0 || is_open {
            return Err(Exposure::Folder {
                folder: folder.into(),
                owner,
                mode,
            });
        }
    }
    Ok(())
}

fn mode_of(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Nobody in particular.
    const STRANGER: u32 = 65_533;

    struct Site(tempfile::TempDir);

    impl Site {
        fn new() -> Self {
            let site = Self(tempfile::tempdir().unwrap());
            fs::create_dir(site.folder()).unwrap();
            fs::write(site.file(), "secret").unwrap();
            fs::set_permissions(site.file(), Permissions::from_mode(0o600)).unwrap();
            site
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("folder")
        }

        fn file(&self) -> PathBuf {
            self.folder().join("file")
        }

        fn check(&self) -> Result<(), Exposure> {
            let (_, metadata) = open(&self.file()).unwrap();
            check_secret(&self.file(), &metadata)
        }
    }

    #[test]
    fn a_file_of_ones_own_is_fine() {
        assert_eq!(Site::new().check(), Ok(()));
    }

    #[test]
    fn a_secret_that_others_may_read_is_exposed_and_a_configuration_is_not() {
        let site = Site::new();
        fs::set_permissions(site.file(), Permissions::from_mode(0o644)).unwrap();
        assert_eq!(site.check(), Err(Exposure::Readable { mode: 0o644 }));
        let metadata = fs::metadata(site.file()).unwrap();
        assert_eq!(check_unchanged(&site.file(), &metadata), Ok(()));
        fs::set_permissions(site.file(), Permissions::from_mode(0o664)).unwrap();
        let metadata = fs::metadata(site.file()).unwrap();
        assert_eq!(
            check_unchanged(&site.file(), &metadata),
            Err(Exposure::Writable { mode: 0o664 })
        );
    }

    #[test]
    fn a_folder_that_others_may_write_to_exposes_what_lies_in_it() {
        let site = Site::new();
        if user() != 0 {
            return;
        }
        fs::set_permissions(site.folder(), Permissions::from_mode(0o777)).unwrap();
        let exposure = site.check().unwrap_err();
        assert!(
            matches!(&exposure, Exposure::Folder { folder, .. } if *folder == site.folder()),
            "{exposure:?}"
        );
        let remedy = exposure.remedy(&site.file());
        assert!(
            remedy.starts_with("run `chmod go-w ") && remedy.contains("folder`"),
            "{remedy}"
        );
        // As /tmp is: others may make files there and not take this one away.
        fs::set_permissions(site.folder(), Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(site.check(), Ok(()));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_exposed() {
        let site = Site::new();
        if user() != 0 {
            return;
        }
        std::os::unix::fs::chown(site.folder(), Some(STRANGER), None).unwrap();
        assert!(matches!(
            site.check(),
            Err(Exposure::Folder {
                owner: STRANGER,
                ..
            })
        ));
        std::os::unix::fs::chown(site.folder(), Some(0), None).unwrap();
        std::os::unix::fs::chown(site.file(), Some(STRANGER), None).unwrap();
        let exposure = site.check().unwrap_err();
        let expected = Exposure::Owner {
            owner: STRANGER,
            user: 0,
        };
        assert_eq!(exposure, expected);
        assert!(exposure.remedy(&site.file()).starts_with("run `chown 0 "));
    }

    #[test]
    fn a_way_through_a_folder_of_others_is_exposed_too() {
        let site = Site::new();
        if user() != 0 {
            return;
        }
        let open = site.0.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        symlink(site.file(), open.join("link")).unwrap();
        let metadata = fs::metadata(open.join("link")).unwrap();
        assert!(matches!(
            check_secret(&open.join("link"), &metadata),
            Err(Exposure::Folder { .. })
        ));
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [pipe, folder.path().to_owned()] {
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("it is not a file"), "{error}");
        }
    }
}
