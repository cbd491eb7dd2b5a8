//! The Debian packages that tasks need. As root the missing ones are installed; otherwise they are named.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::{program, run};

/// What starts the programs of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Demo,
    Tests,
    Bench,
    Fuzz,
    Aws,
    Vm,
}

use Use::{Aws, Bench, Demo, Fuzz, Tests, Vm};

struct Needed {
    package: &'static str,
    /// There when it is installed. `PATH` is searched for names without a slash.
    files: &'static [&'static str],
    by: &'static [Use],
}

const fn needed(
    package: &'static str,
    files: &'static [&'static str],
    by: &'static [Use],
) -> Needed {
    Needed { package, files, by }
}

const NEEDED: [Needed; 22] = [
    // Takes the symbols out of what goes into machines.
    needed("binutils", &["strip"], &[Vm]),
    needed("dmsetup", &["dmsetup"], &[Vm]),
    needed(
        "e2fsprogs",
        &["mke2fs", "e2fsck", "debugfs"],
        &[Demo, Tests, Bench, Vm],
    ),
    needed("fio", &["fio"], &[Tests, Bench, Vm]),
    needed("fuse3", &["fusermount3"], &[Demo, Tests, Bench]),
    needed("g++", &["c++"], &[Fuzz]),
    needed("iproute2", &["ip"], &[Tests, Bench]),
    needed(
        "libnbd-bin",
        &["nbdinfo", "nbdcopy", "nbdfuse"],
        &[Demo, Tests, Bench],
    ),
    needed(
        "mount",
        &["losetup", "mount", "umount"],
        &[Demo, Tests, Bench, Vm],
    ),
    // The disk that fails, and a server to compare with.
    needed("nbdkit", &["nbdkit"], &[Tests, Bench]),
    needed(
        "python3-libnbd",
        &["/usr/lib/python3/dist-packages/nbd.py"],
        &[Tests, Bench],
    ),
    // Judges the text of `/metrics`.
    needed(
        "python3-prometheus-client",
        &["/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py"],
        &[Tests],
    ),
    // Carries no file of its own that is always installed.
    needed(
        "python3-venv",
        &["/var/lib/dpkg/info/python3-venv.list"],
        &[Aws],
    ),
    needed("qemu-system-x86", &["qemu-system-x86_64"], &[Vm]),
    needed(
        "qemu-utils",
        &["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"],
        &[Demo, Tests, Bench],
    ),
    needed("sqlite3", &["sqlite3"], &[Vm]),
    // Which system calls a daemon makes.
    needed("strace", &["strace"], &[Tests]),
    // Reads our units, and runs them in machines.
    needed("systemd", &["systemd-analyze"], &[Tests, Vm]),
    // Small enough for a machine of the tests.
    needed("tcc", &["tcc"], &[Vm]),
    // What machines of the tests are made of.
    needed(
        "util-linux",
        &["setpriv", "nsenter", "unshare"],
        &[Demo, Tests, Bench, Vm],
    ),
    needed(
        "xfsprogs",
        &["mkfs.xfs", "xfs_repair", "xfs_io"],
        &[Tests, Vm],
    ),
    needed("xz-utils", &["xz"], &[Vm]),
];

const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A package that is installed can take one away that was there in another version; that one is missing next.
const ROUNDS_MAX: u32 = 2;

/// Makes sure of the packages that any of these uses needs.
pub fn install_missing(uses: &[Use]) -> Result<()> {
    for _ in 0..ROUNDS_MAX {
        let missing = missing(uses);
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let missing = missing(uses);
    if !missing.is_empty() {
        bail!("still missing after apt-get install: {}", missing.join(" "));
    }
    Ok(())
}

fn install(missing: &[&str]) -> Result<()> {
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
        .args(missing))
}

pub fn apt() -> std::process::Command {
    let mut command = program("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("--quiet");
    command
}

fn missing(uses: &[Use]) -> Vec<&'static str> {
    NEEDED
        .iter()
        .filter(|needed| needed.by.iter().any(|by| uses.contains(by)))
        .filter(|needed| !needed.files.iter().all(|file| is_present(file)))
        .map(|needed| needed.package)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_names_every_package() {
        let readme = std::fs::read_to_string(crate::command::root().join("README.md")).unwrap();
        let words: Vec<_> = readme
            .split(|c: char| c.is_whitespace() || "`()".contains(c))
            .collect();
        for needed in &NEEDED {
            assert!(words.contains(&needed.package), "{}", needed.package);
        }
    }
}
