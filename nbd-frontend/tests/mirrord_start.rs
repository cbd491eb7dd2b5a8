//! `mirrord` where it must not start: each obstacle is named on standard error with the next step,
//! the exit code is not zero, and nothing is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use local_pair::Authority;
use nbd_frontend::config::key;
use nbd_frontend::control::MIRRORD;
use nbd_frontend::control::run_dir::RunDir;

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder };
        key::generate(&site.path("key")).unwrap();
        let text = format!(
            r#"
[cluster]
name = "test"
key_file = "{key}"
[[node]]
name = "a"
[[node]]
name = "b"
[[mirror]]
name = "md1"
mode = "sync"
[mirror.on.a]
data = "{data}"
metadata = "internal"
replication = "127.0.0.1:29051"
[mirror.on.b]
data = "/nonexistent/b"
metadata = "internal"
replication = "127.0.0.1:29052"
"#,
            key = site.path("key").display(),
            data = site.path("data").display(),
        );
        fs::write(site.path("cluster.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.path("cluster.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from:?} is not in the file");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn start(&self, node: &str, run_dir: &Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mirrord"))
            .arg("--config")
            .arg(self.path("cluster.toml"))
            .args(["--node", node, "--run-dir"])
            .arg(run_dir)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn check(&self, parts: &[&str]) {
        self.check_node("a", parts);
    }

    #[track_caller]
    fn check_node(&self, node: &str, parts: &[&str]) {
        let done = self.start(node, &self.path("run"));
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in:\n{error}");
        }
        assert!(
            !self.path("run/mirrord.sock").exists(),
            "a socket was left behind"
        );
    }
}

#[test]
fn a_wrong_configuration_is_named_line_by_line() {
    let site = Site::new();
    site.edit("mode = \"sync\"", "mod = \"sync\"\npeer_timeout = \"3\"");
    site.check(&[
        "cluster.toml:11",
        "did you mean \"mode\"?",
        "cluster.toml:12",
        "no unit",
    ]);
}

#[test]
fn what_a_mode_may_lose_is_said_at_the_start() {
    let site = Site::new();
    site.edit("mode = \"sync\"", "mode = \"async\"");
    site.check(&["a failover loses the last of", "mode = \"sync\""]);
}

#[test]
fn the_node_must_be_known() {
    let site = Site::new();
    site.check_node("c", &["c is no node", "a and b", "--node"]);
}

#[test]
fn the_key_must_be_there_and_private() {
    let site = Site::new();
    fs::set_permissions(site.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    site.check(&["mode 0644", "chmod 600"]);
    fs::remove_file(site.path("key")).unwrap();
    site.check(&["cannot read the cluster key", "mirrorctl keygen"]);
}

#[test]
fn files_of_tls_that_cannot_be_used_are_named_at_once() {
    let site = Site::new();
    let authority = Authority::new("test").unwrap();
    let files = authority
        .write_server(site.folder.path(), &["localhost"])
        .unwrap();
    let [certificate, key] = [&files.certificate, &files.key].map(|path| path.display());
    site.edit(
        "[[node]]\nname = \"a\"",
        &format!(
            "[nbd.tls]\ncertificate_file = \"{certificate}\"\nkey_file = \"{key}\"\n\
             client_ca_file = \"/nonexistent/ca.pem\"\n[[node]]\nname = \"a\""
        ),
    );
    fs::write(&files.certificate, "not a certificate").unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    site.check(&[
        &format!("cluster.toml:6: nbd.tls certificate_file: {certificate} holds no certificate"),
        &format!("cluster.toml:7: nbd.tls key_file: {key} has mode 0644"),
        &format!("chmod 600 {key}"),
        "cluster.toml:8: nbd.tls client_ca_file: cannot read /nonexistent/ca.pem",
    ]);
}

#[test]
fn a_run_directory_in_use_names_its_owner() {
    let site = Site::new();
    let _claim = RunDir::claim(&site.path("run"), &MIRRORD).unwrap();
    site.check(&[
        "in use by process",
        &std::process::id().to_string(),
        "--run-dir",
    ]);
}

#[test]
fn a_run_directory_too_long_for_sockets_is_refused() {
    let site = Site::new();
    let done = site.start("a", &site.path(&"x".repeat(120)));
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(error.contains("choose a shorter --run-dir"), "{error}");
}

#[test]
fn a_mirror_without_a_partition_or_metadata_is_explained() {
    let site = Site::new();
    let data = site.path("data");
    site.check(&["no mirror could be opened", "md1", data.to_str().unwrap()]);
    let file = fs::File::create(&data).unwrap();
    file.set_len(64 << 20).unwrap();
    site.check(&["no mirror could be opened", "md1", "mirrorctl init"]);
}
