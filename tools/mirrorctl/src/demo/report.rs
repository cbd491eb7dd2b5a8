//! What the reader of the demo sees: each step as it goes, progress, and the table at the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mirror_core::control::SyncStatus;

const NAME_WIDTH: usize = 38;

#[derive(Debug, Default)]
pub struct Report {
    steps: Vec<Rc<Step>>,
}

/// A step that is under way until [`Step::done`].
#[derive(Debug)]
pub struct Step {
    name: &'static str,
    start: Instant,
    took: Cell<Option<Duration>>,
    result: RefCell<String>,
}

impl Report {
    pub fn step(&mut self, name: &'static str) -> Rc<Step> {
        eprintln!("{:2}. {name} ...", self.steps.len() + 1);
        let step = Rc::new(Step {
            name,
            start: Instant::now(),
            took: Cell::new(None),
            result: RefCell::default(),
        });
        self.steps.push(Rc::clone(&step));
        step
    }

    /// The summary: one line a step, and the last line for the whole.
    pub fn print(&self, took: Duration, passed: bool) {
        println!();
        for step in &self.steps {
            let took = step.took.get().unwrap_or_else(|| step.start.elapsed());
            let result = match step.took.get() {
                Some(_) => step.result.borrow().clone(),
                None => "FAILED".into(),
            };
            println!(
                "  {:NAME_WIDTH$} {:6.1} s  {result}",
                step.name,
                took.as_secs_f64()
            );
        }
        println!("  {:NAME_WIDTH$} {:6.1} s", "total", took.as_secs_f64());
        if passed {
            println!("No answered write was lost, and only what changed was copied back.");
        } else {
            println!("The demo FAILED.");
        }
    }
}

impl Step {
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn done(&self, result: String) {
        eprintln!("    {result}");
        self.took.set(Some(self.start.elapsed()));
        self.result.replace(result);
    }
}

/// The progress bar of a resync.
#[derive(Debug, Default)]
pub struct Progress {
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    pub fn show(&self, sync: Option<&SyncStatus>) {
        let mut bar = self.bar.borrow_mut();
        let Some(sync) = sync else {
            return;
        };
        let bar = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "    [{bar:40}] {percent:>3}% {bytes}/{total_bytes} {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=>.");
            ProgressBar::new(sync.total_bytes).with_style(style)
        });
        bar.set_length(sync.total_bytes);
        bar.set_position(sync.done_bytes);
        bar.set_message(format!("{}/s", bytes(sync.rate_bytes_per_s)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// An amount for people.
pub fn bytes(amount: u64) -> String {
    indicatif::BinaryBytes(amount).to_string()
}
