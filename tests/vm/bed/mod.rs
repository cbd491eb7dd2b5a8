//! The machines of `local-machines` with disks that forget at a power cut what was not flushed
//! ([`volatile_disk`]), and with the tools that the cases use.

mod compiler;
mod disk_server;
mod systemd;
mod volatile_disk;

use std::sync::OnceLock;

use anyhow::{Result, bail};
use disk_server::DiskServer;
use local_machines::{Disk, Equipment, Image};

pub use compiler::TREE;
pub use local_machines::{Bed, Card, Job, Machine, PATIENCE};

/// How to make a machine.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Kernel and initial file system are in it, too.
    pub memory_mib: u32,
    /// Is its first process, with the units of our daemons.
    pub systemd: bool,
    /// `/dev/vdb` and on.
    pub disk_bytes: Vec<usize>,
}

/// So many machines, 2 at most, with empty disks. All are on.
pub fn start(count: u8, spec: &Spec) -> Result<Bed> {
    let of_all = local_machines::Spec {
        memory_mib: spec.memory_mib,
        systemd: spec.systemd,
        parallel: false,
        image: image()?.clone(),
    };
    Bed::start(count, &of_all, |folder| {
        let disks = spec.disk_bytes.iter().enumerate();
        let disks = disks.map(|(index, bytes)| {
            let disk = DiskServer::start(&folder.join(format!("disk{index}")), *bytes)?;
            Ok(Box::new(disk) as Box<dyn Disk>)
        });
        disks.collect()
    })
}

/// Looked after once a process.
fn image() -> Result<&'static Image> {
    static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
    let fresh = || Image::fresh(&equipment()?);
    match IMAGE.get_or_init(|| fresh().map_err(|error| format!("{error:#}"))) {
        Ok(image) => Ok(image),
        Err(reason) => bail!("{reason}"),
    }
}

fn equipment() -> Result<Equipment> {
    Ok(Equipment {
        name: "tests",
        modules: &[
            "nbd",
            "xfs",
            "softdog",
            "loop",
            "dm_log_writes",
            "sch_netem",
        ],
        tools: &[
            &["dmsetup"],
            &["fio"],
            &["flock"],
            &["mke2fs", "mkfs.ext4"],
            &["e2fsck"],
            &["resize2fs"],
            &["mkfs.xfs"],
            &["xfs_repair"],
            &["xfs_io"],
            &["sqlite3"],
            &["systemctl"],
            &["tcc"],
        ],
        unpacked: None,
        files: [compiler::files()?, systemd::files()?].concat(),
        linked: systemd::programs(),
        texts: compiler::sources(),
    })
}
