//! Which processes use a file system, and their end.
//!
//! A process uses it through its working directory, its root, its program, an open file or a mapping. Files are
//! told by the number of their device, so that users inside a container or behind a bind mount are found too.
//! This process, those that it descends from and process 1 are found but never killed.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Most ancestors that are looked at; a longer chain is a loop.
const ANCESTORS_MAX: usize = 128;
/// Longest command line that is shown.
const COMMAND_CHARACTERS_MAX: usize = 60;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub pid: i32,
    pub command: String,
    pub by: UsedBy,
}

/// How a process uses it; the first way that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedBy {
    WorkingDirectory,
    Root,
    Program,
    OpenFile,
    Mapping,
}

impl fmt::Display for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            UsedBy::WorkingDirectory => "its working directory is there",
            UsedBy::Root => "its root is there",
            UsedBy::Program => "its program is there",
            UsedBy::OpenFile => "it has a file open",
            UsedBy::Mapping => "it has a file mapped",
        };
        write!(formatter, "process {} ({}): {by}", self.pid, self.command)
    }
}

/// Users of the file system on a device (major and minor number). Processes that end meanwhile are left out.
pub fn of_device(device: (u32, u32)) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let by = use_of(&entry.path(), device)?;
            Some(User {
                pid,
                command: command_of(&entry.path()),
                by,
            })
        })
        .collect()
}

/// Sends a signal to all of them that may be killed; how many there were.
pub fn signal_all(users: &[User], signal: Signal) -> usize {
    killable(users)
        .filter(|user| kill(Pid::from_raw(user.pid), signal).is_ok())
        .count()
}

/// Those that may be killed.
pub fn killable(users: &[User]) -> impl Iterator<Item = &User> {
    let spared = spared();
    users.iter().filter(move |user| !spared.contains(&user.pid))
}

/// This process, its ancestors and process 1.
fn spared() -> Vec<i32> {
    let mut spared = vec![1];
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 1 && spared.len() < ANCESTORS_MAX) {
        spared.push(pid);
        next = parent_of(pid);
    }
    spared
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = read_text(Path::new(&format!("/proc/{pid}/stat")));
    // The name in parentheses may contain anything; the state and the parent follow it.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn use_of(process: &Path, device: (u32, u32)) -> Option<UsedBy> {
    let is_there = |link: &Path| {
        fs::metadata(link).is_ok_and(|found| {
            let number = found.dev();
            device == (libc::major(number), libc::minor(number))
        })
    };
    if is_there(&process.join("cwd")) {
        return Some(UsedBy::WorkingDirectory);
    }
    if is_there(&process.join("root")) {
        return Some(UsedBy::Root);
    }
    if is_there(&process.join("exe")) {
        return Some(UsedBy::Program);
    }
    let has_open = fs::read_dir(process.join("fd"))
        .is_ok_and(|files| files.flatten().any(|file| is_there(&file.path())));
    if has_open {
        return Some(UsedBy::OpenFile);
    }
    let maps = read_text(&process.join("maps"));
    maps.lines()
        .filter_map(device_of_mapping)
        .any(|found| found == device)
        .then_some(UsedBy::Mapping)
}

/// The fourth word of a line of `maps`, in hexadecimal.
fn device_of_mapping(line: &str) -> Option<(u32, u32)> {
    let (major, minor) = line.split_whitespace().nth(3)?.split_once(':')?;
    Some((
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    ))
}

/// A process may be called, and map a file that is called, by what is no text; it must not hide behind that.
/// Empty where the process has ended.
fn read_text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn command_of(process: &Path) -> String {
    let line = read_text(&process.join("cmdline")).replace('\0', " ");
    let line = match line.trim() {
        "" => read_text(&process.join("comm")),
        line => line.to_owned(),
    };
    line.trim().chars().take(COMMAND_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_its_ancestors_and_the_first_process_are_spared() {
        let spared = spared();
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = nix::unistd::getppid().as_raw();
        assert!(spared.contains(&1) && spared.contains(&own));
        assert!(parent == 0 || spared.contains(&parent));
    }

    #[test]
    fn an_open_file_makes_a_user() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let number = file.metadata().unwrap().dev();
        let users = of_device((libc::major(number), libc::minor(number)));
        let own = i32::try_from(std::process::id()).unwrap();
        let found = users.iter().find(|user| user.pid == own).unwrap();
        assert!(!found.command.is_empty());
        assert_eq!(signal_all(std::slice::from_ref(found), Signal::SIGKILL), 0);
    }

    #[test]
    fn a_file_whose_name_is_no_text_hides_nobody() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        use std::process::{Command, Stdio};

        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        // What a process maps for certain is its program.
        let program = folder.path().join(OsStr::from_bytes(b"sl\xffeep"));
        fs::copy("/bin/cat", &program).unwrap();
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let process = Path::new("/proc").join(child.id().to_string());
        let number = fs::metadata(&program).unwrap().dev();
        let device = (libc::major(number), libc::minor(number));
        // The parent goes on when the child's files are closed, which is before its program is mapped.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let is_mapped = || {
            let maps = read_text(&process.join("maps"));
            let mut devices = maps.lines().filter_map(device_of_mapping);
            devices.any(|found| found == device)
        };
        while !is_mapped() {
            assert!(std::time::Instant::now() < deadline, "it maps its program");
            std::thread::yield_now();
        }
        assert!(command_of(&process).contains("eep"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_mapping_names_its_device_in_hexadecimal() {
        let line = "7f00-7f01 r--p 00000000 fd:1a 1234   /srv/data/library.so";
        assert_eq!(device_of_mapping(line), Some((0xfd, 0x1a)));
        assert_eq!(device_of_mapping("7f00-7f01 r--p"), None);
    }
}
