//! The tool against the real control API, with a scripted mirror behind it.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use mirror_core::control::{
    Choice, Connection, Direction, DiskState, Explanation, MirrorStatus, Notice, Refusal, Role,
    Statistics, SyncKind, SyncStatus,
};
use mirror_core::volume::event;
use nbd_frontend::control::events::EventRing;
use nbd_frontend::control::port::{Ask, MirrorPort};
use nbd_frontend::control::router::{MirrorEntry, MirrorState, Node, router};
use nbd_frontend::control::server;

fn status() -> MirrorStatus {
    MirrorStatus::in_step("md1", Role::Secondary, "server2")
}

/// How the repair after a verify goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repair {
    /// It takes two looks.
    Works,
    Hangs,
    LosesPeer,
}

/// Answers like a mirror: promote needs force, a verify takes two looks and finds `mismatch` bytes.
async fn mirror(
    mut asks: tokio::sync::mpsc::Receiver<Ask>,
    first: MirrorStatus,
    mismatch: u64,
    repair: Repair,
) {
    let mut status = first;
    let mut looks_left = 0;
    let mut repairing = false;
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Command { command, reply } => {
                let result = match command {
                    event::Command::Promote { force: true, .. } => {
                        status.role = Role::Primary;
                        Ok("md1 is primary".into())
                    }
                    event::Command::Promote { .. } => Err(Refusal::new(
                        "inconsistent",
                        "md1 never had data",
                        "use --force if this side's data is the truth",
                    )),
                    event::Command::Verify { repair } => {
                        status.last_verify_mismatch_bytes = None;
                        repairing = repair && mismatch > 0;
                        looks_left = if repairing { 4 } else { 2 };
                        Ok("the verify of md1 has begun".into())
                    }
                    other => Ok(format!("{other:?}")),
                };
                // A tool that was killed does not wait for its answer.
                let _ = reply.send(result);
            }
            // No tool asks this.
            Ask::ConfirmWanted { .. } => {}
            Ask::Status { statistics, reply } => {
                status.statistics = statistics.then(Statistics::default);
                let comparing = looks_left > if repairing { 2 } else { 0 };
                status.sync = (looks_left > 0).then_some(SyncStatus {
                    kind: if comparing {
                        SyncKind::Verify
                    } else {
                        SyncKind::Resync
                    },
                    direction: Direction::Source,
                    done_bytes: 1 << 29,
                    total_bytes: 1 << 30,
                    rate_bytes_per_s: 1 << 20,
                    eta_s: Some(1),
                    paused: false,
                });
                status.out_of_sync_bytes = if looks_left > 0 { mismatch } else { 0 };
                if !comparing {
                    status.last_verify_mismatch_bytes = Some(mismatch);
                    match repair {
                        Repair::LosesPeer if repairing => {
                            status.connection = Connection::Connecting;
                            status.sync = None;
                        }
                        Repair::Hangs if repairing => looks_left = 2,
                        _ => {}
                    }
                }
                looks_left = u32::saturating_sub(looks_left, 1);
                let _ = reply.send(status.clone());
            }
            Ask::Explain(reply) => {
                let _ = reply.send(Explanation {
                    mirror: "md1".into(),
                    rule: Some("both-new".into()),
                    summary: "no side has data yet".into(),
                    facts: vec!["here: nothing".into()],
                    choices: vec![Choice {
                        command: "mirrorctl promote md1 --force".into(),
                        effect: "this side is the truth".into(),
                        loses: "whatever the other side holds".into(),
                    }],
                });
            }
        }
    }
}

/// Serves one mirror and hands the folder to `test`, on a thread of its own.
fn with_daemon(first: MirrorStatus, mismatch: u64, test: impl FnOnce(&Path, &EventRing)) {
    with_repair(first, mismatch, Repair::Works, test);
}

fn with_repair(
    first: MirrorStatus,
    mismatch: u64,
    repair: Repair,
    test: impl FnOnce(&Path, &EventRing),
) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let events = EventRing::default();
    let guard = runtime.enter();
    let (port, asks) = MirrorPort::new("md1");
    let listener = tokio::net::UnixListener::bind(folder.path().join("mirrord.sock")).unwrap();
    let node = Node {
        name: "server1".into(),
        mirrors: vec![
            MirrorEntry {
                name: "md1".into(),
                state: MirrorState::Running {
                    port,
                    exports: Vec::new(),
                    device: None,
                },
            },
            MirrorEntry {
                name: "md2".into(),
                state: MirrorState::Down {
                    reason: "no metadata; run `mirrorctl init md2`".into(),
                },
            },
        ],
        events: events.clone(),
    };
    runtime.spawn(mirror(asks, first, mismatch, repair));
    runtime.spawn(server::serve(listener, router(Arc::new(node))));
    drop(guard);
    test(folder.path(), &events);
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mirrorctl"))
        .arg("--run-dir")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs and expects an exit code and exactly these two streams.
#[track_caller]
fn check(folder: &Path, arguments: &[&str], code: i32, out: &str, error: &str) {
    let done = run(folder, arguments);
    assert_eq!(String::from_utf8_lossy(&done.stdout), out, "{arguments:?}");
    assert_eq!(
        String::from_utf8_lossy(&done.stderr),
        error,
        "{arguments:?}"
    );
    assert_eq!(done.status.code(), Some(code), "{arguments:?}");
}

#[test]
fn a_refusal_says_the_reason_the_rule_and_the_next_step() {
    with_daemon(status(), 0, |folder, _| {
        check(
            folder,
            &["promote", "md1"],
            1,
            "",
            "mirrorctl: md1 never had data (rule inconsistent)\n  \
             next: use --force if this side's data is the truth\n",
        );
        check(
            folder,
            &["promote", "md9"],
            1,
            "",
            "mirrorctl: server1 has no mirror \"md9\" (rule unknown-mirror)\n  \
             next: its mirrors are: md1, md2\n",
        );
        let done = run(folder, &["demote", "md2"]);
        assert_eq!(done.status.code(), Some(1));
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains("mirrorctl init md2"), "{error}");
    });
}

#[test]
fn a_forced_promotion_prints_what_may_be_lost() {
    with_daemon(status(), 0, |folder, _| {
        check(folder, &["wait", "md1", "--for", "secondary"], 0, "", "");
        check(
            folder,
            &["promote", "md1", "--force"],
            0,
            "md1 is primary\n",
            "promote --force md1 may lose: nothing, this side is up to date\n",
        );
        check(folder, &["wait", "md1", "--for", "primary"], 0, "", "");
        check(folder, &["-q", "demote", "md1"], 0, "", "");
    });
    let mut outdated = status();
    outdated.connection = Connection::Connecting;
    outdated.disk = DiskState::Outdated;
    with_daemon(outdated, 0, |folder, _| {
        check(
            folder,
            &["--json", "promote", "md1", "--force"],
            0,
            "{\"may_lose\":\"every answered write that only server2 has\",\"message\":\"md1 is primary\"}\n",
            "",
        );
    });
}

#[test]
fn mdstat_is_for_people_and_for_scripts() {
    with_daemon(status(), 0, |folder, _| {
        check(
            folder,
            &["mdstat"],
            0,
            "md1 : active sync secondary server1[S] server2[S]\n      \
             1048576 KiB  generation 9f3c0123…  [UU]\n\
             md2 : down on server1\n      no metadata; run `mirrorctl init md2`\n",
            "",
        );
        let done = run(folder, &["mdstat", "md1", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(report["node"], "server1");
        let mirror = &report["mirrors"][0];
        for (key, value) in [
            ("role", "secondary"),
            ("mode", "sync"),
            ("connection", "connected"),
            ("disk", "up-to-date"),
        ] {
            assert_eq!(mirror[key], value, "{key}");
        }
        assert_eq!(mirror["peer"]["node"], "server2");
        assert_eq!(mirror["statistics"]["latencies"]["write"]["count"], 0);
        let done = run(folder, &["mdstat", "--stats", "md1"]);
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(
            text.starts_with("md1 : on server1, open for 0s\n"),
            "{text}"
        );
        let done = run(folder, &["metrics"]);
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(text.contains("mirror_up{mirror=\"md2\"} 0\n"), "{text}");
        assert!(mirror["sync"].is_null());
        assert_eq!(mirror["counters"]["metadata_writes"], 0);
    });
}

#[test]
fn a_wait_that_cannot_end_or_takes_too_long_says_so() {
    let mut lost = status();
    lost.connection = Connection::Connecting;
    with_daemon(lost, 0, |folder, _| {
        let arguments = ["wait", "md1", "--for", "connected", "--timeout", "2s"];
        let done = run(folder, &arguments);
        assert_eq!(done.status.code(), Some(4), "{done:?}");
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            error.contains("connecting") && error.contains("mirrorctl explain md1"),
            "{error}"
        );
    });
    let mut split = status();
    split.connection = Connection::SplitBrain;
    with_daemon(split, 0, |folder, _| {
        let done = run(folder, &["wait", "md1", "--for", "synced"]);
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            error.contains("split-brain") && error.contains("mirrorctl explain md1"),
            "{error}"
        );
    });
}

#[test]
fn verify_waits_and_tells_what_differs() {
    with_daemon(status(), 0, |folder, _| {
        check(
            folder,
            &["verify", "md1"],
            0,
            "md1: both sides hold the same data\n",
            "",
        );
        check(
            folder,
            &["verify", "md1", "--no-wait"],
            0,
            "the verify of md1 has begun\n",
            "",
        );
    });
    with_daemon(status(), 8192, |folder, _| {
        let done = run(folder, &["verify", "md1"]);
        assert_eq!(done.status.code(), Some(1));
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            error.contains("8192 bytes") && error.contains("--repair"),
            "{error}"
        );
        check(
            folder,
            &["verify", "md1", "--repair"],
            0,
            "md1: 8192 bytes differed and were repaired\n",
            "",
        );
    });
}

#[test]
fn a_repair_is_done_when_nothing_differs_any_more() {
    with_daemon(status(), 8192, |folder, _| {
        check(
            folder,
            &["--json", "verify", "md1", "--repair"],
            0,
            "{\"mismatch_bytes\":8192,\"repaired\":true}\n",
            "",
        );
        let status = run(folder, &["--json", "mdstat", "md1"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["mirrors"][0]["out_of_sync_bytes"], 0);
    });
}

#[test]
fn a_repair_that_did_not_happen_is_not_called_one() {
    let arguments = ["--json", "--timeout", "5s", "verify", "md1", "--repair"];
    for (repair, code, rule) in [
        (Repair::Hangs, 4, "timed-out"),
        (Repair::LosesPeer, 1, "not-repaired"),
    ] {
        with_repair(status(), 8192, repair, |folder, _| {
            let done = run(folder, &arguments);
            assert_eq!(done.status.code(), Some(code), "{done:?}");
            let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(report["mismatch_bytes"], 8192);
            assert_eq!(report["repaired"], false);
            let error: serde_json::Value = serde_json::from_slice(&done.stderr).unwrap();
            assert_eq!(error["error"]["rule"], rule);
        });
    }
    with_repair(status(), 8192, Repair::LosesPeer, |folder, _| {
        check(
            folder,
            &["verify", "md1", "--repair"],
            1,
            "md1: 8192 bytes differed and are not repaired yet\n",
            "mirrorctl: 8192 bytes still differ: server2 is gone (connecting) (rule not-repaired)\n  \
             next: they are marked and will be copied at the next resync; ask why it does not run \
             with `mirrorctl explain md1`\n",
        );
    });
}

#[test]
fn events_are_one_line_each() {
    with_daemon(status(), 0, |folder, events| {
        check(folder, &["events"], 0, "", "");
        events.push("md1", Notice::info("promoted", "primary from epoch 3 on"));
        events.push("md1", Notice::warning("peer-lost", "lost server2"));
        let done = run(folder, &["events"]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[1].ends_with("Z warning md1 peer-lost: lost server2"),
            "{text}"
        );
        let done = run(folder, &["events", "--json"]);
        let line = String::from_utf8_lossy(&done.stdout).into_owned();
        let event: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        assert_eq!(event["number"], 1);
        assert_eq!(event["kind"], "promoted");
        assert_eq!(event["severity"], "info");
    });
}

/// Starts the tool with its output in a pipe; it is killed with the value.
struct Watching(std::process::Child);

impl Watching {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_mirrorctl"))
            .arg("--run-dir")
            .arg(folder)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Reads until this many lines came; ends early only with the tool.
    fn lines(&mut self, count: usize) -> Vec<String> {
        let out = self.0.stdout.as_mut().unwrap();
        std::io::BufRead::lines(std::io::BufReader::new(out))
            .take(count)
            .map(Result::unwrap)
            .collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_time_out_bounds_each_look_of_a_watch_and_not_the_watch() {
    with_daemon(status(), 0, |folder, events| {
        let mut follow = Watching::start(folder, &["--timeout", "3s", "events", "--follow"]);
        // A second passes between two looks, so both tools outlive their time-out.
        let arguments = ["--json", "--timeout", "3s", "mdstat", "--watch"];
        let lines = Watching::start(folder, &arguments).lines(5);
        assert_eq!(lines.len(), 5, "{lines:?}");
        events.push("md1", Notice::info("promoted", "after a while"));
        let line = follow.lines(1).concat();
        assert!(line.ends_with("promoted: after a while"), "{line}");
    });
}

#[test]
fn explain_lists_the_choices() {
    with_daemon(status(), 0, |folder, _| {
        check(
            folder,
            &["explain", "md1"],
            0,
            "md1: no side has data yet\n  rule: both-new\n  here: nothing\nWhat can be done:\n  \
             mirrorctl promote md1 --force\n      effect: this side is the truth\n      \
             loses:  whatever the other side holds\n",
            "",
        );
    });
}
