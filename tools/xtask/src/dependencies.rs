//! Licences and origins of every crate in `Cargo.lock`, against the lists in `deny.toml`, and what is known to be wrong
//! with them.
//!
//! It reads the part of the cargo-deny file that needs no network: `[licenses] allow`, `[bans] deny`,
//! `[sources] allow-registry` and `[advisories] ignore`. The advisories are those of [`advisories`].

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::advisories;
use crate::command::{cargo, root};
use crate::fuzz;

#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
    advisories: Advisories,
}

#[derive(Debug, Deserialize)]
struct Advisories {
    ignore: Vec<Ignored>,
}

#[derive(Debug, Deserialize)]
struct Ignored {
    id: String,
    /// For whoever reads it.
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// Nothing for the crates of this workspace.
    source: Option<String>,
}

pub fn check() -> Result<()> {
    let file = root().join("deny.toml");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let policy: Policy =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))?;
    let metadata: Metadata =
        serde_json::from_slice(&locked_metadata(&root())?).context("cargo metadata")?;
    // A lock file of its own, which a new dependency of the workspace leaves behind.
    locked_metadata(&fuzz::folder())?;
    let problems: Vec<String> = metadata
        .packages
        .iter()
        .flat_map(|package| problems_of(package, &policy))
        .collect();
    if !problems.is_empty() {
        bail!("{}; see deny.toml", problems.join("; "));
    }
    eprintln!(
        "{} crates: licences and sources as deny.toml allows",
        metadata.packages.len()
    );
    let ignored: Vec<String> = policy
        .advisories
        .ignore
        .into_iter()
        .map(|ignored| ignored.id)
        .collect();
    advisories::check(&ignored)
}

/// Fails where the lock file of that folder is not up to date.
fn locked_metadata(folder: &Path) -> Result<Vec<u8>> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        let folder = folder.display();
        bail!(
            "cargo metadata in {folder}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

fn problems_of(package: &Package, policy: &Policy) -> Vec<String> {
    let who = format!("{} {}", package.name, package.version);
    let mut problems = Vec::new();
    match &package.license {
        None => problems.push(format!("{who} names no licence")),
        Some(expression) if !is_allowed(expression, &policy.licenses.allow) => {
            problems.push(format!("{who} is under {expression}"));
        }
        Some(_) => {}
    }
    if let Some(ban) = policy.bans.deny.iter().find(|ban| ban.name == package.name) {
        problems.push(format!("{who} is banned: {}", ban.reason));
    }
    if let Some(source) = &package.source {
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        if !policy.sources.allow_registry.iter().any(|r| r == registry) {
            problems.push(format!("{who} comes from {source}"));
        }
    }
    problems
}

/// Whether a licence expression can be met with allowed licences only. Understands `OR`, `AND`, brackets, and the
/// old `/` for `OR`; `X WITH Y` counts as one name.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = all_of(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = one_of(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        met &= one_of(words, allowed);
    }
    met
}

fn one_of(words: &mut &[&str], allowed: &[String]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let met = any_of(words, allowed);
            match *words {
                [")", rest @ ..] => {
                    *words = rest;
                    met
                }
                _ => false,
            }
        }
        [name, "WITH", exception, rest @ ..] => {
            *words = rest;
            let whole = format!("{name} WITH {exception}");
            allowed.contains(&whole)
        }
        [name, rest @ ..] => {
            *words = rest;
            allowed.iter().any(|a| a == name)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    fn check(expression: &str, expected: bool) {
        let allowed =
            ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"].map(String::from);
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }

    #[test]
    fn a_licence_expression_is_met_by_any_allowed_alternative() {
        check("MIT", true);
        check("MIT OR GPL-3.0", true);
        check("GPL-3.0/MIT", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("(GPL-3.0 OR MIT) AND ISC", true);
    }

    #[test]
    fn a_licence_expression_needs_every_joined_licence() {
        check("GPL-3.0", false);
        check("MIT AND GPL-3.0", false);
        check("ISC AND (GPL-3.0 OR AGPL-3.0)", false);
        check("MIT WITH Unknown-exception", false);
        check("(MIT", false);
        check("", false);
    }
}
