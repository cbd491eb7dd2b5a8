//! TLS over TCP: foreign clients inside it, and strangers around it.

use std::path::Path;
use std::time::Duration;

use local_pair::Authority;
use nbd_frontend::config::{Located, NbdTls};
use nbd_frontend::nbd::listener::{Limits, Server};
use nbd_frontend::nbd::protocol::*;

use crate::raw::{RawClient, option};
use crate::server::{MIB, PATIENCE, TestServer};
use crate::tools::{python, run, succeed};

/// A server whose TCP port needs TLS, and the folders of those who come:
///
/// - `client`: trusts the server and has a certificate of the client CA;
/// - `anonymous`: trusts the server and has no certificate;
/// - `stranger`: trusts the server and has a certificate of somebody else's CA;
/// - `misled`: has a good certificate and trusts somebody else's CA.
struct TlsServer {
    server: TestServer,
    folders: tempfile::TempDir,
}

impl TlsServer {
    fn start(size_bytes: u64) -> Self {
        Self::with(size_bytes, Limits::default(), true)
    }

    fn with(size_bytes: u64, limits: Limits, check_clients: bool) -> Self {
        let folders = tempfile::tempdir().expect("temporary directory");
        let folder = |name: &str| folders.path().join(name);
        let ours = Authority::new("ours").expect("an authority");
        let other = Authority::new("somebody else's").expect("an authority");
        let names = ["localhost", "127.0.0.1"];
        let files = ours.write_server(&folder("server"), &names).expect("files");
        ours.write_client(&folder("client")).expect("files");
        ours.write_certificate(&folder("anonymous")).expect("files");
        other.write_client(&folder("stranger")).expect("files");
        ours.write_certificate(&folder("stranger")).expect("files");
        ours.write_client(&folder("misled")).expect("files");
        other.write_certificate(&folder("misled")).expect("files");
        let located = |value| Located { value, line: 1 };
        let tls = NbdTls {
            certificate_file: located(files.certificate),
            key_file: located(files.key),
            client_ca_file: files.client_ca.filter(|_| check_clients).map(located),
        };
        let tls = tls.load(Path::new("cluster.toml")).expect("good files");
        let server = TestServer::with_tls(size_bytes, 512, limits, Some(tls));
        Self { server, folders }
    }

    fn folder(&self, who: &str) -> String {
        self.folders.path().join(who).display().to_string()
    }

    fn uri(&self, who: &str) -> String {
        format!(
            "nbds://localhost:{}/disk?tls-certificates={}",
            self.server.tcp_port,
            self.folder(who)
        )
    }

    /// Runs a tool of QEMU on the export.
    fn qemu(&self, who: &str, tool: &str, arguments: &[&str]) -> std::process::Output {
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            self.folder(who)
        );
        let mut words = Vec::new();
        // `qemu-img` has its commands first.
        let (first, rest) = match tool {
            "qemu-img" => arguments.split_at(1),
            _ => arguments.split_at(0),
        };
        words.extend(first);
        words.extend(["--object", &credentials]);
        words.extend(rest);
        run(tool, &words)
    }

    fn image_options(&self) -> String {
        format!(
            "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={},file.export=disk,\
             file.tls-creds=tls0,file.tls-hostname=localhost",
            self.server.tcp_port
        )
    }

    /// The server still serves, over TLS and without, and has nobody else on it.
    fn check_still_serving(self) {
        let Self { server, .. } = &self;
        server.wait_until("connections end", |_, server| server.connections() == 0);
        succeed("nbdinfo", &["--size", &server.uri()]);
        succeed("nbdinfo", &["--size", &self.uri("client")]);
        server.wait_until("connections end", |_, server| server.connections() == 0);
        self.server.stop();
    }
}

#[track_caller]
fn check_success(output: &std::process::Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

/// What a client said that must fail.
#[track_caller]
fn check_failure(output: &std::process::Output) -> String {
    assert!(!output.status.success(), "the client was served");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A Python client that speaks TLS by OpenSSL and NBD by hand. `begin()` connects and asks for TLS;
/// `Sealed` is a TLS session whose records go to the socket only when and as far as the script
/// sends them.
const BY_HAND: &str = r#"
import socket, ssl, struct
port = int(uri.rsplit(':')[-1].split('/')[0])

def exact(recv, n):
    got = b''
    while len(got) < n:
        more = recv(n - len(got))
        assert more, f'hung up after {got}'
        got += more
    return got

def option(number, data=b''):
    return b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data

def reply(recv):
    magic, number, kind, length = struct.unpack('>QIII', exact(recv, 20))
    assert magic == 0x3e889045565a9, hex(magic)
    return kind, exact(recv, length)

def begin():
    s = socket.create_connection(('127.0.0.1', port), timeout=30)
    exact(s.recv, 18)
    s.sendall(struct.pack('>I', 3) + option(5))
    assert reply(s.recv) == (1, b'')
    return s

def context(who=folder):
    c = ssl.create_default_context(cafile=folder + '/ca-cert.pem')
    c.load_cert_chain(who + '/client-cert.pem', who + '/client-key.pem')
    return c

def request(command, offset, length, cookie=7):
    return struct.pack('>IHHQQI', 0x25609513, 0, command, cookie, offset, length)

class Sealed:
    def __init__(self):
        self.socket = begin()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context().wrap_bio(self.incoming, self.outgoing, server_hostname='localhost')
        self.pump(self.tls.do_handshake)
        self.flush()

    def pump(self, call, *a):
        while True:
            try:
                return call(*a)
            except ssl.SSLWantReadError:
                self.flush()
                more = self.socket.recv(65536)
                if more: self.incoming.write(more)
                else: self.incoming.write_eof()

    def flush(self):
        self.socket.sendall(self.outgoing.read())

    def seal(self, data):
        self.tls.write(data)
        return self.outgoing.read()

    def send(self, data):
        self.socket.sendall(self.seal(data))

    def recv(self, n):
        return self.pump(self.tls.read, n)

    def go(self):
        self.send(option(7, struct.pack('>IH', 0, 0)))
        kind, _ = reply(self.recv)
        assert kind == 3, kind
        assert reply(self.recv) == (1, b'')

    def expect_end(self):
        try:
            while self.socket.recv(65536): pass
        except ConnectionResetError: pass
"#;

/// Runs a script on top of [`BY_HAND`].
fn by_hand(server: &TlsServer, script: &str) -> String {
    let script = format!("folder = {:?}\n{BY_HAND}{script}", server.folder("client"));
    python(&server.server.tcp_uri(), &script)
}

#[test]
fn nbdinfo_sees_an_export_with_tls_and_the_same_one_without_on_the_unix_socket() {
    let server = TlsServer::start(64 * MIB);
    for (uri, tls) in [(server.uri("client"), true), (server.server.uri(), false)] {
        let text = succeed("nbdinfo", &["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(info["TLS"], tls, "{info}");
        assert_eq!(info["structured"], true);
        assert_eq!(info["exports"][0]["export-size"], 64 * MIB);
        assert_eq!(info["exports"][0]["contexts"][0], "base:allocation");
    }
    let text = succeed("nbdinfo", &["--list", &server.uri("client")]);
    assert!(text.contains("export=\"disk\""), "{text}");
    server.check_still_serving();
}

#[test]
fn libnbd_with_required_tls_reads_what_it_wrote() {
    let server = TlsServer::start(64 * MIB);
    let script = format!(
        "import os\n\
        h.set_tls(nbd.TLS_REQUIRE)\n\
        h.set_tls_certificates({:?})\n\
        h.set_tls_verify_peer(True)\n\
        h.add_meta_context('base:allocation')\n\
        h.connect_tcp('localhost', uri.rsplit(':')[-1].split('/')[0])\n\
        assert h.get_tls_negotiated()\n\
        for offset, length in ((0, 512), (4096, 65536), (1 << 20, 1 << 20),\n\
        \x20                      ((4 << 20) - 512, 12 << 20), (32 << 20, 32 << 20)):\n\
        \x20   data = os.urandom(length)\n\
        \x20   h.pwrite(data, offset)\n\
        \x20   assert h.pread(length, offset) == data, (offset, length)\n\
        waiting = []\n\
        for n in range(100):\n\
        \x20   small = nbd.Buffer.from_bytearray(bytearray([n]) * 4096)\n\
        \x20   waiting.append(h.aio_pwrite(small, n * 4096))\n\
        for cookie in waiting:\n\
        \x20   while not h.aio_command_completed(cookie): h.poll(-1)\n\
        assert h.pread(4096, 99 * 4096) == bytes([99]) * 4096\n\
        seen = []\n\
        h.block_status(64 << 20, 0, lambda name, offset, extents, error: seen.append(extents))\n\
        assert seen\n\
        fails(errno.EINVAL, h.pread, 512, 64 << 20)\n\
        h.shutdown()\n",
        server.folder("client")
    );
    python(&server.server.tcp_uri(), &script);
    server.check_still_serving();
}

#[test]
fn nbdcopy_goes_both_ways_over_tls() {
    let server = TlsServer::start(48 * MIB);
    let [source, copy] = ["source", "copy"].map(|name| server.server.file(name));
    let contents: Vec<u8> = (0..6 * MIB)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(&source, &contents).expect("write the pattern");
    let uri = server.uri("client");
    let large = "--request-size=33554432";
    for size in ["--request-size=262144", large] {
        std::fs::write(&copy, []).expect("empty the copy");
        succeed("nbdcopy", &["--connections=4", size, &source, &uri]);
        succeed("nbdcopy", &["--connections=4", size, &uri, &copy]);
        assert!(std::fs::read(&copy).expect("copy") == contents);
    }
    server.check_still_serving();
}

#[test]
fn qemu_converts_compares_and_does_io_over_tls() {
    let server = TlsServer::start(32 * MIB);
    let source = server.server.file("source");
    let contents: Vec<u8> = (0..4 * MIB)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(&source, contents).expect("write the pattern");
    let image = server.image_options();
    let convert = [
        "convert",
        "-n",
        "-f",
        "raw",
        "--target-image-opts",
        &source,
        &image,
    ];
    check_success(&server.qemu("client", "qemu-img", &convert));
    let file = format!("driver=raw,file.driver=file,file.filename={source}");
    let compare = ["compare", "--image-opts", &file, &image];
    check_success(&server.qemu("client", "qemu-img", &compare));
    let commands = [
        "--image-opts",
        "-c",
        "write -P 0x11 0 20M",
        "-c",
        "write -f -P 0x22 1M 64k",
        "-c",
        "read -P 0x11 0 1M",
        "-c",
        "read -P 0x22 1M 64k",
        "-c",
        "write -z -u 2M 9M",
        "-c",
        "read -P 0 2M 9M",
        "-c",
        "discard 12M 5M",
        "-c",
        "read -P 0x11 17M 3M",
        "-c",
        "flush",
        "-c",
        "aio_write -P 0x44 16M 16M",
        "-c",
        "aio_flush",
        "-c",
        "read -P 0x44 16M 16M",
        &image,
    ];
    let text = check_success(&server.qemu("client", "qemu-io", &commands));
    assert!(!text.contains("failed"), "{text}");
    server.check_still_serving();
}

#[test]
fn a_plain_client_is_refused_with_the_reason() {
    let server = TlsServer::start(MIB);
    let plain = server.server.tcp_uri();
    check_failure(&run("nbdinfo", &[&plain]));
    let text = check_failure(&run("qemu-img", &["info", "-f", "raw", &plain]));
    assert!(text.contains("nbds://"), "{text}");
    let mut client = RawClient::connect_tcp(&server.server);
    client.send(&3u32.to_be_bytes());
    for number in [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, 4711] {
        client.send(&option(number, b""));
        let (kind, reason) = client.option_reply();
        assert_eq!(kind, REP_ERR_TLS_REQD, "{number}");
        assert!(reason.starts_with(b"this export is served over TLS only"));
    }
    client.send(&option(OPT_ABORT, b""));
    assert_eq!(client.option_reply(), (REP_ACK, Vec::new()));
    client.expect_end();
    let mut oldest = RawClient::connect_tcp(&server.server);
    oldest.send(&3u32.to_be_bytes());
    oldest.send(&option(OPT_EXPORT_NAME, b"disk"));
    oldest.expect_end();
    server.check_still_serving();
}

#[test]
fn only_clients_of_the_client_ca_are_let_in() {
    let server = TlsServer::start(MIB);
    for who in ["anonymous", "stranger", "misled"] {
        check_failure(&run("nbdinfo", &[&server.uri(who)]));
        let image = server.image_options();
        let info = ["info", "--image-opts", &image];
        check_failure(&server.qemu(who, "qemu-img", &info));
    }
    server.check_still_serving();
}

#[test]
fn a_certificate_of_somebody_elses_ca_is_refused_by_name() {
    let server = TlsServer::start(MIB);
    // Unlike GnuTLS, OpenSSL shows a certificate that the server did not ask for.
    let script = format!(
        "t = context({:?}).wrap_socket(begin(), server_hostname='localhost')\n\
        try:\n\
        \x20   t.sendall(option(3))\n\
        \x20   while t.recv(4096): pass\n\
        \x20   raise AssertionError('let in')\n\
        except ssl.SSLError as e: assert 'UNKNOWN_CA' in str(e).upper().replace(' ', '_'), e\n",
        server.folder("stranger")
    );
    by_hand(&server, &script);
    server.check_still_serving();
}

#[test]
fn without_a_client_ca_every_client_that_trusts_the_server_is_let_in() {
    let server = TlsServer::with(MIB, Limits::default(), false);
    for who in ["anonymous", "stranger", "client"] {
        succeed("nbdinfo", &[&server.uri(who)]);
    }
    check_failure(&run("nbdinfo", &[&server.uri("misled")]));
    server.check_still_serving();
}

#[test]
fn words_in_the_clear_behind_the_request_for_tls_end_the_connection() {
    let server = TlsServer::start(MIB);
    for behind in [option(OPT_STRUCTURED_REPLY, b""), vec![0x16]] {
        let mut client = RawClient::connect_tcp(&server.server);
        client.send(&[&3u32.to_be_bytes()[..], &option(OPT_STARTTLS, b""), &behind].concat());
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
        assert!(rest.is_empty(), "TLS was begun: {rest:?}");
    }
    // They come late: TLS takes them for a broken record.
    let mut client = RawClient::connect_tcp(&server.server);
    client.send(&[&3u32.to_be_bytes()[..], &option(OPT_STARTTLS, b"")].concat());
    assert_eq!(client.option_reply(), (REP_ACK, Vec::new()));
    client.send(&option(OPT_STRUCTURED_REPLY, b""));
    client.expect_end();
    server.check_still_serving();
}

#[test]
fn nothing_that_was_said_in_the_clear_counts_inside_tls() {
    let server = TlsServer::start(MIB);
    let script = "s = socket.create_connection(('127.0.0.1', port), timeout=30)\n\
        exact(s.recv, 18)\n\
        s.sendall(struct.pack('>I', 1) + option(8))\n\
        kind, reason = reply(s.recv)\n\
        assert kind == 0x80000005, hex(kind)\n\
        s.sendall(option(5))\n\
        assert reply(s.recv) == (1, b'')\n\
        t = context().wrap_socket(s, server_hostname='localhost')\n\
        assert t.version() == 'TLSv1.3'\n\
        t.sendall(option(10, struct.pack('>I4sII15s', 4, b'disk', 1, 15, b'base:allocation')))\n\
        kind, reason = reply(t.recv)\n\
        assert kind == 0x80000003 and b'structured' in reason, (hex(kind), reason)\n\
        t.sendall(option(5))\n\
        kind, reason = reply(t.recv)\n\
        assert kind == 0x80000003 and b'already' in reason, (hex(kind), reason)\n\
        # The flags of the client still hold: it did not ask to leave out the zeroes.\n\
        t.sendall(option(1, b'disk'))\n\
        assert len(exact(t.recv, 134)) == 134\n\
        t.sendall(request(0, 0, 512))\n\
        exact(t.recv, 16 + 512)\n";
    by_hand(&server, script);
    server.check_still_serving();
}

#[test]
fn tls_ends_with_a_word_from_both_sides() {
    let server = TlsServer::start(MIB);
    let script = "c = Sealed(); c.go()\n\
        c.send(request(2, 0, 0))\n\
        assert c.recv(1) == b'', 'more than a farewell'\n\
        # One that takes leave of TLS and not of NBD is answered in kind, after its last request.\n\
        c = Sealed(); c.go()\n\
        c.send(request(0, 0, 4096))\n\
        try: c.tls.unwrap()\n\
        except ssl.SSLWantReadError: pass\n\
        c.flush()\n\
        got = b''\n\
        while more := c.socket.recv(65536): got += more\n\
        assert len(got) > 16 + 4096, len(got)\n\
        # Hanging up without a word is no crime.\n\
        c = Sealed(); c.go(); c.socket.close()\n";
    by_hand(&server, script);
    server.check_still_serving();
}

#[test]
fn older_tls_and_garbage_are_refused() {
    let server = TlsServer::start(MIB);
    let script = "c = context(); c.maximum_version = ssl.TLSVersion.TLSv1_2\n\
        try:\n\
        \x20   c.wrap_socket(begin(), server_hostname='localhost')\n\
        \x20   raise AssertionError('spoke TLS 1.2')\n\
        except ssl.SSLError as e: assert 'VERSION' in str(e).upper(), e\n\
        for garbage in (b'\\xff' * 4096, b'\\x16\\x03\\x01\\x00\\x04abcd',\n\
        \x20               b'GET / HTTP/1.1\\r\\n\\r\\n',\n\
        \x20               b'\\x16\\x03\\x01\\xff\\xff' + b'x' * 70000):\n\
        \x20   s = begin()\n\
        \x20   try:\n\
        \x20       s.sendall(garbage)\n\
        \x20       while s.recv(4096): pass\n\
        \x20   except (ConnectionResetError, BrokenPipeError): pass\n\
        # A record that was changed on its way.\n\
        c = Sealed(); c.go()\n\
        record = bytearray(c.seal(request(0, 0, 512)))\n\
        record[-1] ^= 1\n\
        c.socket.sendall(record)\n\
        c.expect_end()\n";
    by_hand(&server, script);
    server.check_still_serving();
}

#[test]
fn a_client_that_stops_inside_the_tls_handshake_is_cut_off() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = TlsServer::with(MIB, limits, true);
    let script = "incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()\n\
        tls = context().wrap_bio(incoming, outgoing, server_hostname='localhost')\n\
        try: tls.do_handshake()\n\
        except ssl.SSLWantReadError: pass\n\
        hello = outgoing.read()\n\
        silent = begin()\n\
        half = begin()\n\
        half.sendall(hello[:len(hello) // 2])\n\
        most = begin()\n\
        most.sendall(hello)\n\
        assert exact(most.recv, 1) == b'\\x16'\n\
        for s in (silent, half, most):\n\
        \x20   try:\n\
        \x20       while s.recv(4096): pass\n\
        \x20   except ConnectionResetError: pass\n";
    by_hand(&server, script);
    server
        .server
        .wait_until("connections end", |_, server| server.connections() == 0);
    server.server.stop();
}

#[test]
fn a_client_that_stops_inside_a_record_or_a_request_is_cut_off() {
    let limits = Limits {
        stall_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = TlsServer::with(MIB, limits, true);
    let script = "record = Sealed(); record.go()\n\
        record.socket.sendall(record.seal(request(0, 0, 512))[:-3])\n\
        header = Sealed(); header.go()\n\
        header.send(request(0, 0, 512)[:-3])\n\
        payload = Sealed(); payload.go()\n\
        payload.send(request(1, 0, 131072) + bytes(100))\n\
        for c in (record, header, payload): c.expect_end()\n";
    by_hand(&server, script);
    server.check_still_serving();
}

#[test]
fn a_client_that_does_not_take_its_replies_is_cut_off() {
    let limits = Limits {
        stall_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = TlsServer::with(16 * MIB, limits, true);
    let [asked, cut_off] = ["asked", "cut-off"].map(|name| server.server.file(name));
    let script = format!(
        "import os, time\n\
        c = Sealed(); c.go()\n\
        c.send(b''.join(request(0, 0, 8 << 20) for _ in range(16)))\n\
        open({asked:?}, 'w').close()\n\
        while not os.path.exists({cut_off:?}): time.sleep(0.01)\n"
    );
    std::thread::scope(|scope| {
        let client = scope.spawn(|| by_hand(&server, &script));
        let has_asked = move |_: &_, _: &Server| Path::new(&asked).exists();
        server.server.wait_until("the client has asked", has_asked);
        let is_gone = |_: &_, server: &Server| server.connections() == 0;
        server.server.wait_until("it is cut off", is_gone);
        std::fs::write(&cut_off, []).expect("tell the client");
        client.join().expect("the client ends");
    });
    server.check_still_serving();
}

#[test]
fn demotion_answers_what_is_in_flight_over_tls() {
    let server = TlsServer::start(MIB);
    server.server.look(|export, _| export.set_frozen(true));
    let script = format!(
        "h.set_tls(nbd.TLS_REQUIRE)\n\
        h.set_tls_certificates({:?})\n\
        h.connect_tcp('localhost', uri.rsplit(':')[-1].split('/')[0])\n\
        h.pwrite(b'x' * 65536, 0)\n",
        server.folder("client")
    );
    let uri = server.server.tcp_uri();
    let client = std::thread::spawn(move || python(&uri, &script));
    server
        .server
        .wait_until("the write is taken", |export, _| export.kept() == 1);
    let reason = "this node is secondary".to_owned();
    server
        .server
        .look(|export, _| export.set_serving(Err(reason)));
    let drained = server.server.drain(PATIENCE);
    server.server.look(|export, _| export.set_frozen(false));
    client.join().expect("the write is answered");
    drained.recv_timeout(PATIENCE).expect("drain ends");
    let info = ["info", "--image-opts", &server.image_options()];
    let text = check_failure(&server.qemu("client", "qemu-img", &info));
    assert!(text.contains("secondary"), "{text}");
    server.server.stop();
}
