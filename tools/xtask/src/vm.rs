//! What virtual machines run on, unpacked below the target folder: Debian's kernel for clouds and a busybox, and for the
//! comparison what DRBD is set up with. None of it is installed: a kernel on this system would want to be started, and
//! `drbd-utils` would load its module.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{program, run, target_dir};
use crate::packages::apt;

/// The test group.
pub const GROUP: &str = "vm";

/// Cases in the module of this name take minutes each.
pub const LONG: &str = "long::";

/// Names the folder of what is unpacked to the tests.
pub const SYSTEM_VARIABLE: &str = "MIRROR_VM_SYSTEM";

/// Always the newest kernel of its line; it is the package that this one depends on.
const KERNEL: &str = "linux-image-6.12-cloud-amd64";
const KERNEL_PREFIX: &str = "linux-image-6.12.";
const BUSYBOX: &str = "busybox-static";

/// Names the folder of what is compared with to the benches.
pub const PEERS_VARIABLE: &str = "MIRROR_VM_PEERS";

/// The tools of DRBD, and the kernel's NBD client with the libraries that no other package needs.
const PEERS: [&str; 4] = [
    "drbd-utils",
    "libnl-3-200",
    "libnl-genl-3-200",
    "nbd-client",
];

pub fn system() -> Result<PathBuf> {
    unpacked("vm", &[KERNEL, BUSYBOX])
}

pub fn peers() -> Result<PathBuf> {
    unpacked("vm-peers", &PEERS)
}

/// Downloads and unpacks, unless that was done already.
fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = target_dir().join(name);
    let stamp = folder.join("unpacked");
    let wanted = packages.join("\n") + "\n";
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let archives = folder.join("archives");
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    let known = || packages.iter().map(|package| known(package));
    if known().any(|found| found.is_err()) {
        run(apt().arg("update"))?;
    }
    let packages = known().collect::<Result<Vec<_>>>()?;
    run(apt().current_dir(&archives).arg("download").args(&packages))?;
    for archive in fs::read_dir(&archives)? {
        run(program("dpkg-deb")
            .arg("--extract")
            .arg(archive?.path())
            .arg(&folder))?;
    }
    fs::remove_dir_all(&archives)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(folder)
}

/// The name of a package that can be downloaded.
fn known(package: &str) -> Result<String> {
    if package == KERNEL {
        return kernel_package();
    }
    let shown = Command::new("apt-cache")
        .args(["show", package])
        .output()
        .context("cannot start apt-cache")?;
    ensure!(
        shown.status.success(),
        "apt knows no {package}; `apt-get update` must have run"
    );
    Ok(package.to_owned())
}

fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", KERNEL])
        .output()
        .context("cannot start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text
        .split_whitespace()
        .find(|word| word.starts_with(KERNEL_PREFIX));
    ensure!(
        found.is_some(),
        "apt knows no {KERNEL}; the sources need bookworm-security, and `apt-get update` must have run"
    );
    Ok(found.unwrap_or_default().to_owned())
}
