//! The figures as Markdown.

use std::fmt::Write;
use std::time::Duration;

use super::Plan;
use super::contender::{Medium, NBDKIT, QEMU_MIRROR, QEMU_NBD};
use super::load::Sample;
use super::memory::Growth;
use super::resync::Resyncs;
use super::row::{Row, Unit};

/// One row on one medium, for all contenders.
#[derive(Debug)]
pub struct Table {
    pub medium: Medium,
    pub row: Row,
    pub cells: Vec<Cell>,
}

#[derive(Debug)]
pub struct Cell {
    pub contender: &'static str,
    pub median: Sample,
}

impl Table {
    pub fn figure(&self, contender: &str) -> Option<f64> {
        let cell = self.cells.iter().find(|cell| cell.contender == contender)?;
        Some(cell.median.figure(self.row.unit))
    }
}

pub fn markdown(
    plan: &Plan,
    machine: &str,
    tables: &[Table],
    resyncs: &Resyncs,
    memory: Option<&Growth>,
    plot: &str,
    took: Duration,
) -> String {
    let mut text = String::from("# Bench\n\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "All processes, the client among them, ran on this one machine, so only ratios within this page say something. \
         Each figure is the median of {} runs of {:.1} s that went through all contenders in turn, by `fio`. \
         The whole took {} s.\n\n{machine}",
        plan.rounds,
        plan.run.as_secs_f64(),
        took.as_secs()
    );
    if !tables.is_empty() {
        let _ = writeln!(text, "![Throughput of each row]({plot})\n");
    }
    for medium in Medium::BOTH {
        let of_medium: Vec<&Table> = tables
            .iter()
            .filter(|table| table.medium == medium)
            .collect();
        if of_medium.is_empty() {
            continue;
        }
        let _ = writeln!(text, "## {}\n", medium.title());
        if medium == Medium::Disk {
            let _ = writeln!(text, "nbdkit's `file` has no O_DIRECT and is left out.\n");
        }
        summary(&mut text, &of_medium);
        for table in of_medium {
            details(&mut text, table);
        }
    }
    resyncs.write(&mut text);
    if let Some(growth) = memory {
        growth.write(&mut text);
    }
    text
}

/// One line a row, one column a contender.
fn summary(text: &mut String, tables: &[&Table]) {
    let Some(first) = tables.first() else { return };
    let names: Vec<&str> = first.cells.iter().map(|cell| cell.contender).collect();
    let _ = writeln!(text, "| | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(names.len()));
    for table in tables {
        let figures = table.cells.iter().map(|cell| {
            let figure = cell.median.figure(table.row.unit);
            format!("{figure:.0}")
        });
        let figures: Vec<String> = figures.collect();
        let unit = table.row.unit.name();
        let _ = writeln!(
            text,
            "| {}, {unit} | {} |",
            table.row.title,
            figures.join(" | ")
        );
    }
    text.push('\n');
}

fn details(text: &mut String, table: &Table) {
    let Table { row, .. } = table;
    let took = if row.flushes { "flush" } else { "latency" };
    let _ = writeln!(text, "### {} (`{}`)\n", row.title, row.id);
    let _ = writeln!(
        text,
        "| | {} | × {NBDKIT} | × {QEMU_NBD} | × {QEMU_MIRROR} | {took} p50 µs | p99 µs | p99.9 µs | {} |",
        row.unit.name(),
        row.unit.cost_name(),
    );
    let _ = writeln!(text, "|---|{}", "---:|".repeat(8));
    for Cell { contender, median } in &table.cells {
        let figure = median.figure(row.unit);
        let against = |other: &str| match table.figure(other) {
            Some(other) if other > 0.0 => format!("{:.2}", figure / other),
            _ => "–".into(),
        };
        let _ = writeln!(
            text,
            "| {contender} | {figure:.0} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {} |",
            against(NBDKIT),
            against(QEMU_NBD),
            against(QEMU_MIRROR),
            median.p50_us,
            median.p99_us,
            median.p999_us,
            cost(row.unit, median.cost),
        );
    }
    text.push('\n');
}

fn cost(unit: Unit, seconds: f64) -> String {
    match unit {
        Unit::Operations => format!("{seconds:.1}"),
        Unit::Megabytes => format!("{seconds:.2}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::full::row::ROWS;

    pub fn table(figures: &[(&'static str, f64)]) -> Table {
        let cell = |(contender, operations_per_s): &(&'static str, f64)| Cell {
            contender,
            median: Sample {
                operations_per_s: *operations_per_s,
                bytes_per_s: 0.0,
                p50_us: 10.0,
                p99_us: 20.5,
                p999_us: 30.0,
                cost: 7.25,
            },
        };
        Table {
            medium: Medium::Memory,
            row: ROWS[0],
            cells: figures.iter().map(cell).collect(),
        }
    }

    #[test]
    fn ratios_are_to_whoever_is_in_the_same_table() {
        let mut text = String::new();
        let table = table(&[(NBDKIT, 200.0), (QEMU_MIRROR, 50.0), ("ours, sync", 150.0)]);
        details(&mut text, &table);
        let ours = "| ours, sync | 150 | 0.75 | – | 3.00 | 10.0 | 20.5 | 30.0 | 7.2 |";
        assert!(text.lines().any(|line| line == ours), "{text}");
        text.clear();
        summary(&mut text, &[&table]);
        let row = "| 4k random write, depth 1, IOPS | 200 | 50 | 150 |";
        assert!(text.lines().any(|line| line == row), "{text}");
    }
}
