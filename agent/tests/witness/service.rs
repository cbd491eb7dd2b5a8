//! What a witness does for its clusters.

use std::fs;
use std::time::Duration;

use agent::arbiter::call::{Refusal, Renewal, Reply, Request};
use agent::io::arbiter::{ArbiterError, WitnessClient};
use agent::io::clock::boottime_ms;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::process::*;

fn is_held_by(reply: &Reply, node: &str) -> bool {
    matches!(reply, Reply::Refused(Refusal::Held { holder, .. }) if holder == node)
}

#[tokio::test]
async fn two_nodes_enrol_and_hand_a_mirror_over() {
    let witness = Witness::start(&[("c", 1)]);
    let [a, b] = enrolled(&witness, "c", 1).await;
    let before_ms = boottime_ms();
    let answered = a.call(acquire("md1")).await.unwrap();
    assert_eq!(answered.reply, granted(1));
    assert!((before_ms..=boottime_ms()).contains(&answered.sent_ms));
    assert!(is_held_by(&ask(&b, acquire("md1")).await, "a"));
    match ask(&a, beat("md1", 1)).await {
        Reply::Beat {
            peer_heard_ms: Some(_),
            leases,
        } => assert_eq!(leases, [Renewal::Renewed]),
        other => panic!("{other:?}"),
    }
    let record = Request::Record {
        holding: holding("md1", 1),
        current: vec!["a".into()],
    };
    assert_eq!(ask(&a, record).await, Reply::Recorded);
    assert_eq!(ask(&a, release("md1", 1)).await, Reply::Released);
    let refused = ask(&b, acquire("md1")).await;
    assert!(
        matches!(&refused, Reply::Refused(Refusal::Outdated { current }) if current == &["a"]),
        "{refused:?}"
    );
    assert_eq!(ask(&a, acquire("md1")).await, granted(2));
}

#[tokio::test]
async fn a_restart_keeps_epochs_and_holds_leases_and_clients_go_on_by_themselves() {
    let mut witness = Witness::start(&[("c", 1)]);
    let [a, b] = enrolled(&witness, "c", 1).await;
    assert_eq!(ask(&a, acquire("md1")).await, granted(1));
    for round in 1..=3 {
        if round == 2 {
            witness.kill();
        } else {
            assert_eq!(witness.stop(), Some(0));
        }
        witness.restart();
        assert!(is_held_by(&ask(&b, acquire("md1")).await, "a"));
        assert_eq!(ask(&a, acquire("md1")).await, granted(round + 1));
    }
}

#[tokio::test]
async fn many_clusters_do_not_see_one_another() {
    let names: Vec<String> = (0..40).map(|index| format!("c{index}")).collect();
    let clusters: Vec<(&str, u8)> = names.iter().map(String::as_str).zip(1..).collect();
    let witness = Witness::start(&clusters);
    let mut nodes = Vec::new();
    for (name, secret) in &clusters {
        nodes.push(enrolled(&witness, name, *secret).await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (index, [a, _b]) in nodes.into_iter().enumerate() {
        tasks.spawn(async move {
            for epoch in 1..=1 + index as u64 % 4 {
                assert_eq!(ask(&a, acquire("md1")).await, granted(epoch));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_grants_and_changes_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let _mounted = Mounted::tmpfs(disk.path(), "size=64k");
    let mut witness = Witness::prepare(&[("c", 1)], Some(disk.path().join("state")));
    witness.restart();
    let [a, b] = enrolled(&witness, "c", 1).await;
    assert_eq!(ask(&a, acquire("md1")).await, granted(1));
    let filler = disk.path().join("filler");
    // Fills what is left; the error is what is wanted.
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    let error = a.call(acquire("md1")).await.unwrap_err();
    assert!(matches!(error, ArbiterError::NotRecorded { .. }), "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    // What needs no record goes on.
    match ask(&a, beat("md1", 1)).await {
        Reply::Beat { leases, .. } => assert_eq!(leases, [Renewal::Renewed]),
        other => panic!("{other:?}"),
    }
    assert!(is_held_by(&ask(&b, acquire("md1")).await, "a"));
    fs::remove_file(&filler).unwrap();
    assert_eq!(ask(&a, acquire("md1")).await, granted(2));
    witness.kill();
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(folder: &std::path::Path, options: &str) -> Self {
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options))
            .expect("a tmpfs can be mounted, which takes root");
        Self(folder.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Passes connections on, but lets a request that asks for an epoch wait for ever.
async fn stall_acquires(listener: TcpListener, witness: std::net::SocketAddr) {
    while let Ok((mut near, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut far = TcpStream::connect(witness).await.unwrap();
            let mut bytes = [0; 4096];
            let mut answer = [0; 4096];
            loop {
                tokio::select! {
                    read = near.read(&mut bytes) => {
                        let Ok(length @ 1..) = read else { break };
                        let is_acquire = bytes[..length].windows(9).any(|word| word == b"\"acquire\"");
                        if is_acquire {
                            std::future::pending::<()>().await;
                        }
                        if far.write_all(&bytes[..length]).await.is_err() { break }
                    }
                    read = far.read(&mut answer) => {
                        let Ok(length @ 1..) = read else { break };
                        if near.write_all(&answer[..length]).await.is_err() { break }
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn a_beat_waits_for_nothing_else_and_a_call_that_timed_out_hurts_no_later_one() {
    let witness = Witness::start(&[("c", 1)]);
    enrolled(&witness, "c", 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = tokio::spawn(stall_acquires(listener, witness.address));
    let timeout = Duration::from_secs(5);
    let node = WitnessClient::new(&url, "c", "a", &key(1), timeout, LEASE_MS).unwrap();
    ask(&node, beat("md1", 0)).await;
    let acquiring = node.call(acquire("md1"));
    let beating = async {
        for _ in 0..20 {
            ask(&node, beat("md1", 0)).await;
        }
        tokio::time::Instant::now()
    };
    let (acquired, beaten) = tokio::join!(
        async { (acquiring.await, tokio::time::Instant::now()) },
        beating
    );
    let (acquired, given_up) = acquired;
    let error = acquired.unwrap_err();
    assert!(matches!(error, ArbiterError::TimedOut { .. }), "{error}");
    assert!(beaten < given_up, "no beat waited");
    assert_eq!(
        ask(&node, enrol("md1", 0)).await,
        Reply::Enrolled { complete: true }
    );
    proxy.abort();
}

#[tokio::test]
async fn health_is_for_everybody_and_the_status_for_this_host() {
    let witness = Witness::start(&[("c", 1)]);
    let [a, _] = enrolled(&witness, "c", 1).await;
    ask(&a, acquire("md1")).await;
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_built_in_root_certs(false)
        .build()
        .unwrap();
    let url = witness.url();
    for path in ["/", "/health"] {
        let get = http.get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(get.status(), 200);
        let head = http.head(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(head.status(), 200);
    }
    let status = http.get(format!("{url}/v1/status")).send().await.unwrap();
    assert_eq!(status.status(), 200);
    let body = status.bytes().await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let mirror = &status["clusters"][0]["mirrors"][0];
    assert_eq!(
        (&mirror["mirror"], &mirror["holder"]),
        (&"md1".into(), &"a".into())
    );
    assert_eq!(mirror["epoch"], 1);
    let forwarded = http
        .get(format!("{url}/v1/status"))
        .header("x-forwarded-for", "192.0.2.1")
        .send()
        .await
        .unwrap();
    assert_eq!(forwarded.status(), 403);
}
