//! What a campaign saw, for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::clients::Figures;
use super::faults::Fault;

#[derive(Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub took: Duration,
    /// Times that service changed its server.
    pub moves: u64,
    pub replaced_disks: u64,
    kinds: BTreeMap<Fault, Kind>,
    companions: u64,
    checks: u64,
    writes: u64,
    reads: u64,
    verified_bytes: u64,
    blocks: u64,
    wrong: u64,
    /// Errors and lost connections where a pause was promised.
    broken_pauses: u64,
    /// Bytes that differed between the sides when they were compared.
    differing_bytes: u64,
    /// The promise that ended it.
    pub broken: Option<String>,
    /// After each fault.
    loads: Vec<f64>,
}

/// Of one kind of fault.
#[derive(Debug, Default)]
struct Kind {
    count: u64,
    /// The longest of any client, for each time that it came alone.
    stalls: Vec<Stall>,
}

#[derive(Debug, Clone, Copy)]
struct Stall {
    ms: u64,
    /// A busy machine stalls by itself.
    load: f64,
}

/// Processes that ran or wanted to, over the last minute.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or_default()
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    pub fn faults(&self) -> u64 {
        self.kinds.values().map(|kind| kind.count).sum()
    }

    pub fn add(&mut self, fault: Fault, companion: Option<Fault>, figures: &Figures) {
        let kind = self.kinds.entry(fault).or_default();
        kind.count += 1;
        let load = load_average();
        self.loads.push(load);
        // A second fault is at its own cost.
        if companion.is_none() {
            kind.stalls.push(Stall {
                ms: figures.longest_stall_ms,
                load,
            });
            if !fault.may_move() {
                self.broken_pauses += figures.errors.len() as u64 + figures.lost_connections;
            }
        } else {
            self.companions += 1;
        }
        self.take(figures);
    }

    pub fn add_check(&mut self, figures: &Figures) {
        self.checks += 1;
        self.take(figures);
    }

    pub fn add_comparison(&mut self, differing_bytes: u64) {
        self.differing_bytes += differing_bytes;
    }

    fn take(&mut self, figures: &Figures) {
        self.writes += figures.writes;
        self.reads += figures.reads;
        self.verified_bytes += figures.verified_bytes;
        self.blocks = self.blocks.max(figures.blocks);
        self.wrong = self.wrong.max(figures.wrong.len() as u64);
    }
}

impl fmt::Display for Report {
    /// Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.broken {
            None => writeln!(f, "Every promise was kept.\n")?,
            Some(promise) => writeln!(f, "Ended by a broken promise: {promise}\n")?,
        }
        writeln!(f, "| | |\n|---|---|")?;
        for (name, found) in self.summary() {
            writeln!(f, "| {name} | {found} |")?;
        }
        writeln!(
            f,
            "\nStalls are of a client, from one answer to its next, where the fault came alone.\n\n\
             | fault | times | alone | median stall | longest stall | load average then |\n|---|---|---|---|---|---|"
        )?;
        for (fault, kind) in &self.kinds {
            writeln!(f, "| {} | {} | {} |", fault.kind(), kind.count, kind.row())?;
        }
        Ok(())
    }
}

impl Report {
    fn summary(&self) -> Vec<(&'static str, String)> {
        let seconds = self.took.as_secs_f64();
        let loads = &self.loads;
        let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
        let most = loads.iter().copied().fold(0.0, f64::max);
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        vec![
            ("time", format!("{:.1} minutes", seconds / 60.0)),
            ("seed", self.seed.to_string()),
            (
                "machine",
                format!(
                    "{processors} processors; load average {mean:.1} in the mean, {most:.1} at most"
                ),
            ),
            (
                "faults",
                format!(
                    "{} of {} kinds, {} of them with a second one",
                    self.faults(),
                    self.kinds.len(),
                    self.companions
                ),
            ),
            ("changes of the serving server", self.moves.to_string()),
            (
                "disks that failed and were replaced",
                self.replaced_disks.to_string(),
            ),
            (
                "load held",
                format!(
                    "{} answered writes, {:.0} a second, and {} reads, over faults and pauses",
                    self.writes,
                    self.writes as f64 / seconds.max(1.0),
                    self.reads
                ),
            ),
            (
                "verified",
                format!(
                    "{} MiB read and compared; {} complete looks at up to {} blocks and at both sides",
                    self.verified_bytes >> 20,
                    self.checks,
                    self.blocks
                ),
            ),
            ("lost answered writes", self.wrong.to_string()),
            (
                "bytes that differ between the sides",
                self.differing_bytes.to_string(),
            ),
            (
                "errors and lost connections where a pause was promised",
                self.broken_pauses.to_string(),
            ),
        ]
    }
}

impl Kind {
    fn row(&self) -> String {
        let mut stalls = self.stalls.clone();
        stalls.sort_by_key(|stall| stall.ms);
        let seconds = |stall: &Stall| stall.ms as f64 / 1000.0;
        match (stalls.get(stalls.len() / 2), stalls.last()) {
            (Some(median), Some(longest)) => format!(
                "{} | {:.2} s | {:.2} s | {:.1}",
                stalls.len(),
                seconds(median),
                seconds(longest),
                longest.load
            ),
            _ => "0 | | |".into(),
        }
    }
}
