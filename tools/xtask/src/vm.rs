//! What the virtual machines of the tests run on: Debian's kernel for clouds and a busybox, unpacked below the target
//! folder. Neither is installed: a kernel on this system would want to be started.

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

/// Downloads and unpacks, unless that was done already.
pub fn system() -> Result<PathBuf> {
    let folder = target_dir().join("vm");
    let unpacked = folder.join("unpacked");
    let wanted = format!("{KERNEL}\n{BUSYBOX}\n");
    if fs::read_to_string(&unpacked).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let archives = folder.join("archives");
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    if kernel_package().is_err() {
        run(apt().arg("update"))?;
    }
    let kernel = kernel_package()?;
    run(apt()
        .current_dir(&archives)
        .args(["download", &kernel, BUSYBOX]))?;
    for archive in fs::read_dir(&archives)? {
        run(program("dpkg-deb")
            .arg("--extract")
            .arg(archive?.path())
            .arg(&folder))?;
    }
    fs::remove_dir_all(&archives)?;
    fs::write(&unpacked, wanted).with_context(|| format!("cannot write {}", unpacked.display()))?;
    Ok(folder)
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
