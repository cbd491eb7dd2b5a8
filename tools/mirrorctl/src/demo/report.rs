//! What the reader of the demo sees: each step as it goes, progress, and the table at the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

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
