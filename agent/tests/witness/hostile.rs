//! Callers without the key, with a recording, with another's name; and files that are not to be used.

use std::fs;
use std::time::Duration;

use agent::arbiter::call::{Renewal, Reply, Request};
use agent::arbiter::envelope::{
    Answer, Ask, Call, PROOF_HEADER, Proof, Session, WitnessKey, path_of,
};
use agent::io::arbiter::{ArbiterError, WitnessClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::process::*;

/// Sends bytes and proofs as they are, like somebody who has only recorded them.
struct Raw {
    http: reqwest::Client,
    url: String,
    key: WitnessKey,
}

impl Raw {
    fn new(witness: &Witness, cluster: &str, secret: u8) -> Self {
        // Any client sets up the provider of TLS that the library asks for.
        drop(witness.client(cluster, secret, "raw"));
        Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_built_in_root_certs(false)
                .build()
                .unwrap(),
            url: format!("{}{}", witness.url(), path_of(cluster)),
            key: WitnessKey::new(cluster, &key(secret)),
        }
    }

    async fn post(&self, body: &[u8], proof: &str) -> (u16, Vec<u8>) {
        let response = self
            .http
            .post(&self.url)
            .header(PROOF_HEADER, proof)
            .body(body.to_vec())
            .send()
            .await
            .unwrap();
        let status = response.status().as_u16();
        let given = response.headers().get(PROOF_HEADER).cloned();
        let answer = response.bytes().await.unwrap().to_vec();
        if let (Some(given), Some(proof)) = (given, Proof::parse(proof)) {
            let given = Proof::parse(given.to_str().unwrap()).unwrap();
            assert!(self.key.is_reply(&proof, &answer, &given));
        }
        (status, answer)
    }

    async fn ask(&self, ask: &Ask) -> Answer {
        let body = serde_json::to_vec(ask).unwrap();
        let proof = self.key.prove_request(&body).to_string();
        serde_json::from_slice(&self.post(&body, &proof).await.1).unwrap()
    }

    async fn session(&self, node: &str) -> Session {
        let hello = Ask::Hello {
            node: node.into(),
            nonce: "n".into(),
        };
        match self.ask(&hello).await {
            Answer::Welcome { session } => session,
            other => panic!("{other:?}"),
        }
    }
}

fn call(node: &str, session: &Session, sequence: u64, request: Request) -> Ask {
    Ask::Call(Call {
        node: node.into(),
        session: session.clone(),
        sequence,
        lease_ms: LEASE_MS,
        request,
    })
}

fn replied(reply: Reply) -> Answer {
    Answer::Replied { reply }
}

#[tokio::test]
async fn a_recorded_request_changes_nothing_now_or_later() {
    let mut witness = Witness::start(&[("c", 1)]);
    enrolled(&witness, "c", 1).await;
    let raw = Raw::new(&witness, "c", 1);
    let session = raw.session("a").await;
    let recorded = [
        call("a", &session, 1, beat("md1", 0)),
        call("a", &session, 2, acquire("md1")),
        call("a", &session, 3, release("md1", 1)),
    ];
    raw.ask(&recorded[0]).await;
    assert_eq!(raw.ask(&recorded[1]).await, replied(granted(1)));
    assert_eq!(raw.ask(&recorded[2]).await, replied(Reply::Released));
    for ask in &recorded {
        assert_eq!(raw.ask(ask).await, Answer::Replayed, "{ask:?}");
    }
    // A hello sent again is answered, and displaces nobody.
    raw.session("a").await;
    let next = call("a", &session, 4, acquire("md1"));
    assert_eq!(raw.ask(&next).await, replied(granted(2)));
    witness.kill();
    let state = fs::read(&witness.state).unwrap();
    witness.restart();
    let raw = Raw::new(&witness, "c", 1);
    raw.session("a").await;
    for ask in recorded.iter().chain([&next]) {
        assert_eq!(raw.ask(ask).await, Answer::UnknownSession, "{ask:?}");
    }
    assert_eq!(fs::read(&witness.state).unwrap(), state);
}

#[tokio::test]
async fn an_altered_request_is_turned_away() {
    let witness = Witness::start(&[("c", 1), ("d", 1)]);
    enrolled(&witness, "c", 1).await;
    let raw = Raw::new(&witness, "c", 1);
    let session = raw.session("a").await;
    let body = serde_json::to_vec(&call("a", &session, 1, acquire("md1"))).unwrap();
    let proof = raw.key.prove_request(&body).to_string();
    let altered = String::from_utf8(body.clone())
        .unwrap()
        .replace("\"a\"", "\"b\"");
    assert_eq!(raw.post(altered.as_bytes(), &proof).await.0, 401);
    assert_eq!(raw.post(&body, &"0".repeat(64)).await.0, 401);
    assert_eq!(raw.post(&body, "none").await.0, 400);
    // Another cluster with the very same key.
    let other = Raw::new(&witness, "d", 1);
    assert_eq!(other.post(&body, &proof).await.0, 401);
    let long = vec![b' '; 100_000];
    assert_eq!(raw.post(&long, &proof).await.0, 400);
    assert_eq!(raw.post(&body, &proof).await.0, 200, "unaltered, it counts");
}

/// More than the witness lets in without a call that counts.
const CROWD: usize = 1500;

#[tokio::test]
async fn a_crowd_that_says_nothing_keeps_no_node_out() {
    let witness = Witness::start(&[("c", 1)]);
    let [a, b] = enrolled(&witness, "c", 1).await;
    assert_eq!(ask(&a, acquire("md1")).await, granted(1));
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        let mut stream = TcpStream::connect(witness.address).await.unwrap();
        // Some begin a request and never end it.
        if number % 2 == 0 {
            let half = b"POST /v1/clusters/c HTTP/1.1\r\nhost: w\r\ncontent-length: 9\r\n\r\nx";
            stream.write_all(half).await.unwrap();
        }
        crowd.push(stream);
    }
    // On the connection that it has, and on one that is new.
    for client in [&a, &b, &witness.client("c", 1, "b")] {
        let begun = std::time::Instant::now();
        ask(client, Request::Beat { renew: Vec::new() }).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    // The first of the crowd had to go.
    let ended = tokio::time::timeout(LIMIT, crowd[0].read(&mut [0; 1])).await;
    assert!(matches!(ended.unwrap(), Ok(0) | Err(_)));
}

/// With everything logged that can be.
#[tokio::test]
async fn the_key_is_in_nothing_that_the_witness_says_or_keeps() {
    let mut witness = Witness::prepare(&[("c", 0xa7)], None);
    let log = witness.folder().join("log");
    witness.log_to(&log);
    witness.restart();
    let [a, _] = enrolled(&witness, "c", 0xa7).await;
    ask(&a, acquire("md1")).await;
    let wrong = witness.client("c", 2, "a").call(acquire("md1")).await;
    assert!(wrong.is_err());
    let http = Raw::new(&witness, "c", 0xa7).http;
    let url = format!("{}/v1/status", witness.url());
    let status = http.get(url).send().await.unwrap();
    let status = status.text().await.unwrap();
    assert!(status.contains("md1"), "{status}");
    assert_eq!(witness.stop(), Some(0));
    let secret = key(0xa7);
    let secrets = [
        [0xa7; 32],
        secret.derive("mirror witness"),
        secret.derive("mirror heartbeat"),
    ];
    for said in [
        fs::read(&log).unwrap(),
        fs::read(&witness.state).unwrap(),
        status.into_bytes(),
    ] {
        assert!(!said.is_empty());
        let text = String::from_utf8_lossy(&said).to_lowercase();
        for secret in &secrets {
            let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            // Half of it is as bad.
            assert!(!text.contains(&digits[..32]) && !text.contains(&digits[32..]));
            assert!(!text.contains(&format!("{:?}", &secret[..8]).replace(['[', ']'], "")));
            assert!(!said.windows(16).any(|window| window == &secret[..16]));
        }
    }
}

#[tokio::test]
async fn what_a_stranger_says_is_no_line_of_the_log() {
    let mut witness = Witness::prepare(&[("c", 1)], None);
    let log = witness.folder().join("log");
    witness.log_to(&log);
    witness.restart();
    let mut stream = TcpStream::connect(witness.address).await.unwrap();
    let ask = "POST /v1/clusters/x%0Aforged%1B%5B31m HTTP/1.1\r\nhost: w\r\n\
               connection: close\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("404"), "{answer}");
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("turned away"), "{said}");
    assert!(
        !said.contains("\nforged") && !said.contains('\u{1b}'),
        "{said}"
    );
}

#[tokio::test]
async fn nonsense_with_a_proof_is_refused_by_name() {
    let witness = Witness::start(&[("c", 1)]);
    let raw = Raw::new(&witness, "c", 1);
    let session = raw.session("a").await;
    let mut too_long = call("a", &session, 1, acquire("md1"));
    if let Ask::Call(call) = &mut too_long {
        call.lease_ms = u64::MAX;
    }
    let asks = [
        too_long,
        call("a", &session, 2, acquire("../md1")),
        call(&"n".repeat(65), &session, 3, acquire("md1")),
    ];
    for ask in asks {
        let answer = raw.ask(&ask).await;
        assert!(
            matches!(answer, Answer::BadCall { .. }),
            "{ask:?}: {answer:?}"
        );
    }
    let body = b"[]";
    let proof = raw.key.prove_request(body).to_string();
    assert_eq!(raw.post(body, &proof).await.0, 422);
}

#[tokio::test]
async fn a_wrong_key_and_an_unknown_cluster_are_named() {
    let witness = Witness::start(&[("c", 1)]);
    let error = witness
        .client("c", 2, "a")
        .call(acquire("md1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ArbiterError::WrongKey { .. }), "{error}");
    let error = witness
        .client("d", 1, "a")
        .call(acquire("md1"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ArbiterError::UnknownCluster { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_greeting_finds_the_same_and_disturbs_nobody() {
    let witness = Witness::start(&[("c", 1)]);
    let [agent, _] = enrolled(&witness, "c", 1).await;
    witness.client("c", 1, "a").greet().await.unwrap();
    agent.call(beat("md1", 0)).await.unwrap();
    let error = witness.client("c", 2, "a").greet().await.unwrap_err();
    assert!(matches!(error, ArbiterError::WrongKey { .. }), "{error}");
    let error = witness.client("d", 1, "a").greet().await.unwrap_err();
    assert!(
        matches!(error, ArbiterError::UnknownCluster { .. }),
        "{error}"
    );
}

/// Answers every connection with the same bytes.
async fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 8192];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn what_only_looks_like_a_witness_is_not_believed() {
    let granted = "HTTP/1.1 200 OK\r\ncontent-length: 53\r\nconnection: close\r\n\r\n\
                   {\"answer\":\"replied\",\"reply\":{\"reply\":\"granted\",\"epoch\":9}}";
    let url = answering(granted).await;
    let error = client(&url, "c", 1, "a")
        .call(acquire("md1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ArbiterError::Forged { .. }), "{error}");
    let moved =
        "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let url = answering(moved).await;
    let error = client(&url, "c", 1, "a")
        .call(acquire("md1"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("302"), "{error}");
    let url = answering("SSH-2.0-OpenSSH\r\n").await;
    let error = client(&url, "c", 1, "a")
        .call(acquire("md1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_witness_that_is_gone_or_silent_is_named() {
    let mut witness = Witness::start(&[("c", 1)]);
    let [a, _] = enrolled(&witness, "c", 1).await;
    witness.kill();
    let error = a.call(beat("md1", 0)).await.unwrap_err();
    assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let timeout = Duration::from_millis(200);
    let client = WitnessClient::new(&url, "c", "a", &key(1), timeout, 1).unwrap();
    let error = client.call(beat("md1", 0)).await.unwrap_err();
    assert!(matches!(error, ArbiterError::TimedOut { .. }), "{error}");
}

#[test]
fn a_url_or_lease_of_no_sense_is_named_before_anything_is_asked() {
    let new = |url: &str, lease_ms| {
        WitnessClient::new(url, "c", "a", &key(1), Duration::from_secs(1), lease_ms)
    };
    for url in ["", "witness:1", "ftp://witness", "http://w/?a=b"] {
        let error = new(url, 1).unwrap_err();
        assert!(matches!(error, ArbiterError::Url { .. }), "{url}: {error}");
    }
    for lease_ms in [0, 3_600_001] {
        let error = new("http://w", lease_ms).unwrap_err();
        assert!(matches!(error, ArbiterError::Lease { .. }), "{error}");
    }
    assert!(new("http://w/behind/a/proxy/", 1).is_ok());
}

#[tokio::test]
async fn two_machines_with_one_name_notice_each_other() {
    let witness = Witness::start(&[("c", 1)]);
    let [first, _] = enrolled(&witness, "c", 1).await;
    let second = witness.client("c", 1, "a");
    match ask(&second, beat("md1", 0)).await {
        Reply::Beat { leases, .. } => assert!(matches!(leases[0], Renewal::Lost { .. })),
        other => panic!("{other:?}"),
    }
    let error = first.call(beat("md1", 0)).await.unwrap_err();
    assert!(matches!(error, ArbiterError::Displaced { .. }), "{error}");
    ask(&first, beat("md1", 0)).await;
    let error = second.call(beat("md1", 0)).await.unwrap_err();
    assert!(matches!(error, ArbiterError::Displaced { .. }), "{error}");
}

#[tokio::test]
async fn the_record_of_another_cluster_is_not_used() {
    let mut witness = Witness::start(&[("c", 1)]);
    let [a, _] = enrolled(&witness, "c", 1).await;
    ask(&a, acquire("md1")).await;
    let (code, said) = witness.output(&["forget", "c"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("another mirror-witness uses"), "{said}");
    witness.kill();
    // A cluster of the same name, and another key.
    witness.configure(&[("c", 2)]);
    let (code, said) = witness.output(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("mirror-witness forget c"), "{said}");
    let (code, said) = witness.output(&["forget", "d"]);
    assert_eq!(
        (code, said.contains("nothing of cluster d")),
        (Some(1), true),
        "{said}"
    );
    assert_eq!(witness.output(&["forget", "c"]).0, Some(0));
    witness.restart();
    let [a, _] = enrolled(&witness, "c", 2).await;
    assert_eq!(ask(&a, acquire("md1")).await, granted(1));
}

#[test]
fn a_second_witness_on_the_same_file_is_refused() {
    let witness = Witness::start(&[("c", 1)]);
    let (code, said) = witness.output(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("another mirror-witness uses"), "{said}");
}

#[test]
fn a_damaged_file_is_refused_and_not_touched() {
    let mut witness = Witness::start(&[("c", 1)]);
    witness.kill();
    let mut bytes = fs::read(&witness.state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&witness.state, &bytes).unwrap();
    let (code, said) = witness.output(&[]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("is damaged") && said.contains("move it away"),
        "{said}"
    );
    let (code, said) = witness.output(&["check"]);
    assert!(code == Some(1) && said.contains("is damaged"), "{said}");
    assert_eq!(fs::read(&witness.state).unwrap(), bytes);
    fs::remove_file(&witness.state).unwrap();
    witness.restart();
}

#[test]
fn check_names_every_problem_and_passes_a_good_file() {
    let witness = Witness::prepare(&[("c", 1)], None);
    let (code, said) = witness.output(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("1 clusters") && said.contains("has to enrol"),
        "{said}"
    );
    let config = witness.folder().join("witness.toml");
    fs::write(
        &config,
        "listen = 5\n[[cluster]]\nname = \"c\"\nkeyfile = \"/k\"\n",
    )
    .unwrap();
    let (code, said) = witness.output(&["check"]);
    assert_eq!(code, Some(1));
    for words in [
        ":1: listen:",
        "key_file: the key is missing",
        "did you mean \"key_file\"?",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    fs::write(
        &config,
        "[[cluster]]\nname = \"c\"\nkey_file = \"/nonexistent\"\n",
    )
    .unwrap();
    let (code, said) = witness.output(&["check"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("cluster c: cannot read the cluster key"),
        "{said}"
    );
}
