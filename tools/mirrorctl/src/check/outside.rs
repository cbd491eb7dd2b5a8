//! Whether what the agent needs from others would do its part now: the forced stop is tried in the way that
//! stops nothing, the arbiter is greeted, and the resolvers' targets are asked. Each within its own time-out.

use std::time::Duration;

use agent::io::arbiter::WitnessClient;
use agent::io::forced_stop::{ForcedStopDriver, Servers};
use agent::io::probe::ResolverProbe;
use nbd_frontend::config::agent::{AgentConfig, Arbiter, ForcedStop, ForcedStopKind, Resolver};
use nbd_frontend::config::{ClusterKey, Config};
use tokio::time::timeout;

use super::findings::Findings;

/// The agent asks often and gives up soon; here an answer is worth waiting for on a busy machine.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// `key`: the cluster's, where it could be read.
pub fn look(
    config: &Config,
    agent: &AgentConfig,
    node: usize,
    key: Option<&ClusterKey>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, arbiter, silent) = runtime.block_on(async {
        tokio::join!(
            try_stop(config, agent.forced_stop.as_ref(), node),
            greet(config, agent.arbiter.as_ref(), node, key),
            ask(&agent.partition.resolvers),
        )
    });
    if let Some(fault) = stop {
        findings.problem(
            "forced_stop",
            format!("a forced stop of the other node would fail: {fault}"),
            "mend it: without it no group fails over",
        );
    }
    if let Some(fault) = arbiter {
        findings.problem(
            "arbiter",
            fault,
            "without the arbiter no group starts; `mirrorctl check --offline` looks at the file and \
             this machine alone",
        );
    }
    for (resolver, fault) in silent {
        findings.warning(
            format!("partition.resolver {resolver:?}"),
            format!("its target does not answer now: {fault}"),
            "name a target that always answers: a node that reaches none takes itself for cut off",
        );
    }
    Ok(())
}

async fn try_stop(config: &Config, stop: Option<&ForcedStop>, node: usize) -> Option<String> {
    let stop = stop?;
    // A script that is not there is a finding of its own.
    if let ForcedStopKind::Custom { script } = &stop.kind
        && !script.is_file()
    {
        return None;
    }
    let servers = Servers {
        cluster: config.cluster.clone(),
        nodes: config.nodes.clone(),
        local: node,
    };
    let driver = match ForcedStopDriver::new(stop, servers) {
        Ok(driver) => driver,
        Err(error) => return Some(error.to_string()),
    };
    match timeout(stop.timeout, driver.check(1 - node)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {}", shown(stop.timeout))),
    }
}

async fn greet(
    config: &Config,
    arbiter: Option<&Arbiter>,
    node: usize,
    key: Option<&ClusterKey>,
) -> Option<String> {
    let (arbiter, key) = (arbiter?, key?);
    let lease_ms = u64::try_from(arbiter.lease.as_millis()).unwrap_or(u64::MAX);
    let client = WitnessClient::new(
        &arbiter.url,
        &config.cluster,
        &config.nodes[node],
        key,
        arbiter.timeout.max(GREETING_LIMIT),
        lease_ms,
    );
    match client {
        Ok(client) => client.greet().await.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

async fn ask(resolvers: &[Resolver]) -> Vec<(String, String)> {
    let mut silent = Vec::new();
    for resolver in resolvers {
        let Some(probe) = ResolverProbe::new(resolver) else {
            continue;
        };
        let fault = match timeout(resolver.timeout, probe.probe()).await {
            Ok(Ok(())) => continue,
            Ok(Err(fault)) => fault,
            Err(_) => format!("no answer within {}", shown(resolver.timeout)),
        };
        silent.push((resolver.name.clone(), fault));
    }
    silent
}

fn shown(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}
