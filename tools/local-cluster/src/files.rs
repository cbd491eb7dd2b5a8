//! A program on each server that appends records to a file on the mounted mirror, and what became of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use local_pair::{PYTHON, Side, run_tool};

use crate::bed::{Bed, Daemon};
use crate::machine::Process;

const SCRIPT: &str = include_str!("files.py");
const CHECK_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Files {
    script: PathBuf,
    folder: PathBuf,
    running: [Option<Process>; 2],
}

impl Files {
    pub fn start(bed: &Bed) -> Result<Self> {
        let script = bed.folder().join("files.py");
        fs::write(&script, SCRIPT)?;
        let mut files = Self {
            script,
            folder: bed.folder().to_path_buf(),
            running: [None, None],
        };
        for side in Side::BOTH {
            files.start_on(bed, side)?;
        }
        Ok(files)
    }

    /// Also after a server was off. Who unmounts may kill it; it is started again then.
    pub fn start_on(&mut self, bed: &Bed, side: Side) -> Result<()> {
        let [script, mount, journal] = [&self.script, &bed.mount_point(), &self.journal(side)]
            .map(|path| path.display().to_string());
        let name = bed.name(side);
        let again = format!("while :; do {PYTHON} {script} {mount} {name} {journal}; done");
        let process = bed.spawn_on(side, &["bash", "-c", &again], "files.log")?;
        self.running[side.index()] = Some(process);
        Ok(())
    }

    fn journal(&self, side: Side) -> PathBuf {
        self.folder.join(format!("files-{}", side.index()))
    }

    /// Records that a server confirmed.
    pub fn confirmed(&self, side: Side) -> BTreeSet<u64> {
        let text = fs::read_to_string(self.journal(side)).unwrap_or_default();
        numbers(&text)
    }

    pub fn stop_on(&mut self, side: Side) {
        self.running[side.index()] = None;
    }

    pub fn stop(&mut self) {
        self.running = [None, None];
    }

    /// Ends the programs and the daemons, and looks at both disks.
    pub fn conclude(&mut self, bed: &mut Bed) -> Result<()> {
        self.stop();
        for side in Side::BOTH {
            bed.stop(side, Daemon::Agent)?;
        }
        for side in Side::BOTH {
            bed.stop(side, Daemon::Mirrord)?;
            self.check(bed, side)?;
        }
        Ok(())
    }

    /// Looks at the disk of a server that runs no daemon: the file system is in order, and every record
    /// that any server confirmed is there.
    pub fn check(&self, bed: &Bed, on: Side) -> Result<()> {
        let disk = bed.pair().node(on).data.display().to_string();
        // What was not unmounted has its journal replayed, on a copy.
        let copy = self.folder.join("copy");
        fs::copy(&disk, &copy)?;
        let copy = copy.display().to_string();
        let replayed = run_tool("e2fsck", &["-p", &copy], CHECK_LIMIT);
        replayed
            .with_context(|| format!("the file system of {on:?} needs more than its journal"))?;
        run_tool("e2fsck", &["-f", "-n", &copy], CHECK_LIMIT)?;
        for side in Side::BOTH {
            let name = bed.name(side);
            let found = numbers(&dump(&copy, name)?);
            let confirmed = self.confirmed(side);
            let lost: Vec<_> = confirmed.difference(&found).collect();
            ensure!(
                lost.is_empty(),
                "{} of {} records of {name} are lost on {on:?}, from {:?} on",
                lost.len(),
                confirmed.len(),
                lost[0]
            );
        }
        Ok(())
    }
}

fn dump(disk: &str, name: &str) -> Result<String> {
    let found = run_tool("debugfs", &["-R", "ls -p /", disk], CHECK_LIMIT)?;
    if !found.contains(name) {
        return Ok(String::new());
    }
    let into = Path::new(disk).with_extension("records");
    let request = format!("dump /{name} {}", into.display());
    run_tool("debugfs", &["-R", &request, disk], CHECK_LIMIT)?;
    Ok(fs::read_to_string(&into)?)
}

fn numbers(text: &str) -> BTreeSet<u64> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
