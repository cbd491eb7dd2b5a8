//! The console over a real socket, with a task in the place of the agent.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mirror_core::control::Refusal;
use nbd_frontend::control::BODY_BYTES_MAX;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::client::{AgentClient, ClientError};
use super::*;
use crate::alert;
use crate::control::{ClusterStatus, CommandReply, CommandRequest};

fn status() -> ClusterStatus {
    ClusterStatus {
        cluster: "cluster1".into(),
        node: "server1".into(),
        nodes: Vec::new(),
        groups: Vec::new(),
        monitors: Vec::new(),
        monitors_suspended: false,
        mirrors: Vec::new(),
        arbiter: None,
        forced_stop: None,
        startup: None,
        warnings: vec!["both nodes are active".into()],
    }
}

/// An agent that can switch over and nothing else.
fn fake_agent() -> AgentPort {
    let (port, mut asks) = AgentPort::new();
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            // A caller that went away is no fault of the agent.
            let _ = match ask {
                Ask::Status(reply) => reply.send(status()).is_ok(),
                Ask::Command { request, reply } => reply
                    .send(match request {
                        CommandRequest::Switchover { group, .. } => Ok(CommandReply {
                            message: format!("{group} is online on server2"),
                            without_service_ms: Some(1200),
                        }),
                        _ => Err(Refusal::new("fake-rule", "no", "do something else")),
                    })
                    .is_ok(),
            };
        }
    });
    port
}

struct Served {
    folder: TempDir,
    client: AgentClient,
    alerts: AlertRing,
    serving: JoinHandle<io::Result<()>>,
}

fn serve_with(port: AgentPort) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let alerts = AlertRing::default();
    let console = Console::claim(folder.path()).unwrap();
    Served {
        client: AgentClient::new(folder.path(), Duration::from_secs(10)),
        serving: tokio::spawn(console.serve(port, alerts.clone())),
        folder,
        alerts,
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
async fn status_and_commands_reach_the_agent() {
    let served = serve_with(fake_agent());
    let status = served.client.status().await.unwrap();
    assert_eq!(status.warnings, ["both nodes are active"]);
    let switchover = CommandRequest::Switchover {
        group: "failover1".into(),
        to: None,
    };
    let reply = served.client.command(&switchover).await.unwrap();
    assert_eq!(reply.without_service_ms, Some(1200));
    let refusal = refused(served.client.command(&CommandRequest::MonitorSuspend).await);
    assert_eq!(
        refusal,
        Refusal::new("fake-rule", "no", "do something else")
    );
}

#[tokio::test]
async fn alerts_are_waited_for() {
    let served = serve_with(fake_agent());
    let client = &served.client;
    assert!(
        client
            .alerts(0, Duration::ZERO)
            .await
            .unwrap()
            .alerts
            .is_empty()
    );
    let (page, ()) = tokio::join!(client.alerts(0, Duration::from_secs(5)), async {
        served
            .alerts
            .push("server1", alert::PEER_DOWN.with("server2 is silent"));
    });
    let page = page.unwrap();
    assert_eq!(page.alerts[0].alert.id, alert::PEER_DOWN.id);
    assert_eq!((page.alerts[0].number, page.next), (1, 1));
}

#[tokio::test]
async fn an_agent_whose_task_is_gone_is_told_apart_from_one_that_is_not_there() {
    let (port, asks) = AgentPort::new();
    drop(asks);
    let served = serve_with(port);
    let refusal = refused(served.client.status().await);
    assert_eq!(refusal.rule, "agent-ending");
    let nowhere = AgentClient::new(Path::new("/nonexistent"), Duration::from_secs(1));
    let error = nowhere.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("no mirror-agent"), "{error}");
}

#[tokio::test]
async fn the_socket_is_for_this_user_alone_and_goes_with_the_console() {
    let served = serve_with(fake_agent());
    served.client.status().await.unwrap();
    let path = served.folder.path().join("agent.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Console::claim(served.folder.path()).unwrap_err();
    assert!(second.to_string().contains("mirror-agent"), "{second}");
    assert!(path.exists(), "the second one took nothing away");
    served.serving.abort();
    assert!(served.serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
    Console::claim(served.folder.path()).unwrap();
}

#[tokio::test]
async fn mirrord_and_the_agent_share_a_run_directory() {
    let folder = tempfile::tempdir().unwrap();
    let _mirrord = RunDir::claim(folder.path(), &nbd_frontend::control::MIRRORD).unwrap();
    Console::claim(folder.path()).unwrap();
}

#[tokio::test]
async fn bad_calls_get_a_refusal_in_json() {
    let served = serve_with(fake_agent());
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let unknown_field = r#"{"command":"group-start","group":"g","x":1}"#;
    for (request, status, rule) in [
        (post("/v1/nothing", "{}"), "404", "unknown-call"),
        (post("/v1/status", "{}"), "404", "unknown-call"),
        (post("/v1/command", "{"), "400", "bad-request"),
        (post("/v1/command", unknown_field), "400", "bad-request"),
        (
            post("/v1/command", &" ".repeat(BODY_BYTES_MAX + 1)),
            "400",
            "bad-request",
        ),
        (
            "GET /v1/alerts?after=x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
            "400",
            "bad-request",
        ),
    ] {
        let mut stream = tokio::net::UnixStream::connect(served.folder.path().join("agent.sock"))
            .await
            .unwrap();
        // The server may answer and close before it has read a request that is too large.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let line = request.lines().next().unwrap_or_default();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(rule),
            "{line}: {answer}"
        );
    }
    served.client.status().await.unwrap();
}

/// The outcome of a command is dropped when nobody waits for it, and the agent goes on.
#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_agent_alone() {
    let (port, mut asks) = AgentPort::new();
    let served = serve_with(port);
    let hasty = AgentClient::new(served.folder.path(), Duration::from_millis(50));
    let stop = CommandRequest::GroupStop { group: "g".into() };
    let error = hasty.command(&stop).await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    let Some(Ask::Command { request, mut reply }) = asks.recv().await else {
        panic!("the command arrived");
    };
    assert_eq!(request, stop);
    reply.closed().await;
    tokio::spawn(async move {
        if let Some(Ask::Status(reply)) = asks.recv().await {
            let _ = reply.send(status());
        }
    });
    served.client.status().await.unwrap();
}
