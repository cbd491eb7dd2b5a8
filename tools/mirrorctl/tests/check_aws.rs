//! `mirrorctl check` tries the forced stop of an EC2 instance, and names what would make it fail.

#![cfg(feature = "aws")]

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use local_ec2::{Moto, REGION};

/// The problems about the forced stop that node `a` finds, each with its remedy.
fn found(endpoint: &str, other: &str, [key, secret]: [&str; 2]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cluster.toml");
    let text = format!(
        r#"
        [cluster]
        name = "test"
        key_file = "{key_file}"
        [[node]]
        name = "a"
        [[node]]
        name = "b"
        [[mirror]]
        name = "md1"
        [mirror.on.a]
        data = "/nonexistent/a"
        metadata = "internal"
        replication = "127.0.0.1:7789"
        [mirror.on.b]
        data = "/nonexistent/b"
        metadata = "internal"
        replication = "127.0.0.2:7789"
        [[heartbeat.path]]
        name = "first"
        on = {{ a = "127.0.0.1:7790", b = "127.0.0.2:7790" }}
        [forced_stop]
        kind = "aws"
        region = "{REGION}"
        endpoint = "{endpoint}"
        on.a.instance = "i-0123456789abcdef0"
        on.b.instance = "{other}"
        "#,
        key_file = folder.path().join("key").display(),
    );
    fs::write(&config, text).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_mirrorctl"))
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .arg("--config")
        .arg(&config)
        .args(["check", "--json", "--node", "a"])
        .output()
        .unwrap();
    let out: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let word = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let problems = out["problems"].as_array().unwrap().iter();
    problems
        .filter(|entry| word(entry, "key").starts_with("forced_stop"))
        .map(|entry| format!("{}: {}", word(entry, "message"), word(entry, "remedy")))
        .collect()
}

#[track_caller]
fn refused(found: &[String], parts: &[&str]) {
    let [problem] = found else {
        panic!("{found:#?}")
    };
    assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
}

#[test]
fn a_stop_that_would_work_is_no_problem_and_nothing_is_stopped() {
    let moto = Moto::shared();
    let [_, other] = moto.run_instances();
    assert_eq!(found(&moto.url(), &other, ["AKIAANY", "any"]), [""; 0]);
    assert_eq!(moto.state(&other), "running");
}

#[test]
fn an_instance_that_is_not_there_is_named() {
    let moto = Moto::shared();
    let none = "i-0fedcba9876543210";
    let found = found(&moto.url(), none, ["AKIAANY", "any"]);
    refused(&found, &["would fail", none, "docs/forced-stop.md"]);
}

#[test]
fn credentials_that_are_refused_or_may_too_little_are_named() {
    // Not shared: it checks signatures from some point on.
    let moto = Moto::start();
    let [_, other] = moto.run_instances();
    let (reader, secret) = moto.add_user("reader", Some(r#"["ec2:DescribeInstances"]"#));
    moto.check_signatures();
    let try_with = |key: &str, secret: &str| found(&moto.url(), &other, [key, secret]);
    refused(&try_with("AKIANOTHERE", "x"), &["credentials"]);
    refused(&try_with(&reader, &secret), &["ec2:StopInstances"]);
}

#[test]
fn an_endpoint_that_nobody_listens_on_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let found = found(&url, "i-0fedcba9876543210", ["AKIAANY", "any"]);
    refused(&found, &["would fail", &url]);
}
