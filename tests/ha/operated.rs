//! What an operator does with a cluster that is in order.

use agent::control::{CommandReply, State};
use anyhow::{Context, Result, ensure};
use local_cluster::{Bed, Files, GROUP, Guard, Setup};
use local_pair::Side;

#[test]
fn a_planned_switchover_loses_nothing_and_stops_no_server() -> Result<()> {
    there_and_back(Guard::ForcedStop)
}

#[test]
fn a_planned_switchover_takes_the_lease_along() -> Result<()> {
    there_and_back(Guard::Witness)
}

fn there_and_back(guard: Guard) -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard,
        mounted: true,
    })?;
    let mut files = Files::start(&bed)?;
    wait_records(&mut bed, &files, Side::First)?;

    let said = bed.ctl(Side::First, &["switchover", GROUP]).done();
    let said = said.with_context(|| bed.story())?;
    let seconds = said
        .lines()
        .find_map(|line| line.strip_suffix(" s without service"));
    let seconds = seconds.and_then(|number| number.parse::<f64>().ok());
    ensure!(
        seconds.is_some_and(|seconds| seconds > 0.0),
        "it said {said}"
    );
    moved(&mut bed, &files, Side::Second)?;

    let said = bed
        .ctl(Side::Second, &["--json", "switchover", GROUP])
        .done();
    let said = said.with_context(|| bed.story())?;
    let reply: CommandReply =
        serde_json::from_str(&said).with_context(|| format!("it said {said}"))?;
    ensure!(
        reply.without_service_ms.is_some_and(|ms| ms > 0),
        "it said {said}"
    );
    moved(&mut bed, &files, Side::First)?;

    ensure!(bed.stopped.is_empty(), "{:?} were stopped", bed.stopped);
    bed.wait_in_step()?;
    files.conclude(&mut bed)
}

fn wait_records(bed: &mut Bed, files: &Files, side: Side) -> Result<()> {
    let goal = files.confirmed(side).len() + 20;
    bed.until(&format!("records of {side:?}"), 60, |_| {
        Ok((files.confirmed(side).len() >= goal).then_some(()))
    })
}

fn moved(bed: &mut Bed, files: &Files, to: Side) -> Result<()> {
    bed.wait_group(to, State::Online)?;
    ensure!(bed.app_runs(to) && !bed.app_runs(to.other()));
    wait_records(bed, files, to)
}
