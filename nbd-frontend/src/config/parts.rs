//! What of a file can be used although other parts of it have problems, so that a check can look at all of it in one
//! round. Daemons take whole files only.

use std::path::{Path, PathBuf};

use super::agent::AgentConfig;
use super::places::Places;
use super::problem::Problem;
use super::{Config, Mirror, NbdTls};

/// A file as a check sees it.
#[derive(Debug)]
pub struct Examined {
    pub problems: Vec<Problem>,
    /// Choices that the operator should know the price of.
    pub warnings: Vec<Problem>,
    /// Where in the file its keys are.
    pub places: Places,
    pub parts: Parts,
}

/// Each section that is good by itself.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    pub cluster: Option<String>,
    pub key_file: Option<PathBuf>,
    /// There if it is clear which two they are; without them, there are no mirrors and no agent.
    pub nodes: Option<[String; 2]>,
    pub mirrors: Vec<Mirror>,
    pub nbd_tls: Option<NbdTls>,
    /// Without the paths, resolvers, groups, resources and monitors that are not good.
    pub agent: Option<AgentConfig>,
    /// Of what was written, how much is not here.
    pub(super) left_out: usize,
}

impl Parts {
    /// `None` if anything is missing, which a check has reported then.
    pub(super) fn into_config(
        self,
        file: &Path,
        places: Places,
        warnings: Vec<Problem>,
    ) -> Option<Config> {
        if self.left_out > 0 {
            return None;
        }
        Some(Config {
            path: file.into(),
            cluster: self.cluster?,
            key_file: self.key_file?,
            nodes: self.nodes?,
            mirrors: self.mirrors,
            nbd_tls: self.nbd_tls,
            agent: self.agent,
            warnings,
            places,
        })
    }
}

/// Lets through what is whole and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    pub left_out: usize,
}

impl Sieve {
    pub(super) fn one<T>(&mut self, finished: Option<T>) -> Option<T> {
        self.left_out += usize::from(finished.is_none());
        finished
    }

    pub(super) fn all<T>(&mut self, finished: impl IntoIterator<Item = Option<T>>) -> Vec<T> {
        let mut whole = Vec::new();
        for one in finished {
            whole.extend(self.one(one));
        }
        whole
    }
}
