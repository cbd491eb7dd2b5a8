//! Datagrams on the heartbeat paths, of strangers and of nodes that have the key, in any order and at any time; and
//! the report in them.
//!
//! The input is a list of steps. Proofs are made good, since no fuzzer guesses an HMAC.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use agent::membership::{BODY_BYTES_MAX, Beat, BeatKey, Effect, Event, Kind, Membership};
use agent::membership::{MembershipConfig, Run};
use agent::node::report::Report;
use libfuzzer_sys::fuzz_target;
use mirror_core::link::preface::ClusterKey;
use mirror_core::units::Uuid;

const ME: Uuid = Uuid([1; 16]);
const PEER: Uuid = Uuid([2; 16]);
const CLUSTER: Uuid = Uuid([3; 16]);
const MY_RUN: u64 = 4;
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 29_002);

static KEY: LazyLock<ClusterKey> =
    LazyLock::new(|| ClusterKey::new(&[0x5a; 32]).expect("long enough"));

fn key() -> BeatKey {
    BeatKey::new(&KEY)
}

/// Two or three of each, so that they meet.
fn beat(head: [u8; 4], body: &[u8]) -> Beat {
    let [who, runs, sequence, flags] = head;
    Beat {
        cluster: if who & 8 == 0 { CLUSTER } else { PEER },
        node: [PEER, PEER, ME, CLUSTER][usize::from(who & 3)],
        path: flags & 3,
        run: Run(u64::from(runs & 7)),
        heard: Run(u64::from(runs >> 4)),
        heard_sequence: u64::from(flags >> 4),
        sequence: u64::from(sequence),
        kind: [Kind::Alive, Kind::Leaving, Kind::Doubting, Kind::Alive]
            [usize::from(flags >> 2 & 3)],
        body: body[..body.len().min(BODY_BYTES_MAX)].to_vec(),
    }
}

fuzz_target!(|input: &[u8]| {
    let config = MembershipConfig {
        key: key(),
        cluster: CLUSTER,
        node: ME,
        peer: PEER,
        paths: vec!["one".into(), "two".into()],
        interval_ms: 100,
        timeout_ms: 1000,
    };
    let mut member = Membership::new(config, Run(MY_RUN), 0);
    let mut now_ms = 0;
    let mut effects = Vec::new();
    let mut rest = input;
    while let [kind, length, bytes @ ..] = rest {
        let (bytes, next) = bytes.split_at(usize::from(*length).min(bytes.len()));
        rest = next;
        now_ms += u64::from(kind >> 2) * 20;
        let path = usize::from(kind >> 1 & 1);
        let event = match (kind & 1, bytes) {
            (1, [a, b, c, d, body @ ..]) => Event::Received {
                path,
                from: FROM,
                bytes: beat([*a, *b, *c, *d], body).encode(&key()),
            },
            (1, []) => Event::Tick,
            _ => Event::Received {
                path,
                from: FROM,
                bytes: bytes.to_vec(),
            },
        };
        effects.clear();
        member.step(now_ms, &event, &mut effects);
        assert!(effects.len() <= 16, "one datagram brings about little");
        for effect in &effects {
            match effect {
                Effect::Send { bytes, .. } => {
                    Beat::decode(bytes, &key()).expect("what is sent is a beat");
                }
                Effect::Body(body) => read(body),
                _ => {}
            }
        }
    }
    read(input);
});

/// What is read of a report has one form; what a later version adds is left.
fn read(body: &[u8]) {
    let Some(report) = Report::decode(body) else {
        return;
    };
    let again = report.encode();
    assert_eq!(Report::decode(&again), Some(report));
    assert!(again.len() <= BODY_BYTES_MAX);
}
