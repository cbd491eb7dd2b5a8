//! How the workspace is compiled in the dev profile: so that every task shares one build.
//!
//! Two things would make cargo compile the same crates again for another task: a selection of packages that turns on
//! other features of what they share, and `cargo clippy`, which goes through all dependencies once more. So all tasks
//! use one of two selections, and the compiler that builds our crates is clippy's.

use std::process::Command;

use crate::command::cargo;

/// Which packages are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All but `mirror-aws`, whose dependencies take minutes and gigabytes.
    Usual,
    /// With it, for whoever needs it in the end anyway.
    Whole,
}

impl Selection {
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Usual => &["--locked", "--workspace", "--exclude", "mirror-aws"],
            Self::Whole => &["--locked", "--workspace"],
        }
    }
}

/// A cargo whose warnings in our crates, clippy's among them, are errors.
///
/// `cargo clippy` does the same for crates that it only checks. Dependencies are compiled as always and shared with
/// a plain `cargo build`; of our crates, cargo keeps both builds.
pub fn linted(command: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .arg(command)
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        // The form in which `cargo clippy` hands over `--deny warnings`.
        .env(
            "CLIPPY_ARGS",
            "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
        );
    cargo
}
