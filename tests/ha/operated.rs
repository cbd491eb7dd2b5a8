//! What an operator does with a cluster that is in order.

use agent::control::{CommandReply, State};
use anyhow::{Context, Result, ensure};
use local_pair::Side;

use crate::bed::Bed;
use crate::files::Files;
use crate::setup::{GROUP, Guard, Setup};

/// Of service, during a planned move of a mounted file system.
const WITHOUT_SERVICE_MS_MAX: u64 = 3_000;

#[test]
fn a_planned_switchover_moves_a_mounted_file_system_and_loses_nothing() -> Result<()> {
    for guard in [Guard::ForcedStop, Guard::Witness] {
        let mut bed = Bed::running(Setup {
            guard,
            mounted: true,
        })?;
        let mut files = Files::start(&bed)?;
        let more = |bed: &mut Bed, files: &Files, side: Side| {
            let goal = files.confirmed(side).len() + 20;
            bed.until(&format!("records of {side:?}"), 60, |_| {
                Ok((files.confirmed(side).len() >= goal).then_some(()))
            })
        };
        more(&mut bed, &files, Side::First)?;
        for to in [Side::Second, Side::First] {
            let said = bed.ctl(to.other(), &["--json", "switchover", GROUP]).done();
            let said = said.with_context(|| bed.story())?;
            let reply: CommandReply =
                serde_json::from_str(&said).with_context(|| format!("switchover said {said}"))?;
            let without_ms = reply.without_service_ms.context("it says for how long")?;
            println!("{guard:?}: {without_ms} ms without service");
            ensure!(
                without_ms < WITHOUT_SERVICE_MS_MAX,
                "{without_ms} ms without service"
            );
            bed.wait_group(to, State::Online)?;
            ensure!(bed.app_runs(to) && !bed.app_runs(to.other()));
            more(&mut bed, &files, to)?;
        }
        ensure!(bed.stopped.is_empty(), "a planned move stops no server");
        bed.wait_in_step()?;
        files.stop();
        for side in Side::BOTH {
            bed.stop(side, crate::bed::Daemon::Agent)?;
        }
        for side in Side::BOTH {
            bed.stop(side, crate::bed::Daemon::Mirrord)?;
            files.check(&bed, side)?;
        }
    }
    Ok(())
}
