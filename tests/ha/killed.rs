//! `kill -9` of each daemon under load, with ext4 on the mirror. What systemd does, the test does: the
//! daemon is started again. The file system stays in order, and no confirmed record is lost.

use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, Daemon, Files, Guard, Setup};
use local_pair::Side;

const MOUNTED: Setup = Setup {
    guard: Guard::Witness,
    mounted: true,
};

fn under_load() -> Result<(Bed, Files)> {
    let mut bed = Bed::running(MOUNTED)?;
    let files = Files::start(&bed)?;
    wait_records(&mut bed, &files, 20)?;
    Ok((bed, files))
}

fn records(files: &Files) -> usize {
    Side::BOTH
        .map(|side| files.confirmed(side).len())
        .iter()
        .sum()
}

/// Of whichever server has the mount.
fn wait_records(bed: &mut Bed, files: &Files, more: usize) -> Result<()> {
    let goal = records(files) + more;
    bed.until(&format!("{more} more records"), 90, |_| {
        Ok((records(files) >= goal).then_some(()))
    })
}

/// The service is there, in one place, and both disks hold all that was confirmed.
fn ensure_whole(mut bed: Bed, mut files: Files) -> Result<()> {
    bed.until("the group on one server", 60, |bed| {
        let on = Side::BOTH.map(|side| {
            bed.group(side)
                .is_ok_and(|group| group.state == State::Online)
        });
        Ok((on[0] != on[1]).then_some(()))
    })?;
    bed.wait_in_step()?;
    wait_records(&mut bed, &files, 20)?;
    files.conclude(&mut bed)
}

fn killed_and_started_again(side: Side, daemon: Daemon) -> Result<()> {
    let (mut bed, files) = under_load()?;
    bed.kill(side, daemon)?;
    bed.start(side, daemon)?;
    wait_records(&mut bed, &files, 50)?;
    ensure_whole(bed, files)
}

#[test]
fn of_the_primary_mirrord() -> Result<()> {
    killed_and_started_again(Side::First, Daemon::Mirrord)
}

#[test]
fn of_the_secondary_mirrord() -> Result<()> {
    killed_and_started_again(Side::Second, Daemon::Mirrord)
}

#[test]
fn of_the_agent_that_runs_the_group() -> Result<()> {
    killed_and_started_again(Side::First, Daemon::Agent)
}

#[test]
fn of_the_other_agent() -> Result<()> {
    killed_and_started_again(Side::Second, Daemon::Agent)
}

#[test]
fn of_the_witness() -> Result<()> {
    let (mut bed, files) = under_load()?;
    bed.kill_witness()?;
    wait_records(&mut bed, &files, 50)?;
    bed.start_witness()?;
    wait_records(&mut bed, &files, 50)?;
    ensure!(bed.app_runs(Side::First) && !bed.app_runs(Side::Second));
    ensure_whole(bed, files)
}

#[test]
fn of_everything_on_the_primary() -> Result<()> {
    let (mut bed, mut files) = under_load()?;
    bed.cut_power(Side::First)?;
    wait_records(&mut bed, &files, 50)?;
    bed.boot(Side::First)?;
    bed.start_server(Side::First)?;
    files.start_on(&bed, Side::First)?;
    ensure_whole(bed, files)
}
