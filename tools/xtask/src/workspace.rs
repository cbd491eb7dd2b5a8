//! How the workspace is compiled in the dev profile: so that every task shares one build.
//!
//! Two things would make cargo compile the same crates again for another task: a selection of packages that turns on
//! other features of what they share, and `cargo clippy`, which goes through all dependencies once more. So all tasks
//! use one of three selections, and the compiler that builds our crates is clippy's.

use std::process::Command;

use crate::command::cargo;

/// Which packages are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All but `mirror-aws`, whose dependencies take minutes and gigabytes.
    Usual,
    /// With it, for whoever needs it in the end anyway.
    Whole,
    /// What has the feature `aws`, with it. Needs the same features of dependencies as `Whole`.
    Aws,
}

impl Selection {
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Usual => &["--workspace", "--exclude", "mirror-aws"],
            Self::Whole => &["--workspace"],
            Self::Aws => &[
                "-p",
                "mirror-aws",
                "-p",
                "agent",
                "-p",
                "mirrorctl",
                "--features=agent/aws,mirrorctl/aws",
            ],
        }
    }

    /// Records for the next build make the first one slower; only the usual selection is built again and again.
    fn is_incremental(self) -> bool {
        self == Self::Usual
    }
}

/// A cargo whose warnings in our crates, clippy's among them, are errors.
///
/// `cargo clippy` does the same for crates that it only checks. Dependencies are compiled as always and shared with
/// a plain `cargo build`; of our crates, cargo keeps both builds.
pub fn linted(command: &str, selection: Selection) -> Command {
    let mut cargo = cargo();
    cargo
        .args([command, "--locked"])
        .args(selection.arguments())
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        // The form in which `cargo clippy` hands over `--deny warnings`.
        .env(
            "CLIPPY_ARGS",
            "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
        );
    if !selection.is_incremental() {
        cargo.env("CARGO_INCREMENTAL", "0");
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_turns_on_features_of_a_dependency_for_itself() {
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .arg("--offline")
            .output()
            .unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut features = std::collections::BTreeMap::new();
        for package in metadata["packages"].as_array().unwrap() {
            for dependency in package["dependencies"].as_array().unwrap() {
                // Those without a source are ours.
                if dependency["source"].is_null() {
                    continue;
                }
                let name = dependency["name"].as_str().unwrap();
                let first = features
                    .entry(name)
                    .or_insert_with(|| dependency["features"].clone());
                assert_eq!(
                    *first, dependency["features"],
                    "{name} in {}: declare its features in the root Cargo.toml",
                    package["name"]
                );
            }
        }
        assert!(features.contains_key("tokio"), "nothing was looked at");
    }
}
