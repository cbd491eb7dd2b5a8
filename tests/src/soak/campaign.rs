//! Fault after fault, and after each the question whether everything is as it was promised.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use local_cluster::{Bed, GROUP, Guard, Net, Setup};
use local_pair::Side;
use mirror_core::control::Role;

use super::clients::{Clients, Figures};
use super::faults::{Fault, Present, is_online};
use super::report::{Report, load_average};
use crate::random::Random;

/// Longest wait for service, and for both sides to be in step again. Generous: others may keep the machine busy.
const BACK_SECONDS_MAX: u64 = 240;
/// Longest that a client may go without an answer, whatever the fault. A failover of the bed takes about three seconds,
/// and no fault lasts longer than five; but what waits for the end of a time-out of the bed, 40 s at most, is a bug on any
/// machine.
const STALL_MS_MAX: u64 = 35_000;
/// So many faults between two complete looks at every block.
const CHECK_EVERY: u64 = 10;
/// Of a hundred faults, those that come with a second one.
const COMPANIONS_PERCENT: u64 = 20;
/// Load without a fault, before the next one.
const QUIET_MS_MAX: u64 = 1_500;
/// What may come with another fault without getting into its way.
const COMPANIONS: [Fault; 4] = [
    Fault::CutOne(Net::Public),
    Fault::CutOne(Net::Interconnect),
    Fault::SlowLink,
    Fault::KillWitness,
];

#[derive(Debug, Clone)]
pub struct Plan {
    pub span: Duration,
    pub seed: u64,
    /// Faults of other kinds are left out: a part of its name.
    pub only: String,
    /// Where the logs are put when it ends with an error.
    pub logs: Option<PathBuf>,
}

/// What an operator changes who wants a cluster to fail over as often as it has to.
const WITHOUT_LIMITS: [(&str, &str); 2] = [
    (
        "final_action = \"none\"\n",
        "final_action = \"none\"\nfailovers_max = 0\n",
    ),
    (
        "resource = \"disk\"\n",
        "resource = \"disk\"\nrestarts_max = 1000\nfailovers_max = 1000\n",
    ),
];

/// Ends with an error at the first promise that is broken; the report then says what was seen so far.
pub fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    ensure!(
        Fault::kinds().any(|kind| kind.contains(&plan.only)),
        "no fault is called {:?}; there are:\n{}",
        plan.only,
        Fault::kinds().collect::<Vec<_>>().join("\n")
    );
    let mut bed = Bed::prepared_with_disks(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    for (from, to) in WITHOUT_LIMITS {
        bed.configure(from, to)?;
    }
    let outcome = fault_after_fault(plan, &mut bed, report);
    if let (Err(_), Some(folder)) = (&outcome, &plan.logs) {
        bed.keep_logs(folder)?;
    }
    outcome
}

fn fault_after_fault(plan: &Plan, bed: &mut Bed, report: &mut Report) -> Result<()> {
    bed.bring_online()?;
    let mut clients = Clients::start(bed.pair())?;
    let mut random = Random::new(plan.seed);
    let began = Instant::now();
    let mut serving = wait_settled(bed)?;
    while began.elapsed() < plan.span {
        std::thread::sleep(Duration::from_millis(random.between(200, QUIET_MS_MAX)));
        clients.figures()?;
        let fault = loop {
            let drawn = Fault::draw(&mut random);
            if drawn.kind().contains(&plan.only) {
                break drawn.at_hand(serving);
            }
        };
        let companion = Some(*random.pick(&COMPANIONS)).filter(|companion| {
            random.percent(COMPANIONS_PERCENT) && *companion != fault && !fault.is_alone()
        });
        eprintln!(
            "{:>6.1} s  load {:>4.1}  {}{}",
            began.elapsed().as_secs_f64(),
            load_average(),
            fault.kind(),
            companion.map_or_else(String::new, |fault| format!(" with {}", fault.kind()))
        );
        let drawn = (fault, companion);
        strike(bed, &mut random, drawn, serving, report)?;
        report.replaced_disks = bed.replaced;
        let now_serving = wait_settled(bed)?;
        report.moves += u64::from(now_serving != serving);
        serving = now_serving;
        judge(report, fault, companion, &clients.figures()?).with_context(|| bed.story())?;
        if report.faults().is_multiple_of(CHECK_EVERY) {
            check(bed, &mut clients, serving, report)?;
        }
        report.took = began.elapsed();
    }
    check(bed, &mut clients, serving, report)
}

fn strike(
    bed: &mut Bed,
    random: &mut Random,
    (fault, companion): (Fault, Option<Fault>),
    serving: Side,
    report: &mut Report,
) -> Result<()> {
    let companion = match companion {
        Some(companion) => Some(Present::begin(companion, serving, bed)?),
        None => None,
    };
    let present = Present::begin(fault, serving, bed)?;
    match fault {
        Fault::Switchover => {
            bed.ctl(serving, &["switchover", GROUP]).done()?;
        }
        Fault::Verify => verify(bed, serving, report)?,
        _ => std::thread::sleep(fault.lasts(random)),
    }
    present.end(bed)?;
    companion.map_or(Ok(()), |companion| companion.end(bed))
}

/// The group is online on one server, which is primary, and both sides hold the same.
fn wait_settled(bed: &mut Bed) -> Result<Side> {
    bed.until("service and both sides in step", BACK_SECONDS_MAX, |bed| {
        let sides: Vec<Side> = Side::BOTH
            .into_iter()
            .filter(|side| is_online(bed, *side))
            .collect();
        let [serving] = sides[..] else {
            return Ok(None);
        };
        // An agent may not have noticed yet that its mirror was taken from under it.
        let primary = bed.pair().status(serving)?.role == Role::Primary;
        Ok((primary && bed.pair().is_synced()?).then_some(serving))
    })
}

fn judge(
    report: &mut Report,
    fault: Fault,
    companion: Option<Fault>,
    figures: &Figures,
) -> Result<()> {
    report.add(fault, companion, figures);
    ensure!(
        figures.wrong.is_empty(),
        "answered writes are lost: {:#?}",
        figures.wrong
    );
    ensure!(
        figures.longest_stall_ms < STALL_MS_MAX,
        "a client went without an answer for {} ms, at a load average of {:.1}",
        figures.longest_stall_ms,
        load_average()
    );
    let may_move = fault.may_move() || companion.is_some();
    if !may_move && (!figures.errors.is_empty() || figures.lost_connections > 0) {
        bail!(
            "{} promises a pause; seen were {} lost connections and these errors: {:#?}",
            fault.kind(),
            figures.lost_connections,
            figures.errors
        );
    }
    Ok(())
}

/// Every block that was ever written holds what was answered, on both sides.
fn check(bed: &Bed, clients: &mut Clients, serving: Side, report: &mut Report) -> Result<()> {
    let figures = clients.check()?;
    report.add_check(&figures);
    ensure!(
        figures.wrong.is_empty(),
        "answered writes are lost: {:#?}",
        figures.wrong
    );
    verify(bed, serving, report)
}

fn verify(bed: &Bed, serving: Side, report: &mut Report) -> Result<()> {
    let differing = bed.pair().verify(serving, &[])?;
    report.add_comparison(differing);
    ensure!(differing == 0, "{differing} bytes differ between the sides");
    Ok(())
}
