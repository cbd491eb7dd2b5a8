//! A witness and no forced stop: whatever is cut, one server answers, and what it answered is kept.

use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, Guard, HEARTBEAT_TIMEOUT_MS, LEASE_MS, Net, Setup};
use local_pair::{Side, now_ns};

use crate::writers::{Writers, ensure_handed_over};

const WITNESSED: Setup = Setup {
    guard: Guard::Witness,
    mounted: false,
};
/// After a loss everybody has had every chance to take over by then.
const ALL_TIMEOUTS_NS: u64 = 3 * (HEARTBEAT_TIMEOUT_MS + LEASE_MS) * 1_000_000;

fn under_load() -> Result<(Bed, Writers)> {
    loaded(Bed::running(WITNESSED)?)
}

fn loaded(mut bed: Bed) -> Result<(Bed, Writers)> {
    let writers = Writers::start(bed.pair())?;
    wait_answers(&mut bed, &writers, Side::First, 20)?;
    Ok((bed, writers))
}

fn wait_answers(bed: &mut Bed, writers: &Writers, side: Side, more: usize) -> Result<()> {
    let goal = writers.count(side) + more;
    bed.until(&format!("{more} more answers of {side:?}"), 60, |_| {
        Ok((writers.count(side) >= goal).then_some(()))
    })
}

/// Waits for the answer to a write that was sent when all time-outs were over.
fn wait_answer_past_all_timeouts(bed: &mut Bed, writers: &Writers, side: Side) -> Result<()> {
    let then = now_ns()? + ALL_TIMEOUTS_NS;
    bed.until(
        &format!("an answer of {side:?} past all time-outs"),
        60,
        |_| Ok(writers.answered_since(side, then).then_some(())),
    )
}

/// After the heal: in step, one server runs the group, and every answered write is there.
fn ensure_whole(bed: &mut Bed, mut writers: Writers, of: &[Side], on: Side) -> Result<()> {
    bed.wait_group(on, State::Online)?;
    bed.wait_in_step()?;
    ensure!(!bed.app_runs(on.other()));
    writers.stop()?;
    writers.check(bed.pair(), of, on)
}

#[test]
fn a_cut_between_the_servers_leaves_exactly_one_answering() -> Result<()> {
    let mut bed = Bed::prepared(WITNESSED)?;
    // A witness that is slow for a moment must not end the one that has its lease.
    let (short, long) = (
        "isolation_timeout = \"500ms\"",
        "isolation_timeout = \"20s\"",
    );
    bed.configure(short, long)?;
    bed.bring_online()?;
    let (mut bed, writers) = loaded(bed)?;
    bed.cut()?;
    wait_answer_past_all_timeouts(&mut bed, &writers, Side::First)?;
    ensure!(writers.count(Side::Second) == 0, "the other one answered");
    ensure!(bed.group(Side::Second)?.state == State::Offline);
    bed.heal()?;
    ensure_whole(&mut bed, writers, &[Side::First], Side::First)
}

#[test]
fn a_server_cut_off_from_everybody_answers_nothing_once_the_other_does() -> Result<()> {
    let (mut bed, writers) = under_load()?;
    bed.set_links(Side::First, false)?;
    wait_answers(&mut bed, &writers, Side::Second, 50)?;
    ensure_handed_over(
        &writers.answers(Side::First),
        &writers.answers(Side::Second),
    )?;
    bed.wait_group(Side::First, State::Offline)?;
    bed.set_links(Side::First, true)?;
    wait_answers(&mut bed, &writers, Side::Second, 50)?;
    ensure_handed_over(
        &writers.answers(Side::First),
        &writers.answers(Side::Second),
    )?;
    ensure_whole(&mut bed, writers, &Side::BOTH, Side::Second)
}

#[test]
fn a_cut_of_one_network_changes_nothing_but_the_paths() -> Result<()> {
    let (mut bed, writers) = under_load()?;
    bed.cut_one(Net::Public)?;
    bed.until("a silent path", 30, |bed| {
        let alerts = bed.alerts(Side::First);
        Ok(alerts
            .iter()
            .any(|line| line.contains(" 1007 "))
            .then_some(()))
    })?;
    wait_answers(&mut bed, &writers, Side::First, 50)?;
    ensure!(writers.count(Side::Second) == 0);
    bed.heal()?;
    ensure_whole(&mut bed, writers, &[Side::First], Side::First)
}

#[test]
fn a_server_without_power_is_replaced() -> Result<()> {
    let (mut bed, writers) = under_load()?;
    bed.cut_power(Side::First)?;
    wait_answers(&mut bed, &writers, Side::Second, 50)?;
    bed.boot(Side::First)?;
    bed.start_server(Side::First)?;
    ensure_whole(&mut bed, writers, &Side::BOTH, Side::Second)
}

#[test]
fn without_the_witness_a_pair_that_hears_itself_goes_on() -> Result<()> {
    let (mut bed, writers) = under_load()?;
    bed.kill_witness()?;
    // The lease is over; each answer is covered by the other server's acknowledgement in this epoch.
    wait_answer_past_all_timeouts(&mut bed, &writers, Side::First)?;
    bed.start_witness()?;
    wait_answers(&mut bed, &writers, Side::First, 50)?;
    ensure_whole(&mut bed, writers, &[Side::First], Side::First)
}
