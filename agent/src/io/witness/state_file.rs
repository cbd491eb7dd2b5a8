//! The one file of a witness: what every cluster's registry must still know after a crash.
//! `docs/witness.md` has its layout.
//!
//! A new content goes to a second file in the same folder, which is flushed, put in the place of the
//! first by a rename, and made certain by a flush of the folder. So at every moment the file holds the
//! old content or the new. Where the last two steps fail, it is not known which; then nothing is answered
//! until a further write has succeeded ([`StateFile::settle`]).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::arbiter::registry::{Record, Records};

const FORMAT: &str = "mirror-witness";
const VERSION: u32 = 1;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// One cluster's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterState {
    /// Which key the cluster had: a record is of no worth to another cluster of the same name.
    pub key: String,
    pub mirrors: Records,
}

/// By name of the cluster.
pub type State = BTreeMap<String, ClusterState>;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// Of everything after the first line.
    sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error("another mirror-witness uses {}; stop it, or give this one a `state_file` of its own", path.display())]
    InUse { path: PathBuf },
    #[error("{} is damaged ({reason}), and what it held cannot be relied on; move it away and start again: every cluster then enrols again by itself, once both of its nodes reach this witness", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} was written by a newer mirror-witness (version {version} of the file, this one reads {VERSION}); install that release", path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error("cannot {step} {}: {source}; `state_file` must be in a folder that exists and that this user may write to", path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    folder: PathBuf,
    content: Mutex<Content>,
    /// Held as long as this lives. A file of its own, because the state itself is replaced.
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Content {
    state: State,
    /// A write failed at a point from which on the file may hold either content.
    doubtful: bool,
}

/// A write under way.
struct Save<'a> {
    file: &'a StateFile,
    bytes: &'a [u8],
    new: Option<File>,
}

type SaveStep = fn(&mut Save) -> io::Result<()>;

/// In this order. A failure before the rename leaves the old content for certain.
const SAVE_STEPS: [SaveStep; 5] = [
    |save| save.create(),
    |save| save.write(),
    |save| save.flush(),
    |save| save.rename(),
    |save| save.flush_folder(),
];
const RENAME_STEP: usize = 3;

impl StateFile {
    /// Takes the file for this process alone, and reads it. A file that is not there yet is empty.
    pub fn open(path: &Path) -> Result<Self, StateFileError> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let lock_path = beside(path, ".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("create", &lock_path))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => StateFileError::InUse { path: path.into() },
                    errno => failed("lock", &lock_path)(errno.into()),
                },
            )?;
        let state = read(path)?.unwrap_or_default();
        let file = Self {
            path: path.into(),
            folder,
            content: Mutex::new(Content {
                state,
                doubtful: false,
            }),
            _lock: lock,
        };
        // A full disk or a folder that cannot be written to is found now, and not in a failover. It also
        // makes certain what a write before this start left undecided.
        file.save(&mut file.content())
            .map_err(failed("write", path))?;
        Ok(file)
    }

    pub fn state(&self) -> State {
        self.content().state.clone()
    }

    /// Makes one cluster's part durable. On an error nothing changed, as far as anybody will be told.
    pub fn store(&self, cluster: &str, part: ClusterState) -> io::Result<()> {
        let mut content = self.content();
        let before = content.state.insert(cluster.into(), part);
        let saved = self.save(&mut content);
        if saved.is_err() {
            match before {
                Some(before) => content.state.insert(cluster.into(), before),
                None => content.state.remove(cluster),
            };
        }
        saved
    }

    /// Removes one cluster's part, or one mirror of it. False if it is not there.
    pub fn remove(&self, cluster: &str, mirror: Option<&str>) -> io::Result<bool> {
        let mut content = self.content();
        let before = content.state.clone();
        let removed = match mirror {
            None => content.state.remove(cluster).is_some(),
            Some(mirror) => content
                .state
                .get_mut(cluster)
                .is_some_and(|part| part.mirrors.remove(mirror).is_some()),
        };
        if removed && let Err(error) = self.save(&mut content) {
            content.state = before;
            return Err(error);
        }
        Ok(removed)
    }

    /// Makes certain what the file holds, if a write before left that open.
    pub fn settle(&self) -> io::Result<()> {
        let mut content = self.content();
        if content.doubtful {
            self.save(&mut content)?;
        }
        Ok(())
    }

    fn save(&self, content: &mut Content) -> io::Result<()> {
        let bytes = encode(&content.state);
        let mut save = Save {
            file: self,
            bytes: &bytes,
            new: None,
        };
        for (index, step) in SAVE_STEPS.into_iter().enumerate() {
            if let Err(error) = step(&mut save) {
                if index >= RENAME_STEP {
                    content.doubtful = true;
                } else {
                    // What was written of it may be what fills the disk.
                    let _ = fs::remove_file(self.new_path());
                }
                return Err(error);
            }
        }
        content.doubtful = false;
        Ok(())
    }

    fn new_path(&self) -> PathBuf {
        beside(&self.path, ".new")
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content
            .lock()
            .expect("a panic in the middle of a change leaves nothing to rely on")
    }
}

impl Save<'_> {
    fn create(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.file.new_path())?;
        self.new = Some(file);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let bytes = self.bytes;
        self.opened()?.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.opened()?.sync_all()
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(self.file.new_path(), &self.file.path)
    }

    fn flush_folder(&mut self) -> io::Result<()> {
        File::open(&self.file.folder)?.sync_all()
    }

    fn opened(&mut self) -> io::Result<&mut File> {
        self.new
            .as_mut()
            .ok_or_else(|| io::Error::other("the new file was not created"))
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    let path = path.to_owned();
    move |source| StateFileError::Io { step, path, source }
}

/// What the file holds, if it is there. It is replaced as a whole, so a witness may use it meanwhile.
pub fn read(path: &Path) -> Result<Option<State>, StateFileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    decode(path, &bytes).map(Some)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub fn encode(state: &State) -> Vec<u8> {
    let body = serde_json::to_vec_pretty(state).expect("its maps have names as keys");
    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        sha256: sha256(&body),
    };
    let mut bytes = serde_json::to_vec(&header).expect("a header is plain");
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    bytes
}

/// The content of a file; `path` is only what an error calls it.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<State, StateFileError> {
    let damaged = |reason: &str| StateFileError::Damaged {
        path: path.into(),
        reason: reason.into(),
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(damaged("it is larger than any that was written"));
    }
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("it has no first line"))?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header =
        serde_json::from_slice(header).map_err(|_| damaged("its first line is none of ours"))?;
    if header.format != FORMAT {
        return Err(damaged("its first line names another format"));
    }
    if header.version > VERSION {
        return Err(StateFileError::Newer {
            path: path.into(),
            version: header.version,
        });
    }
    if header.sha256 != sha256(body) {
        return Err(damaged("its checksum does not match"));
    }
    let state: State = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    let mut records = state.values().flat_map(|part| part.mirrors.values());
    if !records.all(Record::is_sound) {
        return Err(damaged("a record in it contradicts itself"));
    }
    Ok(state)
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::units::Epoch;

    fn part(epoch: u64) -> ClusterState {
        let nodes = || ["a", "b"].map(String::from).into();
        let record = Record {
            epoch: Epoch(epoch),
            holder: Some("a".into()),
            lease_ms: 10,
            current: nodes(),
            nodes: nodes(),
        };
        ClusterState {
            key: "id".into(),
            mirrors: [("md1".to_owned(), record)].into(),
        }
    }

    fn open(folder: &tempfile::TempDir) -> Result<StateFile, StateFileError> {
        StateFile::open(&folder.path().join("state"))
    }

    /// The epoch in the file, as the next start finds it.
    fn epoch(folder: &tempfile::TempDir) -> u64 {
        open(folder).unwrap().state()["c"].mirrors["md1"].epoch.0
    }

    #[test]
    fn what_is_stored_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(&folder).unwrap();
        assert_eq!(file.state(), State::new());
        file.store("c", part(1)).unwrap();
        file.store("d", part(2)).unwrap();
        let state = file.state();
        drop(file);
        assert_eq!(open(&folder).unwrap().state(), state);
    }

    #[test]
    fn two_cannot_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(&folder).unwrap();
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains("another mirror-witness uses"), "{error}");
        drop(first);
        open(&folder).unwrap();
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_old_or_the_new_content() {
        for steps in 0..=SAVE_STEPS.len() {
            for torn in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let file = open(&folder).unwrap();
                file.store("c", part(1)).unwrap();
                let bytes = encode(&[("c".to_owned(), part(2))].into());
                let written = if torn { bytes.len() / 2 } else { bytes.len() };
                // What is not flushed may be lost in part; what is flushed is whole.
                let bytes = if steps <= 2 {
                    &bytes[..written]
                } else {
                    &bytes
                };
                let mut save = Save {
                    file: &file,
                    bytes,
                    new: None,
                };
                for step in &SAVE_STEPS[..steps] {
                    step(&mut save).unwrap();
                }
                drop(file);
                let expected = if steps > RENAME_STEP { 2 } else { 1 };
                assert_eq!(epoch(&folder), expected, "after {steps} steps");
            }
        }
    }

    #[test]
    fn any_damage_is_noticed_and_the_way_out_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let whole = encode(&[("c".to_owned(), part(1))].into());
        let mut broken: Vec<Vec<u8>> = (0..whole.len())
            .map(|at| {
                let mut bytes = whole.clone();
                bytes[at] ^= 1;
                bytes
            })
            .collect();
        broken.extend((0..whole.len()).map(|length| whole[..length].to_vec()));
        for bytes in broken {
            // A header may differ and still say the same, in the version that is read as lower.
            match decode(&path, &bytes) {
                Ok(state) => assert_eq!(state["c"], part(1)),
                Err(StateFileError::Damaged { .. } | StateFileError::Newer { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains("move it away"), "{error}");
        assert_eq!(
            fs::read(&path).unwrap(),
            whole[..whole.len() - 1],
            "untouched"
        );
    }

    #[test]
    fn a_record_that_contradicts_itself_is_damage() {
        let mut part = part(1);
        let record = part.mirrors.get_mut("md1").unwrap();
        record.current.clear();
        let bytes = encode(&[("c".to_owned(), part)].into());
        let error = decode(Path::new("state"), &bytes).unwrap_err();
        assert!(matches!(error, StateFileError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_newer_file_is_left_alone() {
        let body = b"{}";
        let header = format!(
            "{{\"format\":\"mirror-witness\",\"version\":2,\"sha256\":\"{}\"}}\n",
            sha256(body)
        );
        let bytes = [header.as_bytes(), body].concat();
        let error = decode(Path::new("state"), &bytes).unwrap_err().to_string();
        assert!(error.contains("newer"), "{error}");
    }

    #[test]
    fn a_failed_write_changes_nothing_and_a_doubtful_one_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = StateFile::open(&inner.join("state")).unwrap();
        file.store("c", part(1)).unwrap();
        // A folder of that name is in the way of the new file.
        fs::create_dir(inner.join("state.new")).unwrap();
        assert!(file.store("c", part(2)).is_err());
        assert_eq!(file.state()["c"], part(1));
        file.settle().unwrap();
        fs::remove_dir(inner.join("state.new")).unwrap();
        // A folder in the place of the state itself is in the way of the rename.
        fs::remove_file(inner.join("state")).unwrap();
        fs::create_dir(inner.join("state")).unwrap();
        assert!(file.store("c", part(2)).is_err());
        assert!(file.settle().is_err(), "still in doubt");
        fs::remove_dir(inner.join("state")).unwrap();
        file.settle().unwrap();
        drop(file);
        let state = StateFile::open(&inner.join("state")).unwrap().state();
        assert_eq!(state["c"], part(1));
    }

    #[test]
    fn clusters_and_mirrors_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(&folder).unwrap();
        file.store("c", part(1)).unwrap();
        assert!(!file.remove("d", None).unwrap());
        assert!(!file.remove("c", Some("md2")).unwrap());
        assert!(file.remove("c", Some("md1")).unwrap());
        assert!(file.state()["c"].mirrors.is_empty());
        assert!(file.remove("c", None).unwrap());
        assert_eq!(file.state(), State::new());
    }
}
