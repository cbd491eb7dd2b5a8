//! A server that stands still past every time-out, and wakes up when another has its place.

use agent::control::State;
use anyhow::{Result, ensure};
use local_pair::Side;

use crate::bed::Bed;
use crate::setup::{Guard, Setup};
use crate::writers::{Writers, ensure_handed_over};

#[test]
fn a_primary_that_wakes_up_after_its_failover_answers_nothing() -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let mut writers = Writers::start(bed.pair())?;
    let wait = |bed: &mut Bed, writers: &Writers, side: Side| {
        let goal = writers.count(side) + 50;
        bed.until(&format!("answers of {side:?}"), 60, |_| {
            Ok((writers.count(side) >= goal).then_some(()))
        })
    };
    wait(&mut bed, &writers, Side::First)?;
    bed.freeze(Side::First)?;
    wait(&mut bed, &writers, Side::Second)?;
    bed.wait_group(Side::Second, State::Online)?;
    bed.thaw(Side::First)?;
    bed.wait_group(Side::First, State::Offline)?;
    bed.wait_in_step()?;
    wait(&mut bed, &writers, Side::Second)?;
    let [old, new] = Side::BOTH.map(|side| writers.answers(side));
    ensure_handed_over(&old, &new)?;
    ensure!(!bed.app_runs(Side::First));
    writers.stop()?;
    writers.check(bed.pair(), &Side::BOTH, Side::Second)
}
