//! What is wrong with a mirror, by its own word. Pure: the state is handed in.

use mirror_core::control::{Connection, DiskState, MirrorStatus, SyncKind};

/// The data of this side.
pub fn disk(status: &MirrorStatus) -> Result<(), String> {
    let name = &status.name;
    match status.disk {
        DiskState::UpToDate if status.frozen => Err(format!("I/O of {name} is frozen")),
        DiskState::UpToDate if status.io_suspended => Err(format!(
            "{name} holds its answers until its peer is known to be down"
        )),
        DiskState::UpToDate => Ok(()),
        disk => Err(format!("the disk of {name} is {}", disk.name())),
    }
}

/// The connection, and whether both sides hold the same.
pub fn link(status: &MirrorStatus) -> Result<(), String> {
    let name = &status.name;
    match status.connection {
        Connection::Connected => {}
        Connection::Standalone => return Err(format!("{name} does not look for its peer")),
        Connection::Connecting => return Err(format!("{name} has no connection to its peer")),
        Connection::SplitBrain => return Err(format!("both sides of {name} were written to")),
        Connection::Unrelated => return Err(format!("the peer of {name} holds other data")),
    }
    match &status.sync {
        Some(sync) if matches!(sync.kind, SyncKind::Resync | SyncKind::Full) => Err(format!(
            "{name} is being resynced: {} of {} bytes",
            sync.done_bytes, sync.total_bytes
        )),
        _ if status.peer.disk != DiskState::UpToDate => Err(format!(
            "the other side of {name} is {}",
            status.peer.disk.name()
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mirror_core::control::Role;

    use super::*;

    #[test]
    fn a_mirror_in_step_is_in_order() {
        let status = MirrorStatus::in_step("md1", Role::Primary, "server2");
        assert_eq!(disk(&status), Ok(()));
        assert_eq!(link(&status), Ok(()));
    }

    #[test]
    fn each_fault_is_named() {
        let mut status = MirrorStatus::in_step("md1", Role::Primary, "server2");
        status.peer.disk = DiskState::Inconsistent;
        assert!(link(&status).unwrap_err().contains("inconsistent"));
        status.connection = Connection::SplitBrain;
        assert!(link(&status).unwrap_err().contains("written"));
        status.io_suspended = true;
        assert!(disk(&status).unwrap_err().contains("holds its answers"));
        status.disk = DiskState::Failed;
        assert!(disk(&status).unwrap_err().contains("failed"));
    }
}
