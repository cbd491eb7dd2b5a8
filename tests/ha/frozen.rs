//! A server that stands still past every time-out, and wakes up when another has its place.

use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, Files, Guard, Setup};
use local_pair::{Side, now_ns};

use crate::writers::{Writers, ensure_handed_over_asleep};

#[test]
fn a_primary_that_wakes_up_after_its_failover_answers_nothing() -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let mut writers = Writers::start(bed.pair())?;
    writers.wait_for_more(&mut bed, Side::First)?;
    let frozen_ns = now_ns()?;
    bed.freeze(Side::First)?;
    writers.wait_for_more(&mut bed, Side::Second)?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.thaw(Side::First)?;
    bed.wait_group(Side::First, State::Offline)?;
    bed.wait_in_step()?;
    writers.wait_for_more(&mut bed, Side::Second)?;
    let [old, new] = Side::BOTH.map(|side| writers.answers(side));
    ensure_handed_over_asleep(&old, &new, frozen_ns)?;
    ensure!(!bed.app_runs(Side::First));
    writers.stop()?;
    writers.check(bed.pair(), &Side::BOTH, Side::Second)
}

#[test]
fn a_file_system_that_wakes_up_after_its_failover_is_unmounted_and_nothing_of_it_is_kept()
-> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::Witness,
        mounted: true,
    })?;
    let mut files = Files::start(&bed)?;
    let wait = |bed: &mut Bed, files: &Files, side: Side| {
        let goal = files.confirmed(side).len() + 20;
        bed.until(&format!("records of {side:?}"), 60, |_| {
            Ok((files.confirmed(side).len() >= goal).then_some(()))
        })
    };
    wait(&mut bed, &files, Side::First)?;
    bed.freeze(Side::First)?;
    wait(&mut bed, &files, Side::Second)?;
    bed.wait_group(Side::Second, State::Online)?;
    let before = files.confirmed(Side::First);
    bed.thaw(Side::First)?;
    bed.wait_group(Side::First, State::Offline)?;
    bed.wait_in_step()?;
    wait(&mut bed, &files, Side::Second)?;
    ensure!(!bed.app_runs(Side::First) && bed.app_runs(Side::Second));
    // What it confirmed as it fell asleep was noted as it woke up.
    let late = files.confirmed(Side::First).len() - before.len();
    ensure!(late <= 1, "{late} records were confirmed by the old side");
    files.conclude(&mut bed)
}
