//! Everyone else: strangers, wrong settings, and peers whose frames are broken.

use std::net::SocketAddr;

use mirror_core::io::link::handshake::{self, Credentials, random_bytes};
use mirror_core::io::link::listen::HALF_OPEN_MAX;
use mirror_core::link::preface::{SessionToken, Terms};
use mirror_core::units::{ByteRange, Sequence};
use mirror_core::wire::frame;
use mirror_core::wire::header::{HEADER_BYTES, Header, Kind};
use mirror_core::wire::lz4::Packer;
use mirror_core::wire::message::{Channel, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::party::{Party, envelope, run, terms};

fn refused_on_both_sides(connector: Terms, acceptor: Terms, here: &str, there: &str) {
    run(async move {
        let (acceptor, address) = Party::acceptor(acceptor);
        let connector = Party::connector(connector, address);
        connector.seen.refused(here).await;
        acceptor.seen.refused(there).await;
    });
}

#[test]
fn another_cluster_key_is_named_on_both_sides() {
    for encrypted in [false, true] {
        let words = "another cluster key";
        refused_on_both_sides(terms(1, encrypted), terms(2, encrypted), words, words);
    }
}

#[test]
fn another_mirror_is_named_on_both_sides() {
    let mut other = terms(1, true);
    other.mirror = mirror_core::units::Uuid::from_name("mirror", "md2");
    let words = "replicates another mirror";
    refused_on_both_sides(terms(1, true), other, words, words);
}

#[test]
fn a_plain_peer_is_refused_where_encryption_is_on() {
    refused_on_both_sides(
        terms(1, false),
        terms(1, true),
        "closed the connection",
        "encryption is on here and off at the peer",
    );
}

#[test]
fn an_encrypting_peer_is_refused_where_encryption_is_off() {
    refused_on_both_sides(
        terms(1, true),
        terms(1, false),
        "",
        "encryption is off here and on at the peer",
    );
}

#[test]
fn garbage_is_refused_and_the_peer_still_gets_through() {
    for encrypted in [false, true] {
        run(async move {
            let (mut acceptor, address) = Party::acceptor(terms(1, encrypted));
            let mut stranger = TcpStream::connect(address).await.unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            acceptor
                .seen
                .refused("does not speak the replication protocol")
                .await;
            assert!(matches!(stranger.read(&mut [0; 64]).await, Ok(0) | Err(_)));
            let mut connector = Party::connector(terms(1, encrypted), address);
            tokio::join!(connector.link(), acceptor.link());
        });
    }
}

#[test]
fn connections_that_never_speak_cannot_keep_the_peer_out() {
    run(async {
        let (mut acceptor, address) = Party::acceptor(terms(1, true));
        let mut silent = Vec::new();
        for _ in 0..HALF_OPEN_MAX * 3 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut connector = Party::connector(terms(1, true), address);
        tokio::join!(connector.link(), acceptor.link());
    });
}

/// Both connections of a plain link, as a peer that has the key but speaks nonsense.
async fn raw_link(address: SocketAddr) -> [TcpStream; 2] {
    let credentials = Credentials::new(terms(1, false)).unwrap();
    let token = SessionToken(random_bytes().unwrap());
    let mut streams = Vec::new();
    for channel in [Channel::Control, Channel::Data] {
        let stream = TcpStream::connect(address).await.unwrap();
        let trusted = handshake::connect(stream, &credentials, channel, token).await;
        streams.push(trusted.unwrap().stream);
    }
    streams.try_into().unwrap()
}

/// Sends bytes on a channel and expects the link to end with `words`, nothing delivered.
fn nonsense(channel: Channel, bytes: Vec<u8>, words: &'static str) {
    run(async move {
        let (mut acceptor, address) = Party::acceptor(terms(1, false));
        let [mut control, mut data] = raw_link(address).await;
        let _link = acceptor.link().await;
        match channel {
            Channel::Control => control.write_all(&bytes).await.unwrap(),
            Channel::Data => data.write_all(&bytes).await.unwrap(),
        }
        if words.contains("closed") {
            drop((control, data));
        }
        let reason = acceptor.seen.down().await;
        assert!(reason.contains(words), "{reason}");
        assert!(acceptor.seen.messages.borrow().is_empty());
    });
}

fn frame_of(message: Message) -> Vec<u8> {
    let (mut bytes, data) = frame::encode(&envelope(message));
    if let Some(data) = data {
        bytes.extend_from_slice(&data);
    }
    bytes
}

fn write() -> Message {
    Message::Write {
        sequence: Sequence(1),
        depends_on: Sequence(0),
        range: ByteRange::new(0, 4096),
        fua: false,
        data: vec![7; 4096].into(),
    }
}

#[test]
fn half_a_frame_is_never_delivered() {
    let bytes = frame_of(write());
    for length in [1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
        nonsense(Channel::Data, bytes[..length].to_vec(), "closed the link");
    }
}

#[test]
fn noise_where_a_frame_must_begin_ends_the_link() {
    nonsense(
        Channel::Control,
        vec![0x5a; 4096],
        "where a frame must begin",
    );
}

#[test]
fn a_damaged_payload_ends_the_link() {
    let mut bytes = frame_of(write());
    bytes[HEADER_BYTES + 100] ^= 1;
    nonsense(Channel::Data, bytes, "payload does not match");
}

/// A write of 4096 bytes, with their block and what the header says of its length.
fn compressed(data: &[u8]) -> (Header, Vec<u8>) {
    let mut packer = Packer::default();
    let block = packer.pack(data).expect("it shrinks");
    let head = frame::encode_compressed(&envelope(write()), block.len());
    let block = packer.blocks()[block].to_vec();
    (Header::decode(&head).unwrap(), block)
}

#[test]
fn a_compressed_frame_of_a_peer_is_taken_unasked() {
    run(async {
        let (mut acceptor, address) = Party::acceptor(terms(1, false));
        let [_control, mut data] = raw_link(address).await;
        let _link = acceptor.link().await;
        let (header, block) = compressed(&[7; 4096]);
        data.write_all(&header.encode()).await.unwrap();
        data.write_all(&block).await.unwrap();
        assert_eq!(acceptor.seen.messages(1).await, [write()]);
    });
}

#[test]
fn a_block_that_is_not_what_its_header_says_ends_the_link() {
    let (header, block) = compressed(&[7; 4096]);
    let sent = |header: Header, block: &[u8]| [&header.encode()[..], block].concat();
    let words = "does not decompress to the";
    for length in [4095, 4097, 1 << 20] {
        let mut header = header;
        header.fields.length = length;
        nonsense(Channel::Data, sent(header, &block), words);
    }
    let noise: Vec<u8> = (0..block.len()).map(|i| (i * 37 + 11) as u8).collect();
    nonsense(Channel::Data, sent(header, &noise), words);
    // In order, and of other data.
    let (_, other) = compressed(&[8; 4096]);
    assert_eq!(other.len(), block.len());
    nonsense(
        Channel::Data,
        sent(header, &other),
        "payload does not match",
    );
}

#[test]
fn lengths_that_compression_cannot_bring_end_the_link_before_the_block_is_read() {
    let (good, _) = compressed(&[7; 4096]);
    for (payload_bytes, length) in [(20, u32::MAX), (20, (1 << 20) + 1), (20, 20), (4096, 512)] {
        let mut header = good;
        (header.payload_bytes, header.fields.length) = (payload_bytes, length);
        nonsense(
            Channel::Data,
            header.encode().to_vec(),
            "bytes of payload compressed from",
        );
    }
    let mut header = good;
    header.fields.kind = Kind::Flush;
    (header.payload_bytes, header.fields.length) = (0, 4096);
    nonsense(
        Channel::Data,
        header.encode().to_vec(),
        "the compression of a Flush frame makes no sense",
    );
}

#[test]
fn an_oversized_frame_ends_the_link_before_its_payload_is_read() {
    let bytes = frame_of(write());
    let mut header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
    header.payload_bytes = 1 << 30;
    nonsense(
        Channel::Data,
        header.encode().to_vec(),
        "bytes of payload, outside",
    );
}

#[test]
fn a_frame_on_the_wrong_connection_ends_the_link() {
    nonsense(
        Channel::Control,
        frame_of(write()),
        "on the Control connection",
    );
}
