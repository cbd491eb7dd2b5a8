//! What a run of `mirrorctl` came to.

use anyhow::{Result, bail};

#[derive(Debug, Clone)]
pub struct Outcome {
    /// The words after the global flags.
    pub command: String,
    /// Exit code; nothing when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn is_done(&self) -> bool {
        self.code == Some(0)
    }

    /// The standard output of a command that must have worked.
    pub fn done(self) -> Result<String> {
        if !self.is_done() {
            bail!(
                "`mirrorctl {}` ended with {:?}: {}",
                self.command,
                self.code,
                self.stderr.trim()
            );
        }
        Ok(self.stdout)
    }

    /// The standard error of a command that must have been refused (exit code 1) and must say so with `words`.
    pub fn refused(self, words: &[&str]) -> Result<String> {
        if self.code != Some(1) {
            bail!(
                "`mirrorctl {}` ended with {:?}, expected 1; it said: {} {}",
                self.command,
                self.code,
                self.stdout.trim(),
                self.stderr.trim()
            );
        }
        let said = self.stderr.to_lowercase();
        if let Some(word) = words
            .iter()
            .find(|word| !said.contains(&word.to_lowercase()))
        {
            bail!(
                "`mirrorctl {}` does not say {word:?}: {}",
                self.command,
                self.stderr.trim()
            );
        }
        Ok(self.stderr)
    }
}
