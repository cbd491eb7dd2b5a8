use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::generation::GenerationSet;
use crate::units::{FullSyncId, Generation, Uuid};
use crate::wire::header::{FRAME_VERSION, HELLO_BYTES, PAYLOAD_BYTES_MAX};
use crate::wire::lz4::Packer;
use crate::wire::message::{Channel, Hello, VERSION_MAX};
use crate::wire::message::{InitialSync, Mode, PeerLoss};

fn whole(envelope: &Envelope) -> (Header, Buffer) {
    let (head, data) = encode(envelope);
    let (header, inline) = head.split_first_chunk().expect("a header");
    let header = Header::decode(header).expect("its own header");
    let payload = data.unwrap_or_else(|| Buffer::from(inline.to_vec()));
    (header, payload)
}

fn round_trip(message: Message) {
    let envelope = Envelope {
        epoch: Epoch(9),
        message,
    };
    let (header, payload) = whole(&envelope);
    assert_eq!(header.kind().channel(), envelope.message.channel());
    assert_eq!(decode(&header, payload), Ok(envelope));
}

fn range(bytes_max: u32) -> impl Strategy<Value = ByteRange> {
    (
        0u64..USABLE_BYTES_MAX / EXTENT_BYTES,
        0u64..EXTENT_BYTES,
        1..=bytes_max,
    )
        .prop_map(|(extent, offset, length)| {
            let room = EXTENT_BYTES - offset;
            ByteRange::new(
                extent * EXTENT_BYTES + offset,
                u64::from(length).min(room) as u32,
            )
        })
}

fn data() -> impl Strategy<Value = (ByteRange, Buffer)> {
    range(2000).prop_map(|range| {
        let bytes: Vec<u8> = (0..range.length).map(|byte| byte as u8).collect();
        (range, Buffer::from(bytes))
    })
}

fn sequence() -> impl Strategy<Value = Sequence> {
    any::<u64>().prop_map(Sequence)
}

fn generations() -> impl Strategy<Value = GenerationSet> {
    any::<[u64; 10]>().prop_map(|[current, base, history @ ..]| GenerationSet {
        current: Generation(current),
        base: Generation(base),
        history: history.map(Generation),
    })
}

prop_compose! {
    fn hello()(
        ids in any::<[[u8; 16]; 6]>(),
        flags in any::<[bool; 7]>(),
        numbers in any::<[u64; 2]>(),
        sizes in [0..=USABLE_BYTES_MAX, 0..=USABLE_BYTES_MAX],
        versions in any::<[u16; 2]>(),
        small in (0u8..3, 12u8..=20, 0u8..3, 0u8..5, 0u8..3, any::<bool>()),
        generations in generations(),
    ) -> Message {
        Message::Hello(Box::new(Hello {
            version_min: versions[0].min(versions[1]),
            version_max: versions[0].max(versions[1]),
            features: numbers[0],
            cluster: Uuid(ids[0]),
            mirror: Uuid(ids[1]),
            node: Uuid(ids[2]),
            incarnation: Uuid(ids[3]),
            peer_incarnation_seen: Uuid(ids[4]),
            mode: [Mode::Sync, Mode::Semisync, Mode::Async][usize::from(small.0)],
            size_bytes: sizes[0],
            usable_bytes: sizes[1],
            logical_block_bytes: if small.5 { 512 } else { 4096 },
            block_shift: small.1,
            config_digest: ids[5],
            generations,
            role: ROLES[usize::from(small.2)],
            disk: DISKS[usize::from(small.3)],
            crashed_primary: flags[0],
            last_primary: flags[1],
            had_copy: flags[2],
            discard_local: flags[3],
            full_resync: flags[4],
            initial_sync: [InitialSync::Full, InitialSync::Sparse, InitialSync::Skip]
                [usize::from(small.4)],
            peer_loss: if flags[0] { PeerLoss::Hold } else { PeerLoss::Continue },
            fast_zero: flags[5],
            first: flags[6],
            full_sync: FullSyncId(numbers[1]),
        }))
    }
}

fn operations() -> impl Strategy<Value = Message> {
    let whole_extent = EXTENT_BYTES as u32;
    prop_oneof![
        (sequence(), sequence(), data(), any::<bool>()).prop_map(
            |(sequence, depends_on, (range, data), fua)| Message::Write {
                sequence,
                depends_on,
                range,
                fua,
                data
            }
        ),
        (sequence(), sequence(), range(whole_extent), any::<bool>()).prop_map(
            |(sequence, depends_on, range, fua)| Message::Trim {
                sequence,
                depends_on,
                range,
                fua
            }
        ),
        (
            sequence(),
            sequence(),
            range(whole_extent),
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(
                |(sequence, depends_on, range, fua, no_hole)| Message::WriteZeroes {
                    sequence,
                    depends_on,
                    range,
                    fua,
                    no_hole
                }
            ),
        sequence().prop_map(|sequence| Message::Flush { sequence }),
        vec(sequence(), 0..=1024).prop_map(|sequences| Message::Ack { sequences }),
        vec(sequence(), 0..=1024).prop_map(|sequences| Message::Received { sequences }),
        sequence().prop_map(|sequence| Message::Refused { sequence }),
        (sequence(), range(REQUEST_BYTES_MAX))
            .prop_map(|(sequence, range)| Message::ReadRequest { sequence, range }),
        (sequence(), data()).prop_map(|(sequence, (range, data))| Message::ReadReply {
            sequence,
            range,
            data
        }),
        sequence().prop_map(|sequence| Message::ReadFailed { sequence }),
    ]
}

fn resync() -> impl Strategy<Value = Message> {
    prop_oneof![
        (0..=USABLE_BYTES_MAX, any::<u64>()).prop_map(|(total_bytes, full_sync)| {
            Message::ResyncStart {
                total_bytes,
                full_sync: FullSyncId(full_sync),
            }
        }),
        Just(Message::ResyncReady),
        (sequence(), data()).prop_map(|(sequence, (range, data))| Message::ResyncData {
            sequence,
            range,
            data
        }),
        (sequence(), range(EXTENT_BYTES as u32), any::<bool>()).prop_map(
            |(sequence, range, no_hole)| Message::ResyncZeroes {
                sequence,
                range,
                no_hole
            }
        ),
        (
            sequence(),
            range(REQUEST_BYTES_MAX),
            12u32..=22,
            any::<bool>(),
            any::<[u8; 16]>()
        )
            .prop_map(|(sequence, range, shift, verify, hash)| Message::Compare {
                sequence,
                range,
                block_bytes: 1 << shift,
                verify,
                hashes: vec![hash; range.length.div_ceil(1 << shift) as usize],
            }),
        (sequence(), vec(any::<u64>(), 1..=16))
            .prop_map(|(sequence, unequal)| Message::CompareResult { sequence, unequal }),
        generations().prop_map(|generations| Message::ResyncDone { generations }),
        Just(Message::ResyncDoneAck),
        any::<bool>().prop_map(|paused| Message::ResyncPaused { paused }),
    ]
}

fn state() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello(),
        (any::<u16>(), any::<u8>())
            .prop_map(|(rule, strategy)| Message::Verdict { rule, strategy }),
        (
            sequence(),
            0..BLOCKS_MAX,
            12u8..=20,
            vec(any::<u64>(), 1..=496)
        )
            .prop_map(
                |(sequence, first_block, block_shift, words)| Message::BitmapChunk {
                    sequence,
                    first_block,
                    block_shift,
                    words
                }
            ),
        (sequence(), vec(any::<u32>(), 0..=1024))
            .prop_map(|(sequence, extents)| Message::DoubtChunk { sequence, extents }),
        Just(Message::BitmapEnd),
        (0usize..3, 0usize..5).prop_map(|(role, disk)| {
            Message::State {
                role: ROLES[role],
                disk: DISKS[disk],
            }
        }),
        (sequence(), any::<u64>()).prop_map(|(sequence, epoch)| Message::PromoteRequest {
            sequence,
            epoch: Epoch(epoch)
        }),
        (sequence(), any::<bool>())
            .prop_map(|(sequence, granted)| Message::PromoteReply { sequence, granted }),
        (sequence(), vec(any::<u32>(), 0..=7000))
            .prop_map(|(sequence, extents)| Message::Detached { sequence, extents }),
        any::<bool>().prop_map(|clean| Message::Goodbye { clean }),
        any::<u64>().prop_map(|stamp_ms| Message::Ping { stamp_ms }),
        any::<u64>().prop_map(|stamp_ms| Message::Pong { stamp_ms }),
        (0..=USABLE_BYTES_MAX).prop_map(|usable_bytes| Message::ResizePropose { usable_bytes }),
        (0..=USABLE_BYTES_MAX).prop_map(|usable_bytes| Message::ResizeOffer { usable_bytes }),
        (0..=USABLE_BYTES_MAX).prop_map(|size_bytes| Message::ResizeCommit { size_bytes }),
        (0..=USABLE_BYTES_MAX).prop_map(|size_bytes| Message::ResizeCommitted { size_bytes }),
    ]
}

proptest! {
    #[test]
    fn operations_round_trip(message in operations()) {
        round_trip(message);
    }

    #[test]
    fn resync_messages_round_trip(message in resync()) {
        round_trip(message);
    }

    #[test]
    fn state_messages_round_trip(message in state()) {
        round_trip(message);
    }

    #[test]
    fn arbitrary_headers_are_refused(bytes in any::<[u8; 32]>(), rest in any::<[u8; 32]>()) {
        let mut header = [0; HEADER_BYTES];
        header[..32].copy_from_slice(&bytes);
        header[32..].copy_from_slice(&rest);
        prop_assert!(Header::decode(&header).is_err());
    }

    /// Well-formed headers with arbitrary fields, as a peer with the key could send them: whatever
    /// is accepted is what the decoder's promise says.
    #[test]
    fn arbitrary_fields_never_panic(
        kind in 0..Kind::ALL.len(), flags in 0u8..8, compressed in any::<bool>(),
        numbers in any::<[u64; 2]>(),
        offset in prop_oneof![any::<u64>(), 0..USABLE_BYTES_MAX], length in any::<u32>(),
        extra in any::<u32>(), payload in vec(any::<u8>(), 0..5000),
    ) {
        let kind = Kind::ALL[kind];
        let mut header = Header {
            epoch: Epoch(1),
            payload_bytes: payload.len() as u32,
            payload_checksum: crc32fast::hash(&payload),
            compressed,
            fields: Fields {
                kind,
                flags,
                sequence: numbers[0],
                offset,
                length,
                depends_on: numbers[1],
                extra,
            },
        };
        if kind.carries_data() && !compressed {
            header.fields.length = header.payload_bytes;
        }
        let Ok(header) = Header::decode(&header.encode()) else { return Ok(()) };
        prop_assert!(header.content_bytes() <= PAYLOAD_BYTES_MAX);
        if header.compressed {
            let mut data = vec![0; header.content_bytes() as usize];
            let _ = decompress(&header, &payload, &mut data);
        }
        let Ok(envelope) = decode(&header, Buffer::from(payload)) else { return Ok(()) };
        if let Message::Write { range, data, .. } = &envelope.message {
            prop_assert!(range.within_one_extent());
            prop_assert_eq!(range.length as usize, data.len());
        }
        let (again, _) = encode(&envelope);
        prop_assert_eq!(again[..HEADER_BYTES].to_vec(), header.encode().to_vec());
    }

    #[test]
    fn a_changed_byte_is_noticed(message in state(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let envelope = Envelope { epoch: Epoch(2), message };
        let (mut head, _) = encode(&envelope);
        let at = at.index(head.len());
        head[at] ^= 1 << bit;
        let (header, inline) = head.split_first_chunk().expect("a header");
        let read = Header::decode(header)
            .and_then(|header| decode(&header, Buffer::from(inline.to_vec())));
        prop_assert!(read.is_err());
    }
}

fn write(range: ByteRange) -> Envelope {
    Envelope {
        epoch: Epoch(1),
        message: Message::Write {
            sequence: Sequence(1),
            depends_on: Sequence(0),
            range,
            fua: false,
            data: Buffer::from(vec![7; range.length as usize]),
        },
    }
}

#[test]
fn data_is_handed_on_without_a_copy() {
    let envelope = write(ByteRange::new(0, 1 << 20));
    let Message::Write { data, .. } = &envelope.message else {
        panic!("a write");
    };
    let (head, sent) = encode(&envelope);
    let sent = sent.expect("data beside the head");
    assert_eq!(head.len(), HEADER_BYTES);
    assert!(std::ptr::eq(&raw const sent[0], &raw const data[0]));
    let (header, payload) = whole(&envelope);
    let received = decode(&header, payload).expect("valid");
    let Message::Write { data: received, .. } = &received.message else {
        panic!("a write");
    };
    assert!(std::ptr::eq(&raw const received[0], &raw const data[0]));
}

/// A frame with its data compressed: header, and payload as it is on the wire.
fn compressed(envelope: &Envelope) -> (Header, Vec<u8>) {
    let (_, data) = encode(envelope);
    let mut packer = Packer::default();
    let block = packer.pack(&data.expect("data")).expect("it shrinks");
    let head = encode_compressed(envelope, block.len());
    let header = Header::decode(&head).expect("its own header");
    (header, packer.blocks()[block].to_vec())
}

#[test]
fn compressed_data_comes_back_as_the_same_message() {
    let envelope = write(ByteRange::new(4096, 1 << 20));
    let (header, payload) = compressed(&envelope);
    assert!(header.compressed && header.payload_bytes as usize == payload.len());
    let mut data = vec![0; header.content_bytes() as usize];
    decompress(&header, &payload, &mut data).expect("its own block");
    assert_eq!(decode(&header, Buffer::from(data)), Ok(envelope));
}

#[test]
fn compressed_data_that_is_not_what_was_sent_is_refused() {
    let (header, payload) = compressed(&write(ByteRange::new(0, 4096)));
    let kind = Kind::Write;
    let mut data = vec![0; 4096];
    let short = decompress(&header, &payload[..payload.len() - 1], &mut data);
    let field = "payload length";
    assert_eq!(short, Err(FrameFault::Invalid { kind, field }));
    let noise: Vec<u8> = (0..payload.len()).map(|at| (at * 37 + 11) as u8).collect();
    let other = decompress(&header, &noise, &mut data);
    assert_eq!(other, Err(FrameFault::Decompression { kind, length: 4096 }));
    // A block that is in order, of other data: the checksum is over the data.
    data.fill(9);
    assert_eq!(
        decode(&header, Buffer::from(data)),
        Err(FrameFault::PayloadChecksum { kind })
    );
}

#[test]
fn lengths_of_compressed_data_are_checked_before_anything_is_read() {
    let (good, _) = compressed(&write(ByteRange::new(0, 4096)));
    let kind = Kind::Write;
    let cases = [
        (4096, 4096),
        (4096, 4095),
        (4096, 0),
        (4096, REQUEST_BYTES_MAX + 1),
        (4096, u32::MAX),
        (REQUEST_BYTES_MAX, REQUEST_BYTES_MAX),
    ];
    for (payload_bytes, length) in cases {
        let mut header = good;
        (header.payload_bytes, header.fields.length) = (payload_bytes, length);
        let fault = FrameFault::Compressed {
            kind,
            payload_bytes,
            length,
        };
        assert_eq!(Header::decode(&header.encode()), Err(fault));
    }
    let mut header = good;
    (header.payload_bytes, header.fields.length) = (REQUEST_BYTES_MAX - 1, REQUEST_BYTES_MAX);
    assert!(Header::decode(&header.encode()).is_ok());
}

#[test]
fn only_data_may_be_compressed() {
    for kind in Kind::ALL {
        let (payload_bytes, _) = kind.payload_limits();
        let mut fields = Fields::of(*kind);
        fields.length = payload_bytes + 1;
        let header = Header {
            epoch: Epoch(0),
            payload_bytes,
            payload_checksum: 0,
            compressed: true,
            fields,
        };
        let found = Header::decode(&header.encode());
        assert_eq!(found.is_ok(), kind.carries_data(), "{kind:?}");
    }
}

#[test]
fn a_range_over_two_extents_is_refused() {
    let (mut header, payload) = whole(&write(ByteRange::new(0, 8192)));
    header.fields.offset = EXTENT_BYTES - 4096;
    assert_eq!(
        decode(&header, payload),
        Err(FrameFault::Invalid {
            kind: Kind::Write,
            field: "range"
        })
    );
}

#[test]
fn a_payload_beyond_its_kind_is_refused_before_it_is_read() {
    for kind in Kind::ALL {
        let (min, max) = kind.payload_limits();
        let header = |payload_bytes| {
            let mut fields = Fields::of(*kind);
            if kind.carries_data() {
                fields.length = payload_bytes;
            }
            Header {
                epoch: Epoch(0),
                payload_bytes,
                payload_checksum: 0,
                compressed: false,
                fields,
            }
            .encode()
        };
        assert!(Header::decode(&header(max)).is_ok());
        assert!(matches!(
            Header::decode(&header(max + 1)),
            Err(FrameFault::PayloadBytes { .. })
        ));
        assert!(min == 0 || Header::decode(&header(min - 1)).is_err());
    }
}

#[test]
fn flags_and_fields_without_a_meaning_are_refused() {
    let (good, payload) = whole(&Envelope {
        epoch: Epoch(1),
        message: Message::Flush {
            sequence: Sequence(4),
        },
    });
    assert!(decode(&good, payload.clone()).is_ok());
    let change: [fn(&mut Fields); 4] = [
        |fields| fields.flags = 1,
        |fields| fields.offset = 1,
        |fields| fields.depends_on = 1,
        |fields| fields.extra = 1,
    ];
    for change in change {
        let mut header = good;
        change(&mut header.fields);
        assert!(decode(&header, payload.clone()).is_err());
    }
}

#[test]
fn a_hello_of_a_later_protocol_names_its_versions() {
    let mut payload = vec![0xff; HELLO_BYTES + 100];
    payload[..2].copy_from_slice(&(VERSION_MAX + 1).to_le_bytes());
    payload[2..4].copy_from_slice(&(VERSION_MAX + 4).to_le_bytes());
    let header = Header {
        epoch: Epoch(0),
        payload_bytes: payload.len() as u32,
        payload_checksum: crc32fast::hash(&payload),
        compressed: false,
        fields: Fields::of(Kind::Hello),
    };
    assert_eq!(
        decode(&header, Buffer::from(payload)),
        Err(FrameFault::Protocol {
            min: VERSION_MAX + 1,
            max: VERSION_MAX + 4
        })
    );
}

#[test]
fn frames_of_another_version_are_named() {
    let (head, _) = encode(&write(ByteRange::new(0, 512)));
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&head);
    header[4..6].copy_from_slice(&(FRAME_VERSION + 1).to_le_bytes());
    let checksum = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(
        Header::decode(&header),
        Err(FrameFault::Version {
            found: FRAME_VERSION + 1
        })
    );
}

#[test]
fn bulk_and_only_bulk_travels_on_the_data_connection() {
    for kind in Kind::ALL {
        assert!(!kind.carries_data() || kind.channel() == Channel::Data);
    }
}
