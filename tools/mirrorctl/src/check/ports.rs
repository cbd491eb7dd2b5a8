//! Whether the daemons could listen where the file says. Nothing is listened on: a probe port that
//! answers for a moment would tell a balancer that the service is here.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nbd_frontend::config::agent::{AgentConfig, ResourceKind};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use super::findings::Findings;

/// `agent_runs`: then it has these ports itself.
pub fn look(agent: &AgentConfig, node: usize, agent_runs: bool, findings: &mut Findings) {
    for path in &agent.heartbeat.paths {
        let address = path.addresses[node];
        let key = format!("heartbeat.path {:?}", path.name);
        let tried = UdpSocket::bind(address).map(drop);
        report(&key, address, "UDP", tried, agent_runs, findings);
    }
    for group in agent
        .groups
        .iter()
        .filter(|group| group.nodes.contains(&node))
    {
        for resource in &group.resources {
            let ResourceKind::ProbePort(probe) = &resource.kind else {
                continue;
            };
            for address in [probe.tcp, probe.http].into_iter().flatten() {
                let key = format!("group {:?} resource {:?}", group.name, resource.name);
                let tried = try_tcp(address);
                // It is there as soon as the group is.
                if !comes_with_a_group(agent, address, &tried) {
                    report(&key, address, "TCP", tried, agent_runs, findings);
                }
            }
        }
    }
}

/// Whether that `address` is not here is no finding, for it floats.
pub fn comes_with_a_group(
    agent: &AgentConfig,
    address: SocketAddr,
    tried: &io::Result<()>,
) -> bool {
    floats(agent, address) && is_elsewhere(tried)
}

/// `runs`: the daemon that listens there does, and has the port itself.
pub fn report(
    key: &str,
    address: SocketAddr,
    protocol: &str,
    tried: io::Result<()>,
    runs: bool,
    findings: &mut Findings,
) {
    let Err(error) = tried else { return };
    match error.kind() {
        io::ErrorKind::AddrInUse if runs => {}
        io::ErrorKind::AddrInUse => findings.problem(
            key,
            format!("{address} ({protocol}) is in use by another program"),
            format!(
                "find it with `ss -{}lpn sport = :{}` and stop it, or choose another port",
                if protocol == "UDP" { 'u' } else { 't' },
                address.port()
            ),
        ),
        io::ErrorKind::AddrNotAvailable => findings.problem(
            key,
            format!("{} is no address of this machine", address.ip()),
            "write one that `ip address` shows here, or add it to an interface",
        ),
        _ => findings.problem(
            key,
            format!("cannot listen on {address} ({protocol}): {error}"),
            "choose an address and port that this user may listen on",
        ),
    }
}

fn is_elsewhere(tried: &io::Result<()>) -> bool {
    tried
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Whether `address` is one that moves between the nodes.
fn floats(agent: &AgentConfig, address: SocketAddr) -> bool {
    let mut resources = agent.groups.iter().flat_map(|group| &group.resources);
    resources.any(|resource| match &resource.kind {
        ResourceKind::FloatingIp(ip) => ip.address == address.ip(),
        _ => false,
    })
}

pub fn try_tcp(address: SocketAddr) -> io::Result<()> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // As the agent will: connections that linger from its last run are no obstacle.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(())
}
