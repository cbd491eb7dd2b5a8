//! The configuration of `mirror-witness`: a file of its own, because it lives on a third host and may
//! serve many clusters.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::problem::Collector;
use super::section::{Lines, Section, parse, text};
use super::value::{address, name, path};
use super::{ConfigError, Located, Problems, read_text, refuse_exposed};

/// Where the file is looked for when no path is given.
pub const PATH_DEFAULT: &str = "/etc/mirror/witness.toml";
/// Every IPv4 address of the host.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 29004);
const STATE_FILE_DEFAULT: &str = "/var/lib/mirror-witness/state";

/// A whole valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessConfig {
    pub listen: SocketAddr,
    pub state_file: PathBuf,
    /// At least one, with different names.
    pub clusters: Vec<WitnessCluster>,
}

/// One `[[cluster]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessCluster {
    /// As in the cluster's own configuration.
    pub name: String,
    /// A copy of the cluster's key file.
    pub key_file: PathBuf,
}

impl WitnessConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::parse(path, &read_text(path)?)?)
    }

    /// As [`Self::load`], and refuses a file that others may change.
    pub fn load_trusted(path: &Path) -> Result<Self, ConfigError> {
        refuse_exposed(path)?;
        Self::load(path)
    }

    /// Checks `source`; `file` is only what problems call it.
    pub fn parse(file: &Path, source: &str) -> Result<Self, Problems> {
        let mut problems = Collector::new(file);
        let config = read(source, &mut problems);
        Problems::none_in(problems.into_vec())?;
        Ok(config)
    }
}

/// What could be read; worth nothing if there are problems.
fn read(source: &str, problems: &mut Collector) -> WitnessConfig {
    let parsed = parse(source, problems);
    let nothing = DeTable::new();
    let table = parsed.as_ref().map_or(&nothing, |table| table.get_ref());
    let mut root = Section::new("", 1, Lines(source), table);
    let listen = root.optional("listen", problems, |value| address(text(value)?));
    let state_file = root.optional("state_file", problems, path);
    let mut clusters: Vec<(Located<String>, PathBuf)> = Vec::new();
    let sections = root.sections("cluster", "[[cluster]]", "cluster", problems);
    let none = sections.is_empty();
    for mut section in sections {
        let found = section.required("name", "\"cluster1\"", problems, name);
        let key_file = section.required("key_file", "\"/etc/mirror/cluster1.key\"", problems, path);
        if let (Some(found), Some(key_file)) = (found, key_file) {
            let same = clusters
                .iter()
                .find(|(other, _)| other.value == found.value);
            if let Some((other, _)) = same {
                problems.add(
                    Some(found.line),
                    section.key("name"),
                    format!("line {} has a cluster of this name already", other.line),
                    "give each cluster a name of its own, here and in its own configuration",
                );
            }
            clusters.push((found, key_file.value));
        }
        section.refuse_unknown_keys(problems);
    }
    if none && parsed.is_some() {
        problems.add(
            None,
            "cluster",
            "no cluster is configured",
            "add [[cluster]] with name and key_file",
        );
    }
    root.refuse_unknown_keys(problems);
    let cluster = |(name, key_file): (Located<String>, PathBuf)| WitnessCluster {
        name: name.value,
        key_file,
    };
    WitnessConfig {
        listen: listen.map_or(LISTEN_DEFAULT, |listen| listen.value),
        state_file: state_file.map_or_else(|| STATE_FILE_DEFAULT.into(), |found| found.value),
        clusters: clusters.into_iter().map(cluster).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Result<WitnessConfig, Problems> {
        WitnessConfig::parse(Path::new("witness.toml"), source)
    }

    /// Every problem, in order, must hold the words that are expected of it.
    fn check(source: &str, expected: &[&str]) {
        let problems = parse(source).unwrap_err();
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (problem, words) in found.iter().zip(expected) {
            assert!(problem.contains(words), "{problem:?} has no {words:?}");
        }
    }

    #[test]
    fn clusters_alone_are_enough() {
        let source = "[[cluster]]\nname = \"one\"\nkey_file = \"/k/one\"\n\
                      [[cluster]]\nname = \"two\"\nkey_file = \"/k/two\"\n";
        let config = parse(source).unwrap();
        assert_eq!(config.listen.port(), 29004);
        assert_eq!(config.state_file, Path::new(STATE_FILE_DEFAULT));
        let names: Vec<_> = config.clusters.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
    }

    #[test]
    fn every_setting_is_taken() {
        let source = "listen = \"[::1]:7\"\nstate_file = \"/s\"\n\
                      [[cluster]]\nname = \"one\"\nkey_file = \"/k\"\n";
        let config = parse(source).unwrap();
        assert_eq!(config.listen, "[::1]:7".parse().unwrap());
        assert_eq!(config.state_file, Path::new("/s"));
        assert_eq!(config.clusters[0].key_file, Path::new("/k"));
    }

    #[test]
    fn problems_are_named_with_line_and_remedy() {
        check("", &["no cluster is configured; add [[cluster]]"]);
        check("listen = ", &["this is not TOML"]);
        check(
            "listn = \"1.2.3.4:5\"\nstate_file = \"s\"\n[[cluster]]\nname = \"a b\"\n",
            &[
                "witness.toml:1: listn: \"listn\" is not a known key here; did you mean \"listen\"?",
                "witness.toml:2: state_file: \"s\" is a relative path",
                "witness.toml:3: cluster \"a b\" key_file: the key is missing",
                "witness.toml:4: cluster \"a b\" name: \"a b\" is no valid name",
            ],
        );
        let twice = "[[cluster]]\nname = \"one\"\nkey_file = \"/k\"\n";
        check(
            &format!("{twice}{twice}"),
            &["witness.toml:5: cluster \"one\" name: line 2 has a cluster of this name already"],
        );
    }
}
