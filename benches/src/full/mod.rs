//! `--full`: every row on every contender, on files in memory and on the disk, in rounds that go through all contenders
//! one after the other, so that whatever else the machine does meanwhile weighs on all alike; then resyncs and memory.
//! The report is Markdown with a plot beside it.

mod contender;
mod load;
mod machine;
mod memory;
mod plot;
mod report;
pub mod resync;
mod row;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use contender::Medium;
use load::Sample;
pub use load::median;
use report::{Cell, Table};
use row::ROWS;

/// What is measured, and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rounds: u32,
    /// Of one row on one contender in one round.
    pub run: Duration,
    pub media: Vec<Medium>,
    /// Of each file of the throughput tables.
    pub file_bytes: u64,
    /// Ids of rows; all where there is none.
    pub only: Vec<String>,
    pub memory: Duration,
    /// Where the Markdown goes; the plot lies beside it.
    pub report: PathBuf,
}

impl Plan {
    pub fn full(report: PathBuf) -> Self {
        Self {
            rounds: 3,
            run: Duration::from_millis(1500),
            media: Medium::BOTH.to_vec(),
            file_bytes: 512 << 20,
            only: Vec::new(),
            memory: Duration::from_secs(30),
            report,
        }
    }

    /// One row, once, for a moment: shows that everything works.
    pub fn smoke(report: PathBuf) -> Self {
        Self {
            rounds: 1,
            run: Duration::from_millis(300),
            media: vec![Medium::Memory],
            file_bytes: 64 << 20,
            only: vec!["write-4k-qd32".into()],
            ..Self::full(report)
        }
    }

    /// Of the mirror of the resync and memory rows.
    fn mirror_bytes(&self) -> u64 {
        4 * self.file_bytes
    }

    fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == id)
    }

    fn check(&self) -> Result<()> {
        let known: Vec<&str> = ROWS
            .iter()
            .map(|row| row.id)
            .chain(resync::IDS)
            .chain([memory::ID])
            .collect();
        if let Some(unknown) = self.only.iter().find(|id| !known.contains(&id.as_str())) {
            bail!("no row {unknown:?}; there are {}", known.join(", "));
        }
        Ok(())
    }
}

pub fn print(plan: &Plan) -> Result<()> {
    plan.check()?;
    let began = Instant::now();
    let machine = machine::describe()?;
    let mut tables = Vec::new();
    for medium in &plan.media {
        tables.extend(throughput(plan, *medium)?);
    }
    let resyncs = resync::measure(plan.mirror_bytes(), |id| plan.wants(id))?;
    let memory = plan
        .wants(memory::ID)
        .then(|| memory::measure(plan.mirror_bytes(), plan.memory))
        .transpose()?;
    let plot_path = plan.report.with_extension("svg");
    let plot_name = plot_path.file_name().context("the report has a name")?;
    let text = report::markdown(
        plan,
        &machine,
        &tables,
        &resyncs,
        memory.as_ref(),
        &plot_name.to_string_lossy(),
        began.elapsed(),
    );
    if let Some(folder) = plan.report.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&plot_path, plot::svg(&tables))?;
    fs::write(&plan.report, &text)
        .with_context(|| format!("cannot write {}", plan.report.display()))?;
    println!("{text}");
    Ok(())
}

/// A table for each row.
fn throughput(plan: &Plan, medium: Medium) -> Result<Vec<Table>> {
    let rows: Vec<_> = ROWS.iter().filter(|row| plan.wants(row.id)).collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let folder = tempfile::Builder::new()
        .prefix("mirror-bench-")
        .tempdir_in(medium.folder())?;
    eprintln!("{}", medium.title());
    let contenders = contender::start_all(medium, folder.path(), plan.file_bytes)?;
    for contender in &contenders {
        load::fill(contender).context(contender.name)?;
    }
    let mut tables = Vec::new();
    for row in rows {
        eprintln!("  {}", row.title);
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
        for _ in 0..plan.rounds {
            for (contender, samples) in contenders.iter().zip(&mut samples) {
                let sample = load::run(contender, row, plan.run)
                    .with_context(|| format!("{} on {}", row.title, contender.name))?;
                samples.push(sample);
            }
        }
        let cells = contenders
            .iter()
            .zip(&samples)
            .map(|(contender, samples)| Cell {
                contender: contender.name,
                median: Sample::median(samples),
            });
        tables.push(Table {
            medium,
            row: *row,
            cells: cells.collect(),
        });
    }
    contenders
        .iter()
        .try_for_each(|contender| contender.check().context(contender.name))?;
    Ok(tables)
}
