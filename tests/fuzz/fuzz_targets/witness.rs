//! What is said between nodes and a witness, by somebody who has the key, and the file that a witness keeps.
//!
//! Each line of the input is one message: sessions and registry must keep what they promise whatever is asked. As a
//! whole it is the body of a state file, whose checksum is made good.

#![no_main]

use std::path::Path;

use agent::arbiter::call::Reply;
use agent::arbiter::envelope::{Answer, Ask, Denial, Proof};
use agent::arbiter::registry::{Caller, Registry};
use agent::arbiter::session::{Admission, Sessions};
use agent::io::witness::state_file;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|input: &[u8]| {
    let mut sessions = Sessions::new("r");
    let mut registry = Registry::new();
    let mut now_ms = 0;
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(text) = std::str::from_utf8(line)
            && let Some(proof) = Proof::parse(text)
        {
            assert_eq!(proof.to_string(), text.to_lowercase());
        }
        let _ = serde_json::from_slice::<Answer>(line);
        let _ = serde_json::from_slice::<Denial>(line);
        let Ok(ask) = serde_json::from_slice::<Ask>(line) else {
            continue;
        };
        let again = serde_json::to_vec(&ask).expect("it was read");
        assert_eq!(
            serde_json::from_slice::<Ask>(&again).ok(),
            Some(ask.clone())
        );
        let call = match ask {
            Ask::Hello { .. } => {
                sessions.hand_out();
                continue;
            }
            Ask::Call(call) => call,
        };
        if sessions.admit(&call) != Admission::Counts {
            continue;
        }
        assert_ne!(
            sessions.admit(&call),
            Admission::Counts,
            "nothing counts twice"
        );
        now_ms += 1000;
        let before = registry.records();
        let caller = Caller {
            node: &call.node,
            lease_ms: call.lease_ms,
        };
        let step = registry.step(now_ms, caller, &call.request);
        registry.check_invariants();
        let after = registry.records();
        assert!(step.changed || before == after, "what changed is said");
        if let Reply::Granted { epoch } = step.reply {
            assert!(before.values().all(|record| record.epoch != epoch || {
                // The same node may have asked again.
                record.holder.as_deref() != Some(call.node.as_str())
            }));
        }
    }
    let digest = Sha256::digest(input);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let header =
        format!("{{\"format\":\"mirror-witness\",\"version\":1,\"sha256\":\"{digits}\"}}\n");
    let file = [header.as_bytes(), input].concat();
    let path = Path::new("state");
    if let Ok(state) = state_file::decode(path, &file) {
        let again = state_file::decode(path, &state_file::encode(&state));
        assert_eq!(again.ok(), Some(state));
    }
    let _ = state_file::decode(path, input);
});
