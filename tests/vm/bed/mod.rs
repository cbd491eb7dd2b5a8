//! Virtual machines with a real kernel, a cable between two of them, and a test that pulls it, and the power.
//!
//! A [`Bed`] is one or two machines in a folder. Their disks are served by this process and forget at a power cut
//! what was not flushed ([`volatile_disk`]). A test speaks to a machine in shell scripts ([`port`]) and to QEMU in
//! QMP. Processors are emulated in software, so that it runs wherever the tests do; time goes slower in there, how
//! much slower depends on what else this host does, and nothing here measures it ([`PATIENCE`]).

mod cleaner;
mod compiler;
pub mod cpio;
mod disk_server;
mod image;
mod machine;
mod modules;
mod port;
mod qmp;
mod systemd;
mod volatile_disk;

use std::time::Duration;

use anyhow::Result;
use cleaner::Cleaner;
use tempfile::TempDir;

pub use compiler::TREE;
pub use machine::{Card, Machine, Spec};
pub use port::Job;

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
    /// So many machines, 2 at most. All are on.
    pub fn start(count: u8, spec: &Spec) -> Result<Self> {
        let mut bed = Self::off(count, spec)?;
        let started: Vec<_> = bed
            .machines
            .iter_mut()
            .map(Machine::switch_on)
            .collect::<Result<_>>()?;
        for (machine, started) in bed.machines.iter_mut().zip(started) {
            machine.wait_ready(started)?;
        }
        Ok(bed)
    }

    pub fn off(count: u8, spec: &Spec) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mirror-vm-").tempdir()?;
        let cleaner = Cleaner::start(folder.path())?;
        let machines = (1..=count)
            .map(|number| Machine::new(folder.path(), number, spec))
            .collect::<Result<_>>()?;
        Ok(Self {
            machines,
            cleaner,
            _folder: folder,
        })
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
