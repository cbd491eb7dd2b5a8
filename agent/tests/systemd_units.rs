//! The units in `packaging/`: systemd understands every line of them, and what their comments promise
//! holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const UNITS: [&str; 3] = [
    "mirrord.service",
    "mirror-agent.service",
    "mirror-witness.service",
];

fn packaging() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("packaging")
}

/// The values of `key` in a unit, in order.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(packaging().join(unit)).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn check(unit: &str, key: &str, expected: &[&str]) {
    assert_eq!(values(unit, key), expected, "{key}= of {unit}");
}

/// systemd says nothing of a line that it understands.
#[test]
fn systemd_understands_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]);
    for unit in UNITS {
        let text = fs::read_to_string(packaging().join(unit)).unwrap();
        let start = values(unit, "ExecStart");
        // The programs are not installed here.
        assert!(start[0].starts_with("/usr/bin/mirror"), "{start:?}");
        let text = text.replace(&start[0], "/bin/true");
        fs::write(folder.path().join(unit), text).unwrap();
        command.arg(folder.path().join(unit));
    }
    let done = command
        .output()
        .expect("systemd-analyze starts; it is in the Debian package systemd");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.is_empty(), "{said}");
}

#[test]
fn either_daemon_may_be_restarted_without_the_other() {
    for unit in ["mirrord.service", "mirror-agent.service"] {
        for key in ["Requires", "BindsTo", "PartOf", "Requisite", "Upholds"] {
            check(unit, key, &[]);
        }
        // The folder of both outlives each of them.
        check(unit, "RuntimeDirectory", &["mirror"]);
        check(unit, "RuntimeDirectoryPreserve", &["yes"]);
    }
    let after = values("mirror-agent.service", "After");
    assert!(after.contains(&"mirrord.service".into()), "{after:?}");
}

#[test]
fn a_dead_agent_takes_no_mount_along() {
    check("mirror-agent.service", "KillMode", &["process"]);
}

/// Its mounts would be seen by nobody else, and copies of mounts keep devices open.
#[test]
fn neither_the_agent_nor_mirrord_has_a_mount_namespace() {
    for unit in ["mirrord.service", "mirror-agent.service"] {
        let text = fs::read_to_string(packaging().join(unit)).unwrap();
        for line in text.lines() {
            let key = line.split('=').next().unwrap_or_default();
            let makes_one = [
                "Private",
                "Protect",
                "ReadOnly",
                "ReadWrite",
                "Inaccessible",
            ]
            .iter()
            .chain(
                [
                    "BindPaths",
                    "BindReadOnly",
                    "Temporary",
                    "Root",
                    "DynamicUser",
                ]
                .iter(),
            )
            .any(|word| key.starts_with(word));
            assert!(!makes_one || line == "PrivateMounts=no", "{unit}: {line}");
        }
    }
}

#[test]
fn every_unit_says_when_it_is_ready_and_comes_back_after_a_crash() {
    for unit in UNITS {
        check(unit, "Type", &["notify"]);
        check(unit, "Restart", &["on-failure"]);
        for key in ["TimeoutStopSec", "StartLimitIntervalSec", "StartLimitBurst"] {
            assert_eq!(values(unit, key).len(), 1, "{unit} says {key}");
        }
    }
}
