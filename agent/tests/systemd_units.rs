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

/// How exposed systemd finds a unit, from 0 to 10.
fn exposure(unit: &str) -> f64 {
    let done = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(packaging().join(unit))
        .output()
        .expect("systemd-analyze starts; it is in the Debian package systemd");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let line = said.lines().last().unwrap_or_default();
    let level = line
        .split_once(": ")
        .and_then(|(_, rest)| rest.split(' ').next());
    level
        .and_then(|level| level.parse().ok())
        .unwrap_or_else(|| panic!("{said}"))
}

/// What a mount namespace would add is the rest of what `mirrord` lacks; the agent is confined by nothing.
#[test]
fn each_unit_is_as_confined_as_it_can_be() {
    for (unit, most) in [
        ("mirrord.service", 4.6),
        ("mirror-agent.service", 9.6),
        ("mirror-witness.service", 1.2),
    ] {
        let found = exposure(unit);
        assert!(found <= most, "{unit} is exposed by {found}");
    }
}

#[test]
fn no_daemon_but_the_agent_has_rights_that_it_does_not_need() {
    check(
        "mirrord.service",
        "CapabilityBoundingSet",
        &[
            "CAP_SYS_ADMIN",
            "CAP_SYS_PTRACE",
            "CAP_DAC_READ_SEARCH",
            "CAP_SYS_RESOURCE",
            "CAP_NET_BIND_SERVICE",
        ],
    );
    check("mirror-witness.service", "CapabilityBoundingSet", &[]);
    check("mirror-witness.service", "User", &["mirror-witness"]);
    for unit in ["mirrord.service", "mirror-witness.service"] {
        for key in [
            "NoNewPrivileges",
            "LockPersonality",
            "MemoryDenyWriteExecute",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
        ] {
            check(unit, key, &["yes"]);
        }
        check(unit, "LimitCORE", &["0"]);
        check(unit, "UMask", &["0077"]);
        check(unit, "AmbientCapabilities", &[]);
        check(
            unit,
            "SystemCallFilter",
            &["@system-service", "~@privileged", "@resources"],
        );
    }
}

/// Programs that the agent starts inherit what it is forbidden, and its mounts are for all.
#[test]
fn the_agent_forbids_nothing_that_resources_would_inherit() {
    for key in [
        "CapabilityBoundingSet",
        "NoNewPrivileges",
        "SystemCallFilter",
        "RestrictAddressFamilies",
        "MemoryDenyWriteExecute",
        "UMask",
        "LimitCORE",
    ] {
        check("mirror-agent.service", key, &[]);
    }
}

#[test]
fn the_user_of_the_witness_is_made_by_systemd() {
    let file = packaging().join("mirror-witness.sysusers");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.lines()
            .any(|line| line.starts_with("u mirror-witness - "))
    );
    let done = Command::new("systemd-sysusers")
        .arg("--dry-run")
        .arg(&file)
        .output()
        .expect("systemd-sysusers starts; it is in the Debian package systemd");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
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
