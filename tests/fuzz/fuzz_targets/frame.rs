//! A stream of frames as a peer that has the cluster key could send it.
//!
//! The checksums are made good before decoding, since no fuzzer guesses a CRC: what is looked for is
//! behind them. For compressed data that is the sum of what it decompresses to.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use mirror_core::buffer::Buffer;
use mirror_core::units::REQUEST_BYTES_MAX;
use mirror_core::wire::frame;
use mirror_core::wire::header::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use mirror_core::wire::lz4::{Packer, unpack};
use mirror_core::wire::message::Message;

const PAYLOAD_BYTES: usize = 36;
const PAYLOAD_CHECKSUM: usize = 48;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        // As it came: almost always refused, and never with a panic.
        let _ = Header::decode(header);

        let mut header = *header;
        let mut length = [0; 4];
        length.copy_from_slice(&header[PAYLOAD_BYTES..PAYLOAD_BYTES + 4]);
        let length = (u32::from_le_bytes(length) as usize).min(after.len());
        let (payload, next) = after.split_at(length);
        rest = next;
        seal(&mut header, payload);

        let Ok(mut good) = Header::decode(&header) else {
            continue;
        };
        assert!(
            good.payload_bytes <= PAYLOAD_BYTES_MAX && good.content_bytes() <= PAYLOAD_BYTES_MAX
        );
        let mut content = payload.to_vec();
        if good.compressed {
            assert!(good.kind().carries_data() && good.content_bytes() > good.payload_bytes);
            content = vec![0; good.content_bytes() as usize];
            if frame::decompress(&good, payload, &mut content).is_err() {
                continue;
            }
            seal(&mut header, &content);
            good = Header::decode(&header).expect("only a checksum is another");
        }
        let Ok(envelope) = frame::decode(&good, Buffer::from(content.clone())) else {
            continue;
        };
        check(&envelope.message);
        assert_eq!(good.kind().channel(), envelope.message.channel());
        // What was accepted has one form only, but for the ways to compress it. A hello may be longer than ours.
        if good.compressed {
            assert_eq!(frame::encode_compressed(&envelope, payload.len()), header);
            check_packing(&content);
        } else if !matches!(envelope.message, Message::Hello(_)) {
            let (mut again, data) = frame::encode(&envelope);
            again.extend_from_slice(data.as_deref().unwrap_or_default());
            assert_eq!(again[..HEADER_BYTES], header);
            assert_eq!(&again[HEADER_BYTES..], payload);
        }
    }
});

/// Makes the checksums good for a content.
fn seal(header: &mut [u8; HEADER_BYTES], content: &[u8]) {
    header[PAYLOAD_CHECKSUM..PAYLOAD_CHECKSUM + 4]
        .copy_from_slice(&checksum(content).to_le_bytes());
    let sum = checksum(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
}

thread_local! {
    static PACKER: RefCell<Packer> = RefCell::default();
}

/// What this side makes of the same data comes back, too.
fn check_packing(data: &[u8]) {
    PACKER.with_borrow_mut(|packer| {
        packer.clear();
        if let Some(block) = packer.pack(data) {
            let mut again = vec![0; data.len()];
            assert!(unpack(&packer.blocks()[block], &mut again));
            assert_eq!(again, data);
        }
    });
}

/// What the volume relies on without checking it again.
fn check(message: &Message) {
    match message {
        Message::Write { range, data, .. }
        | Message::ReadReply { range, data, .. }
        | Message::ResyncData { range, data, .. } => {
            assert!(range.within_one_extent() && range.length <= REQUEST_BYTES_MAX);
            assert_eq!(data.len(), range.length as usize);
        }
        Message::Trim { range, .. }
        | Message::WriteZeroes { range, .. }
        | Message::ReadRequest { range, .. }
        | Message::ResyncZeroes { range, .. } => assert!(range.within_one_extent()),
        Message::Compare {
            range,
            block_bytes,
            hashes,
            ..
        } => {
            assert!(range.within_one_extent());
            assert_eq!(hashes.len(), range.length.div_ceil(*block_bytes) as usize);
        }
        Message::BitmapChunk { words, .. } => assert!((1..=496).contains(&words.len())),
        _ => {}
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
