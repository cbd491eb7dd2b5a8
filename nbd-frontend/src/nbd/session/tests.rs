use std::collections::HashMap;

use mirror_core::units::EXTENT_BYTES;
use proptest::prelude::*;

use super::slot::PIECES_MAX;
use super::*;
use crate::nbd::rehearsal::{Rehearsal, contents, fuzz_bytes};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

fn export() -> ExportInfo {
    ExportInfo {
        name: "md1".into(),
        description: String::new(),
        size_bytes: SIZE,
        logical_block_bytes: 512,
        fast_zero: true,
        serving: Ok(()),
    }
}

fn agreed(structured: bool) -> Agreed {
    Agreed {
        structured,
        allocation: structured,
    }
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie,
        offset,
        length,
    }
}

/// The requests as a client sends them, payload included.
fn encode(requests: &[RequestHeader]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for header in requests {
        bytes.extend(header.encode());
        if header.command == CMD_WRITE {
            bytes.extend((0..header.length).map(|index| index as u8));
        }
    }
    bytes
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Reply {
    errno: u32,
    /// Data by offset, and how much of it there is.
    data: Vec<(u64, Vec<u8>)>,
    extents: Vec<(u32, u32)>,
    done: bool,
}

/// Reads the stream as a client would; panics where it is not well-formed.
fn decode(output: &[u8], requests: &[RequestHeader]) -> HashMap<u64, Reply> {
    let by_cookie: HashMap<u64, &RequestHeader> = requests.iter().map(|r| (r.cookie, r)).collect();
    let mut replies: HashMap<u64, Reply> = HashMap::new();
    let mut fields = Fields(output);
    while !fields.0.is_empty() {
        let magic = fields.u32().unwrap();
        if magic == SIMPLE_REPLY_MAGIC {
            let errno = fields.u32().unwrap();
            let cookie = fields.u64().unwrap();
            let header = by_cookie[&cookie];
            let reply = replies.entry(cookie).or_default();
            assert!(!reply.done, "two replies to {header:?}");
            reply.done = true;
            reply.errno = errno;
            if header.command == CMD_READ && errno == 0 {
                let data = fields.bytes(header.length as usize).unwrap().to_vec();
                reply.data.push((header.offset, data));
            }
            continue;
        }
        assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
        let flags = fields.u16().unwrap();
        let kind = fields.u16().unwrap();
        let cookie = fields.u64().unwrap();
        let length = fields.u32().unwrap();
        let mut body = Fields(fields.bytes(length as usize).unwrap());
        let reply = replies.entry(cookie).or_default();
        assert!(!reply.done, "chunk after the last one");
        reply.done = flags & REPLY_FLAG_DONE != 0;
        match kind {
            REPLY_OFFSET_DATA => {
                let offset = body.u64().unwrap();
                reply.data.push((offset, body.0.to_vec()));
            }
            REPLY_BLOCK_STATUS => {
                assert_eq!(body.u32(), Some(CONTEXT_ALLOCATION_ID));
                while let Some(length) = body.u32() {
                    reply.extents.push((length, body.u32().unwrap()));
                }
            }
            REPLY_ERROR => {
                reply.errno = body.u32().unwrap();
                assert_ne!(reply.errno, 0);
                let length = body.u16().unwrap();
                assert_eq!(body.0.len(), usize::from(length));
            }
            other => panic!("chunk of type {other}"),
        }
    }
    replies
}

fn check_read(header: &RequestHeader, reply: &Reply) {
    let mut data = reply.data.clone();
    data.sort();
    let mut at = header.offset;
    for (offset, bytes) in data {
        assert_eq!(offset, at, "gap or overlap in the reply to {header:?}");
        for (index, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, contents(offset + index as u64));
        }
        at += bytes.len() as u64;
    }
    assert_eq!(at, header.offset + u64::from(header.length));
}

fn replies_to(structured: bool, requests: &[RequestHeader]) -> HashMap<u64, Reply> {
    let mut rehearsal = Rehearsal::in_transmission(export(), agreed(structured));
    rehearsal.feed(&encode(requests));
    assert_eq!(rehearsal.in_flight(), 0);
    decode(&rehearsal.output, requests)
}

fn check_errno(header: RequestHeader, expected: u32) {
    for structured in [true, false] {
        let replies = replies_to(structured, &[header]);
        assert_eq!(
            replies[&header.cookie].errno, expected,
            "{header:?}, structured {structured}"
        );
    }
}

#[test]
fn each_wrong_request_gets_the_errno_that_says_what_is_wrong() {
    let (invalid, no_space) = (Errno::Invalid as u32, Errno::NoSpace as u32);
    check_errno(request(CMD_READ, 0, 1, SIZE, 512), invalid);
    check_errno(request(CMD_READ, 0, 1, u64::MAX - 511, 512), invalid);
    check_errno(request(CMD_WRITE, 0, 1, SIZE - 512, 1024), no_space);
    check_errno(request(CMD_WRITE_ZEROES, 0, 1, SIZE, 512), no_space);
    check_errno(request(CMD_TRIM, 0, 1, SIZE, 512), invalid);
    check_errno(request(CMD_READ, 0, 1, 1, 512), invalid);
    check_errno(request(CMD_READ, 0, 1, 0, 511), invalid);
    check_errno(request(CMD_READ, 0, 1, 0, 0), invalid);
    check_errno(request(CMD_READ, CMD_FLAG_NO_HOLE, 1, 0, 512), invalid);
    check_errno(request(CMD_READ, 0, 1, 0, PAYLOAD_BYTES_MAX + 512), invalid);
    check_errno(request(CMD_FLUSH, 0, 1, 512, 0), invalid);
    check_errno(request(77, 0, 1, 0, 512), invalid);
    check_errno(request(CMD_CACHE, 0, 1, 0, 512), 0);
    check_errno(request(CMD_FLUSH, 0, 1, 0, 0), 0);
    check_errno(request(CMD_WRITE, CMD_FLAG_FUA, 1, 0, 512), 0);
}

#[test]
fn one_chunk_reads_are_limited_and_come_in_one_chunk() {
    let too_large = request(CMD_READ, CMD_FLAG_DF, 1, 0, REQUEST_BYTES_MAX + 512);
    let replies = replies_to(true, &[too_large]);
    assert_eq!(replies[&1].errno, Errno::Overflow as u32);
    // Over the border of an extent: two pieces, one chunk.
    let straddling = request(CMD_READ, CMD_FLAG_DF, 2, 4 * MIB - 65536, 131_072);
    let replies = replies_to(true, &[straddling]);
    assert_eq!(replies[&2].data.len(), 1);
    check_read(&straddling, &replies[&2]);
}

#[test]
fn pieces_stay_inside_extents_and_under_the_request_limit() {
    let requests = [
        request(CMD_WRITE, CMD_FLAG_FUA, 1, 3 * MIB + 512, 6 << 20),
        request(CMD_TRIM, 0, 2, 512, (20 << 20) + 1024),
        request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 3, MIB, 4 << 20),
    ];
    let mut rehearsal = Rehearsal::in_transmission(export(), agreed(true));
    rehearsal.feed(&encode(&requests));
    let mut covered = [0; 3];
    for (range, operation) in &rehearsal.changes {
        assert!(range.within_one_extent());
        let (index, most) = match operation {
            Operation::Write { fua: true, data } => {
                assert_eq!(data.len(), range.length as usize);
                (0, REQUEST_BYTES_MAX)
            }
            Operation::Trim { fua: false } => (1, EXTENT_BYTES as u32),
            Operation::WriteZeroes { no_hole: true, .. } => (2, EXTENT_BYTES as u32),
            other => panic!("unexpected {other:?}"),
        };
        assert!(range.length <= most);
        covered[index] += range.length;
    }
    assert_eq!(covered, requests.map(|request| request.length));
}

#[test]
fn a_large_trim_has_few_pieces_in_flight() {
    let mut rehearsal = Rehearsal::in_transmission(export(), agreed(true));
    rehearsal.keep_answers = true;
    let size = SIZE as u32;
    rehearsal.feed(&request(CMD_TRIM, 0, 1, 0, size).encode());
    assert_eq!(rehearsal.outstanding.len(), 6);
    let mut large = export();
    large.size_bytes = 1 << 40;
    let mut rehearsal = Rehearsal::in_transmission(large, agreed(true));
    rehearsal.keep_answers = true;
    let whole = !511u32;
    rehearsal.feed(&request(CMD_TRIM, 0, 1, 0, whole).encode());
    assert_eq!(rehearsal.outstanding.len(), PIECES_MAX as usize);
    let mut pieces = 0;
    while !rehearsal.outstanding.is_empty() {
        pieces += 1;
        rehearsal.answer(0, true);
    }
    assert_eq!(pieces, 1024);
    assert_eq!(rehearsal.output.len(), 16);
}

#[test]
fn requests_over_the_limit_wait_in_the_socket() {
    let mut rehearsal = Rehearsal::in_transmission(export(), agreed(false));
    rehearsal.keep_answers = true;
    let requests: Vec<_> = (0..200)
        .map(|cookie| request(CMD_FLUSH, 0, cookie, 0, 0))
        .collect();
    rehearsal.feed(&encode(&requests));
    assert_eq!(rehearsal.in_flight(), REQUESTS_MAX);
    while !rehearsal.outstanding.is_empty() {
        rehearsal.answer(0, true);
    }
    assert_eq!(decode(&rehearsal.output, &requests).len(), 200);
}

#[test]
fn reads_stay_under_their_budget() {
    let mut session = Session::new(agreed(true), &export(), 2 << 20);
    let header = request(CMD_READ, 0, 1, 0, 8 << 20).encode();
    session.parse(&header).unwrap();
    let mut handed_out = Vec::new();
    while let Some(Work::Submit(tag, _)) = session.next_work() {
        handed_out.push(tag);
    }
    assert_eq!(handed_out.len(), 2);
    for tag in handed_out {
        session.complete(tag, Answer::Data(vec![0; 1 << 20].into()));
    }
    // Still not sent.
    assert!(session.next_work().is_none());
    let mut output = Output::default();
    session.take_output(&mut output);
    session.sent(output.payload_bytes());
    assert!(session.next_work().is_some());
}

#[test]
fn after_refusal_every_request_gets_eshutdown() {
    let mut session = Session::new(agreed(false), &export(), 2 << 20);
    session.refuse_new();
    let requests = [
        request(CMD_WRITE, 0, 1, 0, 512),
        request(CMD_READ, 0, 2, 0, 512),
    ];
    let input = encode(&requests);
    let mut at = 0;
    while at < input.len() {
        at += session.parse(&input[at..]).unwrap().0;
    }
    let mut output = Output::default();
    session.take_output(&mut output);
    let bytes: Vec<u8> = output.pieces().flat_map(|p| p.bytes().to_vec()).collect();
    let replies = decode(&bytes, &requests);
    assert_eq!(replies[&1].errno, Errno::Shutdown as u32);
    assert_eq!(replies[&2].errno, Errno::Shutdown as u32);
}

#[test]
fn an_abandoned_session_takes_late_answers_quietly() {
    let mut session = Session::new(agreed(true), &export(), 8 << 20);
    session
        .parse(&request(CMD_READ, 0, 1, 0, 4 << 20).encode())
        .unwrap();
    session
        .parse(&request(CMD_TRIM, 0, 2, 0, 24 << 20).encode())
        .unwrap();
    let mut tags = Vec::new();
    while let Some(Work::Submit(tag, operation)) = session.next_work() {
        tags.push((tag, operation));
    }
    session.abandon();
    session.check_invariants();
    for (tag, operation) in tags {
        let answer = match operation {
            Operation::Read => Answer::Data(vec![0; tag.range().length as usize].into()),
            _ => Answer::Done,
        };
        session.complete(tag, answer);
    }
    assert_eq!(session.in_flight(), 0);
    assert!(!session.has_output());
    assert!(session.next_work().is_none());
}

/// Requests of every kind, most of them valid.
fn any_request() -> impl Strategy<Value = RequestHeader> {
    let command = prop_oneof![
        4 => Just(CMD_READ),
        4 => Just(CMD_WRITE),
        1 => Just(CMD_FLUSH),
        1 => Just(CMD_TRIM),
        1 => Just(CMD_CACHE),
        1 => Just(CMD_WRITE_ZEROES),
        1 => Just(CMD_BLOCK_STATUS),
        1 => Just(50u16),
    ];
    let flags =
        prop_oneof![8 => Just(0), 2 => Just(CMD_FLAG_FUA), 2 => Just(CMD_FLAG_DF), 1 => 0u16..64];
    let length = prop_oneof![8 => 1u32..32, 3 => 32u32..4096, 1 => 4096u32..16384];
    let unit = prop_oneof![15 => Just(512u64), 1 => Just(100u64)];
    (command, flags, 0..SIZE / 512, length, unit).prop_map(
        |(command, flags, block, length, unit)| {
            let (offset, length) = match command {
                CMD_FLUSH => (0, 0),
                _ => (block * unit, length * unit as u32),
            };
            request(command, flags, 0, offset, length)
        },
    )
}

fn requests() -> impl Strategy<Value = Vec<RequestHeader>> {
    prop::collection::vec(any_request(), 1..24).prop_map(|mut requests| {
        for (cookie, header) in requests.iter_mut().enumerate() {
            header.cookie = cookie as u64;
        }
        requests
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn every_request_is_answered_once_and_right_in_any_order_of_answers(
        requests in requests(),
        structured: bool,
        parts in prop::collection::vec(1usize..100_000, 1..8),
        order in prop::collection::vec((any::<usize>(), prop::bool::weighted(0.97)), 1..64),
    ) {
        let mut rehearsal = Rehearsal::in_transmission(export(), agreed(structured));
        rehearsal.keep_answers = true;
        let mut input = &encode(&requests)[..];
        let mut parts = parts.iter().cycle();
        let mut order = order.iter().cycle();
        let mut failures = 0;
        while !input.is_empty() || !rehearsal.outstanding.is_empty() {
            let length = input.len().min(*parts.next().unwrap());
            rehearsal.feed(&input[..length]);
            input = &input[length..];
            let (index, succeeds) = *order.next().unwrap();
            if !rehearsal.outstanding.is_empty() {
                failures += usize::from(!succeeds);
                rehearsal.answer(index, succeeds);
            }
            if rehearsal.has_ended() {
                // Only a reply in one run that failed half-way may do that.
                prop_assert!(failures > 0);
                return Ok(());
            }
        }
        prop_assert_eq!(rehearsal.in_flight(), 0);
        let replies = decode(&rehearsal.output, &requests);
        prop_assert_eq!(replies.len(), requests.len());
        for header in &requests {
            let reply = &replies[&header.cookie];
            prop_assert!(reply.done);
            if header.command == CMD_READ && reply.errno == 0 {
                check_read(header, reply);
            }
        }
    }

    /// Their order may differ: what comes while a long read goes out is answered between its chunks.
    #[test]
    fn any_division_of_the_input_gives_the_same_replies(
        requests in requests(),
        structured: bool,
        parts in prop::collection::vec(1usize..5000, 1..8),
    ) {
        let input = encode(&requests);
        let mut whole = Rehearsal::in_transmission(export(), agreed(structured));
        whole.feed(&input);
        let mut divided = Rehearsal::in_transmission(export(), agreed(structured));
        let mut rest = &input[..];
        for length in parts.iter().cycle() {
            let length = rest.len().min(*length);
            divided.feed(&rest[..length]);
            rest = &rest[length..];
            if rest.is_empty() {
                break;
            }
        }
        let replies = |output: &[u8]| {
            let mut replies = decode(output, &requests);
            for reply in replies.values_mut() {
                reply.data.sort();
            }
            replies
        };
        prop_assert!(replies(&whole.output) == replies(&divided.output));
        prop_assert_eq!(format!("{:?}", whole.changes), format!("{:?}", divided.changes));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_bytes(&bytes);
    }

    #[test]
    fn arbitrary_headers_do_no_harm(
        choice: u8,
        headers in prop::collection::vec((0u16..64, 0u16..9, any::<u64>(), 0..2 * SIZE, any::<u32>()), 0..50),
    ) {
        let mut bytes = vec![choice & !8];
        for (flags, command, cookie, offset, length) in headers {
            let length = if command == CMD_WRITE { length % 3000 } else { length };
            bytes.extend(request(command, flags, cookie, offset, length).encode());
        }
        fuzz_bytes(&bytes);
    }
}
