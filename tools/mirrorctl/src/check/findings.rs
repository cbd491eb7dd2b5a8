//! What a check has found so far.

use std::path::{Path, PathBuf};

use nbd_frontend::config::{Places, Problem};

#[derive(Debug)]
pub struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub places: Places,
    file: PathBuf,
}

impl Findings {
    pub fn new(file: &Path) -> Self {
        Self {
            problems: Vec::new(),
            warnings: Vec::new(),
            places: Places::default(),
            file: file.into(),
        }
    }

    pub fn problem(
        &mut self,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = self.found(key.into(), message.into(), remedy.into());
        self.problems.push(problem);
    }

    pub fn warning(
        &mut self,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let warning = self.found(key.into(), message.into(), remedy.into());
        self.warnings.push(warning);
    }

    fn found(&self, key: String, message: String, remedy: String) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.places.line_of(&key),
            key,
            message,
            remedy,
        }
    }
}
