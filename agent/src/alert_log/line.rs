//! One alert as one line of text, in the form that the field knows, and as one line of JSON. Pure.
//!
//! ```text
//! Info 2025/03/12 04:53:33.757 server2 rc 1060 Failing over the group failover1.
//! ```
//!
//! The time is UTC on every machine, so that the logs of both nodes can be laid side by side and no hour
//! comes twice.

use crate::control::AlertRecord;

/// Without its newline.
pub fn text(record: &AlertRecord) -> String {
    let alert = &record.alert;
    one_line(&format!(
        "{} {} {} {} {} {}",
        alert.level.name(),
        time(&record.time),
        record.node,
        alert.module.name(),
        alert.id,
        alert.message
    ))
}

/// Without its newline.
pub fn json(record: &AlertRecord) -> String {
    serde_json::to_string(record).expect("an alert is plain data")
}

/// `2025-03-12T04:53:33.757Z` as the field writes it.
fn time(rfc3339: &str) -> String {
    rfc3339
        .trim_end_matches('Z')
        .chars()
        .map(|letter| match letter {
            '-' => '/',
            'T' => ' ',
            other => other,
        })
        .collect()
}

/// What a script printed may have lines and control characters; a log line must not.
fn one_line(message: &str) -> String {
    let words = message.split(|letter: char| letter.is_control() || letter.is_whitespace());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::{self, Alert, Kind};

    fn record(kind: Kind, message: &str) -> AlertRecord {
        AlertRecord {
            number: 12,
            time: "2025-03-12T04:53:33.757Z".into(),
            node: "server2".into(),
            alert: kind.with(message),
        }
    }

    #[track_caller]
    fn check(kind: Kind, message: &str, expected: &str) {
        assert_eq!(text(&record(kind, message)), expected);
    }

    #[test]
    fn a_line_has_the_form_of_the_field() {
        check(
            alert::FAILING_OVER,
            "Failing over the group failover1.",
            "Info 2025/03/12 04:53:33.757 server2 rc 1060 Failing over the group failover1.",
        );
        check(
            alert::STOP_REQUESTED,
            "Forced stop of server1 requested.",
            "Warning 2025/03/12 04:53:33.757 server2 forcestop 1201 Forced stop of server1 requested.",
        );
        check(
            alert::PEER_DOWN,
            "server1 stopped.",
            "Error 2025/03/12 04:53:33.757 server2 nm 1004 server1 stopped.",
        );
    }

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        check(
            alert::STOP_FAILED,
            "the script said:\r\n  no\tway\u{1b}[31m\n",
            "Error 2025/03/12 04:53:33.757 server2 forcestop 1203 the script said: no way [31m",
        );
    }

    #[test]
    fn json_is_one_line_and_comes_back_as_it_was() {
        let record = record(alert::PEER_UP, "two\nlines");
        let line = json(&record);
        assert!(!line.contains('\n'), "{line}");
        assert!(
            line.starts_with(
                r#"{"number":12,"time":"2025-03-12T04:53:33.757Z","node":"server2","id":1003,"level":"info","module":"nm","#
            ),
            "{line}"
        );
        let back: AlertRecord = serde_json::from_str(&line).unwrap();
        assert_eq!((back.number, back.alert), (12, record.alert));
        let _: Alert = serde_json::from_str(&line).unwrap();
    }
}
