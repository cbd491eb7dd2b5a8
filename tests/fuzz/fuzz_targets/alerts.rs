//! A log of alerts in which anything may stand: torn lines, lines of others.

#![no_main]

use agent::alert_log::{last_in, line};
use libfuzzer_sys::fuzz_target;

const NODE: &str = "server1";
const COUNT: usize = 5;

fuzz_target!(|bytes: &[u8]| {
    let records = last_in(bytes, NODE, COUNT);
    assert!(records.len() <= COUNT);
    for record in &records {
        assert_eq!(record.node, NODE);
        assert!(!line::json(record).contains('\n'));
        let text = line::text(record);
        assert!(text.contains(" server1 ") && !text.contains('\n'));
    }
});
