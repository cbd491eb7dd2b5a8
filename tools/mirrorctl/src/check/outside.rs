//! Whether what the agent needs from others would do its part now: the forced stop is tried in the way that
//! stops nothing, the arbiter is greeted, the resolvers' targets are asked, and so are the links that floating addresses
//! belong to. Each within its own time-out.

use std::time::Duration;

use std::net::IpAddr;

use agent::io::arbiter::WitnessClient;
use agent::io::forced_stop::{AWS_BUILD, AWS_BUILT_IN, ForcedStopDriver, Mode, Servers};
use agent::io::probe::ResolverProbe;
use agent::io::resource::floating_ip::{FloatingIp, FloatingIpError, Holder, hardware_text};
use nbd_frontend::config::agent::{
    AgentConfig, Arbiter, ForcedStop, ForcedStopKind, Resolver, ResourceKind,
};
use nbd_frontend::config::{ClusterKey, trust};
use tokio::time::timeout;

use super::findings::Findings;

/// The agent asks often and gives up soon; here an answer is worth waiting for on a busy machine.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// `key`: the cluster's, where it could be read.
pub fn look(
    servers: Servers,
    agent: &AgentConfig,
    key: Option<&ClusterKey>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let node = servers.local;
    let (stop, arbiter, silent, addresses) = runtime.block_on(async {
        tokio::join!(
            try_stop(&servers, agent.forced_stop.as_ref()),
            greet(&servers, agent.arbiter.as_ref(), key),
            ask(&agent.partition.resolvers),
            find_holders(agent, node),
        )
    });
    for (key, address, holder) in addresses {
        report_holder(&key, address, holder, &servers.nodes[1 - node], findings);
    }
    if let (Some(fault), Some(stop)) = (stop, &agent.forced_stop) {
        report_stop(&servers, &stop.kind, fault, findings);
    }
    if let Some(fault) = arbiter {
        findings.problem(
            "arbiter url",
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

async fn try_stop(servers: &Servers, stop: Option<&ForcedStop>) -> Option<String> {
    let stop = stop?;
    // A script that is not there, or not root's alone, is a finding of its own, and is not run.
    if let ForcedStopKind::Custom { script } = &stop.kind
        && !(script.is_file() && matches!(trust::check_path(script), Ok(Ok(()))))
    {
        return None;
    }
    let driver = match ForcedStopDriver::new(stop, servers.clone()) {
        Ok(driver) => driver,
        Err(error) => return Some(error.to_string()),
    };
    match timeout(stop.timeout, driver.check(1 - servers.local)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {}", shown(stop.timeout))),
    }
}

fn report_stop(servers: &Servers, kind: &ForcedStopKind, fault: String, findings: &mut Findings) {
    match kind {
        ForcedStopKind::Custom { script } => findings.problem(
            "forced_stop script",
            format!("a forced stop of the other node would fail: {fault}"),
            format!(
                "run it by hand until it ends with 0, for without it no group fails over: `cd /; \
                 MIRROR_MODE={} MIRROR_DOWN_SERVER={} MIRROR_LOCAL_SERVER={} MIRROR_CLUSTER={} {}`",
                Mode::Check,
                servers.nodes[1 - servers.local],
                servers.nodes[servers.local],
                servers.cluster,
                script.display()
            ),
        ),
        ForcedStopKind::Aws { .. } if !AWS_BUILT_IN => findings.problem(
            "forced_stop kind",
            "\"aws\" is not in this build of mirrorctl, so that the forced stop cannot be tried",
            AWS_BUILD,
        ),
        ForcedStopKind::Aws { .. } => findings.problem(
            "forced_stop",
            format!("a forced stop of the other node would fail: {fault}"),
            "mend it, for without it no group fails over; docs/forced-stop.md has what both nodes need",
        ),
    }
}

async fn greet(
    servers: &Servers,
    arbiter: Option<&Arbiter>,
    key: Option<&ClusterKey>,
) -> Option<String> {
    let (arbiter, key) = (arbiter?, key?);
    let lease_ms = u64::try_from(arbiter.lease.as_millis()).unwrap_or(u64::MAX);
    let client = WitnessClient::new(
        &arbiter.url,
        &servers.cluster,
        &servers.nodes[servers.local],
        key,
        arbiter.timeout.max(GREETING_LIMIT),
        lease_ms,
    );
    match client {
        Ok(client) => client.greet().await.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Each floating address that this node may have, and who has it.
async fn find_holders(
    agent: &AgentConfig,
    node: usize,
) -> Vec<(String, IpAddr, Result<Holder, FloatingIpError>)> {
    let paths = agent.heartbeat.paths.iter();
    let others: Vec<IpAddr> = paths.map(|path| path.addresses[1 - node].ip()).collect();
    let mut found = Vec::new();
    let groups = agent.groups.iter();
    for group in groups.filter(|group| group.nodes.contains(&node)) {
        for resource in &group.resources {
            let ResourceKind::FloatingIp(config) = &resource.kind else {
                continue;
            };
            let key = format!(
                "group {:?} resource {:?} address",
                group.name, resource.name
            );
            let holder = FloatingIp::new(config, node).holder(&others).await;
            found.push((key, config.address, holder));
        }
    }
    found
}

fn report_holder(
    key: &str,
    address: IpAddr,
    holder: Result<Holder, FloatingIpError>,
    other_node: &str,
    findings: &mut Findings,
) {
    match holder {
        Ok(Holder::NobodyElse | Holder::OtherNode) => {}
        Ok(Holder::Somebody(hardware)) => findings.problem(
            key,
            format!(
                "{address} is in use: the host {} answers for it, and it is not {other_node}",
                hardware_text(hardware)
            ),
            "take it away there, or choose another address",
        ),
        // A finding of its own.
        Err(FloatingIpError::NoInterface { .. }) => {}
        Err(error) => findings.warning(
            key,
            format!("whether another host has {address} is not known: {error}"),
            "run the check as root",
        ),
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
