//! The application's side of the story: files on a mounted file system where that is possible, else an image.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use local_pair::{Deadline, MIRROR, Pair, Side};

use super::attachment::{self, Attachment};
use super::disk::{DiskKind, Export};
use super::files::Manifest;
use super::image::Image;
use crate::arguments::Attach;

const FILES: u64 = 32;
const FILE_BYTES: u64 = 2 << 20;
const LOAD_FILE_BYTES: u64 = 64 << 10;
const MORE_FILES: u64 = 8;
/// Longest wait for the load to get going, and for its end after the kill.
const LOAD_LIMIT: Duration = Duration::from_secs(20);

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    manifest: Manifest,
    answered: usize,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Mounted(DiskKind, Option<Attachment>),
    Image(Image),
}

impl Stage {
    /// The way that was asked for, or else the first that works here.
    pub fn choose(folder: &Path, wanted: Option<Attach>) -> Result<Self> {
        let kinds: &[DiskKind] = match wanted {
            None => &[DiskKind::Fuse, DiskKind::Kernel],
            Some(Attach::Nbdfuse) => &[DiskKind::Fuse],
            Some(Attach::NbdClient) => &[DiskKind::Kernel],
            Some(Attach::Image) => &[],
        };
        let mut way = None;
        for &kind in kinds {
            match attachment::probe(folder, kind) {
                Ok(()) => {
                    way = Some(Way::Mounted(kind, None));
                    break;
                }
                Err(error) if wanted.is_some() => {
                    return Err(error.context("this machine cannot attach the mirror so"));
                }
                Err(error) => eprintln!("    not {}: {error:#}", kind.name()),
            }
        }
        let way = match way {
            Some(way) => way,
            None => Way::Image(Image::new(folder)?),
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            manifest: Manifest::default(),
            answered: 0,
            way,
        })
    }

    pub fn name(&self) -> &'static str {
        match self.way {
            Way::Mounted(kind, _) => kind.name(),
            Way::Image(_) => "an ext4 image, copied with nbdcopy; nothing is mounted",
        }
    }

    /// Writes that were answered as durable under load.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Makes the file system, fills it, and gives the bytes written.
    pub fn open_first(&mut self, pair: &Pair, side: Side) -> Result<u64> {
        let uri = &pair.uri(side);
        let root = match &mut self.way {
            Way::Mounted(kind, place) => place
                .insert(attach(&self.folder, *kind, pair, side, true)?)
                .root()
                .to_path_buf(),
            Way::Image(image) => image.root(),
        };
        for index in 0..FILES {
            let name = format!("documents/{}/file-{index}", index % 4);
            self.manifest.write(&root, &name, FILE_BYTES)?;
        }
        if let Way::Image(image) = &self.way {
            image.copy_in(uri)?;
        }
        Ok(FILES * FILE_BYTES)
    }

    /// Writes without a pause until the export dies; `kill` is called after `enough` answered writes.
    pub fn load(
        &mut self,
        uri: &str,
        enough: usize,
        kill: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let answered = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let (way, manifest) = (&mut self.way, &mut self.manifest);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let root = match way {
                    Way::Mounted(_, place) => place.as_ref().map(|a| a.root().to_path_buf()),
                    Way::Image(_) => None,
                };
                while !stop.load(Ordering::Relaxed) {
                    let number = answered.load(Ordering::Relaxed);
                    let written = match (way as &mut Way, &root) {
                        (Way::Image(image), _) => image.write_block(uri),
                        (_, Some(root)) => {
                            manifest.write(root, &format!("load/file-{number}"), LOAD_FILE_BYTES)
                        }
                        (_, None) => break,
                    };
                    if written.is_err() {
                        break;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
            let killed = Deadline::after(LOAD_LIMIT)
                .until("the load", || {
                    if writer.is_finished() {
                        bail!("writing failed before anything was killed");
                    }
                    Ok((answered.load(Ordering::Relaxed) >= enough).then_some(()))
                })
                .and_then(|()| kill());
            if killed.is_err() {
                // The node lives on, and so would the load.
                stop.store(true, Ordering::Relaxed);
            }
            let ended = Deadline::after(LOAD_LIMIT).until("the end of the load", || {
                Ok(writer.is_finished().then_some(()))
            });
            stop.store(true, Ordering::Relaxed);
            killed.and(ended)
        })?;
        self.answered = answered.load(Ordering::Relaxed);
        Ok(())
    }

    /// Lets go of the file system on the dead node.
    pub fn close_dead(&mut self) -> Result<()> {
        if let Way::Mounted(_, place) = &mut self.way {
            drop(place.take());
        }
        Ok(())
    }

    /// Opens the file system through the other node; ext4 replays its journal.
    pub fn open_again(&mut self, pair: &Pair, side: Side) -> Result<()> {
        if let Way::Mounted(kind, place) = &mut self.way {
            *place = Some(attach(&self.folder, *kind, pair, side, false)?);
        }
        Ok(())
    }

    /// Compares everything that was ever answered; gives how many checks there were.
    pub fn check(&self, uri: &str) -> Result<usize> {
        match &self.way {
            Way::Mounted(_, place) => {
                let place = place.as_ref().context("nothing is mounted")?;
                // What the kernel still has in memory proves little. A container may not drop it; both sides'
                // files are compared in the end all the same.
                if let Err(error) = std::fs::write(DROP_CACHES, "3") {
                    eprintln!("    some files may be read from memory: {DROP_CACHES}: {error}");
                }
                self.manifest.check(place.root())
            }
            Way::Image(image) => image.check(uri, &self.manifest),
        }
    }

    pub fn write_more(&mut self, uri: &str) -> Result<u64> {
        match &mut self.way {
            Way::Mounted(_, place) => {
                let root = place.as_ref().context("nothing is mounted")?.root();
                for index in 0..MORE_FILES {
                    self.manifest
                        .write(root, &format!("more/file-{index}"), FILE_BYTES)?;
                }
                Ok(MORE_FILES * FILE_BYTES)
            }
            Way::Image(image) => {
                let before = image.blocks();
                for _ in 0..MORE_FILES {
                    image.write_block(uri)?;
                }
                Ok((image.blocks() - before) as u64 * image.block_bytes())
            }
        }
    }

    /// Unmounts cleanly.
    pub fn close(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Mounted(_, place) => place.take().map_or(Ok(()), Attachment::close),
            Way::Image(_) => Ok(()),
        }
    }
}

fn attach(
    folder: &Path,
    kind: DiskKind,
    pair: &Pair,
    side: Side,
    format: bool,
) -> Result<Attachment> {
    let export = Export {
        uri: &pair.uri(side),
        socket: &pair.node(side).nbd_socket(MIRROR),
    };
    Attachment::open(folder, kind, &export, format)
}
