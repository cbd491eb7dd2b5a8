//! Somebody between the two ends, who sees and changes all that travels: recordings that are played again, bytes
//! that are altered, encryption that is ended in the middle or talked down.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener as BlockingListener, TcpStream as BlockingStream};
use std::time::Duration;

use mirror_core::io::link::handshake::{self, Credentials};
use mirror_core::io::link::tls::Encryption;
use mirror_core::link::preface::{PREFACE_BYTES, PROOF_BYTES, SessionToken, Side};
use mirror_core::wire::message::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::party::{run, terms};

const TOKEN: SessionToken = SessionToken([7; 16]);
/// What each end says before it is trusted.
const WORDS_BYTES: usize = PREFACE_BYTES + PROOF_BYTES;
/// Only ends a test that hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Trusted, or why not.
type Outcome = Result<(), String>;

/// A byte of one direction whose lowest bit is turned.
#[derive(Debug, Clone, Copy)]
enum Alter {
    Nothing,
    OfConnector(usize),
    OfAcceptor(usize),
}

/// What became of both ends of one connection, and all that was said on it.
struct Exchange {
    connector: Outcome,
    acceptor: Outcome,
    by_connector: Vec<u8>,
    by_acceptor: Vec<u8>,
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn connect(address: SocketAddr, credentials: &Credentials) -> Outcome {
    let stream = TcpStream::connect(address).await.unwrap();
    let made = handshake::connect(stream, credentials, Channel::Data, TOKEN).await;
    made.map(drop).map_err(|error| error.to_string())
}

async fn accept(listener: &TcpListener, credentials: &Credentials) -> Outcome {
    let (stream, _) = listener.accept().await.unwrap();
    let made = handshake::accept(stream, credentials).await;
    made.map(drop).map_err(|error| error.to_string())
}

/// Carries one direction to its end, and returns what it carried.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, alter: Option<usize>) -> Vec<u8> {
    let mut carried = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if let Some(at) = alter.and_then(|at| at.checked_sub(carried.len()))
            && at < count
        {
            bytes[at] ^= 1;
        }
        carried.extend_from_slice(&bytes[..count]);
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    carried
}

/// One connection through the hands of somebody else.
async fn exchange(encrypted: bool, alter: Alter) -> Exchange {
    let credentials = Credentials::new(terms(1, encrypted)).unwrap();
    let (listener, address) = listen().await;
    let (middle, middle_address) = listen().await;
    let between = async {
        let (near, _) = middle.accept().await.unwrap();
        let far = TcpStream::connect(address).await.unwrap();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let (of_connector, of_acceptor) = match alter {
            Alter::Nothing => (None, None),
            Alter::OfConnector(at) => (Some(at), None),
            Alter::OfAcceptor(at) => (None, Some(at)),
        };
        tokio::join!(
            carry(near_read, far_write, of_connector),
            carry(far_read, near_write, of_acceptor)
        )
    };
    let (connector, acceptor, (by_connector, by_acceptor)) = tokio::join!(
        connect(middle_address, &credentials),
        accept(&listener, &credentials),
        between
    );
    Exchange {
        connector,
        acceptor,
        by_connector,
        by_acceptor,
    }
}

#[test]
fn what_is_only_passed_on_is_trusted() {
    run(async {
        for encrypted in [false, true] {
            let passed = exchange(encrypted, Alter::Nothing).await;
            assert_eq!((passed.connector, passed.acceptor), (Ok(()), Ok(())));
            let least = if encrypted {
                WORDS_BYTES + 1
            } else {
                WORDS_BYTES
            };
            assert!(passed.by_connector.len() >= least && passed.by_acceptor.len() >= least);
        }
    });
}

/// In the clear, where the exchange has to protect itself.
#[test]
fn no_bit_of_the_first_exchange_can_be_altered() {
    run(async {
        for at in 0..WORDS_BYTES {
            let altered = exchange(false, Alter::OfConnector(at)).await;
            assert!(altered.connector.is_err(), "byte {at} of the connector");
            assert!(altered.acceptor.is_err(), "byte {at} of the connector");
            let altered = exchange(false, Alter::OfAcceptor(at)).await;
            assert!(altered.connector.is_err(), "byte {at} of the acceptor");
            // Its last words are its proof: whether they arrived it cannot know.
            let is_over = at >= PREFACE_BYTES;
            assert!(
                is_over || altered.acceptor.is_err(),
                "byte {at} of the acceptor"
            );
        }
    });
}

#[test]
fn a_recorded_connector_is_refused() {
    run(async {
        for encrypted in [false, true] {
            let recorded = exchange(encrypted, Alter::Nothing).await.by_connector;
            let credentials = Credentials::new(terms(1, encrypted)).unwrap();
            let (listener, address) = listen().await;
            let replay = async {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(&recorded).await;
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard).await;
            };
            let (outcome, ()) = tokio::join!(accept(&listener, &credentials), replay);
            let reason = outcome.unwrap_err();
            let words = if encrypted {
                "TLS"
            } else {
                "a replay of an older one"
            };
            assert!(reason.contains(words), "{reason}");
        }
    });
}

#[test]
fn a_recorded_acceptor_is_refused() {
    run(async {
        for encrypted in [false, true] {
            // Even where the token and the channel are those of the recording.
            let recorded = exchange(encrypted, Alter::Nothing).await.by_acceptor;
            let credentials = Credentials::new(terms(1, encrypted)).unwrap();
            let (listener, address) = listen().await;
            let replay = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(&recorded).await;
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard).await;
            };
            let (outcome, ()) = tokio::join!(connect(address, &credentials), replay);
            let reason = outcome.unwrap_err();
            let words = if encrypted {
                "TLS"
            } else {
                "a replay of an older one"
            };
            assert!(reason.contains(words), "{reason}");
        }
    });
}

/// Ends TLS towards both sides, with keys of its own, and passes on what is said inside, one step after the other.
fn end_encryption_between(listener: &BlockingListener, acceptor: SocketAddr) {
    let encryption = Encryption::new().unwrap();
    let mut near = encryption.connection(Side::Acceptor).unwrap();
    let mut far = encryption.connection(Side::Connector).unwrap();
    let (mut near_socket, _) = listener.accept().unwrap();
    let mut far_socket = BlockingStream::connect(acceptor).unwrap();
    for socket in [&near_socket, &far_socket] {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    macro_rules! pass {
        ($from:ident, $from_socket:ident, $to:ident, $to_socket:ident, $bytes:expr) => {
            let mut words = [0; $bytes];
            let mut done = 0;
            while done < words.len() {
                match $from.reader().read(&mut words[done..]) {
                    Ok(0) => return,
                    Ok(count) => done += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if $from.complete_io(&mut $from_socket).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
            $to.writer().write_all(&words).unwrap();
            if $to.complete_io(&mut $to_socket).is_err() {
                return;
            }
        };
    }
    pass!(near, near_socket, far, far_socket, PREFACE_BYTES);
    pass!(far, far_socket, near, near_socket, PREFACE_BYTES);
    pass!(near, near_socket, far, far_socket, PROOF_BYTES);
    pass!(far, far_socket, near, near_socket, PROOF_BYTES);
    panic!("both ends believed what was passed on");
}

#[test]
fn whoever_ends_the_encryption_in_the_middle_is_refused_by_both() {
    run(async {
        let credentials = Credentials::new(terms(1, true)).unwrap();
        let (listener, address) = listen().await;
        let middle = BlockingListener::bind("127.0.0.1:0").unwrap();
        let middle_address = middle.local_addr().unwrap();
        let between = std::thread::spawn(move || end_encryption_between(&middle, address));
        let (connector, acceptor) = tokio::join!(
            connect(middle_address, &credentials),
            accept(&listener, &credentials)
        );
        between.join().unwrap();
        let reason = acceptor.unwrap_err();
        assert!(reason.contains("could not prove"), "{reason}");
        assert!(connector.is_err());
    });
}

/// A client of TLS 1.2: no `supported_versions`, and suites of that version only.
fn hello_of_an_older_tls() -> Vec<u8> {
    let mut body = vec![0x03, 0x03];
    body.extend([0x5a; 32]);
    body.push(0);
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    body.extend([1, 0]);
    let extensions = [
        // Groups: x25519, secp256r1. Signatures: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256.
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..],
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
    ]
    .concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend((body.len() as u16).to_be_bytes());
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((handshake.len() as u16).to_be_bytes());
    record.extend(handshake);
    record
}

#[test]
fn an_older_tls_is_refused() {
    run(async {
        let credentials = Credentials::new(terms(1, true)).unwrap();
        let (listener, address) = listen().await;
        let older = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&hello_of_an_older_tls()).await.unwrap();
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
        };
        let (outcome, ()) = tokio::join!(accept(&listener, &credentials), older);
        let reason = outcome.unwrap_err();
        assert!(
            reason.contains("TLS handshake failed") && reason.contains("ersion"),
            "{reason}"
        );
    });
}
