//! The targets of one resolver: all are tried at once, and any or all must answer.

use std::time::Duration;

use nbd_frontend::config::agent::{Need, Resolver, ResolverKind};
use tokio::task::JoinSet;

use super::http::Http;
use super::ping::ping;

#[derive(Debug)]
pub struct ResolverProbe {
    targets: Targets,
    need: Need,
    timeout: Duration,
}

#[derive(Debug)]
enum Targets {
    Ping(Vec<std::net::IpAddr>),
    Http(Http, Vec<String>),
    /// The node knows by itself whether its arbiter answers.
    Arbiter,
}

impl ResolverProbe {
    /// `None` for the kind that says there is none.
    pub fn new(resolver: &Resolver) -> Option<Self> {
        let (targets, need) = match &resolver.kind {
            ResolverKind::Ping { targets, need } => (Targets::Ping(targets.clone()), *need),
            ResolverKind::Http { urls, need } => (Targets::Http(Http::new(), urls.clone()), *need),
            ResolverKind::Witness | ResolverKind::Majority => (Targets::Arbiter, Need::Any),
            ResolverKind::None => return None,
        };
        Some(Self {
            targets,
            need,
            timeout: resolver.timeout,
        })
    }

    pub async fn probe(&self) -> Result<(), String> {
        let mut tries = JoinSet::new();
        let timeout = self.timeout;
        match &self.targets {
            Targets::Ping(targets) => {
                for target in targets.clone() {
                    tries.spawn(ping(target, timeout));
                }
            }
            Targets::Http(http, urls) => {
                for url in urls.clone() {
                    let http = http.clone();
                    tries.spawn(async move { http.reach(&url, timeout).await });
                }
            }
            Targets::Arbiter => return Ok(()),
        }
        let mut faults = Vec::new();
        while let Some(tried) = tries.join_next().await {
            match tried.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) if self.need == Need::Any => return Ok(()),
                Ok(()) => {}
                Err(fault) if self.need == Need::All => return Err(fault),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }
}
