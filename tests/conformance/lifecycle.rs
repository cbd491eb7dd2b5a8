//! Demotion, stop, and socket files.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use mirror_core::io::buffers::BufferPool;
use mirror_core::io::ring::Runtime;
use mirror_tests::memory_export::MemoryExport;
use nbd_frontend::nbd::listener::{Address, Limits, ListenError, Server};
use nbd_frontend::nbd::protocol::*;

use crate::raw::RawClient;
use crate::server::{MIB, PATIENCE, TestServer};
use crate::tools::{python, run, succeed};

const REASON: &str = "this node is secondary; promote it or connect to server2";

#[test]
fn an_export_that_is_not_served_is_listed_and_refused_with_the_reason() {
    let server = TestServer::start(MIB);
    server.look(|export, _| export.set_serving(Err(REASON.into())));
    let script = "h.set_opt_mode(True)\n\
        h.connect_uri(uri)\n\
        seen = []\n\
        h.opt_list(lambda name, description: seen.append((name, description)))\n\
        assert seen[0][0] == 'disk' and 'secondary' in seen[0][1], seen\n\
        h.set_export_name('disk')\n\
        try:\n\
        \x20   h.opt_go()\n\
        \x20   raise AssertionError('served')\n\
        except nbd.Error: pass\n\
        h.opt_abort()\n";
    python(&server.uri(), script);
    let output = run("qemu-img", &["info", "-f", "raw", &server.uri()]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("this node is secondary"), "{text}");
    server.look(|export, _| export.set_serving(Ok(())));
    succeed("nbdinfo", &[&server.uri()]);
    server.stop();
}

#[test]
fn demotion_answers_what_is_in_flight_and_refuses_the_rest() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::simple(&server);
    server.look(|export, _| export.set_frozen(true));
    client.request(CMD_WRITE, 0, 0, 512);
    client.send(&[9; 512]);
    server.wait_until("the write is taken", |export, _| export.kept() == 1);
    server.look(|export, _| export.set_serving(Err(REASON.into())));
    let drained = server.drain(PATIENCE);
    client.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(client.reply(), Errno::Shutdown as u32);
    server.look(|export, _| export.set_frozen(false));
    assert_eq!(client.reply(), 0);
    client.expect_end();
    drained.recv_timeout(PATIENCE).expect("drain ends");
    assert_eq!(server.look(|_, server| server.connections()), 0);
    server.stop();
}

#[test]
fn a_drain_that_takes_too_long_closes_by_force() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::simple(&server);
    server.look(|export, _| export.set_frozen(true));
    client.request(CMD_READ, 0, 0, 4096);
    server.wait_until("the read is taken", |export, _| export.kept() == 1);
    let drained = server.drain(Duration::from_millis(50));
    client.expect_end();
    drained.recv_timeout(PATIENCE).expect("drain ends");
    server.look(|export, _| export.set_frozen(false));
    server.stop();
}

#[test]
fn clients_that_leave_in_good_order_get_their_last_answers() {
    let server = TestServer::start(MIB);
    let mut client = RawClient::simple(&server);
    server.look(|export, _| export.set_frozen(true));
    client.request(CMD_READ, 0, 0, 512);
    client.request(CMD_DISC, 0, 0, 0);
    server.wait_until("the read is taken", |export, _| export.kept() == 1);
    server.look(|export, _| export.set_frozen(false));
    assert_eq!(client.reply(), 0);
    client.receive(512);
    client.expect_end();
    server.stop();
}

#[test]
fn the_socket_file_is_private() {
    let server = TestServer::start(MIB);
    let metadata = std::fs::metadata(server.socket()).expect("socket file");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    server.stop();
}

/// Starts and stops a server on `address` without clients.
fn start_and_stop(address: Address) -> Result<(), ListenError> {
    Runtime::new().expect("io_uring").block_on(async {
        let pool = BufferPool::new(0).expect("buffer memory");
        let export = Rc::new(MemoryExport::new("disk", MIB, 512, pool));
        let server = Server::start(export, &[address], None, Limits::default())?;
        server.stop(PATIENCE).await;
        Ok(())
    })
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("disk.nbd");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    start_and_stop(Address::Unix(path.clone())).expect("starts");
    assert!(!path.exists());
}

#[test]
fn a_living_socket_and_a_plain_file_are_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("disk.nbd");
    let other = UnixListener::bind(&path).expect("bind");
    let error = start_and_stop(Address::Unix(path.clone())).expect_err("in use");
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    drop(other);
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("write");
    let error = start_and_stop(Address::Unix(path.clone())).expect_err("not a socket");
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let error = start_and_stop(Address::Tcp(address)).expect_err("in use");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
