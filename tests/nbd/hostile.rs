//! Strangers on every listening socket: garbage, halves, too much, and those who never finish.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use local_pair::{Deadline, MIRROR, Pair, Side};

use crate::client::qemu_io;
use crate::{assert_same_data, small, synced};

/// How long a stranger waits for the other side to hang up.
const HANG_UP_SECONDS_MAX: u64 = 60;
/// How long one look at a silent connection takes.
const LOOK: Duration = Duration::from_millis(200);

fn payloads() -> Vec<Vec<u8>> {
    let mut noise = vec![0u8; 256 * 1024];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in &mut noise {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *byte = state.to_be_bytes()[0];
    }
    vec![
        noise,
        vec![0xff; 128 * 1024],
        vec![0; 4096],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // The client's answer in the NBD handshake, then an option of 4 GiB.
        [
            &3u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &7u32.to_be_bytes(),
            &u32::MAX.to_be_bytes(),
        ]
        .concat(),
        // Half of an option.
        [&3u32.to_be_bytes()[..], b"IHAVE"].concat(),
        Vec::new(),
    ]
}

/// Sends and hangs up; whatever the node does with the connection, only the node's health counts.
fn throw_at_tcp(address: &str) -> Result<()> {
    for payload in payloads() {
        let mut stream = TcpStream::connect(address)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        // The node may hang up before it took everything.
        let _ = stream.write_all(&payload);
    }
    Ok(())
}

/// The mirror still serves, replicates, and both sides are the same.
fn assert_healthy(mut pair: Pair) -> Result<()> {
    qemu_io(
        &pair.uri(Side::First),
        &["write -P 8 2M 1M", "flush", "read -P 8 2M 1M"],
    )?;
    pair.wait_synced()?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}

#[test]
fn garbage_on_the_replication_port_changes_nothing() -> Result<()> {
    let pair = synced(&small())?;
    // The first node connects and does not listen; the second accepts.
    throw_at_tcp(&pair.node(Side::Second).replication)?;
    assert_healthy(pair)
}

#[test]
fn garbage_on_the_nbd_sockets_changes_nothing() -> Result<()> {
    let pair = synced(&small())?;
    for side in Side::BOTH {
        throw_at_tcp(&pair.node(side).nbd_tcp)?;
        for payload in payloads() {
            let mut stream = UnixStream::connect(pair.node(side).nbd_socket(MIRROR))?;
            stream.set_write_timeout(Some(Duration::from_secs(5)))?;
            let _ = stream.write_all(&payload);
        }
    }
    assert_healthy(pair)
}

#[test]
fn garbage_on_the_control_socket_changes_nothing() -> Result<()> {
    let pair = synced(&small())?;
    for payload in payloads() {
        let mut stream =
            UnixStream::connect(pair.node(Side::First).run_dir().join("mirrord.sock"))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let _ = stream.write_all(&payload);
    }
    assert_healthy(pair)
}

/// A stranger that sends nothing more is hung up on. The stream must have a short read time-out.
fn assert_hung_up(mut stream: impl Read, what: &str) -> Result<()> {
    Deadline::after_seconds(HANG_UP_SECONDS_MAX).until(&format!("the end of {what}"), || {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => Ok(Some(())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => Ok(Some(())),
        }
    })
}

#[test]
fn strangers_who_never_finish_are_hung_up_on() -> Result<()> {
    let pair = synced(&small())?;
    let mut slow = Vec::new();
    for side in Side::BOTH {
        let node = pair.node(side);
        for (address, first) in [
            (&node.replication, &b"\x16\x03"[..]),
            (&node.nbd_tcp, &[0, 0][..]),
        ] {
            // The side that connects to its peer does not listen for it.
            let Ok(mut stream) = TcpStream::connect(address) else {
                continue;
            };
            let _ = stream.write_all(first);
            stream.set_read_timeout(Some(LOOK))?;
            slow.push((stream, format!("a slow stranger on {address}")));
        }
    }
    let mut callers = Vec::new();
    for (what, half) in [
        (
            "half of a request's headers",
            "POST /v1/mirrors/md1/command HTTP/1.1\r\nhost:",
        ),
        (
            "half of a request's body",
            "POST /v1/mirrors/md1/command HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 100\r\n\r\n{\"command\":",
        ),
    ] {
        let socket = pair.node(Side::First).run_dir().join("mirrord.sock");
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(half.as_bytes())?;
        stream.set_read_timeout(Some(LOOK))?;
        callers.push((stream, what));
    }
    ensure!(slow.len() >= 3, "only {} sockets listen", slow.len());
    // Others are served meanwhile.
    qemu_io(
        &pair.uri(Side::First),
        &["write -P 3 0 1M", "read -P 3 0 1M"],
    )?;
    for (stream, what) in slow {
        assert_hung_up(stream, &what)?;
    }
    for (stream, what) in callers {
        assert_hung_up(stream, what)?;
    }
    assert_healthy(pair)
}

#[test]
fn a_crowd_of_silent_connections_does_not_keep_the_peer_out() -> Result<()> {
    let mut pair = synced(&small())?;
    let address = pair.node(Side::Second).replication.clone();
    let crowd: Vec<TcpStream> = (0..64)
        .filter_map(|_| TcpStream::connect(&address).ok())
        .collect();
    ensure!(
        crowd.len() > 32,
        "only {} connections were taken",
        crowd.len()
    );
    pair.node_mut(Side::First).stop()?;
    pair.start(Side::First)?;
    pair.wait_for(Side::First, "a connection", 60, |s| {
        s.connection == mirror_core::control::Connection::Connected
    })?;
    Ok(())
}
