//! `wait`: returns when a mirror has reached a state.

use std::time::Duration;

use mirror_core::control::{Connection, DiskState, MirrorStatus, NodeStatus, Refusal, Role};
use tokio::time::Instant;

use crate::arguments::{Condition, Global};
use crate::mdstat::connection_name;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;

/// Time between two looks.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What one look found.
#[derive(Debug)]
pub enum Look {
    Holds,
    NotYet,
    /// It cannot come true without a command.
    Never(Refusal),
}

pub async fn run(global: &Global, mirror: &str, condition: Condition) -> Outcome {
    let deadline = global.timeout.map(|timeout| Instant::now() + timeout);
    let client = global.client();
    let mut progress = Progress::new(global.shows_progress());
    loop {
        let status = find(client.status().await?, mirror)?;
        match look(&status, condition) {
            Look::Holds => return Ok(()),
            Look::Never(refusal) => return Err(Failure::Refused(refusal)),
            Look::NotYet => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            progress.clear();
            return Err(Failure::TimedOut(format!(
                "{mirror} is not {} in time: it is {}; ask why with `mirrorctl explain {mirror}`",
                name(condition),
                describe(&status),
            )));
        }
        progress.show(mirror, status.sync.as_ref());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The status of one mirror of a node.
pub fn find(status: NodeStatus, mirror: &str) -> Outcome<MirrorStatus> {
    let node = status.node;
    if let Some(down) = status.down.iter().find(|down| down.name == mirror) {
        return Err(Failure::Refused(Refusal::new(
            "not-running",
            format!(
                "the mirror {mirror} does not run on {node}: {}",
                down.reason
            ),
            "mend the cause and restart mirrord",
        )));
    }
    status
        .mirrors
        .into_iter()
        .find(|found| found.name == mirror)
        .ok_or_else(|| {
            Failure::Refused(Refusal::new(
                "unknown-mirror",
                format!("{node} has no mirror {mirror:?}"),
                "list its mirrors with `mirrorctl mdstat`",
            ))
        })
}

pub fn look(status: &MirrorStatus, condition: Condition) -> Look {
    let connected = status.connection == Connection::Connected;
    let holds = match condition {
        Condition::Connected => connected,
        Condition::Synced => {
            connected
                && status.disk == DiskState::UpToDate
                && status.peer.disk == DiskState::UpToDate
                && status.out_of_sync_bytes == 0
                && status.sync.is_none()
        }
        Condition::Primary => status.role == Role::Primary,
        Condition::Secondary => status.role == Role::Secondary,
    };
    if holds {
        return Look::Holds;
    }
    let stuck = matches!(
        status.connection,
        Connection::SplitBrain | Connection::Unrelated
    );
    match condition {
        Condition::Connected | Condition::Synced if stuck => Look::Never(Refusal::new(
            connection_name(status.connection),
            format!(
                "{} is {} and will not become {} by itself",
                status.name,
                connection_name(status.connection),
                name(condition)
            ),
            format!("see the choices with `mirrorctl explain {}`", status.name),
        )),
        _ => Look::NotYet,
    }
}

fn name(condition: Condition) -> &'static str {
    match condition {
        Condition::Connected => "connected",
        Condition::Synced => "synced",
        Condition::Primary => "primary",
        Condition::Secondary => "secondary",
    }
}

fn describe(status: &MirrorStatus) -> String {
    format!(
        "{}, {}, {} KiB out of sync",
        match status.role {
            Role::Primary => "primary",
            _ => "secondary",
        },
        connection_name(status.connection),
        status.out_of_sync_bytes >> 10
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mdstat::tests::sample;

    #[test]
    fn synced_needs_both_disks_and_nothing_out_of_sync() {
        assert!(matches!(look(&sample(), Condition::Synced), Look::Holds));
        for change in [
            |status: &mut MirrorStatus| status.out_of_sync_bytes = 4096,
            |status: &mut MirrorStatus| status.peer.disk = DiskState::Inconsistent,
            |status: &mut MirrorStatus| status.connection = Connection::Connecting,
        ] {
            let mut status = sample();
            change(&mut status);
            assert!(matches!(look(&status, Condition::Synced), Look::NotYet));
        }
    }

    #[test]
    fn roles_are_waited_for() {
        assert!(matches!(look(&sample(), Condition::Primary), Look::Holds));
        assert!(matches!(
            look(&sample(), Condition::Secondary),
            Look::NotYet
        ));
    }

    #[test]
    fn a_split_brain_is_not_waited_out() {
        let mut status = sample();
        status.connection = Connection::SplitBrain;
        let Look::Never(refusal) = look(&status, Condition::Synced) else {
            panic!("a split brain needs a command");
        };
        assert!(refusal.remedy.contains("mirrorctl explain md1"));
        assert!(matches!(look(&status, Condition::Primary), Look::Holds));
    }
}
