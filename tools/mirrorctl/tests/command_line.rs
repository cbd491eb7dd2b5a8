//! The tool as scripts see it: exit codes, what goes to which stream, and what messages say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = r#"
[cluster]
name = "test"
key_file = "KEY"
[[node]]
name = "a"
[[node]]
name = "b"
[[mirror]]
name = "md1"
peer_loss = "hold"
[mirror.on.a]
data = "/nonexistent/a"
metadata = "internal"
replication = "127.0.0.1:29051"
[mirror.on.b]
data = "/nonexistent/b"
metadata = "internal"
replication = "127.0.0.1:29052"
"#;

/// A folder with a valid configuration and a key.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let config = CONFIG.replace("KEY", key.to_str().unwrap());
    fs::write(folder.path().join("cluster.toml"), config).unwrap();
    let done = run(folder.path(), &["keygen", key.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mirrorctl"))
        .arg("--config")
        .arg(folder.join("cluster.toml"))
        .arg("--run-dir")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs and expects an exit code, and every part somewhere in the named stream.
#[track_caller]
fn check(folder: &Path, arguments: &[&str], code: i32, stream: &str, parts: &[&str]) {
    let done = run(folder, arguments);
    let out = String::from_utf8_lossy(&done.stdout);
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(
        done.status.code(),
        Some(code),
        "{arguments:?}\n{out}{error}"
    );
    let text = if stream == "stdout" { &out } else { &error };
    for part in parts {
        assert!(
            text.contains(part),
            "{arguments:?}: no {part:?} in:\n{text}"
        );
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let folder = folder();
    let folder = folder.path();
    check(folder, &[], 2, "stderr", &["Usage"]);
    check(folder, &["promot", "md1"], 2, "stderr", &["promote"]);
    check(folder, &["promote"], 2, "stderr", &["<MIRROR>"]);
    check(folder, &["wait", "md1"], 2, "stderr", &["--for"]);
    check(
        folder,
        &["wait", "md1", "--for", "happy"],
        2,
        "stderr",
        &["synced"],
    );
    check(
        folder,
        &["mdstat", "--timeout", "5"],
        2,
        "stderr",
        &["no unit", "3s"],
    );
    check(
        folder,
        &["resync", "md1", "--full", "--discard-local"],
        2,
        "stderr",
        &["cannot be used with"],
    );
}

#[test]
fn help_offers_every_command() {
    let folder = folder();
    let done = run(folder.path(), &["--help"]);
    assert_eq!(done.status.code(), Some(0));
    let help = String::from_utf8_lossy(&done.stdout);
    for command in [
        "init",
        "mdstat",
        "promote",
        "verify",
        "explain",
        "status",
        "switchover",
        "group",
        "node",
        "monitor",
        "log",
        "completions",
    ] {
        assert!(help.contains(command), "{command} in:\n{help}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_exit_code_3() {
    let folder = folder();
    for arguments in [
        &["mdstat"][..],
        &["promote", "md1"],
        &["wait", "md1", "--for", "synced"],
        &["events"],
        &["explain", "md1"],
        &["verify", "md1"],
    ] {
        check(
            folder.path(),
            arguments,
            3,
            "stderr",
            &["no mirrord answers", "mirrord.sock", "--run-dir"],
        );
    }
    let done = run(folder.path(), &["--json", "mdstat"]);
    let error: serde_json::Value = serde_json::from_slice(&done.stderr).unwrap();
    assert_eq!(error["error"]["rule"], "unreachable");
}

#[test]
fn a_daemon_that_does_not_answer_is_exit_code_4() {
    let folder = folder();
    let socket = folder.path().join("mirrord.sock");
    let _listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    check(
        folder.path(),
        &["mdstat", "--timeout", "100ms"],
        4,
        "stderr",
        &["did not answer within 100ms", "--timeout"],
    );
}

#[test]
fn a_daemon_that_breaks_off_is_exit_code_1() {
    use std::io::{Read, Write};
    let folder = folder();
    let socket = folder.path().join("mirrord.sock");
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let dying = std::thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        let _ = caller.read(&mut [0; 4096]).unwrap();
        caller
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"message\":")
            .unwrap();
    });
    // The command may have been done, so this is not "cannot be reached".
    check(
        folder.path(),
        &["promote", "md1"],
        1,
        "stderr",
        &["broke off", "mirrorctl mdstat"],
    );
    dying.join().unwrap();
}

#[test]
fn a_good_file_checks_out() {
    let folder = folder();
    let path = folder.path().join("cluster.toml");
    let text = fs::read_to_string(&path).unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, "").unwrap();
    let [address] = local_pair::loopback_addresses().unwrap();
    let text = text
        .replace("/nonexistent/a", disk.to_str().unwrap())
        .replace("127.0.0.1:29051", &address);
    fs::write(&path, text).unwrap();
    check(folder.path(), &["check"], 0, "stdout", &["no problems"]);
    check(
        folder.path(),
        &["check", "--node", "a"],
        0,
        "stdout",
        &["no problems"],
    );
    check(
        folder.path(),
        &["check", "--node", "c"],
        1,
        "stderr",
        &["c is no node", "a and b"],
    );
}

#[test]
fn check_prints_every_problem_and_fails() {
    let folder = folder();
    let path = folder.path().join("cluster.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text
        .replace(
            "peer_loss = \"hold\"",
            "peer_los = \"hold\"\nmode = \"async\"",
        )
        .replace("\"b\"", "\"a\"");
    fs::write(&path, text).unwrap();
    check(
        folder.path(),
        &["check"],
        1,
        "stdout",
        &[
            "cluster.toml:11",
            "did you mean \"peer_loss\"?",
            "line 6 too",
        ],
    );
    check(folder.path(), &["check"], 1, "stderr", &["problems"]);
    fs::remove_file(&path).unwrap();
    check(
        folder.path(),
        &["check"],
        1,
        "stderr",
        &["cannot read", "--config"],
    );
    // What the system says of it is said once.
    let done = run(folder.path(), &["check"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
}

#[test]
fn a_log_that_nobody_has_begins_with_what_was_tried_first() {
    let folder = folder();
    let done = run(folder.path(), &["log"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(3), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let [first, second] = lines[..] else {
        panic!("{said}")
    };
    assert!(
        first.starts_with("mirrorctl: ") && first.contains("agent.sock"),
        "{said}"
    );
    assert!(
        second.starts_with("mirrorctl: nor is there an alert log to read: "),
        "{said}"
    );
}

#[test]
fn check_names_what_a_mode_may_lose_and_keys_that_others_can_read() {
    let folder = folder();
    let path = folder.path().join("cluster.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("peer_loss = \"hold\"", "mode = \"async\""),
    )
    .unwrap();
    let key = folder.path().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    check(
        folder.path(),
        &["check"],
        1,
        "stdout",
        &["a failover loses the last of", "chmod 600", "warning: "],
    );
    let done = run(folder.path(), &["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    assert_eq!(report["warnings"].as_array().unwrap().len(), 2);
}

#[test]
fn a_key_is_never_overwritten() {
    let folder = folder();
    let key = folder.path().join("key");
    check(
        folder.path(),
        &["keygen", key.to_str().unwrap()],
        1,
        "stderr",
        &["exists already"],
    );
    check(
        folder.path(),
        &["keygen", "/nonexistent/folder/key"],
        1,
        "stderr",
        &["cannot write", "/nonexistent/folder/key"],
    );
}

#[test]
fn init_names_the_mirrors_there_are_and_the_partition_that_is_missing() {
    let folder = folder();
    check(
        folder.path(),
        &["init", "md9", "--node", "a"],
        1,
        "stderr",
        &["no mirror \"md9\"", "md1"],
    );
    check(
        folder.path(),
        &["init", "md1", "--node", "a"],
        1,
        "stderr",
        &["/nonexistent/a"],
    );
}

#[test]
fn completions_are_printed_for_every_shell() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        check(
            folder.path(),
            &["completions", shell],
            0,
            "stdout",
            &["mirrorctl", "promote"],
        );
    }
}
