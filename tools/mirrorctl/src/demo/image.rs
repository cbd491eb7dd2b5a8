//! A file system where nothing can be mounted: made as an image with `mke2fs -d`, copied through NBD by
//! `nbdcopy`, read back and unpacked by `debugfs`. Single blocks beside it stand in for an application.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::files::Manifest;
use super::tool::run;

const IMAGE_BYTES: u64 = 512 << 20;
const BLOCK_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
    /// The pattern of each answered block, in order from the end of the image.
    blocks: Vec<u8>,
}

impl Image {
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("image");
        std::fs::create_dir(&folder)?;
        Ok(Self {
            folder,
            blocks: Vec::new(),
        })
    }

    /// The folder that becomes the file system.
    pub fn root(&self) -> PathBuf {
        self.folder.join("tree")
    }

    pub fn copy_in(&self, uri: &str) -> Result<()> {
        let image = self.folder.join("new");
        std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
        let [root, image] = [self.root(), image].map(|path| path.display().to_string());
        run("mke2fs", &["-q", "-t", "ext4", "-F", "-d", &root, &image])?;
        run("nbdcopy", &["--flush", &image, uri])?;
        std::fs::remove_file(&image)?;
        Ok(())
    }

    pub fn check(&self, uri: &str, manifest: &Manifest) -> Result<usize> {
        let image = self.folder.join("copy").display().to_string();
        let tree = self.folder.join("unpacked");
        std::fs::create_dir(&tree)?;
        run("nbdcopy", &[uri, &image])?;
        let dump = format!("rdump / {}", tree.display());
        run("debugfs", &["-R", &dump, &image])?;
        let files = manifest.check(&tree)?;
        std::fs::remove_dir_all(&tree)?;
        std::fs::remove_file(&image)?;
        for (index, pattern) in self.blocks.iter().enumerate() {
            let offset = IMAGE_BYTES + index as u64 * BLOCK_BYTES;
            let command = format!("read -P {pattern} {offset} {BLOCK_BYTES}");
            qemu_io(uri, &command).context("an answered write is lost")?;
        }
        Ok(files + self.blocks.len())
    }

    /// Writes the next block; it counts once it is answered.
    pub fn write_block(&mut self, uri: &str) -> Result<()> {
        let index = self.blocks.len() as u64;
        let pattern = (index % 251 + 1) as u8;
        let offset = IMAGE_BYTES + index * BLOCK_BYTES;
        qemu_io(uri, &format!("write -P {pattern} {offset} {BLOCK_BYTES}"))?;
        self.blocks.push(pattern);
        Ok(())
    }

    pub fn block_bytes(&self) -> u64 {
        BLOCK_BYTES
    }

    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }
}

fn qemu_io(uri: &str, command: &str) -> Result<()> {
    let said = run("qemu-io", &["-f", "raw", "-c", command, uri])?;
    if said.contains("failed") || said.contains("error") {
        bail!("qemu-io {command}: {}", said.trim());
    }
    Ok(())
}
