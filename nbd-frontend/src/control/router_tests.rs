//! The API over a real socket, with a task in the place of a mirror's thread.

use std::io::{Read, Write};

use mirror_core::control::{Choice, Notice, Role, Statistics};
use tokio::net::UnixListener;

use super::super::client::{Client, ClientError};
use super::super::port::Ask;
use super::*;

/// A mirror that takes `promote` and refuses everything else, as its thread would.
fn fake_mirror() -> MirrorPort {
    let (port, mut asks) = MirrorPort::new("md1");
    tokio::spawn(async move {
        let mut waiting = Vec::new();
        while let Some(ask) = asks.recv().await {
            // A caller that went away is no fault of the mirror.
            let _ = match ask {
                Ask::Command { command, reply } => reply
                    .send(match command {
                        Command::Promote { .. } => Ok("md1 is primary".into()),
                        _ => Err(Refusal::new("fake-rule", "no", "do something else")),
                    })
                    .is_ok(),
                // Nothing newer than ticket 7 comes.
                Ask::ConfirmWanted { after, reply } if after < 7 => reply.send(7).is_ok(),
                Ask::ConfirmWanted { reply, .. } => {
                    waiting.push(reply);
                    true
                }
                Ask::Status { statistics, reply } => {
                    let mut status = MirrorStatus::in_step("md1", Role::Primary, "server2");
                    status.statistics = statistics.then(Statistics::default);
                    reply.send(status).is_ok()
                }
                Ask::Explain(reply) => reply
                    .send(Explanation {
                        mirror: "md1".into(),
                        rule: Some("equal".into()),
                        summary: "in step".into(),
                        facts: Vec::new(),
                        choices: vec![Choice {
                            command: "mirrorctl demote md1".into(),
                            effect: "secondary".into(),
                            loses: "nothing".into(),
                        }],
                    })
                    .is_ok(),
            };
        }
    });
    port
}

struct Served {
    folder: tempfile::TempDir,
    client: Client,
    events: EventRing,
}

fn serve() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(super::super::SOCKET_NAME)).unwrap();
    let events = EventRing::default();
    let (dead, asks) = MirrorPort::new("dead");
    drop(asks);
    let entry = |name: &str, state| MirrorEntry {
        name: name.into(),
        state,
    };
    let node = Node {
        name: "server1".into(),
        mirrors: vec![
            entry(
                "md1",
                MirrorState::Running {
                    port: fake_mirror(),
                    exports: vec!["nbd+unix:///md1?socket=/run/md1.nbd".into()],
                    device: None,
                },
            ),
            entry(
                "broken",
                MirrorState::Down {
                    reason: "both superblocks are bad".into(),
                },
            ),
            entry(
                "dead",
                MirrorState::Running {
                    port: dead,
                    exports: Vec::new(),
                    device: None,
                },
            ),
        ],
        events: events.clone(),
    };
    tokio::spawn(super::super::server::serve(
        listener,
        router(Arc::new(node)),
    ));
    Served {
        client: Client::new(folder.path(), Duration::from_secs(10)),
        folder,
        events,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn status_lists_every_mirror_running_or_not() {
    let served = serve();
    let status = served.client.status().await.unwrap();
    assert_eq!(status.node, "server1");
    assert_eq!(status.mirrors.len(), 1);
    let down: Vec<_> = status.down.iter().map(|down| down.name.as_str()).collect();
    assert_eq!(down, ["broken", "dead"]);
    assert_eq!(
        status.mirrors[0].exports,
        ["nbd+unix:///md1?socket=/run/md1.nbd"]
    );
}

/// Two mirrors that answer only when both have been asked.
#[tokio::test]
async fn all_mirrors_are_asked_at_once() {
    let (first, mut first_asks) = MirrorPort::new("md1");
    let (second, mut second_asks) = MirrorPort::new("md2");
    tokio::spawn(async move {
        while let (
            Some(Ask::Status { reply: first, .. }),
            Some(Ask::Status { reply: second, .. }),
        ) = (first_asks.recv().await, second_asks.recv().await)
        {
            let _ = first.send(MirrorStatus::in_step("md1", Role::Primary, "server2"));
            let _ = second.send(MirrorStatus::in_step("md2", Role::Primary, "server2"));
        }
    });
    let mirrors = [first, second]
        .into_iter()
        .map(|port| MirrorEntry {
            name: port.name.clone(),
            state: MirrorState::Running {
                port,
                exports: Vec::new(),
                device: None,
            },
        })
        .collect();
    let node = Node {
        name: "server1".into(),
        mirrors,
        events: EventRing::default(),
    };
    let found = node_status(Arc::new(node), false).await;
    let names: Vec<_> = found.mirrors.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["md1", "md2"], "{:?}", found.down);
}

#[tokio::test]
async fn commands_reach_the_mirror_and_refusals_come_back_whole() {
    let served = serve();
    let promote = CommandRequest::Promote {
        peer_down: false,
        force: true,
        grant: None,
    };
    let reply = served.client.command("md1", &promote).await.unwrap();
    assert_eq!(reply.message, "md1 is primary");
    let refusal = refused(served.client.command("md1", &CommandRequest::Demote).await);
    assert_eq!(
        refusal,
        Refusal::new("fake-rule", "no", "do something else")
    );
    let explanation = served.client.explain("md1").await.unwrap();
    assert_eq!(explanation.rule.as_deref(), Some("equal"));
}

#[tokio::test]
async fn unknown_and_broken_mirrors_are_named() {
    let served = serve();
    let refusal = refused(served.client.explain("md9").await);
    assert_eq!(refusal.rule, "unknown-mirror");
    assert!(refusal.remedy.contains("md1, broken, dead"), "{refusal}");
    let refusal = refused(
        served
            .client
            .command("broken", &CommandRequest::Demote)
            .await,
    );
    assert_eq!(refusal.rule, "not-running");
    assert!(
        refusal.reason.contains("both superblocks are bad"),
        "{refusal}"
    );
}

#[tokio::test]
async fn events_are_paged_and_waited_for() {
    let served = serve();
    let page = served.client.events(0, Duration::ZERO).await.unwrap();
    assert!(page.events.is_empty());
    let (page, ()) = tokio::join!(served.client.events(0, Duration::from_secs(5)), async {
        served
            .events
            .push("md1", Notice::warning("peer-lost", "gone"));
    });
    assert_eq!(page.unwrap().events[0].notice.kind, "peer-lost");
}

/// Sends raw bytes and returns the whole answer.
async fn raw(served: &Served, request: String) -> String {
    let path = served.folder.path().join(super::super::SOCKET_NAME);
    tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // The server may answer and close before it has read a request that is too large.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
    .unwrap()
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn bad_calls_get_a_refusal_in_json() {
    let served = serve();
    for (request, status, rule) in [
        (post("/v1/nothing", "{}"), "404", "unknown-call"),
        (post("/v1/status", "{}"), "404", "unknown-call"),
        (post("/v1/mirrors/md1/command", "{"), "400", "bad-request"),
        (
            post("/v1/mirrors/md1/command", r#"{"command":"explode"}"#),
            "400",
            "bad-request",
        ),
        (
            post("/v1/mirrors/md1/command", r#"{"command":"promote","x":1}"#),
            "400",
            "bad-request",
        ),
        (
            post("/v1/mirrors/md1/command", &" ".repeat(BODY_BYTES_MAX + 1)),
            "400",
            "bad-request",
        ),
        (
            "GET /v1/events?after=x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
            "400",
            "bad-request",
        ),
    ] {
        let line = request.lines().next().unwrap_or_default().to_owned();
        let answer = raw(&served, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(rule),
            "{line}: {answer}"
        );
    }
    assert!(raw(&served, "garbage\r\n\r\n".into()).await.contains("400"));
    served.client.status().await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(folder.path(), Duration::from_secs(1));
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("--run-dir"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(folder.path().join(super::super::SOCKET_NAME)).unwrap();
    let client = Client::new(folder.path(), Duration::from_millis(50));
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_wanted_confirmation_is_waited_for_within_bounds() {
    let served = serve();
    let ask = |after, wait_ms| {
        served
            .client
            .confirm_wanted("md1", after, Duration::from_millis(wait_ms))
    };
    assert_eq!(ask(3, 5_000).await.unwrap().ticket, 7);
    assert_eq!(ask(7, 20).await.unwrap().ticket, 7);
    let refusal = refused(
        served
            .client
            .confirm_wanted("dead", 0, Duration::ZERO)
            .await,
    );
    assert_eq!(refusal.rule, "not-running");
}

#[test]
fn the_words_of_an_agent_have_the_form_that_is_documented() {
    let words = [
        (
            r#"{"command":"promote","grant":{"epoch":4,"deadline_ms":900}}"#,
            Command::Promote {
                peer_down: false,
                force: false,
                grant: Some(mirror_core::control::Grant {
                    epoch: 4,
                    deadline_ms: 900,
                }),
            },
        ),
        (
            r#"{"command":"lease","epoch":4,"deadline_ms":900,"confirmed":2}"#,
            Command::Lease {
                epoch: 4,
                deadline_ms: 900,
                confirmed: 2,
            },
        ),
        (r#"{"command":"freeze"}"#, Command::Freeze),
        (r#"{"command":"thaw"}"#, Command::Thaw),
        (r#"{"command":"fail-io"}"#, Command::FailIo),
        (r#"{"command":"outdate"}"#, Command::Outdate),
        (r#"{"command":"peer-down"}"#, Command::PeerDown),
        (
            r#"{"command":"epoch-seen","epoch":5}"#,
            Command::EpochSeen { epoch: 5 },
        ),
    ];
    for (json, command) in words {
        let request: CommandRequest = serde_json::from_str(json).unwrap();
        assert_eq!(Command::from(request), command, "{json}");
    }
}
