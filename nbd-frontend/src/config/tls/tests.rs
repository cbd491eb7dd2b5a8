//! The files of `[nbd.tls]` as they should be, and everything that can be wrong with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use local_pair::Authority;
use tempfile::TempDir;

use super::*;

/// A folder with good files of one server, and the section that names them.
fn good() -> (TempDir, NbdTls) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("test").unwrap();
    let files = authority
        .write_server(folder.path(), &["localhost"])
        .unwrap();
    let located = |line, value| Located { value, line };
    let tls = NbdTls {
        certificate_file: located(5, files.certificate),
        key_file: located(6, files.key),
        client_ca_file: files.client_ca.map(|file| located(7, file)),
    };
    (folder, tls)
}

fn load(tls: &NbdTls) -> Result<ServerTls, Problems> {
    tls.load(Path::new("cluster.toml"))
}

/// Expects one problem on each of these lines, each with all of the words given with it.
#[track_caller]
fn check(tls: &NbdTls, expected: &[(usize, &[&str])]) {
    let problems = load(tls).expect_err("the files are wrong");
    let lines: Vec<_> = problems.iter().filter_map(|found| found.line).collect();
    let wanted: Vec<_> = expected.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, wanted, "{problems}");
    for (problem, (_, words)) in problems.iter().zip(expected) {
        let text = problem.to_string();
        for word in *words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    }
}

#[test]
fn good_files_are_taken_with_and_without_a_client_ca() {
    let (_folder, mut tls) = good();
    load(&tls).unwrap();
    tls.client_ca_file = None;
    load(&tls).unwrap();
}

#[test]
fn every_missing_file_is_named_at_once() {
    let (folder, tls) = good();
    for file in fs::read_dir(folder.path()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let next = "put the file there";
    check(
        &tls,
        &[
            (5, &["nbd.tls certificate_file", "server-cert.pem", next]),
            (6, &["nbd.tls key_file", "server-key.pem", next]),
            (7, &["nbd.tls client_ca_file", "ca-cert.pem", next]),
        ],
    );
}

#[test]
fn what_is_no_pem_or_no_certificate_is_refused() {
    let (_folder, tls) = good();
    let path = &tls.certificate_file.value;
    let certificate = fs::read(path).unwrap();
    let key = fs::read(&tls.key_file.value).unwrap();
    let name = path.to_str().unwrap();
    let pem = "-----BEGIN CERTIFICATE-----";
    for (content, words) in [
        (&b"\x30\x82\x01\x02"[..], "holds no certificate"),
        (b"", "holds no certificate"),
        (&key, "holds no certificate"),
        (&certificate[..200], "is not valid PEM"),
        (
            b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            "certificate 1 of",
        ),
    ] {
        fs::write(path, content).unwrap();
        check(&tls, &[(5, &[words, name, pem])]);
        fs::write(path, &certificate).unwrap();
        let ca = &tls.client_ca_file.as_ref().unwrap().value;
        let good_ca = fs::read(ca).unwrap();
        fs::write(ca, content).unwrap();
        check(&tls, &[(7, &[words, ca.to_str().unwrap(), pem])]);
        fs::write(ca, good_ca).unwrap();
    }
    load(&tls).unwrap();
}

#[test]
fn what_is_no_key_is_refused() {
    let (_folder, tls) = good();
    let path = &tls.key_file.value;
    let certificate = fs::read(&tls.certificate_file.value).unwrap();
    let name = path.to_str().unwrap();
    for (content, words, next) in [
        (&b""[..], "no private key", "BEGIN PRIVATE KEY"),
        (&certificate, "no private key", "BEGIN PRIVATE KEY"),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "passphrase",
            "openssl pkey",
        ),
        (
            b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
            "cannot be used",
            "P-256",
        ),
    ] {
        fs::write(path, content).unwrap();
        check(&tls, &[(6, &[words, name, next])]);
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (_folder, tls) = good();
    let (_other_folder, other) = good();
    fs::copy(&other.key_file.value, &tls.key_file.value).unwrap();
    let names = [&tls.key_file.value, &tls.certificate_file.value].map(|path| path.to_str());
    let words = [names[0].unwrap(), names[1].unwrap(), "is not the key of"];
    check(&tls, &[(6, &words)]);
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let (folder, mut tls) = good();
    let path = tls.key_file.value.clone();
    for mode in [0o640, 0o604, 0o660, 0o601] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let shown = format!("mode {mode:04o}");
        let command = format!("chmod 600 {}", path.display());
        check(&tls, &[(6, &[&shown, &command])]);
    }
    // The file counts, not the link to it.
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    tls.key_file.value = link;
    check(&tls, &[(6, &["mode 0601"])]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    load(&tls).unwrap();
}

#[test]
fn what_is_no_ordinary_file_is_refused_without_waiting_for_it() {
    let (folder, mut tls) = good();
    tls.certificate_file.value = folder.path().into();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    tls.key_file.value = pipe;
    let large = folder.path().join("large");
    fs::write(&large, vec![b'x'; 2 << 20]).unwrap();
    tls.client_ca_file = Some(Located {
        value: large,
        line: 7,
    });
    check(
        &tls,
        &[
            (5, &["it is not a file"]),
            (6, &["it is not a file"]),
            (7, &["larger than 1 MiB"]),
        ],
    );
}
