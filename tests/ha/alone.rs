//! A server that comes back alone, while the one that went on without it is away: its data may be old.

use agent::alert;
use agent::control::State;
use anyhow::{Context, Result, ensure};
use local_cluster::{Bed, Guard, Setup};
use local_pair::Side;
use mirror_core::control::Role;

use crate::alerts::{ensure_order, find, wait_alert, wait_alert_after};
use crate::writers::Writers;

fn waits_for_whom_it_needs(guard: Guard) -> Result<()> {
    let mut bed = Bed::running(Setup {
        guard,
        mounted: false,
    })?;
    let (newer, older) = (Side::First, Side::Second);
    let mut writers = Writers::start(bed.pair())?;
    bed.cut_power(older)?;
    // From now on there are answers that only one of them has.
    wait_alert(&mut bed, newer, alert::PEER_DOWN, &[])?;
    writers.wait_for_more(&mut bed, newer)?;
    writers.stop()?;
    bed.cut_power(newer)?;

    let known = bed.alerts(older).len();
    bed.boot(older)?;
    bed.start_server(older)?;
    // First it waits for its start-up delay, and shows how long that is.
    let delay_ms = match guard {
        Guard::ForcedStop => 12_500,
        _ => 2_100,
    };
    if guard == Guard::ForcedStop {
        let startup = bed.status(older)?.startup.context("no start-up delay")?;
        ensure!(startup.delay_ms == delay_ms && startup.remaining_ms <= delay_ms);
        let screen = bed.ctl(older, &["status"]).done()?;
        ensure!(screen.contains("Start-up delay : "), "{screen}");
    }
    let words = format!("No group starts for {delay_ms} ms");
    wait_alert_after(&mut bed, older, known, alert::STARTUP_WAIT, &[&words])?;
    wait_alert_after(&mut bed, older, known, alert::STARTUP_DONE, &[])?;
    let waits_for = match guard {
        Guard::Witness => "server1, which has newer data of md1",
        _ => "server1, which may have newer data",
    };
    wait_alert_after(&mut bed, older, known, alert::GROUP_WAITS, &[waits_for])?;
    let waits = bed.group(older)?.waits_for.unwrap_or_default();
    ensure!(waits.contains(waits_for), "{waits}");
    ensure!(bed.group(older)?.state == State::Offline);
    ensure!(bed.pair().status(older)?.role == Role::Secondary);
    ensure!(!bed.app_runs(older));
    let waited = bed.alerts(older);
    ensure!(
        find(&waited, alert::GROUP_STARTING, 0).is_none(),
        "{waited:#?}"
    );

    bed.boot(newer)?;
    bed.start_server(newer)?;
    // The one that waited may be faster: it has the newer data from its mirror before it hears the other agent.
    let serving = bed.until("the group online on a server", 60, |bed| {
        let mut sides = Side::BOTH.into_iter();
        Ok(sides.find(|side| {
            bed.group(*side)
                .is_ok_and(|group| group.state == State::Online)
        }))
    })?;
    bed.wait_in_step()?;
    if serving == older {
        let alerts = bed.alerts(older);
        let alerts = alerts.get(waited.len()..).context("its alerts are gone")?;
        ensure_order(alerts, &[alert::MIRROR_CONNECTED, alert::GROUP_STARTING])?;
    }
    writers.check(bed.pair(), &[newer], serving)
}

#[test]
fn without_an_arbiter_it_waits_for_the_other_server_and_says_so() -> Result<()> {
    waits_for_whom_it_needs(Guard::ForcedStop)
}

#[test]
fn with_an_arbiter_it_waits_for_the_other_server_and_says_so() -> Result<()> {
    waits_for_whom_it_needs(Guard::Witness)
}
