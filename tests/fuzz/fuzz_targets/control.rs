//! Bodies of both control APIs, in both directions: what callers ask and what daemons answer.

#![no_main]

use agent::control::{AlertPage, ClusterStatus};
use libfuzzer_sys::fuzz_target;
use mirror_core::control::{
    CommandReply, CommandRequest, ConfirmWanted, EventPage, Explanation, NodeStatus, Refusal,
};
use mirror_core::volume::event::Command;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, body)) = bytes.split_first() else {
        return;
    };
    match choice % 10 {
        0 => {
            if let Some(request) = read::<CommandRequest>(body) {
                let _ = Command::from(request);
            }
        }
        1 => drop(read::<agent::control::CommandRequest>(body)),
        2 => drop(read::<NodeStatus>(body)),
        3 => drop(read::<Explanation>(body)),
        4 => drop(read::<EventPage>(body)),
        5 => drop(read::<Refusal>(body)),
        6 => drop(read::<CommandReply>(body)),
        7 => drop(read::<ConfirmWanted>(body)),
        8 => drop(read::<ClusterStatus>(body)),
        _ => drop(read::<AlertPage>(body)),
    }
});

/// What was read is written the same way again and again.
fn read<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(body).ok()?;
    let once = serde_json::to_string(&value).expect("it was read");
    let again: T = serde_json::from_str(&once).expect("it was written");
    assert_eq!(serde_json::to_string(&again).ok(), Some(once));
    Some(value)
}
