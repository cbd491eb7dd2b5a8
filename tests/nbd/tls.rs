//! Exports over TLS, from the configuration to the data on both sides.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use local_pair::{Authority, Deadline, NbdTlsFiles, Pair, PairOptions, Programs, Side};

use crate::client::{qemu_io, random_file, run, run_failing};
use crate::{MIB, assert_same_data, small};

/// A pair whose exports over TCP need TLS and a certificate of the client CA, not yet running.
struct TlsPair {
    // Before the folders: its nodes read from them.
    pair: Pair,
    files: NbdTlsFiles,
    folders: tempfile::TempDir,
}

impl TlsPair {
    fn create() -> Result<Self> {
        let folders = tempfile::tempdir()?;
        let folder = folders.path().join("server");
        let files = NbdTlsFiles {
            certificate: folder.join("server-cert.pem"),
            key: folder.join("server-key.pem"),
            client_ca: Some(folder.join("ca-cert.pem")),
        };
        let options = PairOptions {
            nbd_tls: Some(files.clone()),
            ..small()
        };
        let pair = Pair::create(Programs::fresh()?, &options)?;
        let authority = Authority::new("ours")?;
        let addresses = Side::BOTH.map(|side| {
            let address = &pair.node(side).nbd_tcp;
            address.rsplit_once(':').map_or("", |(host, _)| host)
        });
        authority.write_server(&folder, &[&["localhost"], &addresses[..]].concat())?;
        authority.write_client(&folders.path().join("client"))?;
        authority.write_certificate(&folders.path().join("anonymous"))?;
        let other = Authority::new("somebody else's")?;
        other.write_client(&folders.path().join("stranger"))?;
        authority.write_certificate(&folders.path().join("stranger"))?;
        Ok(Self {
            pair,
            files,
            folders,
        })
    }

    fn synced() -> Result<Self> {
        let mut made = Self::create()?;
        made.pair.bring_up()?;
        made.pair.promote_first()?;
        Ok(made)
    }

    fn uri(&self, side: Side, who: &str) -> String {
        let folder = self.folders.path().join(who);
        format!(
            "{}?tls-certificates={}",
            self.pair.tcp_uri(side),
            folder.display()
        )
    }
}

#[test]
fn nbdcopy_goes_both_ways_over_tls_and_both_sides_have_it() -> Result<()> {
    let mut tls = TlsPair::synced()?;
    let status = tls.pair.status(Side::First)?;
    let tcp = tls.pair.tcp_uri(Side::First);
    ensure!(tcp.starts_with("nbds://"), "{tcp}");
    ensure!(status.exports.contains(&tcp), "{:?}", status.exports);
    ensure!(
        status
            .exports
            .iter()
            .any(|uri| uri.starts_with("nbd+unix:")),
        "{:?}",
        status.exports
    );
    let [source, back] = ["source", "back"].map(|name| tls.pair.folder().join(name));
    random_file(&source, 64 * MIB)?;
    let [source, back] = [source, back].map(|path| path.display().to_string());
    let uri = tls.uri(Side::First, "client");
    run("nbdcopy", &["--flush", &source, &uri])?;
    run("nbdcopy", &[&uri, &back])?;
    run("cmp", &[&source, &back])?;
    // The other way in shows the same.
    run("nbdcopy", &[&tls.pair.uri(Side::First), &back])?;
    run("cmp", &[&source, &back])?;
    assert_same_data(&mut tls.pair)?;
    let second = tls.pair.node(Side::Second).data.display().to_string();
    run("cmp", &[&source, &second])?;
    Ok(())
}

#[test]
fn qemu_writes_and_reads_over_tls() -> Result<()> {
    let mut tls = TlsPair::synced()?;
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        tls.folders.path().join("client").display()
    );
    let address = tls.pair.node(Side::First).nbd_tcp.clone();
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let image = format!(
        "driver=raw,file.driver=nbd,file.host={host},file.port={port},file.export=md1,\
         file.tls-creds=tls0"
    );
    let mut words = vec!["--object", &credentials, "--image-opts"];
    for command in [
        "write -P 0x11 0 16M",
        "write -f -P 0x22 4094K 12K",
        "read -P 0x22 4094K 12K",
        "write -z -u 7M 1M",
        "read -P 0 7M 1M",
        "flush",
    ] {
        words.extend(["-c", command]);
    }
    words.push(&image);
    let said = run("qemu-io", &words)?;
    ensure!(!said.contains("failed"), "{said}");
    assert_same_data(&mut tls.pair)
}

#[test]
fn who_comes_plain_or_with_no_certificate_or_with_another_cas_is_refused() -> Result<()> {
    let tls = TlsPair::synced()?;
    let plain = tls.pair.tcp_uri(Side::First).replace("nbds://", "nbd://");
    let said = run_failing("qemu-img", &["info", "-f", "raw", &plain])?;
    ensure!(said.contains("over TLS only"), "{said}");
    let oldest = "import socket, sys\n\
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
        s.sendall(b'\\0\\0\\0\\3IHAVEOPT' + bytes([0, 0, 0, 1, 0, 0, 0, 3]) + b'md1')\n\
        while s.recv(4096): pass\n";
    let (host, port) = tls
        .pair
        .node(Side::First)
        .nbd_tcp
        .rsplit_once(':')
        .unwrap_or_default();
    run("/usr/bin/python3", &["-c", oldest, host, port])?;
    for who in ["anonymous", "stranger"] {
        run_failing("nbdinfo", &[&tls.uri(Side::First, who)])?;
    }
    // Why, and what to do about it, is in the log.
    let log = || tls.pair.node(Side::First).log();
    Deadline::after_seconds(20).until("the reasons in the log", || {
        let log = log();
        let reasons = [
            "without TLS",
            "peer sent no certificates",
            "give the client a certificate signed by the client CA",
        ];
        Ok(reasons
            .iter()
            .all(|reason| log.contains(reason))
            .then_some(()))
    })?;
    run("nbdinfo", &[&tls.uri(Side::First, "client")])?;
    qemu_io(
        &tls.pair.uri(Side::First),
        &["write -P 1 0 1M", "read -P 1 0 1M"],
    )
}

#[test]
fn a_node_whose_key_others_may_read_does_not_start() -> Result<()> {
    let mut tls = TlsPair::create()?;
    fs::set_permissions(&tls.files.key, fs::Permissions::from_mode(0o640))?;
    let checked = tls.pair.ctl(Side::First, &["check"]);
    let chmod = format!("chmod 600 {}", tls.files.key.display());
    ensure!(
        checked.code == Some(1) && checked.stdout.contains(&chmod),
        "{checked:?}"
    );
    tls.pair.spawn(Side::First)?;
    let node = tls.pair.node_mut(Side::First);
    let code = node.wait_end(Deadline::after_seconds(10))?;
    ensure!(code == Some(1), "ended with {code:?}");
    let log = node.log();
    ensure!(
        log.contains("nbd.tls key_file") && log.contains(&chmod),
        "{log}"
    );
    Ok(())
}
