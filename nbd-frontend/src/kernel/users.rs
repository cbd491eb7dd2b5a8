//! Who has a device open: mounts in any name space, swap, devices built on it, and processes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::found::DeviceNumber;

/// More than these are counted, not named.
const NAMED_MAX: usize = 8;

/// One line a user, in words; none is free to be detached. Looks at all of `/proc`.
pub fn users_of(device: DeviceNumber) -> Vec<String> {
    let Ok((major, minor)) = device.numbers() else {
        return Vec::new();
    };
    let path = device.path();
    let own = std::process::id();
    let mut users = Vec::new();
    users.extend(
        device
            .holders()
            .into_iter()
            .map(|name| format!("/dev/{name} is built on it")),
    );
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps
        .lines()
        .any(|line| line.split_whitespace().next() == path.to_str())
    {
        users.push(format!("it is swap space (`swapoff {}`)", path.display()));
    }
    let mut points = HashSet::new();
    let mut spaces = HashSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let folder = entry.path();
        if let Ok(space) = fs::read_link(folder.join("ns/mnt"))
            && spaces.insert(space)
        {
            points.extend(mount_points(
                &text_of(&folder.join("mountinfo")),
                major,
                minor,
            ));
        }
        if pid != own && has_open(&folder.join("fd"), major, minor) {
            let name = text_of(&folder.join("comm"));
            users.push(format!("process {pid} ({}) has it open", name.trim_end()));
        }
    }
    users.extend(
        points
            .into_iter()
            .map(|point| format!("it is mounted on {point} (`umount {point}`)")),
    );
    let more = users.len().saturating_sub(NAMED_MAX);
    users.truncate(NAMED_MAX);
    if more > 0 {
        users.push(format!("and {more} more"));
    }
    users
}

/// Users may mount things under names that are no text, and call processes so. That must not hide the rest.
fn text_of(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mount_points(mounts: &str, major: u32, minor: u32) -> Vec<String> {
    let number = format!("{major}:{minor}");
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            let found = words.next()?;
            let point = words.nth(1)?;
            (found == number).then(|| point.to_owned())
        })
        .collect()
}

fn has_open(descriptors: &Path, major: u32, minor: u32) -> bool {
    let entries = fs::read_dir(descriptors).into_iter().flatten().flatten();
    let mut opened = entries.filter_map(|entry| fs::metadata(entry.path()).ok());
    opened.any(|found| {
        found.file_type().is_block_device()
            && nix::sys::stat::major(found.rdev()) == u64::from(major)
            && nix::sys::stat::minor(found.rdev()) == u64::from(minor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_device_are_found_by_its_number() {
        let mounts = "36 35 98:0 / /mnt1 rw,noatime - ext4 /dev/nbd0 rw\n\
                      37 35 43:0 / /mnt2 rw - xfs /dev/nbd0 rw\n\
                      38 35 43:1 /sub /mnt3 rw - xfs /dev/nbd1 rw\nnonsense\n";
        assert_eq!(mount_points(mounts, 43, 0), ["/mnt2"]);
        assert!(mount_points(mounts, 43, 2).is_empty());
    }

    #[test]
    fn a_device_that_is_not_there_has_no_users() {
        assert!(users_of(DeviceNumber(4_000_000)).is_empty());
    }
}
