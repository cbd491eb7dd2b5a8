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
}

/// Of one kind of fault.
#[derive(Debug, Default)]
struct Kind {
    count: u64,
    longest_stall_ms: u64,
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
        // A second fault is at its own cost.
        if companion.is_none() {
            kind.longest_stall_ms = kind.longest_stall_ms.max(figures.longest_stall_ms);
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
        let seconds = self.took.as_secs_f64();
        writeln!(f, "| | |\n|---|---|")?;
        let rows = [
            ("time", format!("{:.1} minutes", seconds / 60.0)),
            ("seed", self.seed.to_string()),
            (
                "faults",
                format!(
                    "{}, {} of them with a second one",
                    self.faults(),
                    self.companions
                ),
            ),
            ("changes of the serving server", self.moves.to_string()),
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
                "errors seen where a pause was promised",
                self.broken_pauses.to_string(),
            ),
        ];
        for (name, found) in rows {
            writeln!(f, "| {name} | {found} |")?;
        }
        writeln!(
            f,
            "\n| fault | times | longest stall of a client |\n|---|---|---|"
        )?;
        for (fault, kind) in &self.kinds {
            let stall = kind.longest_stall_ms as f64 / 1000.0;
            writeln!(f, "| {} | {} | {stall:.2} s |", fault.kind(), kind.count)?;
        }
        Ok(())
    }
}
