//! The Debian packages that `ci` needs. As root the missing ones are installed; otherwise they are named.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::{program, run};

/// A package, and a file that is there when it is installed. `PATH` is searched for names without a slash.
const NEEDED: [(&str, &[&str]); 9] = [
    ("e2fsprogs", &["mke2fs", "e2fsck"]),
    ("fio", &["fio"]),
    ("fuse3", &["fusermount3"]),
    ("g++", &["c++"]),
    ("iproute2", &["ip"]),
    ("libnbd-bin", &["nbdinfo", "nbdcopy", "nbdfuse"]),
    ("python3-libnbd", &["/usr/lib/python3/dist-packages/nbd.py"]),
    (
        "qemu-utils",
        &["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"],
    ),
    ("util-linux", &["setpriv", "losetup"]),
];

const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn install_missing() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "these Debian packages are missing: {list}; install them with \
             `sudo apt-get install --no-install-recommends {list}`, or run this as root"
        );
    }
    eprintln!("installing {list}");
    run(apt().arg("update"))?;
    run(apt()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing))?;
    let missing = self::missing();
    if !missing.is_empty() {
        bail!("still missing after apt-get install: {}", missing.join(" "));
    }
    Ok(())
}

fn apt() -> std::process::Command {
    let mut command = program("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("--quiet");
    command
}

fn missing() -> Vec<&'static str> {
    NEEDED
        .iter()
        .filter(|(_, files)| !files.iter().all(|file| is_present(file)))
        .map(|(package, _)| *package)
        .collect()
}

fn is_present(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(SYSTEM_FOLDERS.split(':'))
        .filter(|folder| !folder.is_empty())
        .any(|folder| Path::new(folder).join(file).exists())
}
