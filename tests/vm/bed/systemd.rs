//! This system's systemd, as the first process of a machine that is to be like a server: it starts our daemons by the
//! units that are installed there, and carries out what `systemctl` is asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where it is installed, in machines as well.
const FOLDER: &str = "/lib/systemd";
const PROGRAMS: [&str; 2] = ["systemd", "systemd-shutdown"];
/// Of its units, those that any start and any end needs.
const UNITS: [&str; 10] = [
    "basic.target",
    "final.target",
    "multi-user.target",
    "poweroff.target",
    "reboot.target",
    "shutdown.target",
    "sysinit.target",
    "systemd-poweroff.service",
    "systemd-reboot.service",
    "umount.target",
];
const OURS: [&str; 3] = [
    "mirrord.service",
    "mirror-agent.service",
    "mirror-witness.service",
];

/// The programs alone, whose libraries go with them.
pub fn programs() -> Vec<PathBuf> {
    PROGRAMS.map(|name| Path::new(FOLDER).join(name)).into()
}

/// Files of this system and of this repository, and where they go on the disk of programs.
pub fn files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let packaging = root
        .context("the package lies in the workspace")?
        .join("packaging");
    let to = Path::new("systemd");
    let programs = PROGRAMS.map(|name| (Path::new(FOLDER).join(name), to.join(name)));
    let units = UNITS.map(|name| {
        let unit = Path::new("system").join(name);
        (Path::new(FOLDER).join(&unit), to.join(&unit))
    });
    let ours = OURS.map(|name| (packaging.join(name), to.join("system").join(name)));
    Ok(programs.into_iter().chain(units).chain(ours).collect())
}
