//! `mdstat`: the state of the mirrors, in the manner of /proc/mdstat.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use mirror_core::control::{
    Connection, DiskState, MirrorStatus, NodeStatus, Refusal, Role, SyncStatus,
};

use crate::arguments::Global;
use crate::outcome::{Failure, Outcome};
use crate::stats;

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const BAR_WIDTH: u64 = 20;

pub async fn run(global: &Global, mirror: Option<&str>, stats: bool, watch: bool) -> Outcome {
    let client = global.client();
    loop {
        let status = match stats || global.json {
            true => client.status_with_statistics().await?,
            false => client.status().await?,
        };
        let status = select(status, mirror)?;
        let text = if global.json {
            let mut text = serde_json::to_string(&status).map_err(anyhow::Error::from)?;
            text.push('\n');
            text
        } else if stats {
            stats::render(&status)
        } else {
            render(&status)
        };
        let mut out = std::io::stdout().lock();
        if watch && !global.json && out.is_terminal() {
            // Home, then clear: the screen is drawn anew.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Only the mirror that was asked for, if one was.
fn select(mut status: NodeStatus, mirror: Option<&str>) -> Outcome<NodeStatus> {
    let Some(name) = mirror else {
        return Ok(status);
    };
    let names: Vec<_> = status
        .mirrors
        .iter()
        .map(|mirror| mirror.name.clone())
        .chain(status.down.iter().map(|down| down.name.clone()))
        .collect();
    if !names.iter().any(|known| known == name) {
        return Err(Failure::Refused(Refusal::new(
            "unknown-mirror",
            format!("{} has no mirror {name:?}", status.node),
            format!("its mirrors are: {}", names.join(", ")),
        )));
    }
    status.mirrors.retain(|mirror| mirror.name == name);
    status.down.retain(|down| down.name == name);
    Ok(status)
}

pub fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    for mirror in &status.mirrors {
        render_mirror(&mut text, &status.node, mirror);
    }
    for down in &status.down {
        let _ = writeln!(
            text,
            "{} : down on {}\n      {}",
            down.name, status.node, down.reason
        );
    }
    text
}

pub fn render_mirror(text: &mut String, node: &str, mirror: &MirrorStatus) {
    let mode = mirror.mode.name();
    let role = match mirror.role {
        Role::Primary => "primary",
        _ => "secondary",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} : active {mode} {role} {node}[{}] {}[{}]",
        mirror.name,
        role_letter(mirror.role),
        mirror.peer.node,
        role_letter(mirror.peer.role),
    );
    let _ = write!(
        text,
        "      {} KiB  generation {}  [{}{}]",
        mirror.size_bytes >> 10,
        short(&mirror.generation),
        disk_letter(mirror.disk),
        disk_letter(match mirror.connection {
            Connection::Connected => mirror.peer.disk,
            _ => DiskState::Unknown,
        }),
    );
    if mirror.connection != Connection::Connected {
        let _ = write!(text, "  {}", connection_name(mirror.connection));
    }
    if mirror.disk != DiskState::UpToDate {
        let _ = write!(text, "  disk {}", mirror.disk.name());
    }
    if mirror.connection == Connection::Connected && mirror.peer.disk != DiskState::UpToDate {
        let _ = write!(text, "  peer {}", mirror.peer.disk.name());
    }
    if mirror.lag_bytes > 0 {
        let _ = write!(
            text,
            "  lag {} KiB, {} ms",
            mirror.lag_bytes.div_ceil(1024),
            mirror.lag_ms
        );
    }
    if mirror.io_suspended {
        text.push_str("  answers wait");
    }
    text.push('\n');
    match &mirror.sync {
        Some(sync) => render_sync(text, sync),
        None if mirror.out_of_sync_bytes > 0 => {
            let _ = writeln!(
                text,
                "      {} KiB out of sync",
                mirror.out_of_sync_bytes >> 10
            );
        }
        None => {}
    }
}

fn render_sync(text: &mut String, sync: &SyncStatus) {
    let total = sync.total_bytes.max(1);
    let done = sync.done_bytes.min(total);
    let filled = u128::from(done) * u128::from(BAR_WIDTH) / u128::from(total);
    let filled = usize::try_from(filled).unwrap_or(0);
    let per_mille = u128::from(done) * 1000 / u128::from(total);
    let _ = write!(
        text,
        "      [{}>{}]  {} = {}.{}% ({}/{})",
        "=".repeat(filled),
        ".".repeat(BAR_WIDTH as usize - filled),
        sync.kind.name(),
        per_mille / 10,
        per_mille % 10,
        sync.done_bytes >> 10,
        sync.total_bytes >> 10,
    );
    if sync.paused {
        text.push_str(" paused");
    } else {
        if let Some(eta) = sync.eta_s {
            let _ = write!(text, " finish={}.{}min", eta / 60, eta % 60 / 6);
        }
        // Only the source measures it.
        if sync.rate_bytes_per_s > 0 {
            let _ = write!(text, " speed={}K/sec", sync.rate_bytes_per_s >> 10);
        }
    }
    text.push('\n');
}

fn role_letter(role: Role) -> char {
    match role {
        Role::Primary => 'P',
        Role::Secondary => 'S',
        Role::Unknown => '?',
    }
}

fn disk_letter(disk: DiskState) -> char {
    match disk {
        DiskState::UpToDate => 'U',
        _ => '_',
    }
}

pub fn connection_name(connection: Connection) -> &'static str {
    match connection {
        Connection::Standalone => "standalone",
        Connection::Connecting => "connecting",
        Connection::Connected => "connected",
        Connection::SplitBrain => "split-brain",
        Connection::Unrelated => "unrelated",
    }
}

/// The first digits of a generation tell it from its neighbours.
fn short(generation: &str) -> String {
    let digits: String = generation.chars().take(8).collect();
    if digits.len() < generation.len() {
        format!("{digits}…")
    } else {
        digits
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use mirror_core::control::{Direction, DownMirror, SyncKind};

    pub fn sample() -> MirrorStatus {
        MirrorStatus::in_step("md1", Role::Primary, "server2")
    }

    fn check(mirror: MirrorStatus, expected: &str) {
        let status = NodeStatus {
            node: "server1".into(),
            mirrors: vec![mirror],
            down: Vec::new(),
            resident_bytes: None,
        };
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn a_mirror_in_step_takes_two_lines() {
        check(
            sample(),
            "md1 : active sync primary server1[P] server2[S]\n      \
             1048576 KiB  generation 9f3c0123…  [UU]\n",
        );
    }

    #[test]
    fn a_running_resync_has_a_bar() {
        let mut mirror = sample();
        mirror.peer.disk = DiskState::Inconsistent;
        mirror.sync = Some(SyncStatus {
            kind: SyncKind::Resync,
            direction: Direction::Source,
            done_bytes: 135_290_880,
            total_bytes: 1 << 30,
            rate_bytes_per_s: 20345 << 10,
            eta_s: Some(48),
            paused: false,
        });
        check(
            mirror,
            "md1 : active sync primary server1[P] server2[S]\n      \
             1048576 KiB  generation 9f3c0123…  [U_]  peer inconsistent\n      \
             [==>..................]  resync = 12.5% (132120/1048576) finish=0.8min speed=20345K/sec\n",
        );
    }

    #[test]
    fn a_lost_peer_and_what_it_lacks_are_shown() {
        let mut mirror = sample();
        mirror.connection = Connection::Connecting;
        mirror.peer.role = Role::Unknown;
        mirror.out_of_sync_bytes = 4 << 20;
        mirror.io_suspended = true;
        check(
            mirror,
            "md1 : active sync primary server1[P] server2[?]\n      \
             1048576 KiB  generation 9f3c0123…  [U_]  connecting  answers wait\n      \
             4096 KiB out of sync\n",
        );
    }

    #[test]
    fn a_mirror_that_does_not_run_is_shown_with_its_reason() {
        let status = NodeStatus {
            node: "server1".into(),
            mirrors: Vec::new(),
            down: vec![DownMirror {
                name: "md2".into(),
                reason: "no metadata".into(),
            }],
            resident_bytes: None,
        };
        assert_eq!(
            render(&status),
            "md2 : down on server1\n      no metadata\n"
        );
        let error = select(status, Some("md9")).unwrap_err();
        assert!(matches!(error, Failure::Refused(refusal) if refusal.remedy.contains("md2")));
    }
}
