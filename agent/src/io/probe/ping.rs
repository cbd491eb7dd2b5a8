//! ICMP echo, in both address families. It needs `CAP_NET_RAW`, or a group in `net.ipv4.ping_group_range`.

use std::net::IpAddr;
use std::time::Duration;

use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence};

/// What the echo carries; the content means nothing.
const PAYLOAD: [u8; 16] = *b"mirror-agent....";

/// One echo. The error says why there was no answer.
pub async fn ping(target: IpAddr, timeout: Duration) -> Result<(), String> {
    let kind = match target {
        IpAddr::V4(_) => ICMP::V4,
        IpAddr::V6(_) => ICMP::V6,
    };
    let config = Config::builder().kind(kind).build();
    let client = Client::new(&config).map_err(|error| {
        format!("cannot send ICMP: {error}; give the agent CAP_NET_RAW, as its systemd unit does")
    })?;
    let identifier = PingIdentifier(std::process::id() as u16);
    let mut pinger = client.pinger(target, identifier).await;
    pinger.timeout(timeout);
    match pinger.ping(PingSequence(0), &PAYLOAD).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{target} did not answer: {error}")),
    }
}
