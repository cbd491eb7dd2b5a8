//! A data partition in memory with a volatile write cache, as a server's disk has it.
//!
//! Completed writes stay in the cache until a flush that began after them, or until their own FUA.
//! When power fails, each unit that was written since holds any of the versions it went through; when
//! only the process dies the cache survives, and what was in flight lands or does not.
//!
//! Only units that were ever touched take memory. The disk knows nothing of mirrors.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mirror_core::units::{ByteRange, IoToken};
use mirror_core::volume::event::{DiskFault, Output};

use crate::random::Random;
use crate::sim::content::{self, Tag, ZEROES};

/// Position of a unit on the disk.
pub type Unit = u64;

/// What a volume asked of the disk.
#[derive(Debug, Clone)]
pub enum Task {
    Read,
    ReadSparse,
    Write { tags: Vec<Tag>, fua: bool },
    Flush,
}

/// An operation between its submission and its completion.
#[derive(Debug, Clone)]
pub struct Operation {
    pub io: IoToken,
    pub units: std::ops::Range<Unit>,
    pub task: Task,
    /// Injected outcome.
    pub fault: Option<DiskFault>,
    /// Writes completed before this flush began.
    covers: u64,
    /// What a read that looks early has seen at its submission.
    seen: Option<Vec<Tag>>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    durable: Tag,
    /// Completed and not yet durable, oldest first, each with the number of its completion.
    cached: Vec<(u64, Tag)>,
    /// Reads fail until it is written again.
    bad: bool,
}

impl Cell {
    fn current(&self) -> Tag {
        self.cached.last().map_or(self.durable, |(_, tag)| *tag)
    }
}

/// How a node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process dies: the kernel and the disk's cache live on.
    Kill,
    /// The machine loses power: caches are gone.
    PowerLoss,
}

#[derive(Debug)]
pub struct SimDisk {
    unit_bytes: u32,
    cells: BTreeMap<Unit, Cell>,
    cached: BTreeSet<Unit>,
    in_flight: BTreeMap<u64, Operation>,
    next_operation: u64,
    completions: u64,
    /// When each version of a unit last reached this disk.
    applied: HashMap<(Unit, Tag), u64>,
    /// Units whose possible contents changed since the checker looked.
    pub touched: BTreeSet<Unit>,
    /// Flushes that complete and do nothing: a mutation.
    pub lies_about_flushes: bool,
}

impl SimDisk {
    pub fn new(unit_bytes: u32) -> Self {
        Self {
            unit_bytes,
            cells: BTreeMap::new(),
            cached: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            next_operation: 0,
            completions: 0,
            applied: HashMap::new(),
            touched: BTreeSet::new(),
            lies_about_flushes: false,
        }
    }

    /// Puts content there as if it had always been.
    pub fn place(&mut self, unit: Unit, tag: Tag) {
        self.cells.entry(unit).or_default().durable = tag;
        self.touched.insert(unit);
    }

    pub fn units_of(&self, range: ByteRange) -> std::ops::Range<Unit> {
        let unit = u64::from(self.unit_bytes);
        assert!(
            range.offset.is_multiple_of(unit) && range.end().is_multiple_of(unit),
            "{range:?} is not aligned to the logical block of {unit} bytes"
        );
        range.offset / unit..range.end() / unit
    }

    /// Takes an operation in. The caller decides when it completes.
    pub fn submit(
        &mut self,
        io: IoToken,
        units: std::ops::Range<Unit>,
        task: Task,
        look_early: bool,
    ) -> u64 {
        let number = self.next_operation;
        self.next_operation += 1;
        let reads = matches!(task, Task::Read | Task::ReadSparse);
        let seen = (reads && look_early).then(|| self.contents(units.clone()));
        if matches!(task, Task::Write { .. }) {
            self.touched.extend(units.clone());
        }
        let covers = self.completions;
        self.in_flight.insert(
            number,
            Operation {
                io,
                units,
                task,
                fault: None,
                covers,
                seen,
            },
        );
        number
    }

    /// Another write in flight that overlaps a new one: their order on the disk would be chance.
    pub fn overlapping_write(&self, units: &std::ops::Range<Unit>) -> Option<&Operation> {
        self.in_flight.values().find(|other| {
            matches!(other.task, Task::Write { .. })
                && other.units.start < units.end
                && units.start < other.units.end
        })
    }

    pub fn inject(&mut self, number: u64, fault: DiskFault) {
        if let Some(operation) = self.in_flight.get_mut(&number) {
            operation.fault = Some(fault);
        }
    }

    /// Completes an operation; `None` if it died with its process.
    pub fn complete(
        &mut self,
        number: u64,
        now: u64,
        random: &mut Random,
    ) -> Option<(IoToken, Result<Output, DiskFault>)> {
        let operation = self.in_flight.remove(&number)?;
        let io = operation.io;
        Some((io, self.carry_out(operation, now, random)))
    }

    fn carry_out(
        &mut self,
        operation: Operation,
        now: u64,
        random: &mut Random,
    ) -> Result<Output, DiskFault> {
        let Operation {
            units,
            task,
            fault,
            covers,
            seen,
            ..
        } = operation;
        match task {
            Task::Read | Task::ReadSparse => {
                if let Some(fault) = fault {
                    return Err(fault);
                }
                if units.clone().any(|unit| self.is_bad(unit)) {
                    return Err(DiskFault::Io);
                }
                let tags = seen.unwrap_or_else(|| self.contents(units));
                let hole =
                    matches!(task, Task::ReadSparse) && tags.iter().all(|tag| *tag == ZEROES);
                Ok(if hole && random.percent(80) {
                    Output::Hole
                } else {
                    Output::Data(content::encode(self.unit_bytes, &tags))
                })
            }
            Task::Write { tags, fua } => {
                self.completions += 1;
                self.touched.extend(units.clone());
                for (unit, tag) in units.zip(tags) {
                    // A write that fails leaves any mixture of old and new behind.
                    if fault.is_some() && random.coin() {
                        continue;
                    }
                    self.apply(unit, tag, fua && fault.is_none(), now);
                }
                fault.map_or(Ok(Output::Nothing), Err)
            }
            Task::Flush => match fault {
                Some(fault) => {
                    // The kernel drops pages whose write-back failed: anything cached may be gone.
                    self.lose_cache(random);
                    Err(fault)
                }
                None if self.lies_about_flushes => Ok(Output::Nothing),
                None => {
                    self.write_back(covers);
                    Ok(Output::Nothing)
                }
            },
        }
    }

    /// Puts one version on the disk, outside of any operation.
    pub fn apply(&mut self, unit: Unit, tag: Tag, durable: bool, now: u64) {
        let cell = self.cells.entry(unit).or_default();
        cell.bad = false;
        if durable {
            cell.durable = tag;
            cell.cached.clear();
            self.cached.remove(&unit);
        } else {
            cell.cached.push((self.completions, tag));
            self.cached.insert(unit);
        }
        self.touched.insert(unit);
        self.applied.insert((unit, tag), now);
    }

    fn write_back(&mut self, covers: u64) {
        let (cells, touched) = (&mut self.cells, &mut self.touched);
        self.cached.retain(|unit| {
            let Some(cell) = cells.get_mut(unit) else {
                return false;
            };
            let covered = cell.cached.partition_point(|(number, _)| *number <= covers);
            if covered > 0 {
                cell.durable = cell.cached[covered - 1].1;
                cell.cached.drain(..covered);
                touched.insert(*unit);
            }
            !cell.cached.is_empty()
        });
    }

    fn lose_cache(&mut self, random: &mut Random) {
        for unit in std::mem::take(&mut self.cached) {
            if let Some(cell) = self.cells.get_mut(&unit) {
                let survivors = random.below(cell.cached.len() as u64 + 1) as usize;
                if survivors > 0 {
                    cell.durable = cell.cached[survivors - 1].1;
                }
                cell.cached.clear();
                self.touched.insert(unit);
            }
        }
    }

    /// The node stops. Units are the grain of tearing: each of a torn write lands or does not.
    pub fn crash(&mut self, crash: Crash, now: u64, random: &mut Random) {
        for operation in std::mem::take(&mut self.in_flight).into_values() {
            let Task::Write { tags, .. } = operation.task else {
                continue;
            };
            self.completions += 1;
            let fate = random.below(3);
            for (unit, tag) in operation.units.zip(tags) {
                self.touched.insert(unit);
                if fate == 0 || (fate == 1 && random.coin()) {
                    self.apply(unit, tag, false, now);
                }
            }
        }
        if crash == Crash::PowerLoss {
            self.lose_cache(random);
        }
    }

    /// Reads of that unit fail until it is written again.
    pub fn spoil(&mut self, unit: Unit) {
        self.cells.entry(unit).or_default().bad = true;
    }

    /// The medium is mended; what it held is read again.
    pub fn mend(&mut self) {
        for cell in self.cells.values_mut() {
            cell.bad = false;
        }
    }

    fn is_bad(&self, unit: Unit) -> bool {
        self.cells.get(&unit).is_some_and(|cell| cell.bad)
    }

    /// What a read would return now.
    pub fn current(&self, unit: Unit) -> Tag {
        self.cells.get(&unit).map_or(ZEROES, Cell::current)
    }

    fn contents(&self, units: std::ops::Range<Unit>) -> Vec<Tag> {
        let mut tags = vec![ZEROES; (units.end - units.start) as usize];
        for (unit, cell) in self.cells.range(units.clone()) {
            tags[(unit - units.start) as usize] = cell.current();
        }
        tags
    }

    /// Every content that a power loss at this moment could leave there.
    pub fn possible(&self, unit: Unit, into: &mut Vec<Tag>) {
        let mut add = |tag| {
            if !into.contains(&tag) {
                into.push(tag);
            }
        };
        match self.cells.get(&unit) {
            None => add(ZEROES),
            Some(cell) => {
                add(cell.durable);
                cell.cached.iter().for_each(|(_, tag)| add(*tag));
            }
        }
        for operation in self.in_flight.values() {
            if let Task::Write { tags, .. } = &operation.task
                && operation.units.contains(&unit)
            {
                add(tags[(unit - operation.units.start) as usize]);
            }
        }
    }

    /// When that version last reached this disk.
    pub fn applied_at(&self, unit: Unit, tag: Tag) -> Option<u64> {
        self.applied.get(&(unit, tag)).copied()
    }

    pub fn touched_units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.cells.keys().copied()
    }

    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.in_flight.values()
    }

    /// The operation is a flush that will fail, and drop what is cached.
    pub fn is_failing_flush(&self, number: u64) -> bool {
        self.in_flight.get(&number).is_some_and(|operation| {
            matches!(operation.task, Task::Flush) && operation.fault.is_some()
        })
    }

    /// Units of a write in flight.
    pub fn write_in_flight(&self, number: u64) -> Option<std::ops::Range<Unit>> {
        self.in_flight
            .get(&number)
            .filter(|operation| matches!(operation.task, Task::Write { .. }))
            .map(|operation| operation.units.clone())
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}
