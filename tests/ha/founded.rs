//! The first start of a cluster that has its arbiter from the beginning, and the start without a node that does not
//! come back: where somebody's word makes data the truth.

use agent::alert;
use agent::control::State;
use anyhow::{Context, Result, ensure};
use local_cluster::{Bed, Daemon, GROUP, Guard, Setup};
use local_pair::Side;
use mirror_core::control::Role;

use crate::alerts::wait_alert;
use crate::writers::Writers;

/// Servers whose metadata is new, each initialised with these options. No agent ran yet, and the witness knows nothing.
fn initialised(mounted: bool, options: [&[&str]; 2]) -> Result<Bed> {
    let guard = Guard::Witness;
    let mut bed = Bed::prepared(Setup { guard, mounted })?;
    for (side, options) in Side::BOTH.into_iter().zip(options) {
        bed.stop(side, Daemon::Mirrord)?;
        bed.pair().init(side, options).done()?;
    }
    for side in Side::BOTH {
        bed.start(side, Daemon::Mirrord)?;
    }
    bed.start_agents()?;
    Ok(bed)
}

#[test]
fn a_disk_that_was_formatted_and_adopted_needs_no_word_more() -> Result<()> {
    let mut bed = initialised(true, [&["--adopt", "--force"], &["--force"]])?;
    bed.wait_group(Side::First, State::Online)?;
    bed.wait_in_step()?;
    ensure!(bed.app_runs(Side::First));
    let said = bed.ctl(Side::First, &["switchover", GROUP]);
    said.done().with_context(|| bed.story())?;
    bed.wait_group(Side::Second, State::Online).map(drop)
}

#[test]
fn of_two_fresh_disks_an_operator_says_which_one_counts() -> Result<()> {
    let mut bed = initialised(false, [&["--force"], &["--force"]])?;
    let by_force = format!("mirrorctl group start {GROUP} --force");
    wait_alert(&mut bed, Side::First, alert::GROUP_WAITS, &[&by_force])?;
    let refused = bed.ctl(Side::First, &["promote", "md1", "--force"]);
    refused.refused(&["no-grant", "mirrorctl group start"])?;

    let started = bed.ctl(Side::First, &["group", "start", GROUP, "--force"]);
    let said = started.stderr.clone();
    started.done().with_context(|| bed.story())?;
    ensure!(said.contains("may lose, of md1: whatever"), "{said}");
    ensure!(bed.group(Side::First)?.state == State::Online);
    bed.wait_in_step()?;
    wait_alert(&mut bed, Side::First, alert::GROUP_FORCED, &["server2"])?;
    // From now on nobody's word is needed.
    bed.cut_power(Side::First)?;
    bed.wait_group(Side::Second, State::Online).map(drop)
}

#[test]
fn what_only_a_lost_server_had_is_given_up_on_an_operators_word() -> Result<()> {
    let guard = Guard::Witness;
    let mut bed = Bed::running(Setup {
        guard,
        mounted: false,
    })?;
    let (lost, left) = (Side::First, Side::Second);
    let mut writers = Writers::start(bed.pair())?;
    bed.cut_power(left)?;
    wait_alert(&mut bed, lost, alert::PEER_DOWN, &[])?;
    writers.wait_for_more(&mut bed, lost)?;
    bed.cut_power(lost)?;

    bed.boot(left)?;
    bed.start_server(left)?;
    wait_alert(&mut bed, left, alert::GROUP_WAITS, &["--force"])?;
    let refused = bed.ctl(left, &["group", "start", GROUP]);
    refused.refused(&["outdated", "current is server1"])?;
    bed.ctl(left, &["group", "start", GROUP, "--force"])
        .done()
        .with_context(|| bed.story())?;
    ensure!(bed.group(left)?.state == State::Online);
    writers.wait_for_more(&mut bed, left)?;

    // Should it come back after all, it is copied to.
    bed.boot(lost)?;
    bed.start_server(lost)?;
    bed.wait_in_step()?;
    ensure!(bed.group(left)?.state == State::Online);
    ensure!(bed.pair().status(lost)?.role == Role::Secondary);
    writers.stop()?;
    writers.check(bed.pair(), &[left], left)
}
