//! What `mirrord` will need on this machine for the mirrors of the file: disks, addresses, a driver of the kernel. It
//! only looks; what a daemon that runs has claimed is its own.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use mirror_core::io::claim;
use mirror_core::io::error::OpenError;
use nbd_frontend::config::agent::AgentConfig;
use nbd_frontend::config::{MetadataPlace, Mirror, NbdListen};
use nbd_frontend::control::SOCKET_NAME;
use nbd_frontend::kernel::found::DeviceNumber;
use nbd_frontend::kernel::plan::{Device, Owner};

use super::findings::Findings;
use super::ports;

/// There while the kernel has its NBD driver.
const DRIVER: &str = "/sys/module/nbd";

/// Adds what is missing or in the way for the node `name` at `node`.
pub fn look(
    mirrors: &[Mirror],
    agent: Option<&AgentConfig>,
    node: usize,
    name: &str,
    run_dir: &Path,
    findings: &mut Findings,
) {
    let runs = UnixStream::connect(run_dir.join(SOCKET_NAME)).is_ok();
    for mirror in mirrors {
        let side = &mirror.sides[node];
        let key = |key: &str| format!("mirror {:?} on {name:?} {key}", mirror.name);
        look_at_store(&key("data"), &side.data, runs, findings);
        if let MetadataPlace::Path(path) = &side.metadata {
            look_at_store(&key("metadata"), path, runs, findings);
        }
        let replication = side.replication;
        let tried = ports::try_tcp(replication);
        ports::report(
            &key("replication"),
            replication,
            "TCP",
            tried,
            runs,
            findings,
        );
        for export in &side.nbd {
            let NbdListen::Tcp(address) = *export else {
                continue;
            };
            let tried = ports::try_tcp(address);
            // A floating address is there as soon as its group is.
            if !agent.is_some_and(|agent| ports::comes_with_a_group(agent, address, &tried)) {
                ports::report(&key("nbd"), address, "TCP", tried, runs, findings);
            }
        }
        if let Some(device) = side.device {
            look_at_device(&key("device"), device, runs, Path::new(DRIVER), findings);
        }
    }
}

fn look_at_store(key: &str, path: &Path, runs: bool, findings: &mut Findings) {
    let shown = path.display();
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) => {
            return findings.problem(
                key,
                format!("cannot look at {shown}: {error}"),
                "write the path of a partition that `lsblk` shows here, or make the file",
            );
        }
    };
    if !kind.is_block_device() && !kind.is_file() {
        return findings.problem(
            key,
            format!("{shown} is neither a block device nor a file"),
            "write the path of a partition that `lsblk` shows here, or of a file",
        );
    }
    if !runs && let Err(OpenError::Mounted { user, .. }) = claim::refuse_if_mounted(path) {
        findings.problem(
            key,
            format!("{shown} is in use: {user}"),
            "free it before mirrord starts, or name another: a mirror has its disks for itself",
        );
    }
}

/// The kernel makes a device that is not there when it is attached, so only the driver must be.
fn look_at_device(
    key: &str,
    device: DeviceNumber,
    runs: bool,
    driver: &Path,
    findings: &mut Findings,
) {
    let path = device.path();
    if !driver.exists() {
        return findings.problem(
            key,
            format!(
                "{} needs the kernel's NBD driver, which is not loaded",
                path.display()
            ),
            "run `modprobe nbd`, and name nbd in a file of /etc/modules-load.d; without the driver, remove \
             the key and write attach = \"fuse\" in the group",
        );
    }
    // That of a mirror may be this one's, from before mirrord was stopped.
    if !runs && matches!(device.device(), Device::Taken(Owner::Foreign(_))) {
        findings.problem(
            key,
            format!("{} is connected by another program", path.display()),
            "disconnect it there, or write another number",
        );
    }
}
