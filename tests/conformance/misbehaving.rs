//! Clients that ask for what they may not have, stop half-way, or send garbage.

use std::time::Duration;

use nbd_frontend::nbd::listener::Limits;
use nbd_frontend::nbd::protocol::*;

use crate::raw::{RawClient, option, request};
use crate::server::{MIB, TestServer};
use crate::tools::{python, succeed};

/// The server must still serve, and have nobody else on it.
fn check_still_serving(server: TestServer) {
    server.wait_until("connections end", |_, server| server.connections() == 0);
    let text = succeed("nbdinfo", &["--size", &server.uri()]);
    assert_eq!(text.trim(), server.look(|export, _| size_of(export)));
    server.stop();
}

fn size_of(export: &mirror_tests::memory_export::MemoryExport) -> String {
    use nbd_frontend::nbd::export::Export;
    export.info().size_bytes.to_string()
}

#[test]
fn bad_requests_get_their_errno_and_the_connection_lives() {
    let server = TestServer::with(16 * MIB, 4096, Limits::default());
    let script = "h.add_meta_context('base:allocation')\n\
        h.connect_uri(uri)\n\
        end = h.get_size()\n\
        ok = lambda: h.pwrite(b'k' * 4096, 0)\n\
        fails(errno.EINVAL, h.pread, 4096, end); ok()\n\
        fails(errno.EINVAL, h.pread, 8192, end - 4096); ok()\n\
        fails(errno.ENOSPC, h.pwrite, b'x' * 4096, end); ok()\n\
        fails(errno.ENOSPC, h.pwrite, b'x' * 8192, end - 4096); ok()\n\
        fails(errno.ENOSPC, h.zero, 4096, end); ok()\n\
        fails(errno.EINVAL, h.trim, 4096, end); ok()\n\
        fails(errno.EINVAL, h.cache, 4096, end); ok()\n\
        fails(errno.EINVAL, h.pread, 512, 0); ok()\n\
        fails(errno.EINVAL, h.pread, 4096, 512); ok()\n\
        fails(errno.EINVAL, h.pwrite, b'x' * 1000, 0); ok()\n\
        fails(errno.EINVAL, h.pread, 0, 0); ok()\n\
        fails(errno.EINVAL, h.block_status, 4096, end, lambda *a: 0); ok()\n\
        fails(errno.EINVAL, h.pread, 4096, (1 << 63) - 4096); ok()\n\
        fails(errno.EOVERFLOW, h.pread_structured, 2 << 20, 0, lambda *a: 0, nbd.CMD_FLAG_DF); ok()\n\
        fails(errno.EINVAL, h.pread, 4096, 0, flags=nbd.CMD_FLAG_NO_HOLE); ok()\n\
        assert h.pread(4096, 0) == b'k' * 4096\n\
        h.shutdown()\n";
    python(&server.uri(), script);
    check_still_serving(server);
}

#[test]
fn too_large_requests_are_refused_and_their_payload_skipped() {
    let server = TestServer::start(128 * MIB);
    let mut client = RawClient::simple(&server);
    client.request(CMD_READ, 0, 0, PAYLOAD_BYTES_MAX + 512);
    assert_eq!(client.reply(), Errno::Invalid as u32);
    client.request(CMD_WRITE, 0, 0, PAYLOAD_BYTES_MAX + 512);
    client.send(&vec![7; PAYLOAD_BYTES_MAX as usize + 512]);
    assert_eq!(client.reply(), Errno::Invalid as u32);
    client.request(CMD_READ, 0, 0, 512);
    assert_eq!(client.reply(), 0);
    assert_eq!(client.receive(512), [0; 512]);
    client.request(CMD_WRITE, 0, 0, u32::MAX);
    client.expect_end();
    check_still_serving(server);
}

#[test]
fn unknown_commands_and_flags_are_refused() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::simple(&server);
    client.request(99, 0, 0, 512);
    assert_eq!(client.reply(), Errno::Invalid as u32);
    client.request(CMD_FLUSH, 1 << 15, 0, 0);
    assert_eq!(client.reply(), Errno::Invalid as u32);
    // Without structured replies there are no contexts to ask about.
    client.request(CMD_BLOCK_STATUS, 0, 0, 512);
    assert_eq!(client.reply(), Errno::Invalid as u32);
    client.request(CMD_DISC, 0, 0, 0);
    client.expect_end();
    check_still_serving(server);
}

#[test]
fn fast_zero_is_kept_apart_from_plain_zero() {
    let server = TestServer::start(16 * MIB);
    let script = "h.connect_uri(uri)\n\
        assert h.can_fast_zero()\n\
        h.pwrite(b'x' * (9 << 20), 0)\n\
        h.zero(5 << 20, 1 << 20, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)\n\
        assert h.pread(7 << 20, 0) == b'x' * (1 << 20) + bytes(5 << 20) + b'x' * (1 << 20)\n\
        h.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)\n\
        h.trim(9 << 20, 0)\n\
        assert h.pread(9 << 20, 0) == bytes(9 << 20)\n";
    python(&server.uri(), script);
    check_still_serving(server);
}

#[test]
fn block_status_answers_one_extent_where_one_is_asked_for() {
    let server = TestServer::start(16 * MIB);
    let script = "h.add_meta_context('base:allocation')\n\
        h.connect_uri(uri)\n\
        h.pwrite(b'x' * 4096, 8192)\n\
        seen = []\n\
        def see(context, offset, entries, error):\n\
        \x20   assert context == 'base:allocation'\n\
        \x20   seen.append((offset, entries))\n\
        h.block_status(65536, 4096, see)\n\
        assert seen == [(4096, [4096, 3, 4096, 0, 57344, 3])], seen\n\
        seen.clear()\n\
        h.block_status(65536, 8192, see, nbd.CMD_FLAG_REQ_ONE)\n\
        assert seen == [(8192, [4096, 0])], seen\n\
        h.shutdown()\n";
    python(&server.uri(), script);
    check_still_serving(server);
}

#[test]
fn a_failing_disk_shows_as_eio_on_that_request_only() {
    let server = TestServer::start(16 * MIB);
    server.look(|export, _| export.set_bad_byte(Some(5 << 20)));
    let script = "h.connect_uri(uri)\n\
        text = fails(errno.EIO, h.pread, 9 << 20, 0)\n\
        fails(errno.EIO, h.pwrite, bytes(9 << 20), 0)\n\
        fails(errno.EIO, h.trim, 16 << 20, 0)\n\
        h.pread(4 << 20, 0)\n\
        h.shutdown()\n";
    python(&server.uri(), script);
    check_still_serving(server);
}

#[test]
fn a_simple_reply_that_fails_half_way_ends_the_connection() {
    let server = TestServer::start(16 * MIB);
    server.look(|export, _| export.set_bad_byte(Some(5 << 20)));
    let mut client = RawClient::simple(&server);
    client.request(CMD_READ, 0, 0, 6 << 20);
    client.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(client.reply(), 0);
    client.expect_end();
    let mut client = RawClient::simple(&server);
    client.request(CMD_READ, 0, 5 << 20, 2 << 20);
    assert_eq!(client.reply(), Errno::Io as u32);
    drop(client);
    check_still_serving(server);
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let server = TestServer::start(MIB);
    let mut handshaking = RawClient::connect(&server);
    handshaking.send(&[0xff; 64]);
    handshaking.expect_end();
    let mut half = RawClient::connect(&server);
    half.send(&3u32.to_be_bytes());
    half.send(b"GET / HTTP/1.1\r\n\r\n");
    half.expect_end();
    let mut transmitting = RawClient::simple(&server);
    transmitting.send(&[0xa5; 28]);
    transmitting.expect_end();
    check_still_serving(server);
}

#[test]
fn half_frames_leave_nothing_behind() {
    let server = TestServer::start(MIB);
    let mut header = RawClient::simple(&server);
    header.send(&REQUEST_MAGIC.to_be_bytes());
    drop(header);
    let mut payload = RawClient::simple(&server);
    payload.request(CMD_WRITE, 0, 0, 8192);
    payload.send(&[1; 4096]);
    drop(payload);
    check_still_serving(server);
}

#[test]
fn a_client_that_is_slow_to_agree_is_cut_off() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = TestServer::with(MIB, 512, limits);
    let mut silent = RawClient::connect(&server);
    let mut half = RawClient::connect(&server);
    half.send(&[&3u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes()].concat());
    silent.expect_end();
    half.expect_end();
    check_still_serving(server);
}

#[test]
fn a_client_that_stops_inside_a_request_is_cut_off() {
    let limits = Limits {
        stall_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = TestServer::with(MIB, 512, limits);
    let mut header = RawClient::simple(&server);
    header.send(&REQUEST_MAGIC.to_be_bytes());
    let mut payload = RawClient::simple(&server);
    // In one, because it may be cut off between two.
    payload.send(&[&request(CMD_WRITE, 0, 0, 128 << 10)[..], &[1; 100]].concat());
    header.expect_end();
    payload.expect_end();
    check_still_serving(server);
}

#[test]
fn a_client_that_does_not_read_its_replies_is_cut_off() {
    let limits = Limits {
        stall_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = TestServer::with(16 * MIB, 512, limits);
    let mut client = RawClient::simple(&server);
    client.send(&request(CMD_READ, 0, 0, 8 << 20).repeat(16));
    server.wait_until("the client is cut off", |_, server| {
        server.connections() == 0
    });
    check_still_serving(server);
}

#[test]
fn a_flood_of_bad_requests_is_bounded_and_answered() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::simple(&server);
    let header = RequestHeader {
        flags: 0,
        command: 99,
        cookie: 1,
        offset: 0,
        length: 0,
    };
    let flood = header.encode().repeat(20_000);
    let mut sender = client.stream.try_clone().expect("second handle");
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut sender, &flood));
    for _ in 0..20_000 {
        assert_eq!(client.reply(), Errno::Invalid as u32);
    }
    writer.join().expect("writer").expect("flood sent");
    drop(client);
    check_still_serving(server);
}

#[test]
fn connections_over_the_limit_are_closed_at_once() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let server = TestServer::with(MIB, 512, limits);
    let mut first = RawClient::simple(&server);
    let mut second = RawClient::simple(&server);
    for client in [&mut first, &mut second] {
        // Answered, so the handshake is over on the other side too.
        client.request(CMD_FLUSH, 0, 0, 0);
        assert_eq!(client.reply(), 0);
    }
    let mut third = RawClient {
        stream: std::os::unix::net::UnixStream::connect(server.socket()).expect("connect"),
    };
    third.expect_end();
    drop((first, second));
    check_still_serving(server);
}

#[test]
fn whoever_stays_in_the_handshake_makes_room_and_tcp_takes_no_place_of_a_unix_socket() {
    let limits = Limits {
        connections_max: 2,
        handshake_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let server = TestServer::with(MIB, 512, limits);
    let strangers: Vec<_> = (0..10).map(|_| RawClient::connect_tcp(&server)).collect();
    let mut served = RawClient::simple(&server);
    served.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(served.reply(), 0);
    let mut first = RawClient::connect(&server);
    let mut second = RawClient::connect(&server);
    first.expect_end();
    succeed("nbdinfo", &["--size", &server.uri()]);
    second.expect_end();
    succeed("nbdinfo", &["--size", &server.tcp_uri()]);
    served.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(served.reply(), 0, "whoever has agreed stays");
    drop((served, strangers));
    check_still_serving(server);
}

#[test]
fn options_are_refused_politely_and_limited_in_number() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::connect(&server);
    client.send(&3u32.to_be_bytes());
    client.send(&option(OPT_STARTTLS, b""));
    let reply = client.receive(20);
    assert_eq!(reply[12..16], REP_ERR_POLICY.to_be_bytes());
    let mut client = RawClient::connect(&server);
    client.send(&3u32.to_be_bytes());
    for _ in 0..100 {
        // The server may hang up in between.
        let _ = std::io::Write::write_all(&mut client.stream, &option(12345, b"x"));
    }
    client.expect_end();
    check_still_serving(server);
}
