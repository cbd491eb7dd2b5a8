//! The tool against the agent's real console, with a scripted agent behind it, and against none.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use agent::alert;
use agent::alert_log::{AlertLog, AlertRing};
use agent::console::{AgentPort, Ask, Console};
use agent::control::{
    ClusterStatus, CommandReply, CommandRequest, GroupStatus, NodeState, NodeStatus, State,
};
use mirror_core::control::{MirrorStatus, Refusal, Role};
use nbd_frontend::control::events::EventRing;
use nbd_frontend::control::router::{self, Node};
use nbd_frontend::control::server;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

const CONFIG: &str = r#"
[cluster]
name = "cluster1"
key_file = "/nonexistent/key"
[[node]]
name = "server1"
[[node]]
name = "server2"
[[mirror]]
name = "md1"
[mirror.on.server1]
data = "/nonexistent/a"
metadata = "internal"
replication = "127.0.0.1:29051"
[mirror.on.server2]
data = "/nonexistent/b"
metadata = "internal"
replication = "127.0.0.2:29051"
[agent]
alert_log = "LOG"
[heartbeat]
[[heartbeat.path]]
name = "interconnect"
on = { server1 = "127.0.0.1:29002", server2 = "127.0.0.2:29002" }
"#;

fn status() -> ClusterStatus {
    let node = |name: &str, state| NodeStatus {
        name: name.into(),
        state,
        standby: false,
        paths: Vec::new(),
        resolvers: Vec::new(),
    };
    ClusterStatus {
        cluster: "cluster1".into(),
        node: "server1".into(),
        nodes: vec![
            node("server1", NodeState::Online),
            node("server2", NodeState::Lost),
        ],
        groups: vec![GroupStatus {
            name: "failover1".into(),
            state: State::Online,
            states: vec![State::Online, State::Unknown],
            current: vec!["server1".into()],
            waits_for: None,
            mirrors: vec!["md1".into()],
            resources: Vec::new(),
        }],
        monitors: Vec::new(),
        monitors_suspended: false,
        mirrors: vec![MirrorStatus::in_step("md1", Role::Primary, "server2")],
        arbiter: None,
        forced_stop: None,
        startup: None,
        warnings: vec!["server2 is not heard".into()],
    }
}

/// Takes every command but the start of a group, which it never answers unless it is forced, and `resolve`, which it
/// refuses.
async fn agent(mut asks: Receiver<Ask>) {
    let mut unanswered = Vec::new();
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Status(reply) => {
                // A tool that was killed does not wait for its answer.
                let _ = reply.send(status());
            }
            Ask::Command { request, reply } => {
                let result = match request {
                    CommandRequest::GroupStart { force: false, .. } => {
                        unanswered.push(reply);
                        continue;
                    }
                    CommandRequest::GroupResolve { .. } => Err(Refusal::new(
                        "not-active-twice",
                        "failover1 is active on server1 alone",
                        "there is nothing to resolve",
                    )),
                    CommandRequest::Switchover { group, to } => Ok(CommandReply {
                        message: format!("{group} is online on {}", to.unwrap_or("server2".into())),
                        without_service_ms: Some(1_234),
                    }),
                    other => Ok(CommandReply {
                        message: format!("{other:?}"),
                        without_service_ms: None,
                    }),
                };
                let _ = reply.send(result);
            }
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Serves an agent and hands the folder to `test`, on a thread of its own.
fn with_agent(test: impl FnOnce(&Path, &AlertRing)) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let guard = runtime.enter();
    let alerts = AlertRing::default();
    let (port, asks) = AgentPort::new();
    let console = Console::claim(folder.path()).unwrap();
    runtime.spawn(agent(asks));
    runtime.spawn(console.serve(port, alerts.clone()));
    drop(guard);
    test(folder.path(), &alerts);
}

fn tool(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mirrorctl"));
    command.arg("--run-dir").arg(folder).args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    tool(folder, arguments).output().unwrap()
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

/// Runs and expects an exit code, and every part in both streams together.
#[track_caller]
fn check_parts(folder: &Path, arguments: &[&str], code: i32, parts: &[&str]) {
    let done = run(folder, arguments);
    let text =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{arguments:?}: {text}");
    for part in parts {
        assert!(
            text.contains(part),
            "{arguments:?}: no {part:?} in:\n{text}"
        );
    }
}

#[test]
fn status_is_for_people_and_for_scripts() {
    with_agent(|folder, _| {
        check(
            folder,
            &["status"],
            0,
            " ========================  CLUSTER STATUS  ===========================
  !!! server2 is not heard
  Cluster : cluster1
  <server>
   *server1 ........: Online
    server2 ........: Lost
  <group>
    failover1 ......: Online
      current        : server1
      on server2     : Unknown
  <mirror>
    md1 : active sync primary server1[P] server2[S]
          1048576 KiB  generation 9f3c0123…  [UU]
 =====================================================================
",
            "",
        );
        let done = run(folder, &["status", "--json"]);
        let found: ClusterStatus = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(found.groups, status().groups);
    });
}

#[test]
fn a_switchover_prints_the_seconds_without_service() {
    with_agent(|folder, _| {
        check(
            folder,
            &["switchover", "failover1"],
            0,
            "failover1 is online on server2\n1.234 s without service\n",
            "",
        );
        check(
            folder,
            &["--json", "switchover", "failover1", "--to", "server1"],
            0,
            "{\"message\":\"failover1 is online on server1\",\"without_service_ms\":1234}\n",
            "",
        );
    });
}

#[test]
fn every_command_reaches_the_agent_as_it_was_meant() {
    with_agent(|folder, _| {
        for (arguments, message) in [
            (&["group", "stop", "g"][..], r#"GroupStop { group: "g" }"#),
            (
                &["node", "standby", "server2"],
                r#"NodeStandby { node: "server2" }"#,
            ),
            (
                &["node", "active", "server2"],
                r#"NodeActive { node: "server2" }"#,
            ),
            (&["monitor", "suspend"], "MonitorSuspend"),
            (&["monitor", "resume"], "MonitorResume"),
        ] {
            check(folder, arguments, 0, &format!("{message}\n"), "");
        }
        check(folder, &["-q", "monitor", "resume"], 0, "", "");
    });
}

#[test]
fn a_forced_start_says_first_what_it_may_lose() {
    with_agent(|folder, _| {
        check(
            folder,
            &["group", "start", "failover1", "--force"],
            0,
            "GroupStart { group: \"failover1\", peer_down: false, force: true }\n",
            "group start --force failover1 may lose, of md1: nothing, this side is primary already\n",
        );
        check(
            folder,
            &["--json", "group", "start", "failover1", "--force"],
            0,
            "{\"may_lose\":{\"md1\":\"nothing, this side is primary already\"},\
             \"message\":\"GroupStart { group: \\\"failover1\\\", peer_down: false, force: true }\"}\n",
            "",
        );
    });
}

#[test]
fn a_refusal_and_a_time_out_say_what_comes_next() {
    with_agent(|folder, _| {
        check(
            folder,
            &["group", "resolve", "failover1", "--keep", "server1"],
            1,
            "",
            "mirrorctl: failover1 is active on server1 alone (rule not-active-twice)\n  \
             next: there is nothing to resolve\n",
        );
        check_parts(
            folder,
            &["--timeout", "200ms", "group", "start", "failover1"],
            4,
            &["did not answer within 200ms", "goes on", "mirrorctl status"],
        );
        check_parts(folder, &["group", "resolve", "failover1"], 2, &["--keep"]);
    });
}

#[test]
fn the_log_is_in_the_form_of_the_field_and_can_be_followed() {
    with_agent(|folder, alerts| {
        let first = alerts.push("server1", alert::PEER_DOWN.with("server2 stopped."));
        alerts.push(
            "server1",
            alert::FAILING_OVER.with("Failing over failover1."),
        );
        let text = |record: &agent::control::AlertRecord| agent::alert_log::line::text(record);
        check_parts(folder, &["log"], 0, &[&text(&first), " rc 1060 "]);
        let done = run(folder, &["log", "-n", "1"]);
        let line = String::from_utf8(done.stdout).unwrap();
        assert!(
            line.ends_with(" server1 rc 1060 Failing over failover1.\n")
                && line.lines().count() == 1,
            "{line}"
        );
        check_parts(
            folder,
            &["log", "--json"],
            0,
            &[
                "{\"number\":1,",
                "\"id\":1004,\"level\":\"error\",\"module\":\"nm\"",
            ],
        );

        let mut following = tool(folder, &["log", "--follow"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        assert_eq!(
            [next(), next()].map(|line| line.contains("rc 1060")),
            [false, true]
        );
        alerts.push("server1", alert::FAILED_OVER.with("Failed over."));
        let line = next();
        following.kill().unwrap();
        following.wait().unwrap();
        assert!(line.ends_with(" server1 rc 1061 Failed over."), "{line}");
    });
}

#[test]
fn without_an_agent_every_command_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["switchover", "g"],
        &["monitor", "resume"],
        &["log"],
    ] {
        check_parts(
            folder.path(),
            arguments,
            3,
            &["no mirror-agent answers", "--run-dir"],
        );
    }
}

#[test]
fn without_an_agent_status_shows_the_mirrors() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let guard = runtime.enter();
    let listener = tokio::net::UnixListener::bind(folder.path().join("mirrord.sock")).unwrap();
    let node = Node {
        name: "server1".into(),
        mirrors: vec![router::MirrorEntry {
            name: "md1".into(),
            state: router::MirrorState::Down {
                reason: "no metadata".into(),
            },
        }],
        events: EventRing::default(),
    };
    runtime.spawn(server::serve(listener, router::router(Arc::new(node))));
    drop(guard);
    check_parts(
        folder.path(),
        &["status"],
        3,
        &[
            "The agent of server1 does not answer",
            "md1 : down on server1\n      no metadata\n",
            "no mirror-agent answers",
        ],
    );
    let done = run(folder.path(), &["status", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["agent"], serde_json::Value::Null);
    assert_eq!(report["down"][0]["name"], "md1");
}

#[test]
fn without_an_agent_the_log_is_read_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alert.log");
    let config = folder.path().join("cluster.toml");
    fs::write(&config, CONFIG.replace("LOG", path.to_str().unwrap())).unwrap();
    runtime().block_on(async {
        for (node, message) in [
            ("server1", "one"),
            ("server2", "of the other"),
            ("server1", "two"),
        ] {
            let log = AlertLog::open(&path, node);
            log.record(alert::PEER_UP.with(message));
            log.flush(std::time::Duration::from_secs(10)).await;
        }
    });
    let config = config.to_str().unwrap();
    let arguments = ["--config", config, "--node", "server1", "log"];
    check_parts(
        folder.path(),
        &arguments,
        3,
        &[
            " server1 nm 1003 one\n",
            " server1 nm 1003 two\n",
            "the agent does not answer",
            path.to_str().unwrap(),
        ],
    );
    let done = run(folder.path(), &[&arguments[..], &["-n", "1"]].concat());
    let line = String::from_utf8(done.stdout).unwrap();
    assert!(
        line.ends_with("two\n") && line.lines().count() == 1,
        "{line}"
    );
}

#[test]
fn completions_know_the_commands_of_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    check_parts(
        folder.path(),
        &["completions", "bash"],
        0,
        &[
            "switchover",
            "standby",
            "resolve",
            "suspend",
            "--follow",
            "--keep",
        ],
    );
}
