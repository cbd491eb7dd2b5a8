//! What each side's disk would hold if its power went, at every flush that ever reached it.
//!
//! On both machines `dm-log-writes` lies under the data partition, a file system is mounted on the mirror, and a ledger
//! is appended to, one `fsync` a record, beside others who write. When `fsync` has returned, a mark is set in the logs
//! of both, before the next record. Afterwards each log is replayed, and at every flush the file system must mount, be in
//! order, and have all records whose mark comes before the next flush.
//!
//! **Why that must hold, on either side.** A replay up to a flush holds what the disk had completed when the flush was
//! sent to it, and a replay up to there with any part of what follows before the next flush is all that a power cut in
//! between can leave.
//!
//! - *The file system recovers*, if what is left could as well be left by one disk in the place of the mirror: if it
//!   has some write, it has all that was flushed before that write was submitted. The mirror answers a flush when both
//!   sides have flushed what was answered before (`mirror-core`'s `volume/flushing`, D3); so when the write is
//!   submitted, and on the secondary it comes later still, the flush of either disk is complete and stands in its log
//!   before the write. The secondary may be ahead of the primary with writes that nobody flushed, and behind with
//!   others. Neither is more than a disk's cache may do.
//! - *The records are there*: `fsync` returns when its flush is answered, or its write with FUA, for which either side
//!   flushes its disk as well. The mark is sent after that, to this side or over the network to the other one. So what
//!   made the record durable stands before the mark in both logs, and no later than the flush that comes last before
//!   it. (The way of the mark takes a moment. What was flushed meanwhile is asked for one record less than could be.)
//!
//! Neither is promised of a side that is away or the target of a resync, so neither happens here.

use std::fmt::Display;

use anyhow::{Context, Result, ensure};
use local_pair::Side::{self, First, Second};
use mirror_tests::random::Random;

use crate::replay::{self, Replay};
use crate::replayed_disk::{FileSystem, ReplayedDisk};
use crate::servers::{MIB, Options, Servers};
use crate::write_log::{self, Entry};

/// The log's, among the disks that a test gives to a machine.
const LOG_DISK: usize = 2;
/// Where marks are sent, on the cable.
const MARK_PORT: u16 = 7001;
/// From here on there is a file system.
const BEGIN: &str = "begin";
/// A mark is one word.
const RECORD: &str = "record-";
/// A record is a line of about so many bytes.
const FILLER_BYTES: usize = 700;
/// By so much of either end the write of a line is found.
const END_BYTES: usize = 64;
/// What is left of the writes between two flushes.
const SEED: u64 = 4;
/// Records whose write is lost for a try.
const MISTAKES: u64 = 8;
/// Records that are written before others write anything.
const RECORDS_ALONE: u64 = 8;

pub struct Case {
    pub file_system: FileSystem,
    pub records: u64,
}

pub fn holds_at_every_flush(case: &Case) -> Result<()> {
    let logs = record(case)?;
    let checked = std::thread::scope(|scope| {
        let threads = logs.each_ref().map(|(side, log)| {
            scope.spawn(move || check(case, log).with_context(|| format!("{side:?}")))
        });
        threads.map(|thread| {
            thread
                .join()
                .expect("a check gives an error and panics not")
        })
    });
    for ((side, _), checked) in logs.iter().zip(checked) {
        let checked = checked?;
        eprintln!("{:?}, {side:?}: {checked:?}", case.file_system);
        // Each fsync flushes at least once, unless two share one.
        ensure!(checked.flushes as u64 > case.records / 2, "{checked:?}");
        ensure!(checked.parts > 0, "{checked:?}");
    }
    for (side, log) in &logs {
        mistakes_are_seen(case, log).with_context(|| format!("{side:?}"))?;
    }
    Ok(())
}

// ---- In the machines

struct WriteLog {
    entries: Vec<Entry>,
    disk_bytes: usize,
}

/// Runs the load, and takes the logs of both sides.
fn record(case: &Case) -> Result<[(Side, WriteLog); 2]> {
    let mut options = Options {
        write_log_bytes: Some(512 * MIB),
        ..Options::default()
    };
    if case.file_system == FileSystem::Xfs {
        // It is made no smaller.
        options.data_bytes = 320 * MIB;
    }
    let servers = Servers::in_step(&options)?;
    let [first, second] = Side::BOTH.map(|side| servers.machine(side));
    let make = match case.file_system {
        FileSystem::Ext4 => {
            "mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
             mount -t ext4 /dev/nbd0 /mnt"
        }
        FileSystem::Xfs => "load-xfs; mkfs.xfs -q -K /dev/nbd0; mount -t xfs /dev/nbd0 /mnt",
    };
    first.run(&format!("set -e\n{make}\n>/mnt/ledger\nsync"))?;
    for machine in [first, second] {
        machine.run(&mark(BEGIN))?;
    }
    let mark_record = mark(&format!("{RECORD}$i"));
    // What nc reads from must stay open: it ends with that.
    let script = format!(
        "mkfifo /run/answers && exec 5<>/run/answers && nc -l -p {MARK_PORT} <&5 |
         while read -r i; do {mark_record} || exit; echo $i >&5; done"
    );
    let marking = second.start(&script)?;
    let listens = format!("netstat -ltn | grep -q ':{MARK_PORT} '");
    second.until("who sets marks", &listens)?;
    let others = OTHERS.map(|script| {
        first.start(&format!(
            "until [ -e /run/others ]; do usleep 100000; done\n{script}"
        ))
    });
    let others = others.into_iter().collect::<Result<Vec<_>>>()?;
    let script = format!(
        "mkfifo /run/marks /run/answers && exec 4<>/run/marks 6<>/run/answers || exit
         nc {} {MARK_PORT} <&4 >&6 &
         i=0
         while [ $((i += 1)) -le {} ]; do
             [ $i != {} ] || touch /run/others
             echo \"{}\" | dd of=/mnt/ledger bs=64k oflag=append conv=notrunc,fsync 2>/dev/null || exit
             {mark_record} || exit
             echo $i >&4
             read -r answer <&6 && [ $answer = $i ] || exit
         done
         kill $!",
        second.address,
        case.records,
        RECORDS_ALONE + 1,
        line("$i"),
    );
    let ledger = first.start(&script)?;
    first.wait(ledger, "the ledger")?.done()?;
    second.wait(marking, "who sets marks")?.done()?;
    first.run(">/run/enough")?;
    for job in others {
        first.wait(job, "who writes beside the ledger")?.done()?;
    }
    first.run("umount /mnt")?;
    servers.expect_no_errors(First)?;
    let disk_bytes = options.data_bytes;
    let log = |side| {
        servers.stop_mirrord(side)?;
        // With it goes the last of the log to its disk.
        let script = "dmsetup status data && DM_DISABLE_UDEV=1 dmsetup remove data";
        let machine = servers.machine(side);
        let said = machine.run(script)?;
        ensure!(!said.contains("disabled"), "the log is not whole: {said}");
        let entries = write_log::parse(&machine.disk_contents(LOG_DISK)?, disk_bytes)?;
        Ok((
            side,
            WriteLog {
                entries,
                disk_bytes,
            },
        ))
    };
    Ok([log(First)?, log(Second)?])
}

/// Others than the ledger: their metadata, and what they write over, is in every journal that is replayed.
const OTHERS: [&str; 2] = [
    "k=0
     while [ ! -e /run/enough ]; do
         folder=/mnt/churn/$((k % 6)); k=$((k + 1))
         rm -rf $folder && mkdir -p $folder/below || exit
         head -c 9000 /dev/urandom >$folder/a && mv $folder/a $folder/below/b && ln $folder/below/b $folder/c || exit
         [ $((k % 8)) != 0 ] || sync
         usleep 20000
     done",
    "while [ ! -e /run/enough ]; do
         dd if=/dev/urandom of=/mnt/over bs=16k count=8 oflag=direct conv=notrunc 2>/dev/null || exit
         usleep 100000
     done",
];

fn mark(text: &str) -> String {
    format!("dmsetup message data 0 mark {text}")
}

/// Of the ledger. The machine puts its number for the variable.
fn line(number: impl Display) -> String {
    format!("{RECORD}{number} {} {number}", "-".repeat(FILLER_BYTES))
}

// ---- Replay

#[derive(Debug, Default)]
struct Checked {
    flushes: usize,
    /// With a part of what came between two flushes.
    parts: usize,
    records: u64,
}

/// One power cut at each flush, and one between it and the next.
fn check(case: &Case, log: &WriteLog) -> Result<Checked> {
    let disk = ReplayedDisk::new(case.file_system)?;
    let mut random = Random::new(SEED);
    let mut checked = Checked::default();
    let mut replay = Replay::new(log.disk_bytes);
    let mut begun = false;
    let mut steps = replay::steps(&log.entries)
        .into_iter()
        .enumerate()
        .peekable();
    while let Some((number, step)) = steps.next() {
        replay.apply(step.changes);
        begun |= step.marks.contains(&BEGIN);
        if !begun {
            continue;
        }
        checked.flushes += 1;
        checked.records = last_record(&step.marks).unwrap_or(checked.records);
        expect_records(&disk, &replay, checked.records)
            .with_context(|| format!("at flush {number}"))?;
        let next = steps.peek().map(|(_, step)| &step.changes[..]);
        let mut part = next.unwrap_or_default().to_vec();
        part.retain(|_| random.coin());
        if !part.is_empty() {
            checked.parts += 1;
            let mut torn = replay.clone();
            torn.apply(part.iter().copied());
            expect_records(&disk, &torn, checked.records)
                .with_context(|| format!("at flush {number}, with {} changes more", part.len()))?;
        }
    }
    ensure!(
        checked.records == case.records,
        "the marks end with record {}",
        checked.records
    );
    Ok(checked)
}

fn last_record(marks: &[&str]) -> Option<u64> {
    let numbers = marks
        .iter()
        .filter_map(|mark| mark.strip_prefix(RECORD)?.parse().ok());
    numbers.max()
}

/// The file system is in order and has all of these.
fn expect_records(disk: &ReplayedDisk, replay: &Replay, records: u64) -> Result<()> {
    let ledger = disk.look(replay)?;
    let mut lines = ledger.lines();
    for number in 1..=records {
        ensure!(
            lines.next() == Some(&line(number)),
            "{RECORD}{number} of {records} is not there"
        );
    }
    Ok(())
}

/// What is wrong with a log must not go unnoticed, or the checks say nothing.
fn mistakes_are_seen(case: &Case, log: &WriteLog) -> Result<()> {
    let disk = ReplayedDisk::new(case.file_system)?;
    let steps = replay::steps(&log.entries);
    // The flush at which a record is asked for first.
    let asked = |number| {
        let found = steps
            .iter()
            .position(|step| last_record(&step.marks) >= Some(number));
        found.context("every record is marked")
    };
    // One write is lost, although a flush came after it.
    for part in 1..=MISTAKES {
        let number = case.records * part / MISTAKES;
        // A line may lie in two blocks, which are written apart. Then the border goes through one of its ends at most.
        let line = line(number) + "\n";
        let ends = [&line[..END_BYTES], &line[line.len() - END_BYTES..]];
        let mut replay = Replay::new(log.disk_bytes);
        let mut lost = 0;
        for step in &steps[..=asked(number)?] {
            let mut kept = step.changes.clone();
            kept.retain(|change| !ends.iter().any(|end| change.contains(end)));
            lost += step.changes.len() - kept.len();
            replay.apply(kept);
        }
        ensure!(lost > 0, "no write has {RECORD}{number}");
        ensure!(
            expect_records(&disk, &replay, number).is_err(),
            "the {lost} writes with {RECORD}{number} are not missed"
        );
    }
    // A flush is answered before it was carried out: what is asked for at one must not be there at the one before, as
    // long as nobody else flushes. The mirror does, some seconds after a write.
    let mut missed = 0;
    for number in 1..=RECORDS_ALONE {
        let mut replay = Replay::new(log.disk_bytes);
        for step in &steps[..asked(number)?] {
            replay.apply(step.changes.iter().copied());
        }
        missed += u64::from(expect_records(&disk, &replay, number).is_err());
    }
    ensure!(
        missed > RECORDS_ALONE / 2,
        "only {missed} of {RECORDS_ALONE} records are missed one flush early"
    );
    Ok(())
}

#[test]
fn ext4_is_in_order_on_both_sides_at_every_flush_of_a_short_load() -> Result<()> {
    holds_at_every_flush(&Case {
        file_system: FileSystem::Ext4,
        records: 16,
    })
}
