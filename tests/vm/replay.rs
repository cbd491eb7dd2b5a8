//! A disk as it was at some point of its log, and the points that matter.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::write_log::{Change, Entry};

/// What one flush, or one write with FUA, made durable, and the marks that were set before anything followed.
#[derive(Debug, Default)]
pub struct Step<'a> {
    pub changes: Vec<&'a Change>,
    pub marks: Vec<&'a str>,
}

/// What is in the log behind the last flush was never durable, and is left out.
pub fn steps(entries: &[Entry]) -> Vec<Step<'_>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut changes = Vec::new();
    for entry in entries {
        let done = match entry {
            Entry::Change(change) => {
                changes.push(change);
                change.fua
            }
            Entry::Flush(change) => {
                changes.extend(change);
                true
            }
            Entry::Mark(mark) => {
                if let Some(step) = steps.last_mut() {
                    step.marks.push(mark);
                }
                false
            }
        };
        if done {
            steps.push(Step {
                changes: std::mem::take(&mut changes),
                marks: Vec::new(),
            });
        }
    }
    steps
}

/// A clone shares all parts that neither of both changes.
#[derive(Debug, Clone)]
pub struct Replay {
    size_bytes: usize,
    /// By their numbers. What was never written is zero.
    parts: BTreeMap<usize, Rc<Vec<u8>>>,
}

const PART: usize = 64 << 10;

impl Replay {
    /// Before the first entry: zeroes, as the disks of machines are at first.
    pub fn new(size_bytes: usize) -> Self {
        assert!(size_bytes.is_multiple_of(PART));
        Self {
            size_bytes,
            parts: BTreeMap::new(),
        }
    }

    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        for change in changes {
            let range = change.range();
            for number in range.start / PART..range.end.div_ceil(PART) {
                let start = number * PART;
                let from = range.start.max(start);
                let to = range.end.min(start + PART);
                let part = self.parts.entry(number);
                let part = Rc::make_mut(part.or_insert_with(|| Rc::new(vec![0; PART])));
                let target = &mut part[from - start..to - start];
                match &change.data {
                    Some(data) => {
                        target.copy_from_slice(&data[from - range.start..to - range.start]);
                    }
                    None => target.fill(0),
                }
            }
        }
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Offset and bytes of all that is not zero.
    pub fn parts(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let parts = self.parts.iter();
        let parts = parts.map(|(number, part)| (number * PART, &part[..]));
        parts.filter(|(_, bytes)| *bytes != ZEROES)
    }
}

static ZEROES: [u8; PART] = [0; PART];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_with_what_makes_it_durable_and_has_the_marks_behind_it() {
        let [a, b, c, d] =
            [0, 1, 2, 3].map(|sector| Change::written(sector * 512, &[1; 512], sector == 2));
        let entries = [
            Entry::Mark("before all".into()),
            Entry::Change(a.clone()),
            Entry::Change(b.clone()),
            Entry::Flush(None),
            Entry::Mark("one".into()),
            Entry::Mark("two".into()),
            Entry::Change(c.clone()),
            Entry::Flush(None),
            Entry::Change(d),
            Entry::Mark("three".into()),
        ];
        let found = steps(&entries);
        let found: Vec<_> = found
            .iter()
            .map(|step| (step.changes.clone(), step.marks.clone()))
            .collect();
        let expected = [
            (vec![&a, &b], vec!["one", "two"]),
            (vec![&c], vec![]),
            (vec![], vec!["three"]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_replay_holds_what_was_written_last() {
        let mut replay = Replay::new(1 << 20);
        replay.apply(&[
            Change::written(PART - 512, &[1; 1024], false),
            Change::written(PART, &[2; 512], false),
            Change::written(4 * PART, &[3; 512], false),
        ]);
        let before = replay.clone();
        replay.apply(&[Change {
            data: None,
            ..Change::written(4 * PART, &[3; 512], false)
        }]);
        let parts: Vec<_> = replay.parts().collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].1[PART - 512..], [1; 512]);
        assert_eq!((parts[1].0, &parts[1].1[..512]), (PART, &[2; 512][..]));
        assert!(parts[1].1[512..].iter().all(|byte| *byte == 0));
        let parts: Vec<_> = before.parts().collect();
        assert_eq!((parts.len(), parts[2].0), (3, 4 * PART));
        assert_eq!(parts[2].1[..512], [3; 512]);
    }
}
