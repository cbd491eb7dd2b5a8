//! What is wrong with a configuration: every problem with its place, the key, and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};

/// A value with the line it was written on, so that a later check can still point at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    /// Counted from 1.
    pub line: usize,
}

/// One thing to mend in the file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1; `None` where the file as a whole is meant.
    pub line: Option<usize>,
    /// The key or section, as the operator would look for it.
    pub key: String,
    pub message: String,
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.message, self.remedy)
    }
}

/// All problems of one configuration, in file order. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Err` with everything in `found`, or `Ok` if it is empty.
    pub fn none_in(mut found: Vec<Problem>) -> Result<(), Self> {
        found.sort_by_key(|problem| problem.line);
        found.dedup();
        if found.is_empty() {
            Ok(())
        } else {
            Err(Self(found))
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems of one file while it is read and checked.
#[derive(Debug)]
pub(super) struct Collector {
    file: PathBuf,
    found: Vec<Problem>,
}

impl Collector {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.into(),
            found: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        line: Option<usize>,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.found.push(Problem {
            file: self.file.clone(),
            line,
            key: key.into(),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        self.found
    }
}
