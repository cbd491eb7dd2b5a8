//! The first words on a connection of the link, from somebody without the cluster key.
//!
//! The first byte chooses what is made good of them, since no fuzzer guesses a magic or the id of a key. A proof is
//! never made good: whatever else is right, nothing may be believed.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mirror_core::link::preface::{
    ClusterKey, PREFACE_BYTES, PROOF_BYTES, SessionToken, Side, Terms,
};
use mirror_core::units::Uuid;
use mirror_core::wire::message::Channel;

const TOKEN: SessionToken = SessionToken([7; 16]);
const EXPORTER: [u8; 32] = [9; 32];

static KEY: LazyLock<ClusterKey> =
    LazyLock::new(|| ClusterKey::new(&[0x5a; 32]).expect("long enough"));

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let Some((words, rest)) = rest.split_first_chunk::<PREFACE_BYTES>() else {
        return;
    };
    let terms = Terms {
        key: KEY.clone(),
        mirror: Uuid([3; 16]),
        encrypted: choice & 1 != 0,
    };
    let theirs = if choice & 2 == 0 {
        Side::Connector
    } else {
        Side::Acceptor
    };
    let good = *terms.preface(theirs, Channel::Data, TOKEN, [8; 32]).bytes();
    let mut words = *words;
    for (bit, range) in [(4, 0..13), (8, 13..32), (16, 80..96)] {
        if choice & bit != 0 {
            words[range.clone()].copy_from_slice(&good[range]);
        }
    }
    let ours = terms.preface(theirs.other(), Channel::Data, TOKEN, [1; 32]);
    let heard = match theirs {
        Side::Connector => terms.check(theirs, &words),
        Side::Acceptor => terms.check_reply(&ours, &words),
    };
    let Ok(heard) = heard else { return };
    assert_eq!(heard.bytes(), &words);
    if theirs == Side::Acceptor {
        assert_eq!((heard.channel, heard.token), (Channel::Data, TOKEN));
    }
    let Some((proof, _)) = rest.split_first_chunk::<PROOF_BYTES>() else {
        return;
    };
    let (connector, acceptor) = match theirs {
        Side::Connector => (&heard, &ours),
        Side::Acceptor => (&ours, &heard),
    };
    let believed = terms.verify(theirs, &EXPORTER, connector, acceptor, proof);
    assert!(believed.is_err(), "a proof without the key");
});
