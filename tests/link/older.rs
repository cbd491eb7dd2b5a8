//! A peer of an earlier version, as the other side sees it: what stands before a node and takes from every hello that
//! passes what that version did not know. Only a plain link can be read like this.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use mirror_core::buffer::Buffer;
use mirror_core::link::preface::{PREFACE_BYTES, PROOF_BYTES};
use mirror_core::wire::frame;
use mirror_core::wire::header::{HEADER_BYTES, Header};
use mirror_core::wire::message::{FEATURE_COMPRESSION, Message};

/// Place in the preface of the connection it is for, and the one that begins with a hello.
const CHANNEL: usize = 12;
const CONTROL: u8 = 1;

/// The address to connect to instead of `node`. It serves until the test ends.
pub fn put_before(node: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            // A node that is not there yet is like one that hangs up.
            let Ok(far) = TcpStream::connect(node) else {
                continue;
            };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread::spawn(move || {
                    // Ends as the connection does, however that is.
                    let _ = carry(&from, &to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    let mut words = [0; PREFACE_BYTES + PROOF_BYTES];
    // Each waits for the other's before it goes on.
    for part in [0..PREFACE_BYTES, PREFACE_BYTES..PREFACE_BYTES + PROOF_BYTES] {
        from.read_exact(&mut words[part.clone()])?;
        to.write_all(&words[part])?;
    }
    if words[CHANNEL] == CONTROL {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.payload_bytes as usize];
        from.read_exact(&mut payload)?;
        let mut envelope = frame::decode(&header, Buffer::from(payload)).unwrap();
        let Message::Hello(hello) = &mut envelope.message else {
            panic!("{:?} comes before a hello", header.kind());
        };
        assert_ne!(hello.features & FEATURE_COMPRESSION, 0);
        hello.features &= !FEATURE_COMPRESSION;
        let (hello, _) = frame::encode(&envelope);
        to.write_all(&hello)?;
    }
    std::io::copy(&mut from, &mut to)?;
    Ok(())
}
