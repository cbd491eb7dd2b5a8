//! One frame of each kind.

use std::collections::BTreeSet;

use mirror_core::buffer::Buffer;
use mirror_core::generation::GenerationSet;
use mirror_core::units::{ByteRange, Epoch, FullSyncId, Generation, Sequence, Uuid};
use mirror_core::wire::frame;
use mirror_core::wire::header::{Header, Kind};
use mirror_core::wire::message::{
    DiskState, Envelope, Hello, InitialSync, Message, Mode, PeerLoss, Role,
};

use crate::{check, check_complete};

const SEQUENCE: Sequence = Sequence(0x51);
const DEPENDS_ON: Sequence = Sequence(0x50);
const RANGE: ByteRange = ByteRange::new(0x0040_1000, 16);

fn data() -> Buffer {
    Buffer::from((0x10..0x20).collect::<Vec<u8>>())
}

fn generations() -> GenerationSet {
    GenerationSet {
        current: Generation(0xc0),
        base: Generation(0xb0),
        history: [0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8].map(Generation),
    }
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 1,
        cluster: Uuid([0x11; 16]),
        mirror: Uuid([0x22; 16]),
        node: Uuid([0x33; 16]),
        incarnation: Uuid([0x44; 16]),
        peer_incarnation_seen: Uuid([0x55; 16]),
        mode: Mode::Semisync,
        size_bytes: 0x4000_0000,
        usable_bytes: 0x4000_1000,
        logical_block_bytes: 4096,
        block_shift: 12,
        config_digest: [0x66; 16],
        generations: generations(),
        role: Role::Secondary,
        disk: DiskState::UpToDate,
        crashed_primary: true,
        last_primary: false,
        had_copy: true,
        discard_local: false,
        full_resync: true,
        initial_sync: InitialSync::Sparse,
        peer_loss: PeerLoss::Continue,
        first: true,
        fast_zero: false,
        full_sync: FullSyncId(0xd0),
    }
}

fn operation(kind: Kind) -> Option<Message> {
    let (sequence, depends_on, range) = (SEQUENCE, DEPENDS_ON, RANGE);
    Some(match kind {
        Kind::Write => Message::Write {
            sequence,
            depends_on,
            range,
            fua: true,
            data: data(),
        },
        Kind::Trim => Message::Trim {
            sequence,
            depends_on,
            range,
            fua: true,
        },
        Kind::WriteZeroes => Message::WriteZeroes {
            sequence,
            depends_on,
            range,
            fua: false,
            no_hole: true,
        },
        Kind::Flush => Message::Flush { sequence },
        Kind::Ack => Message::Ack {
            sequences: vec![SEQUENCE, Sequence(0x52)],
        },
        Kind::Received => Message::Received {
            sequences: vec![SEQUENCE, Sequence(0x53)],
        },
        Kind::Refused => Message::Refused { sequence },
        Kind::ReadRequest => Message::ReadRequest { sequence, range },
        Kind::ReadReply => Message::ReadReply {
            sequence,
            range,
            data: data(),
        },
        Kind::ReadFailed => Message::ReadFailed { sequence },
        Kind::ResyncData => Message::ResyncData {
            sequence,
            range,
            data: data(),
        },
        Kind::ResyncZeroes => Message::ResyncZeroes {
            sequence,
            range,
            no_hole: true,
        },
        Kind::Compare => Message::Compare {
            sequence,
            range: ByteRange::new(0x0040_0000, 8192),
            block_bytes: 4096,
            verify: true,
            hashes: vec![[0x71; 16], [0x72; 16]],
        },
        Kind::CompareResult => Message::CompareResult {
            sequence,
            unequal: vec![0b10],
        },
        _ => return None,
    })
}

fn message(kind: Kind) -> Message {
    if let Some(message) = operation(kind) {
        return message;
    }
    let size_bytes = 0x4000_0000;
    let usable_bytes = 0x4000_1000;
    let stamp_ms = 0x99;
    match kind {
        Kind::Hello => Message::Hello(Box::new(hello())),
        Kind::Verdict => Message::Verdict {
            rule: 0x0102,
            strategy: 3,
        },
        Kind::BitmapChunk => Message::BitmapChunk {
            sequence: SEQUENCE,
            first_block: 31_744,
            block_shift: 12,
            words: vec![1, 0x8000_0000_0000_0000],
        },
        Kind::DoubtChunk => Message::DoubtChunk {
            sequence: SEQUENCE,
            extents: vec![3, 5],
        },
        Kind::BitmapEnd => Message::BitmapEnd,
        Kind::ResyncStart => Message::ResyncStart {
            total_bytes: size_bytes,
            full_sync: FullSyncId(0xf0),
        },
        Kind::ResyncReady => Message::ResyncReady,
        Kind::ResyncDone => Message::ResyncDone {
            generations: generations(),
        },
        Kind::ResyncDoneAck => Message::ResyncDoneAck,
        Kind::ResyncPaused => Message::ResyncPaused { paused: true },
        Kind::State => Message::State {
            role: Role::Primary,
            disk: DiskState::Failed,
        },
        Kind::PromoteRequest => Message::PromoteRequest {
            sequence: SEQUENCE,
            epoch: Epoch(0xe5),
        },
        Kind::PromoteReply => Message::PromoteReply {
            sequence: SEQUENCE,
            granted: true,
        },
        Kind::Detached => Message::Detached {
            sequence: SEQUENCE,
            extents: vec![7, 9],
        },
        Kind::Goodbye => Message::Goodbye { clean: true },
        Kind::Ping => Message::Ping { stamp_ms },
        Kind::Pong => Message::Pong { stamp_ms },
        Kind::Confirm => Message::Confirm { number: 0x77 },
        Kind::Confirmed => Message::Confirmed { number: 0x77 },
        Kind::ResizePropose => Message::ResizePropose { usable_bytes },
        Kind::ResizeOffer => Message::ResizeOffer { usable_bytes },
        Kind::ResizeCommit => Message::ResizeCommit { size_bytes },
        Kind::ResizeCommitted => Message::ResizeCommitted { size_bytes },
        kind => panic!("{kind:?} has no golden message"),
    }
}

#[test]
fn every_kind_of_frame_keeps_its_bytes() {
    let mut names = BTreeSet::new();
    for kind in Kind::ALL {
        let envelope = Envelope {
            epoch: Epoch(0xe0),
            message: message(*kind),
        };
        let (mut bytes, data) = frame::encode(&envelope);
        bytes.extend_from_slice(data.as_deref().unwrap_or_default());
        let name = format!("{:03}-{kind:?}.bin", kind.code());
        let pinned = check("frames", &name, &bytes);
        names.insert(name);

        let (header, payload) = split(&pinned);
        assert_eq!(header.kind(), *kind);
        assert_eq!(
            frame::decode(&header, Buffer::from(payload.to_vec())),
            Ok(envelope)
        );
    }
    check_complete("frames", &names);
}

fn split(frame: &[u8]) -> (Header, &[u8]) {
    let (header, payload) = frame.split_first_chunk().expect("a header");
    (Header::decode(header).expect("a good header"), payload)
}

/// The block is made by hand: another release of a compressor may find other matches in the same data.
#[test]
fn a_compressed_frame_keeps_its_bytes() {
    // A literal, a match of 15 + 4 + 236 from one byte back, and five literals to end with.
    let block: &[u8] = &[0x1f, 0xaa, 0x01, 0x00, 236, 0x50, 1, 2, 3, 4, 5];
    let mut data = vec![0xaa; 256];
    data.extend([1, 2, 3, 4, 5]);
    let envelope = Envelope {
        epoch: Epoch(0xe0),
        message: Message::Write {
            sequence: SEQUENCE,
            depends_on: DEPENDS_ON,
            range: ByteRange::new(0x0040_1000, data.len() as u32),
            fua: true,
            data: data.into(),
        },
    };
    let mut bytes = frame::encode_compressed(&envelope, block.len()).to_vec();
    bytes.extend_from_slice(block);
    let name = "016-Write-compressed.bin";
    let pinned = check("compressed-frames", name, &bytes);
    check_complete("compressed-frames", &BTreeSet::from([name.to_owned()]));

    let (header, payload) = split(&pinned);
    let mut data = vec![0; header.content_bytes() as usize];
    assert_eq!(frame::decompress(&header, payload, &mut data), Ok(()));
    assert_eq!(frame::decode(&header, Buffer::from(data)), Ok(envelope));
}
