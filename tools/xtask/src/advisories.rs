//! Known vulnerabilities of the crates in our lock files.
//!
//! `advisories.toml` at the root holds those advisories of the RustSec database that concern a crate of ours. [`check`]
//! compares it with every version in use, without the network. [`renew`] makes it anew from a checkout of the
//! database (<https://github.com/RustSec/advisory-db>), wherever there is one. So `check` knows what was known when the
//! file was last renewed, and says when that was.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};

use crate::command::root;

const LOCKS: [&str; 2] = ["Cargo.lock", "tests/fuzz/Cargo.lock"];
const HEAD: &str = "\
# Advisories of the RustSec database that concern crates of our lock files. `cargo xtask check` compares them with the
# versions in use; `cargo xtask advisories CHECKOUT DAY` makes this file anew. What must be lived with goes to
# deny.toml, [advisories] ignore, with its reason.

";

#[derive(Debug, Deserialize, Serialize)]
struct Known {
    /// When the database was last compared with our lock files.
    renewed: String,
    #[serde(default)]
    advisory: Vec<Advisory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Advisory {
    id: String,
    package: String,
    date: String,
    about: String,
    /// Set where it is no vulnerability: `unsound`, `unmaintained`, `notice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    informational: Option<String>,
    #[serde(default)]
    patched: Vec<VersionReq>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unaffected: Vec<VersionReq>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Package {
    name: String,
    version: Version,
    /// Nothing for our own.
    source: Option<String>,
}

/// Fails for every version in use that an advisory concerns and that `ignored` does not name.
pub fn check(ignored: &[String]) -> Result<()> {
    let file = file();
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let known: Known =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))?;
    let packages = packages()?;
    let problems: Vec<String> = known
        .advisory
        .iter()
        .filter(|advisory| !ignored.contains(&advisory.id))
        .flat_map(|advisory| {
            let concerned = packages.iter().filter(|package| advisory.concerns(package));
            concerned
                .map(move |package| format!("{} {}: {advisory}", package.name, package.version))
        })
        .collect();
    if !problems.is_empty() {
        bail!(
            "{}; update the crate, or say in deny.toml, [advisories] ignore, why it can be lived with",
            problems.join("; ")
        );
    }
    eprintln!(
        "{} advisories concern none of the versions of {} crates, as known on {}",
        known.advisory.len(),
        packages.len(),
        known.renewed
    );
    Ok(())
}

/// Makes `advisories.toml` anew from a checkout of the database.
pub fn renew(checkout: &Path, today: &str) -> Result<()> {
    let names: BTreeSet<String> = packages()?
        .into_iter()
        .map(|package| package.name)
        .collect();
    let mut advisory = Vec::new();
    for name in names {
        let folder = checkout.join("crates").join(&name);
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "md") {
                let text = fs::read_to_string(&path)?;
                let found = parse(&text).with_context(|| format!("{}", path.display()))?;
                advisory.extend(found);
            }
        }
    }
    if advisory.is_empty() {
        bail!(
            "no advisory of any crate of ours in {}; is it a checkout of the RustSec database?",
            checkout.display()
        );
    }
    advisory.sort_by(|a, b| (&a.package, &a.id).cmp(&(&b.package, &b.id)));
    let known = Known {
        renewed: today.into(),
        advisory,
    };
    fs::write(file(), format!("{HEAD}{}", shown(&known)))?;
    eprintln!("{} advisories", known.advisory.len());
    Ok(())
}

fn file() -> PathBuf {
    root().join("advisories.toml")
}

/// Everything of others in all lock files.
fn packages() -> Result<BTreeSet<Package>> {
    let mut packages = BTreeSet::new();
    for lock in LOCKS {
        let path = root().join(lock);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lock: Lock =
            toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
        packages.extend(
            lock.package
                .into_iter()
                .filter(|package| package.source.is_some()),
        );
    }
    Ok(packages)
}

impl Advisory {
    fn concerns(&self, package: &Package) -> bool {
        let is_in =
            |ranges: &[VersionReq]| ranges.iter().any(|range| range.matches(&package.version));
        // Unmaintained is for people to weigh, when they renew the list.
        let is_fault = self
            .informational
            .as_deref()
            .is_none_or(|kind| kind == "unsound");
        is_fault
            && package.name == self.package
            && !is_in(&self.patched)
            && !is_in(&self.unaffected)
    }
}

impl std::fmt::Display for Advisory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}, {}", self.id, self.date, self.about)
    }
}

/// One file of the database: TOML between fences, then a heading. Nothing if it was withdrawn.
fn parse(text: &str) -> Result<Option<Advisory>> {
    #[derive(Deserialize)]
    struct File {
        advisory: Head,
        versions: Versions,
    }
    #[derive(Deserialize)]
    struct Head {
        id: String,
        package: String,
        date: String,
        informational: Option<String>,
        withdrawn: Option<String>,
    }
    #[derive(Deserialize)]
    struct Versions {
        #[serde(default)]
        patched: Vec<VersionReq>,
        #[serde(default)]
        unaffected: Vec<VersionReq>,
    }
    let (head, rest) = text
        .strip_prefix("```toml\n")
        .and_then(|text| text.split_once("\n```"))
        .context("it does not begin with TOML between fences")?;
    let File { advisory, versions } = toml::from_str(head)?;
    if advisory.withdrawn.is_some() {
        return Ok(None);
    }
    let about = rest.lines().find_map(|line| line.strip_prefix("# "));
    Ok(Some(Advisory {
        id: advisory.id,
        package: advisory.package,
        date: advisory.date,
        about: about.unwrap_or("it has no heading").trim().into(),
        informational: advisory.informational,
        patched: versions.patched,
        unaffected: versions.unaffected,
    }))
}

/// As TOML, which the library here only reads.
fn shown(known: &Known) -> String {
    let mut text = format!("renewed = {:?}\n", known.renewed);
    let ranges = |ranges: &[VersionReq]| {
        let quoted: Vec<String> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
        quoted.join(", ")
    };
    for advisory in &known.advisory {
        let _ = write!(
            text,
            "\n[[advisory]]\nid = {:?}\npackage = {:?}\ndate = {:?}\nabout = {:?}\n",
            advisory.id, advisory.package, advisory.date, advisory.about
        );
        if let Some(kind) = &advisory.informational {
            let _ = writeln!(text, "informational = {kind:?}");
        }
        let _ = writeln!(text, "patched = [{}]", ranges(&advisory.patched));
        if !advisory.unaffected.is_empty() {
            let _ = writeln!(text, "unaffected = [{}]", ranges(&advisory.unaffected));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2020-9999\"\npackage = \"gadget\"\n\
        date = \"2020-01-02\"\n\n[versions]\npatched = [\">= 1.2.3, < 2.0.0\", \">= 2.1.0\"]\n\
        unaffected = [\"< 1.1.0\"]\n```\n\n# It says \"boo\"\n\nAt night.\n";

    fn concerns(advisory: &Advisory, name: &str, version: &str) -> bool {
        advisory.concerns(&Package {
            name: name.into(),
            version: Version::parse(version).unwrap(),
            source: None,
        })
    }

    #[test]
    fn a_version_is_concerned_unless_it_is_patched_or_older_than_the_fault() {
        let advisory = parse(FILE).unwrap().unwrap();
        for (version, expected) in [
            ("1.0.9", false),
            ("1.1.0", true),
            ("1.2.3", false),
            ("2.0.9", true),
            ("2.1.0", false),
        ] {
            assert_eq!(
                concerns(&advisory, "gadget", version),
                expected,
                "{version}"
            );
        }
        assert!(!concerns(&advisory, "widget", "1.1.0"));
        let unmaintained = Advisory {
            informational: Some("unmaintained".into()),
            ..advisory
        };
        assert!(!concerns(&unmaintained, "gadget", "1.1.0"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let known = Known {
            renewed: "2020-01-03".into(),
            advisory: vec![parse(FILE).unwrap().unwrap()],
        };
        let again: Known = toml::from_str(&format!("{HEAD}{}", shown(&known))).unwrap();
        assert_eq!(again.advisory, known.advisory);
        assert_eq!(again.advisory[0].about, "It says \"boo\"");
    }

    #[test]
    fn the_list_that_is_checked_in_concerns_none_of_our_versions() {
        check(&[]).unwrap();
    }

    #[test]
    fn what_was_withdrawn_is_left_out() {
        let withdrawn = FILE.replace(
            "\n\n[versions]",
            "\nwithdrawn = \"2020-02-02\"\n\n[versions]",
        );
        assert_eq!(parse(&withdrawn).unwrap(), None);
        assert!(parse("# no front matter").is_err());
    }
}
