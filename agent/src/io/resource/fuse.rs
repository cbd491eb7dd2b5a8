//! The end of a FUSE connection by order of the kernel: whatever waits for its server gets an error at once.
//!
//! A file system over a server that is silent holds its users, its unmount and even the end of the server's own
//! process; none of them can be killed out of that wait. The order is a file of the file system `fusectl`, which is
//! opened here without a mount that anybody sees, so that it works in containers too and leaves nothing behind.

use std::io;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Ends a connection; fine too where it has ended. Its number is the minor number of the device of its mount.
pub fn abort(connection: u32) -> io::Result<()> {
    let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&control)?;
    let files = fsmount(
        &control,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let order = openat(
        &files,
        format!("{connection}/abort"),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    match order {
        Ok(order) => Ok(rustix::io::write(&order, b"1").map(drop)?),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
