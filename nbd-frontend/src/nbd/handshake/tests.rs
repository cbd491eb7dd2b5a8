use proptest::prelude::*;

use super::*;
use crate::nbd::rehearsal::Rehearsal;

fn export() -> ExportInfo {
    ExportInfo {
        name: "md1".into(),
        description: "mirror".into(),
        size_bytes: 1 << 30,
        logical_block_bytes: 512,
        fast_zero: true,
        serving: Ok(()),
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Data of `OPT_GO` and `OPT_INFO`.
fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((wanted.len() as u16).to_be_bytes());
    bytes.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    bytes
}

/// Data of the options about contexts.
fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((queries.len() as u32).to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query)));
    bytes
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    option: u32,
    kind: u32,
    data: Vec<u8>,
}

fn replies(output: &[u8]) -> Vec<Reply> {
    let mut fields = Fields(output);
    let mut replies = Vec::new();
    while let Some(magic) = fields.u64() {
        assert_eq!(magic, OPTION_REPLY_MAGIC);
        replies.push(Reply {
            option: fields.u32().unwrap(),
            kind: fields.u32().unwrap(),
            data: fields.string().unwrap().to_vec(),
        });
    }
    assert!(fields.0.is_empty());
    replies
}

/// A handshake of a client with these flags that has just begun TLS.
fn inside_tls(flags: u32) -> Handshake {
    let mut output = Vec::new();
    let mut handshake = Handshake::new(Tls::Required, &mut output);
    let input = [
        flags.to_be_bytes().to_vec(),
        option(OPT_STARTTLS, b""),
        option(OPT_ABORT, b""),
    ]
    .concat();
    let (taken, progress) = handshake.receive(&input, &export(), &mut output).unwrap();
    assert_eq!(progress, Progress::StartTls);
    assert_eq!(taken, 20, "nothing behind the request is looked at");
    handshake.restart_inside_tls()
}

/// Runs options on a fresh handshake.
fn negotiate(
    tls: Tls,
    export: &ExportInfo,
    options: &[Vec<u8>],
) -> (Vec<Reply>, Result<Progress, HandshakeError>) {
    let mut output = Vec::new();
    let (mut handshake, mut input) = match tls {
        Tls::Established => (inside_tls(3), Vec::new()),
        Tls::Unavailable | Tls::Required => {
            let handshake = Handshake::new(tls, &mut output);
            assert_eq!(output.len(), 18);
            (handshake, 3u32.to_be_bytes().to_vec())
        }
    };
    output.clear();
    input.extend(options.concat());
    let result = handshake.receive(&input, export, &mut output);
    let progress = result.map(|(taken, progress)| {
        assert_eq!(taken, input.len());
        progress
    });
    (replies(&output), progress)
}

fn kinds(replies: &[Reply]) -> Vec<u32> {
    replies.iter().map(|reply| reply.kind).collect()
}

#[test]
fn go_starts_transmission_with_what_was_negotiated() {
    let options = [
        option(OPT_STRUCTURED_REPLY, b""),
        option(
            OPT_SET_META_CONTEXT,
            &context_data("md1", &[CONTEXT_ALLOCATION, "x:y"]),
        ),
        option(
            OPT_GO,
            &info_data("md1", &[INFO_BLOCK_SIZE, INFO_NAME, INFO_DESCRIPTION]),
        ),
    ];
    let (replies, progress) = negotiate(Tls::Unavailable, &export(), &options);
    let agreed = Agreed {
        structured: true,
        allocation: true,
    };
    assert_eq!(progress, Ok(Progress::Transmission(agreed)));
    assert_eq!(
        kinds(&replies),
        [
            REP_ACK,
            REP_META_CONTEXT,
            REP_ACK,
            REP_INFO,
            REP_INFO,
            REP_INFO,
            REP_INFO,
            REP_ACK
        ]
    );
    let sizes = &replies[6].data;
    assert_eq!(sizes[..2], INFO_BLOCK_SIZE.to_be_bytes());
    assert_eq!(sizes[2..6], 512u32.to_be_bytes());
    assert_eq!(sizes[10..14], PAYLOAD_BYTES_MAX.to_be_bytes());
}

#[test]
fn a_context_of_another_export_name_does_not_count() {
    let options = [
        option(OPT_STRUCTURED_REPLY, b""),
        option(
            OPT_SET_META_CONTEXT,
            &context_data("", &[CONTEXT_ALLOCATION]),
        ),
        option(OPT_GO, &info_data("md1", &[])),
    ];
    let (_, progress) = negotiate(Tls::Unavailable, &export(), &options);
    let agreed = Agreed {
        structured: true,
        allocation: false,
    };
    assert_eq!(progress, Ok(Progress::Transmission(agreed)));
}

#[test]
fn contexts_need_structured_replies() {
    let options = [option(
        OPT_SET_META_CONTEXT,
        &context_data("md1", &[CONTEXT_ALLOCATION]),
    )];
    let (replies, _) = negotiate(Tls::Unavailable, &export(), &options);
    assert_eq!(kinds(&replies), [REP_ERR_INVALID]);
}

#[test]
fn contexts_are_listed_for_nothing_and_for_their_namespace() {
    for (queries, count) in [(&[][..], 1), (&["base:"], 1), (&["qemu:"], 0)] {
        let options = [
            option(OPT_STRUCTURED_REPLY, b""),
            option(OPT_LIST_META_CONTEXT, &context_data("md1", queries)),
        ];
        let (replies, _) = negotiate(Tls::Unavailable, &export(), &options);
        let listed = replies.iter().filter(|r| r.kind == REP_META_CONTEXT);
        assert_eq!(listed.count(), count, "{queries:?}");
    }
}

#[test]
fn an_unserved_export_is_listed_and_refused_with_the_reason() {
    let mut export = export();
    export.serving = Err("server2 is primary".into());
    let options = [
        option(OPT_LIST, b""),
        option(OPT_INFO, &info_data("md1", &[])),
        option(OPT_GO, &info_data("md1", &[])),
    ];
    let (replies, progress) = negotiate(Tls::Unavailable, &export, &options);
    assert_eq!(progress, Ok(Progress::More));
    assert_eq!(
        kinds(&replies),
        [REP_SERVER, REP_ACK, REP_ERR_POLICY, REP_ERR_POLICY]
    );
    let details = String::from_utf8_lossy(&replies[0].data).into_owned();
    assert!(details.contains("server2 is primary"));
    assert_eq!(replies[3].data, b"server2 is primary");
    let (_, progress) = negotiate(
        Tls::Unavailable,
        &export,
        &[option(OPT_EXPORT_NAME, b"md1")],
    );
    assert_eq!(progress, Err(HandshakeError::ExportRefused));
}

#[test]
fn another_export_name_is_unknown() {
    let options = [option(OPT_GO, &info_data("md2", &[]))];
    let (replies, _) = negotiate(Tls::Unavailable, &export(), &options);
    assert_eq!(kinds(&replies), [REP_ERR_UNKNOWN]);
}

#[test]
fn malformed_unknown_and_oversized_options_are_refused_and_survived() {
    let mut lying = string("md1");
    lying.extend(u16::MAX.to_be_bytes());
    let mut many = string("md1");
    many.extend(u32::MAX.to_be_bytes());
    let options = [
        option(OPT_GO, &lying),
        option(OPT_GO, &[0xff; 6]),
        option(OPT_LIST, b"x"),
        option(OPT_SET_META_CONTEXT, &many),
        option(4711, b""),
        option(OPT_GO, &vec![0; OPTION_BYTES_MAX as usize + 1]),
        option(OPT_ABORT, b""),
    ];
    let (replies, progress) = negotiate(Tls::Unavailable, &export(), &options);
    assert_eq!(progress, Ok(Progress::Aborted));
    assert_eq!(
        kinds(&replies),
        [
            REP_ERR_INVALID,
            REP_ERR_INVALID,
            REP_ERR_INVALID,
            REP_ERR_INVALID,
            REP_ERR_UNSUP,
            REP_ERR_TOO_BIG,
            REP_ACK
        ]
    );
}

#[test]
fn too_many_or_too_large_options_end_the_handshake() {
    let many = vec![option(4711, b""); OPTIONS_MAX as usize + 1];
    let (_, progress) = negotiate(Tls::Unavailable, &export(), &many);
    assert_eq!(progress, Err(HandshakeError::TooManyOptions));
    let mut header = option(4711, b"");
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    let (_, progress) = negotiate(Tls::Unavailable, &export(), &[header]);
    assert_eq!(progress, Err(HandshakeError::OptionTooLarge(u32::MAX)));
}

#[test]
fn tls_is_refused_where_absent_and_inside_itself() {
    let start = [option(OPT_STARTTLS, b"")];
    let (replies, _) = negotiate(Tls::Unavailable, &export(), &start);
    assert_eq!(kinds(&replies), [REP_ERR_POLICY]);
    let (replies, _) = negotiate(Tls::Established, &export(), &start);
    assert_eq!(kinds(&replies), [REP_ERR_INVALID]);
}

#[test]
fn where_tls_is_required_nothing_else_comes_before_it() {
    let large = vec![0; OPTION_BYTES_MAX as usize + 1];
    for number in (2..12).chain([4711]) {
        let exempt = [OPT_ABORT, OPT_STARTTLS].contains(&number);
        for data in [&b""[..], &info_data("md1", &[]), &large] {
            if exempt {
                continue;
            }
            let options = [option(number, data), option(OPT_STARTTLS, b"")];
            let (replies, progress) = negotiate(Tls::Required, &export(), &options);
            assert_eq!(kinds(&replies), [REP_ERR_TLS_REQD, REP_ACK], "{number}");
            let reason = String::from_utf8_lossy(&replies[0].data).into_owned();
            assert!(reason.contains("nbds://"), "{reason}");
            assert_eq!(progress, Ok(Progress::StartTls));
        }
    }
    let (replies, progress) = negotiate(Tls::Required, &export(), &[option(OPT_ABORT, b"")]);
    assert_eq!(kinds(&replies), [REP_ACK]);
    assert_eq!(progress, Ok(Progress::Aborted));
    let (replies, _) = negotiate(Tls::Required, &export(), &[option(OPT_STARTTLS, b"x")]);
    assert_eq!(kinds(&replies), [REP_ERR_INVALID]);
    let old = [option(OPT_EXPORT_NAME, b"md1")];
    let (replies, progress) = negotiate(Tls::Required, &export(), &old);
    assert!(replies.is_empty());
    assert_eq!(progress, Err(HandshakeError::TlsRequired));
}

#[test]
fn inside_tls_nothing_is_agreed_on_yet_but_the_flags() {
    let (_, progress) = negotiate(
        Tls::Established,
        &export(),
        &[option(OPT_GO, &info_data("md1", &[]))],
    );
    let agreed = Agreed {
        structured: false,
        allocation: false,
    };
    assert_eq!(progress, Ok(Progress::Transmission(agreed)));
    for (flags, length) in [(1, 134), (3, 10)] {
        let mut output = Vec::new();
        let start = option(OPT_EXPORT_NAME, b"md1");
        inside_tls(flags)
            .receive(&start, &export(), &mut output)
            .expect("transmission");
        assert_eq!(output.len(), length);
    }
}

#[test]
fn options_count_on_inside_tls() {
    let mut output = Vec::new();
    let many = vec![option(4711, b""); OPTIONS_MAX as usize].concat();
    let result = inside_tls(3).receive(&many, &export(), &mut output);
    assert_eq!(result, Err(HandshakeError::TooManyOptions));
}

#[test]
fn the_oldest_start_pads_unless_told_not_to() {
    for (flags, length) in [(1u32, 134), (3, 10)] {
        let mut output = Vec::new();
        let mut handshake = Handshake::new(Tls::Unavailable, &mut output);
        output.clear();
        let mut input = flags.to_be_bytes().to_vec();
        input.extend(option(OPT_EXPORT_NAME, b"md1"));
        handshake
            .receive(&input, &export(), &mut output)
            .expect("transmission");
        assert_eq!(output.len(), length);
    }
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("md1"), Just(""), Just("other")];
    let info = (
        prop_oneof![Just(OPT_INFO), Just(OPT_GO)],
        name.clone(),
        prop::collection::vec(0u16..5, 0..4),
    )
        .prop_map(|(number, name, wanted)| option(number, &info_data(name, &wanted)));
    let context = (9u32..11, name)
        .prop_map(|(number, name)| option(number, &context_data(name, &[CONTEXT_ALLOCATION])));
    let other = (0u32..12, prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(number, data)| option(number, &data));
    prop_oneof![
        info,
        context,
        other,
        Just(option(OPT_STRUCTURED_REPLY, b""))
    ]
}

proptest! {
    #[test]
    fn any_division_of_the_input_gives_the_same_handshake(
        options in prop::collection::vec(any_option(), 0..12),
        parts in prop::collection::vec(1usize..60, 1..8),
    ) {
        let input = [3u32.to_be_bytes().to_vec(), options.concat()].concat();
        let mut whole = Rehearsal::new(export());
        whole.feed(&input);
        let mut divided = Rehearsal::new(export());
        let mut rest = &input[..];
        for length in parts.iter().cycle() {
            let length = rest.len().min(*length);
            divided.feed(&rest[..length]);
            rest = &rest[length..];
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(whole.output, divided.output);
    }
}
