//! A mirror as a block device of this machine: `nbdfuse` shows its export as a file, a loop device makes a disk
//! of the file.
//!
//! Nothing is remembered: what is attached is read from the kernel each time, so that an agent that was
//! restarted finds its devices again. Each step looks first whether it is needed. `nbdfuse` lives on when the
//! agent ends.
//!
//! A mirror that answers nothing holds everything above it inside the kernel, `losetup` included. So a detach by
//! force aborts the connection of `nbdfuse`, after which all of that ends in errors.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{fuse, mounts};
use crate::io::blocking::{Slot, Stuck};
use crate::io::command::{CommandError, Invocation};

/// Longest run of `losetup` and `fusermount3`.
const TOOL_LIMIT: Duration = Duration::from_secs(20);
/// The same where everything may fail. What was answered until then is on the mirror.
const FORCED_TOOL_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait until `nbdfuse` shows its file.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long `nbdfuse` may take to end by itself after its file was unmounted, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Where the parts of one mirror's attachment are.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The mirror as a file.
    file: PathBuf,
    pid_file: PathBuf,
    /// Which listening socket `nbdfuse` is connected to.
    server: PathBuf,
    log: PathBuf,
    kernel: Slot,
}

/// What there is of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    pub nbdfuse: Option<i32>,
    pub is_file_mounted: bool,
    /// `/dev/loopN`
    pub device: Option<String>,
    /// `mirrord` was restarted since: `nbdfuse` has lost it for ever.
    pub is_stale: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("cannot prepare {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot start nbdfuse: {0}; install the package libnbd-bin")]
    Program(io::Error),
    #[error(
        "nbdfuse cannot open {uri}: it {how}{}; look whether mirrord serves it and the mirror is primary here",
        said(log)
    )]
    Refused {
        uri: String,
        how: String,
        log: String,
    },
    #[error("there is no loop device for {}: {source}; look at `losetup --list`", file.display())]
    Loop { file: PathBuf, source: CommandError },
    #[error("{device} does not let go of {}: {source}; look at `losetup --list` and `lsblk {device}` for what uses it", file.display())]
    LoopBusy {
        device: String,
        file: PathBuf,
        source: CommandError,
    },
    #[error("{} does not unmount: {errno}; look at `losetup --list` and `fuser -v` on it for what uses the device", file.display())]
    FileBusy { file: PathBuf, errno: Errno },
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

fn said(log: &str) -> String {
    match log.trim() {
        "" => String::new(),
        log => format!(", saying: {log}"),
    }
}

impl Attached {
    /// The part that is not there, if any.
    pub fn missing(&self) -> Option<&'static str> {
        if self.nbdfuse.is_none() {
            Some("nbdfuse")
        } else if self.is_stale {
            Some("the mirrord that nbdfuse was connected to")
        } else if !self.is_file_mounted {
            Some("the file that nbdfuse shows")
        } else if self.device.is_none() {
            Some("the loop device")
        } else {
            None
        }
    }

    pub fn is_whole(&self) -> bool {
        self.missing().is_none()
    }

    pub fn is_nothing(&self) -> bool {
        self.nbdfuse.is_none() && !self.is_file_mounted && self.device.is_none()
    }

    /// The file can be read; the device on it may still be missing.
    pub fn serves(&self) -> bool {
        self.nbdfuse.is_some() && self.is_file_mounted && !self.is_stale
    }
}

impl Attachment {
    /// `folder` is made when it is needed.
    pub fn new(folder: &Path, mirror: &str) -> Self {
        Self {
            file: folder.join(mirror),
            pid_file: folder.join(format!("{mirror}.pid")),
            server: folder.join(format!("{mirror}.server")),
            log: folder.join(format!("{mirror}.log")),
            kernel: Slot::default(),
        }
    }

    pub fn survey(&self) -> Attached {
        Attached {
            nbdfuse: self.process(),
            is_file_mounted: self.is_file_mounted(),
            device: loop_device_of(Path::new("/sys/block"), &self.file),
            is_stale: self.is_stale(),
        }
    }

    /// The device is a loop device on the file, also while it only waits for its last user.
    pub fn owns(&self, device: &str) -> bool {
        Loop::read(Path::new("/sys/block"), device).is_some_and(|found| found.backing == self.file)
    }

    /// Attaches what is not attached yet; the device.
    pub async fn attach(&self, uri: &str) -> Result<String, AttachError> {
        let found = self.survey();
        if !found.serves() {
            self.detach(true).await?;
            self.show_file(uri).await?;
        }
        match loop_device_of(Path::new("/sys/block"), &self.file) {
            Some(device) => Ok(device),
            None => self.make_device().await,
        }
    }

    /// Takes down what is attached. `force`: what is still in use fails its users.
    pub async fn detach(&self, force: bool) -> Result<(), AttachError> {
        if let Some(device) = loop_device_of(Path::new("/sys/block"), &self.file) {
            self.drop_device(&device, force).await?;
        }
        self.hide_file(force).await?;
        self.end_process(force).await;
        for note in [&self.pid_file, &self.server] {
            let _ = fs::remove_file(note);
        }
        Ok(())
    }

    async fn show_file(&self, uri: &str) -> Result<(), AttachError> {
        let failed = |source| AttachError::Folder {
            path: self.file.clone(),
            source,
        };
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(&self.file, []).map_err(failed)?;
        let log = fs::File::create(&self.log).map_err(failed)?;
        let socket = uri.split_once("socket=").map_or("", |(_, path)| path);
        let server = format!("{socket}\n{}", identity(Path::new(socket)));
        fs::write(&self.server, server).map_err(failed)?;
        let mut child = tokio::process::Command::new("nbdfuse")
            .arg("--pidfile")
            .arg(&self.pid_file)
            .arg(&self.file)
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // It outlives the agent, and what is sent to the agent's group.
            .process_group(0)
            .spawn()
            .map_err(AttachError::Program)?;
        let begun = Instant::now();
        let how = loop {
            if self.pid_file.exists() && self.is_file_mounted() {
                return Ok(());
            }
            match child.try_wait() {
                Ok(Some(status)) => break format!("ended with {status}"),
                Ok(None) if begun.elapsed() < READY_LIMIT => {}
                Ok(None) | Err(_) => {
                    let _ = child.start_kill();
                    let limit = humantime::format_duration(READY_LIMIT);
                    break format!("was not ready within {limit}");
                }
            }
            tokio::time::sleep(POLL).await;
        };
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[..log.len().min(4096)]).into_owned();
        Err(AttachError::Refused {
            uri: uri.into(),
            how,
            log,
        })
    }

    async fn make_device(&self) -> Result<String, AttachError> {
        let ended = Invocation::new(["losetup", "--find", "--show"].map(String::from))
            .argument(&self.file)
            .succeed(TOOL_LIMIT)
            .await
            .map_err(|source| AttachError::Loop {
                file: self.file.clone(),
                source,
            })?;
        Ok(ended.stdout)
    }

    async fn drop_device(&self, device: &str, force: bool) -> Result<(), AttachError> {
        let detach = Invocation::new(["losetup", "--detach", device]);
        let busy = |source| AttachError::LoopBusy {
            device: device.into(),
            file: self.file.clone(),
            source,
        };
        if !force {
            return detach.succeed(TOOL_LIMIT).await.map(drop).map_err(busy);
        }
        if let Err(error) = detach.succeed(FORCED_TOOL_LIMIT).await {
            self.abort();
            // The first one may have got through after all, and the number be someone else's by now.
            if !self.owns(device) {
                return Ok(());
            }
            if let Err(again) = detach.succeed(FORCED_TOOL_LIMIT).await {
                tracing::warn!("{}, and by force: {again}", busy(error));
            }
        }
        Ok(())
    }

    /// Everything that waits for the mirror inside the kernel ends in an error, and so does whatever comes after.
    pub fn abort(&self) {
        let Ok(mounts) = mounts::mounted() else {
            return;
        };
        let Some(mount) = mounts::at(&mounts, &self.file) else {
            return;
        };
        // A connection has the minor number of its mount, and FUSE's mounts no major one.
        let (0, connection) = mount.device else {
            return;
        };
        if !mount.filesystem.starts_with("fuse") {
            return;
        }
        match fuse::abort(connection) {
            Ok(()) => tracing::warn!(
                "aborted FUSE connection {connection} of {}",
                self.file.display()
            ),
            Err(error) => tracing::warn!(
                "cannot abort FUSE connection {connection} of {}: {error}",
                self.file.display()
            ),
        }
    }

    /// The loop device lets go of the file a moment after it was detached, or when its last user is gone.
    async fn hide_file(&self, force: bool) -> Result<(), AttachError> {
        let begun = Instant::now();
        if force {
            // Out of sight it could not be found any more.
            self.abort();
        }
        while self.is_file_mounted() {
            // A dead nbdfuse leaves its mount behind, and nobody can use that.
            let lazy = force || self.process().is_none();
            let file = self.file.clone();
            let result = self
                .kernel
                .run("an unmount of nbdfuse's file", END_LIMIT, move || {
                    mounts::unmount(&file, lazy)
                })
                .await?;
            match result {
                Ok(()) => {}
                Err(Errno::EBUSY) if begun.elapsed() < END_LIMIT => {}
                Err(errno) => {
                    return Err(AttachError::FileBusy {
                        file: self.file.clone(),
                        errno,
                    });
                }
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn end_process(&self, force: bool) {
        let begun = Instant::now();
        let mut is_killed = false;
        while let Some(pid) = self.process() {
            let is_late = force || begun.elapsed() > END_LIMIT;
            if is_late && !is_killed {
                is_killed = true;
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if begun.elapsed() > END_LIMIT * 2 {
                tracing::warn!("nbdfuse, process {pid}, was killed and is not gone");
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn is_stale(&self) -> bool {
        let Ok(server) = fs::read_to_string(&self.server) else {
            return false;
        };
        server
            .split_once('\n')
            .is_none_or(|(socket, then)| identity(Path::new(socket)) != then)
    }

    fn is_file_mounted(&self) -> bool {
        mounts::mounted().is_ok_and(|mounts| mounts::at(&mounts, &self.file).is_some())
    }

    /// The `nbdfuse` that shows this file. Its number alone could belong to someone else by now.
    fn process(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(&self.pid_file)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let file = self.file.as_os_str().as_encoded_bytes();
        (words.first()?.ends_with(b"nbdfuse") && words.contains(&file)).then_some(pid)
    }
}

/// The loop device on a file, unless it only waits for its last user to go away.
fn loop_device_of(block_devices: &Path, file: &Path) -> Option<String> {
    fs::read_dir(block_devices)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("loop"))
        .map(|name| format!("/dev/{name}"))
        .find(|device| {
            Loop::read(block_devices, device)
                .is_some_and(|found| found.backing == file && !found.goes_by_itself)
        })
}

struct Loop {
    backing: PathBuf,
    /// It was detached and waits for its last user.
    goes_by_itself: bool,
}

impl Loop {
    fn read(block_devices: &Path, device: &str) -> Option<Self> {
        let name = device.strip_prefix("/dev/")?;
        let folder = block_devices.join(name).join("loop");
        let backing = fs::read_to_string(folder.join("backing_file")).ok()?;
        let autoclear = fs::read_to_string(folder.join("autoclear")).ok()?;
        Some(Self {
            backing: PathBuf::from(backing.trim_end_matches('\n')),
            goes_by_itself: autoclear.trim() == "1",
        })
    }
}

/// Differs for each socket that was ever bound to a path.
fn identity(socket: &Path) -> String {
    match fs::metadata(socket) {
        Ok(found) => format!(
            "{} {} {}.{:09}",
            found.dev(),
            found.ino(),
            found.ctime(),
            found.ctime_nsec()
        ),
        Err(_) => "gone".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_device_of_a_file_is_found_unless_it_is_on_its_way_out() {
        let folder = tempfile::tempdir().unwrap();
        for (name, backing, autoclear) in [
            ("loop0", "/elsewhere", "0"),
            ("loop1", "/run/disk", "1"),
            ("loop2", "/run/disk", "0"),
            ("sda", "/run/disk", "0"),
        ] {
            let device = folder.path().join(name).join("loop");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("backing_file"), format!("{backing}\n")).unwrap();
            fs::write(device.join("autoclear"), format!("{autoclear}\n")).unwrap();
        }
        let find = |file: &str| loop_device_of(folder.path(), Path::new(file));
        assert_eq!(find("/run/disk").as_deref(), Some("/dev/loop2"));
        assert_eq!(find("/run/other"), None);
    }

    #[test]
    fn a_process_number_left_by_someone_else_is_not_taken_for_nbdfuse() {
        let folder = tempfile::tempdir().unwrap();
        let attachment = Attachment::new(folder.path(), "data");
        fs::write(&attachment.pid_file, std::process::id().to_string()).unwrap();
        assert!(attachment.survey().is_nothing());
    }

    #[test]
    fn a_socket_that_was_bound_anew_makes_the_attachment_stale() {
        let folder = tempfile::tempdir().unwrap();
        let attachment = Attachment::new(folder.path(), "data");
        assert!(!attachment.is_stale());
        let socket = folder.path().join("socket");
        let _first = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let note = format!("{}\n{}", socket.display(), identity(&socket));
        fs::write(&attachment.server, note).unwrap();
        assert!(!attachment.is_stale());
        fs::rename(&socket, folder.path().join("old")).unwrap();
        assert!(attachment.is_stale());
        let _second = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(attachment.is_stale());
    }
}
