//! Monitors on whole servers: what a restart does not mend, a move may; and what no move mends ends in the last action.

use std::fs;

use agent::alert;
use agent::control::State;
use anyhow::{Result, ensure};
use local_cluster::{Bed, GROUP, Guard, Setup};
use local_pair::Side;

use crate::alerts::{ensure_order, wait_alert};

/// A cluster whose application is sick where a file says so, which its monitor finds.
fn watched() -> Result<Bed> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    let here = bed.folder().join("here").display().to_string();
    let probe = format!("test ! -e {here}/sick || {{ echo it is sick; exit 1; }}\n");
    for side in Side::BOTH {
        fs::write(bed.here(side).join("probe"), &probe)?;
    }
    let monitor = format!(
        "[[monitor]]\nkind = \"exec\"\nname = \"app-well\"\n\
         command = [\"/bin/sh\", \"{here}/probe\"]\ngroup = \"{GROUP}\"\nresource = \"app\"\n\
         interval = \"100ms\"\ntimeout = \"10s\"\nretries = 0\nrestarts_max = 1\nfailovers_max = 1\n\
         final_action = \"reboot\"\n\n"
    );
    let first = "[[monitor]]\nkind = \"mirror-disk\"";
    bed.configure(first, &(monitor + first))?;
    bed.bring_online()?;
    Ok(bed)
}

#[test]
fn a_fault_that_no_restart_mends_moves_the_group_and_one_on_both_servers_ends_in_the_last_action()
-> Result<()> {
    let mut bed = watched()?;
    for side in Side::BOTH {
        fs::write(bed.here(side).join("sick"), "")?;
    }
    // There and back: each server's monitor may move the group once.
    let words = ["app-well: ", "it is sick", "; failover."];
    for side in Side::BOTH {
        wait_alert(&mut bed, side, alert::MONITOR_ACTION, &words)?;
    }
    for side in Side::BOTH {
        bed.until("a final action", 60, |bed| {
            Ok((!bed.actions(side).is_empty()).then_some(()))
        })?;
    }
    for last in ["; restart.", "; failover.", "; final action."] {
        wait_alert(&mut bed, Side::First, alert::MONITOR_ACTION, &[last])?;
    }
    let in_order = [
        alert::MONITOR_ACTION,
        alert::MONITOR_ACTION,
        alert::GROUP_STOPPED,
        alert::GROUP_STARTED,
        alert::MONITOR_ACTION,
        alert::GROUP_STOPPED,
        alert::FINAL_ACTION,
    ];
    ensure_order(&bed.alerts(Side::First), &in_order)?;

    // One after the other, and then nowhere, until somebody starts it.
    for side in Side::BOTH {
        ensure!(bed.actions(side) == ["Reboot"], "{side:?}");
        bed.wait_group(side, State::Offline)?;
        ensure!(!bed.app_runs(side), "{side:?}");
    }
    Ok(())
}
