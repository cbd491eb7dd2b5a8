//! Reads the end of a log of JSON lines: the agent to go on where it ended, `mirrorctl` while no agent
//! answers. Whatever else stands in the file (a torn line, another program's) is passed over.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use nbd_frontend::control::ring::RECORDS_KEPT_MAX;

use crate::control::AlertRecord;

/// Most bytes of the file that are read.
const TAIL_BYTES_MAX: u64 = 4 << 20;

/// The last `count` alerts of `node` in the JSON file, oldest first. Nodes on one machine may share a file.
pub fn tail(json: &Path, node: &str, count: usize) -> io::Result<Vec<AlertRecord>> {
    let mut file = File::open(json)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(last_in(&bytes, node, count))
}

/// The last `count` alerts of `node` in these lines, oldest first.
pub fn last_in(bytes: &[u8], node: &str, count: usize) -> Vec<AlertRecord> {
    let records = bytes
        .split(|byte| *byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<AlertRecord>(line).ok())
        .filter(|record| record.node == node);
    let mut records: Vec<_> = records.take(count).collect();
    records.reverse();
    records
}

/// What a ring can go on after: the last records whose numbers follow each other.
pub fn unbroken(json: &Path, node: &str) -> Vec<AlertRecord> {
    let records = match tail(json, node, RECORDS_KEPT_MAX) {
        Ok(records) => records,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("cannot read {}: {error}", json.display());
            }
            return Vec::new();
        }
    };
    // Room to count on, whatever the file says.
    if records
        .last()
        .is_some_and(|last| last.number > u64::MAX / 2)
    {
        return Vec::new();
    }
    let first = records
        .windows(2)
        .rposition(|pair| Some(pair[1].number) != pair[0].number.checked_add(1))
        .map_or(0, |gap| gap + 1);
    let kept = &records[first..];
    match kept.first() {
        Some(record) if record.number > 0 => kept.to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert;
    use crate::alert_log::line;

    fn written(numbers: &[u64]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = numbers.iter().map(|number| {
            line::json(&AlertRecord {
                number: *number,
                time: "2025-03-12T04:53:33.757Z".into(),
                node: "server1".into(),
                alert: alert::PEER_UP.with("heard"),
            }) + "\n"
        });
        let text: String = lines.collect();
        std::fs::write(file.path(), text + "{\"number\":9,\"ti").unwrap();
        file
    }

    #[track_caller]
    fn check(numbers: &[u64], expected: &[u64]) {
        let file = written(numbers);
        let found: Vec<_> = unbroken(file.path(), "server1")
            .iter()
            .map(|r| r.number)
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_go_on_after_the_last_gap() {
        check(&[1, 2, 3], &[1, 2, 3]);
        check(&[5, 6, 8, 9], &[8, 9]);
        check(&[7, 1, 2], &[1, 2]);
        check(&[0], &[]);
        check(&[u64::MAX], &[]);
        check(&[], &[]);
    }

    #[test]
    fn the_last_lines_come_oldest_first_and_torn_ones_are_passed_over() {
        let file = written(&[1, 2, 3]);
        let found = tail(file.path(), "server1", 2).unwrap();
        let numbers: Vec<_> = found.iter().map(|record| record.number).collect();
        assert_eq!(numbers, [2, 3]);
        assert!(tail(file.path(), "server2", 2).unwrap().is_empty());
        assert!(tail(Path::new("/nonexistent"), "server1", 2).is_err());
    }
}
