//! A list of named steps that are all tried, timed and shown in one table at the end.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};

use crate::command::Failed;

#[derive(Debug)]
pub struct Steps {
    started: Instant,
    done: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: String,
    took: Duration,
    failure: Option<Error>,
}

impl Steps {
    pub fn begin() -> Self {
        Self {
            started: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Takes over what was done beside these steps.
    pub fn append(&mut self, beside: Self) {
        self.done.extend(beside.done);
    }

    /// Runs a step. A failure is kept for the table and does not stop the steps that follow.
    pub fn step(&mut self, name: impl Into<String>, work: impl FnOnce() -> Result<()>) -> bool {
        let name = name.into();
        eprintln!("\n== {name}");
        let start = Instant::now();
        let failure = work().err();
        if let Some(error) = &failure {
            eprintln!("== {name} FAILED: {error:#}");
        }
        let passed = failure.is_none();
        self.done.push(Step {
            name,
            took: start.elapsed(),
            failure,
        });
        passed
    }

    /// Prints what failed steps said last, then the table, and fails when a step did.
    pub fn finish(self) -> Result<()> {
        let width = self.done.iter().map(|s| s.name.len()).max().unwrap_or(0);
        let total = self.started.elapsed();
        for step in &self.done {
            let causes = step.failure.iter().flat_map(|error| error.chain());
            let failures = causes.filter_map(|cause| cause.downcast_ref::<Failed>());
            for failed in failures.filter(|failed| !failed.tail.is_empty()) {
                println!("\n== the end of {}\n{}", step.name, failed.tail);
            }
        }
        println!();
        for step in &self.done {
            let (seconds, name) = (step.took.as_secs_f64(), &step.name);
            match &step.failure {
                None => println!("  {name:width$}  {seconds:8.1} s  ok"),
                Some(error) => println!("  {name:width$}  {seconds:8.1} s  FAILED  {error:#}"),
            }
        }
        println!("  {:width$}  {:8.1} s", "total", total.as_secs_f64());
        let failed = self.done.iter().filter(|s| s.failure.is_some()).count();
        println!("{} passed, {failed} failed", self.done.len() - failed);
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.done.len());
        }
        Ok(())
    }
}
