//! What is mounted where, as the kernel tells it in `/proc/self/mountinfo`; and the way down of a mount.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::syncfs;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the device under it.
    pub device: (u32, u32),
    pub point: PathBuf,
    pub filesystem: String,
    pub source: String,
    /// Of this mount or of the file system as a whole, which a fault turns read-only.
    pub is_read_only: bool,
}

/// Everything mounted, a mount that covers another after it.
///
/// Users may mount things of their own under names that are no text. That must not hide the rest.
pub fn mounted() -> io::Result<Vec<Mount>> {
    let bytes = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// The topmost mount on a path, which is absolute and has no links in it.
pub fn at<'m>(mounts: &'m [Mount], point: &Path) -> Option<&'m Mount> {
    mounts.iter().rev().find(|mount| mount.point == point)
}

/// The kernel writes back at an unmount only where no other mount namespace holds the file system as well.
fn write_back(point: &Path) {
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK)
        .open(point);
    let written = folder.map(syncfs);
    if let Ok(Err(errno)) = written {
        tracing::warn!(
            "not all could be written back before {} is unmounted: {errno}",
            point.display()
        );
    }
}

/// Takes a mount down with all that is mounted below it, the innermost first. `lazy`: only out of sight; the
/// kernel lets go of it when its last user does.
pub fn unmount(point: &Path, lazy: bool) -> Result<(), Errno> {
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::empty()
    } | MntFlags::UMOUNT_NOFOLLOW;
    let mounts = mounted().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let device = at(&mounts, point).map(|mount| mount.device);
    let within = mounts
        .iter()
        .rev()
        .filter(|mount| mount.point.starts_with(point));
    for mount in within {
        if !lazy && device == Some(mount.device) {
            write_back(&mount.point);
        }
        match umount2(&mount.point, flags) {
            // Someone else was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

/// See proc_pid_mountinfo(5): the optional fields end with a lone `-`.
fn parse_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (major, minor) = front.next()?.split_once(':')?;
    let point = unescape(front.nth(1)?);
    let options = front.next()?;
    let mut back = back.split(' ');
    let filesystem = back.next()?.to_owned();
    let source = unescape(back.next()?);
    let says_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: point.into(),
        filesystem,
        source,
        is_read_only: says_read_only(options) || back.next().is_some_and(says_read_only),
    })
}

/// Blank, tab, line feed and backslash are written as three octal digits.
fn unescape(text: &str) -> String {
    ["040", "011", "012", "134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| {
            text.replace(&format!("\\{code}"), plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 7:3 / /srv/two\\040words rw,noatime shared:9 master:2 - ext4 /dev/loop3 ro,errors=remount-ro
41 22 0:44 / /run/disk rw,nosuid - fuse.nbdfuse nbdfuse rw,user_id=0
42 40 0:45 / /srv/two\\040words/in ro - tmpfs tmpfs rw
broken line
";

    #[test]
    fn points_devices_and_what_a_fault_made_read_only_are_read() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 4);
        let two = at(&mounts, Path::new("/srv/two words")).unwrap();
        assert_eq!(two.device, (7, 3));
        assert_eq!(two.source, "/dev/loop3");
        assert!(two.is_read_only);
        let disk = at(&mounts, Path::new("/run/disk")).unwrap();
        assert_eq!(disk.filesystem, "fuse.nbdfuse");
        assert!(!disk.is_read_only);
        assert!(at(&mounts, Path::new("/srv")).is_none());
    }

    #[test]
    fn of_two_mounts_on_one_path_the_upper_counts() {
        let text = format!("{TEXT}50 22 0:50 / /run/disk rw - tmpfs upper rw\n");
        let mounts = parse(&text);
        assert_eq!(at(&mounts, Path::new("/run/disk")).unwrap().source, "upper");
    }

    #[test]
    fn the_kernel_s_own_table_is_understood() {
        assert!(at(&mounted().unwrap(), Path::new("/proc")).is_some());
    }
}
