//! `demo`: two nodes on loopback in a temporary folder mirror a real file system, one of them is killed under
//! load, the other carries on, and the first comes back by copying only what changed.
//!
//! It uses what an operator and an application use: `mirrorctl`, and the NBD export. Every step that checks
//! something ends the story with an error when it does not hold. Whatever happens, also Ctrl-C, nothing is left
//! behind: each thing that the story sets up is a value that takes itself down.

mod attachment;
mod disk;
mod files;
mod image;
mod interruption;
mod report;
mod stage;
mod tool;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use local_pair::{Pair, PairOptions, Placement, Programs, Side};
use mirror_core::control::{MirrorStatus, Role};

use report::Report;
use stage::Stage;

use crate::arguments::Attach;
use crate::progress::{Progress, bytes};

const MIRROR_BYTES: u64 = 1 << 30;
/// What both data files and some slack take of `/dev/shm`; with less room there the temporary folder is used.
const MEMORY_BYTES_WANTED: u64 = 3 << 30;
/// Answered writes, or files that reached the disk, before the primary is killed.
const LOAD_BEFORE_KILL: usize = 40;
/// What a resync may copy beyond what was written alone: blocks that a write covers in part, and writes that were on
/// their way when the primary died and are on one side only.
const RESYNC_EXTRA_BYTES_MAX: u64 = 4 << 20;

pub fn run(attach: Option<Attach>) -> Result<()> {
    interruption::watch()?;
    let start = Instant::now();
    let mut report = Report::default();
    let told = tell(&mut report, attach);
    report.print(start.elapsed(), told.is_ok());
    told
}

fn tell(report: &mut Report, attach: Option<Attach>) -> Result<()> {
    let programs = {
        let own = std::env::current_exe().context("cannot tell where mirrorctl is")?;
        Programs::in_folder(own.parent().context("mirrorctl lies in no folder")?)?
    };
    let options = PairOptions {
        placement: if memory_bytes_free() >= MEMORY_BYTES_WANTED {
            Placement::Memory
        } else {
            Placement::Disk
        },
        initial_sync: "full",
        ..PairOptions::sized(MIRROR_BYTES)
    };

    let step = report.step("two nodes start and connect");
    let mut pair = Pair::connected(programs, &options)?;
    step.done(format!("in {}", pair.folder().display()));
    let mut stage = Stage::choose(pair.folder(), attach)?;

    let step = report.step("first sync of 1 GiB");
    pair.ctl(Side::First, &["promote", local_pair::MIRROR, "--force"])
        .done()?;
    watch_sync(&pair, Side::First)?;
    step.done(rate(MIRROR_BYTES, step.elapsed()));

    let step = report.step("a file system with files");
    let written = stage.open_first(&pair, Side::First)?;
    step.done(format!("{} in {}", bytes(written), stage.name()));

    let step = report.step("server1 is killed under load");
    stage.load(&pair.uri(Side::First), LOAD_BEFORE_KILL, || {
        pair.node_mut(Side::First).kill()
    })?;
    let killed = Instant::now();
    stage.close_dead()?;
    step.done(format!("after {} answered writes", stage.answered()));

    let step = report.step("server2 takes over (--peer-down)");
    pair.wait_alone(Side::Second)?;
    pair.ctl(
        Side::Second,
        &["promote", local_pair::MIRROR, "--peer-down"],
    )
    .done()?;
    stage.open_again(&pair, Side::Second)?;
    step.done(format!(
        "serves {:.1} s after the kill",
        killed.elapsed().as_secs_f64()
    ));

    let step = report.step("every checksum is compared");
    let checked = stage.check(&pair.uri(Side::Second))?;
    step.done(format!("{checked} of {checked} as answered"));

    let step = report.step("new writes on server2 alone");
    let written = stage.write_more(&pair.uri(Side::Second))?;
    step.done(bytes(written));

    let step = report.step("server1 returns and resyncs");
    pair.start(Side::First)?;
    watch_sync(&pair, Side::Second)?;
    let status = pair.status(Side::Second)?;
    ensure!(
        pair.status(Side::First)?.role == Role::Secondary,
        "server1 came back as something else than a secondary"
    );
    let copied = status.last_sync_copied_bytes;
    // This run of server2 has served nobody but this story: all that it wrote, it wrote alone.
    let alone = status.counters.bytes_written;
    ensure!(
        copied <= alone + RESYNC_EXTRA_BYTES_MAX,
        "the resync copied {}, far more than the {} that server2 wrote alone",
        bytes(copied),
        bytes(alone)
    );
    let percent = copied as f64 * 100.0 / MIRROR_BYTES as f64;
    step.done(format!(
        "{} copied, {percent:.1} % of the disk; {} were written alone",
        bytes(copied),
        bytes(alone)
    ));

    let step = report.step("every checksum is compared again");
    let checked = stage.check(&pair.uri(Side::Second))?;
    step.done(format!("{checked} of {checked} as answered"));

    let step = report.step("verify compares both sides");
    stage.close()?;
    let differing = pair.verify(Side::Second, &[])?;
    ensure!(
        differing == 0,
        "{differing} bytes are in blocks that differ between the sides"
    );
    step.done("no difference".into());

    let step = report.step("both nodes stop, files are compared");
    for side in [Side::Second, Side::First] {
        pair.node_mut(side).stop()?;
    }
    let files = Side::BOTH.map(|side| pair.node(side).data.clone());
    files::ensure_same(&files[0], &files[1])?;
    step.done("the same byte for byte".into());
    Ok(())
}

/// Shows a resync until both sides are up to date.
fn watch_sync(pair: &Pair, source: Side) -> Result<()> {
    let progress = RefCell::new(Progress::new(true));
    let show = |status: &MirrorStatus| {
        let mut progress = progress.borrow_mut();
        progress.show(&status.name, status.sync.as_ref());
    };
    pair.watch_synced(source, show)
}

fn memory_bytes_free() -> u64 {
    nix::sys::statvfs::statvfs("/dev/shm")
        .map(|fs| fs.blocks_available() * fs.fragment_size())
        .unwrap_or(0)
}

fn rate(amount: u64, took: Duration) -> String {
    format!("{}/s", bytes((amount as f64 / took.as_secs_f64()) as u64))
}
