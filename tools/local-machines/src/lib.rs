//! Virtual machines with a real kernel, a cable between two of them, and whoever pulls it, and the power: what the tests
//! that need machines share with the comparison with DRBD.
//!
//! A [`Bed`] is one or two machines in a folder. Their disks are the caller's ([`Disk`]). Whoever has a machine speaks
//! to it in shell scripts ([`port`]) and to QEMU in QMP. Processors are emulated in software, so that it runs wherever
//! the tests do; time goes slower in there, and how much slower depends on what else this host does ([`PATIENCE`]).

mod cleaner;
mod cpio;
mod disk;
mod image;
mod machine;
mod modules;
mod port;
mod qmp;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cleaner::Cleaner;
use tempfile::TempDir;

pub use disk::{Disk, FileDisk, Loss};
pub use image::{Equipment, Image};
pub use machine::{Card, Machine, Spec};
pub use port::{Job, Ran};

/// How long any state may take to come. It tells what hangs from what is slow, and is no judgement of anything: what
/// takes a second on an idle host takes a minute where twenty others want its two processors.
pub const PATIENCE: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub struct Bed {
    // Before the folder: they are gone first.
    pub machines: Vec<Machine>,
    cleaner: Cleaner,
    /// Removed last.
    _folder: TempDir,
}

impl Bed {
    /// So many machines, 2 at most, with disks that are made in the folder of each. All are on.
    pub fn start(
        count: u8,
        spec: &Spec,
        mut disks: impl FnMut(&Path) -> Result<Vec<Box<dyn Disk>>>,
    ) -> Result<Self> {
        // In memory, as some disks are.
        let folder = tempfile::Builder::new()
            .prefix("mirror-vm-")
            .tempdir_in("/dev/shm")?;
        let cleaner = Cleaner::start(folder.path())?;
        let mut bed = Self {
            machines: Vec::new(),
            cleaner,
            _folder: folder,
        };
        for number in 1..=count {
            let folder = bed._folder.path().join(number.to_string());
            std::fs::create_dir(&folder)?;
            let disks = disks(&folder)?;
            bed.machines.push(Machine::new(folder, number, spec, disks));
        }
        let machines = bed.machines.iter_mut();
        let started: Vec<_> = machines.map(Machine::switch_on).collect::<Result<_>>()?;
        for (machine, started) in bed.machines.iter_mut().zip(started) {
            machine.wait_ready(started)?;
        }
        Ok(bed)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in &self.machines {
                eprintln!("{}", machine.story());
            }
        }
        self.machines.clear();
        if let Err(error) = self.cleaner.finish() {
            assert!(std::thread::panicking(), "something is left: {error:#}");
            eprintln!("something is left: {error:#}");
        }
    }
}
