//! What a forced promotion may lose, told before it is done. The daemon refuses what it must; this only says, in
//! every state, what the operator's word would cost.

use mirror_core::control::{Connection, DiskState, MirrorStatus, Role};

/// The generation of a side that never had data.
const NO_GENERATION: &str = "0000000000000000";

/// What `promote --force` on this side may lose, or the forced start of its group.
pub fn of_forced_promotion(status: &MirrorStatus) -> String {
    let peer = &status.peer.node;
    let connected = status.connection == Connection::Connected;
    if status.role == Role::Primary {
        return "nothing, this side is primary already".into();
    }
    if status.generation == NO_GENERATION {
        return format!(
            "whatever the data partition of {peer} holds; this side's data is copied over it"
        );
    }
    match status.disk {
        DiskState::UpToDate if connected => "nothing, this side is up to date".into(),
        DiskState::UpToDate => format!(
            "what {peer} answered without this side, if it went on; while it still does, both sides \
             go different ways (split brain)"
        ),
        DiskState::Inconsistent => format!(
            "every answered write that only {peer} has; and the data here is a mixture of old and new, \
             because a resync into this side has not ended"
        ),
        DiskState::Outdated | DiskState::Failed | DiskState::Unknown => {
            format!("every answered write that only {peer} has")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mdstat::tests::sample;

    #[track_caller]
    fn check(change: impl FnOnce(&mut MirrorStatus), parts: &[&str]) {
        let mut status = sample();
        status.role = Role::Secondary;
        change(&mut status);
        let loss = of_forced_promotion(&status);
        for part in parts {
            assert!(loss.contains(part), "no {part:?} in {loss:?}");
        }
    }

    #[test]
    fn nothing_is_lost_while_both_sides_have_the_same() {
        check(|_| {}, &["nothing", "up to date"]);
        check(|s| s.role = Role::Primary, &["nothing", "primary already"]);
    }

    #[test]
    fn a_first_start_overwrites_the_peers_partition() {
        check(
            |s| {
                s.generation = NO_GENERATION.into();
                s.disk = DiskState::Inconsistent;
            },
            &["data partition of server2", "copied over"],
        );
    }

    #[test]
    fn without_the_peer_its_writes_are_at_stake() {
        check(
            |s| s.connection = Connection::Connecting,
            &["what server2 answered", "split brain"],
        );
        check(
            |s| {
                s.connection = Connection::Connecting;
                s.disk = DiskState::Outdated;
            },
            &["answered write that only server2 has"],
        );
        check(
            |s| {
                s.connection = Connection::Standalone;
                s.disk = DiskState::Inconsistent;
            },
            &["only server2 has", "mixture of old and new"],
        );
    }
}
