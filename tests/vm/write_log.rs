//! The log of a `dm-log-writes` target: every write to a disk, in an order in which they became durable.
//!
//! The format, of the kernel's `Documentation/admin-guide/device-mapper/log-writes.rst` and
//! `drivers/md/dm-log-writes.c`, in little endian: a sector with magic, version, the number of entries (64 bits each)
//! and the bytes of a sector (32 bits); then for each entry a sector with its place, its length in sectors, its flags and
//! the length of a mark (64 bits each, the text of the mark behind them), followed by the data that was written. A
//! discard has no data, and neither has a flush.
//!
//! The kernel keeps a write back until a flush that was sent after the write had completed is itself complete, and
//! logs both then. A write with FUA is logged when it completes, and a mark when it is set. So what stands
//! before a flush is what that flush made durable, and what stands before a mark was durable when it was set.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// A hint that says nothing of order.
const METADATA: u64 = 1 << 4;

const ENTRY_BYTES: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Change(Change),
    /// Written before it is what is durable now. Data may come along.
    Flush(Option<Change>),
    Mark(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub offset: usize,
    pub length: usize,
    /// Nothing where the range was discarded. What it holds then is up to the disk; those of the machines zero it.
    pub data: Option<Vec<u8>>,
    /// Durable at once, and alone.
    pub fua: bool,
}

impl Change {
    pub fn written(offset: usize, data: &[u8], fua: bool) -> Self {
        Self {
            offset,
            length: data.len(),
            data: Some(data.to_vec()),
            fua,
        }
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.length
    }

    pub fn contains(&self, text: &str) -> bool {
        let data = self.data.as_deref().unwrap_or_default();
        data.windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

/// All entries of a log whose disk has so many bytes.
pub fn parse(log: &[u8], disk_bytes: usize) -> Result<Vec<Entry>> {
    let mut head = Words(log);
    let (magic, version, count) = (head.word()?, head.word()?, head.word()?);
    ensure!(magic == MAGIC, "no log of dm-log-writes: {magic:#x}");
    ensure!(version == VERSION, "a log of version {version}");
    let sector = usize::try_from(head.word()? & u64::from(u32::MAX))?;
    ensure!(
        sector.is_power_of_two() && (512..=4096).contains(&sector),
        "sectors of {sector} bytes"
    );
    let mut at = sector;
    let mut entries = Vec::new();
    for number in 0..count {
        let parsed = entry(log, &mut at, sector, disk_bytes);
        entries.push(parsed.with_context(|| format!("entry {number} of {count}, before {at}"))?);
    }
    Ok(entries)
}

/// The entry at `at`, which moves behind it.
fn entry(log: &[u8], at: &mut usize, sector: usize, disk_bytes: usize) -> Result<Entry> {
    let head = take(log, at, sector)?;
    let mut words = Words(head);
    let (place, sectors, flags, mark) =
        (words.word()?, words.word()?, words.word()?, words.word()?);
    ensure!(
        flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) == 0,
        "unknown flags {flags:#x}"
    );
    if flags & MARK != 0 {
        let end = ENTRY_BYTES.checked_add(usize::try_from(mark)?);
        let text = end.and_then(|end| head.get(ENTRY_BYTES..end));
        let text = text.context("a mark longer than a sector")?;
        return Ok(Entry::Mark(String::from_utf8(text.to_vec())?));
    }
    let bytes = |sectors: u64| {
        let bytes = usize::try_from(sectors).ok()?.checked_mul(sector)?;
        (bytes <= disk_bytes).then_some(bytes)
    };
    let (offset, length) = (bytes(place), bytes(sectors));
    let (Some(offset), Some(length)) = (offset, length) else {
        bail!("{sectors} sectors at {place} of a disk of {disk_bytes} bytes");
    };
    ensure!(offset + length <= disk_bytes, "past the end of the disk");
    let change = (length > 0).then(|| {
        let data = match flags & DISCARD {
            0 => Some(take(log, at, length)?.to_vec()),
            _ => None,
        };
        let fua = flags & FUA != 0;
        Ok::<_, anyhow::Error>(Change {
            offset,
            length,
            data,
            fua,
        })
    });
    let change = change.transpose()?;
    match (flags & FLUSH, change) {
        (0, Some(change)) => Ok(Entry::Change(change)),
        (0, None) => bail!("an entry that does nothing"),
        (_, change) => Ok(Entry::Flush(change)),
    }
}

fn take<'a>(log: &'a [u8], at: &mut usize, length: usize) -> Result<&'a [u8]> {
    let end = at.checked_add(length);
    let taken = end.and_then(|end| log.get(*at..end));
    let taken = taken.context("past the end of the log")?;
    *at += length;
    Ok(taken)
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn word(&mut self) -> Result<u64> {
        let (word, rest) = self.0.split_first_chunk().context("half of a sector")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_BYTES: usize = 1 << 20;

    fn sector(words: &[u64], text: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(text);
        bytes.resize(512, 0);
        bytes
    }

    fn log(entries: &[Vec<u8>], count: u64) -> Vec<u8> {
        let mut log = sector(&[MAGIC, VERSION, count, 512], &[]);
        log.extend(entries.concat());
        log
    }

    fn write(place: u64, flags: u64, data: &[u8]) -> Vec<u8> {
        let mut entry = sector(&[place, data.len() as u64 / 512, flags, 0], &[]);
        entry.extend(data);
        entry
    }

    #[test]
    fn every_kind_of_entry_is_read() {
        let (one, two) = ([1; 512], [2; 1024]);
        let entries = [
            write(8, METADATA, &one),
            sector(&[0, 0, FLUSH, 0], &[]),
            write(16, FUA, &two),
            sector(&[0, 0, MARK, 8], b"record 1"),
            sector(&[8, 4, DISCARD, 0], &[]),
            write(0, FLUSH | FUA, &one),
        ];
        let found = parse(&log(&entries, 6), DISK_BYTES).unwrap();
        let discard = Change {
            offset: 4096,
            length: 2048,
            data: None,
            fua: false,
        };
        let expected = [
            Entry::Change(Change::written(4096, &one, false)),
            Entry::Flush(None),
            Entry::Change(Change::written(8192, &two, true)),
            Entry::Mark("record 1".into()),
            Entry::Change(discard),
            Entry::Flush(Some(Change::written(0, &one, true))),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_log_that_cannot_be_is_refused() {
        let refused = |log: Vec<u8>, words: &str| {
            let error = parse(&log, DISK_BYTES).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
        };
        let flush = sector(&[0, 0, FLUSH, 0], &[]);
        refused(vec![0; 512], "no log");
        refused(vec![0; 20], "half of a sector");
        refused(sector(&[MAGIC, 2, 0, 512], &[]), "version 2");
        refused(sector(&[MAGIC, VERSION, 0, 100], &[]), "100 bytes");
        refused(log(&[flush], 2), "past the end of the log");
        refused(log(&[sector(&[0, 0, 0, 0], &[])], 1), "does nothing");
        refused(log(&[sector(&[0, 0, 1 << 9, 0], &[])], 1), "unknown flags");
        refused(log(&[sector(&[0, 0, MARK, 481], &[])], 1), "a mark longer");
        refused(
            log(&[sector(&[0, 0, MARK, u64::MAX], &[])], 1),
            "a mark longer",
        );
        refused(log(&[sector(&[2048, 1, 0, 0], &[])], 1), "past the end");
        refused(log(&[sector(&[u64::MAX, 1, 0, 0], &[])], 1), "of a disk of");
        refused(
            log(&[sector(&[0, 2, 0, 0], &[])], 1),
            "past the end of the log",
        );
    }
}
