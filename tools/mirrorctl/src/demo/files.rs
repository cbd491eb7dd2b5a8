//! Real files and their checksums.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const CHUNK_BYTES: usize = 1 << 20;

/// What must be found again: paths below the root of the file system, and the hash of each file.
#[derive(Debug, Default)]
pub struct Manifest {
    files: BTreeMap<PathBuf, blake3::Hash>,
}

impl Manifest {
    /// Writes a file of random bytes and makes it durable, name included. It counts from then on.
    pub fn write(&mut self, root: &Path, name: &str, bytes: u64) -> Result<()> {
        let path = root.join(name);
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder)?;
        let mut content = vec![0; usize::try_from(bytes)?];
        File::open("/dev/urandom")?.read_exact(&mut content)?;
        let mut file = File::create(&path)?;
        file.write_all(&content)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        self.files.insert(name.into(), blake3::hash(&content));
        Ok(())
    }

    /// Reads every file again and gives their number; the first that is missing or differs is an error.
    pub fn check(&self, root: &Path) -> Result<usize> {
        for (name, expected) in &self.files {
            let path = root.join(name);
            let content = fs::read(&path).with_context(|| {
                format!("{} was answered as durable and is lost", path.display())
            })?;
            if blake3::hash(&content) != *expected {
                bail!(
                    "{} has another checksum than when it was written",
                    path.display()
                );
            }
        }
        Ok(self.files.len())
    }
}

/// Compares two files byte for byte.
pub fn ensure_same(first: &Path, second: &Path) -> Result<()> {
    let mut sides = [File::open(first)?, File::open(second)?];
    let mut buffers = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
    let mut offset = 0_u64;
    loop {
        let mut read = [0; 2];
        for index in 0..2 {
            read[index] = fill(&mut sides[index], &mut buffers[index])?;
        }
        if read[0] != read[1] || buffers[0][..read[0]] != buffers[1][..read[1]] {
            bail!(
                "{} and {} differ in the MiB at {offset}",
                first.display(),
                second.display()
            );
        }
        if read[0] == 0 {
            return Ok(());
        }
        offset += read[0] as u64;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}
