//! One configured monitor, tried once a call.

use std::fs;
use std::time::Duration;

use mirror_core::control::MirrorStatus;
use nbd_frontend::config::agent::{Monitor, MonitorKind};
use tokio::net::TcpStream;

use super::disk::Disk;
use super::http::Http;
use super::mirror;
use super::stall::Stall;
use crate::io::command::Invocation;

#[derive(Debug)]
pub struct MonitorProbe {
    kind: Kind,
    timeout: Duration,
}

#[derive(Debug)]
enum Kind {
    MirrorDisk(String),
    MirrorLink(String),
    Process {
        command: String,
        count_min: u32,
    },
    Exec(Invocation),
    Tcp(std::net::SocketAddr),
    Http {
        http: Http,
        url: String,
        status: u16,
    },
    NetworkLink(String),
    Disk(Disk),
    Stall(Stall),
}

impl MonitorProbe {
    pub fn new(monitor: &Monitor, node: usize) -> Self {
        let kind = match &monitor.kind {
            MonitorKind::MirrorDisk { mirror } => Kind::MirrorDisk(mirror.clone()),
            MonitorKind::MirrorLink { mirror } => Kind::MirrorLink(mirror.clone()),
            MonitorKind::Process { command, count_min } => Kind::Process {
                command: command.clone(),
                count_min: *count_min,
            },
            MonitorKind::Exec { command } => Kind::Exec(Invocation::new(command.clone())),
            MonitorKind::Tcp { address } => Kind::Tcp(*address),
            MonitorKind::Http { url, status } => Kind::Http {
                http: Http::new(),
                url: url.clone(),
                status: *status,
            },
            MonitorKind::NetworkLink { interfaces } => Kind::NetworkLink(interfaces[node].clone()),
            MonitorKind::Disk { folder } => Kind::Disk(Disk::new(folder, &monitor.name)),
            MonitorKind::Stall { watchdog } => Kind::Stall(Stall::new(watchdog.as_deref())),
        };
        Self {
            kind,
            timeout: inner(monitor.timeout),
        }
    }

    /// `mirrors`: what `mirrord` said last.
    pub async fn probe(&self, mirrors: &[MirrorStatus]) -> Result<(), String> {
        match &self.kind {
            Kind::MirrorDisk(name) => find(mirrors, name).and_then(mirror::disk),
            Kind::MirrorLink(name) => find(mirrors, name).and_then(mirror::link),
            Kind::Process { command, count_min } => processes(command, *count_min),
            Kind::Exec(command) => match command.succeed(self.timeout).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            Kind::Tcp(address) => {
                match tokio::time::timeout(self.timeout, TcpStream::connect(address)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(format!("{address} cannot be connected to: {error}")),
                    Err(_) => Err(format!("{address} did not answer in time")),
                }
            }
            Kind::Http { http, url, status } => http.expect(url, *status, self.timeout).await,
            Kind::NetworkLink(interface) => carrier(interface),
            Kind::Disk(disk) => disk.probe(self.timeout).await,
            Kind::Stall(stall) => stall.probe(),
        }
    }

    /// Lets the watchdog that it feeds run out. False if it has none open.
    pub fn starve_watchdog(&self) -> bool {
        match &self.kind {
            Kind::Stall(stall) => stall.starve(),
            _ => false,
        }
    }
}

/// What of the limit is given to the probe itself, so that its own words come before those of who waits for it.
fn inner(limit: Duration) -> Duration {
    limit - limit / 20
}

fn find<'m>(mirrors: &'m [MirrorStatus], name: &str) -> Result<&'m MirrorStatus, String> {
    mirrors
        .iter()
        .find(|status| status.name == name)
        .ok_or_else(|| format!("mirrord does not answer for {name}"))
}

/// Counts the processes whose command line begins with `command`, words joined by single spaces.
fn processes(command: &str, count_min: u32) -> Result<(), String> {
    let folders = fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
    let is_one = |line: &[u8]| {
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        words.join(" ").starts_with(command)
    };
    let count = folders
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        // One that ended meanwhile has no command line any more.
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| is_one(line))
        .count();
    if count >= count_min as usize {
        Ok(())
    } else {
        Err(format!(
            "{count} processes run as {command:?}, not {count_min}"
        ))
    }
}

fn carrier(interface: &str) -> Result<(), String> {
    let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{interface}/{file}"));
    match read("operstate") {
        Err(_) => Err(format!("there is no network interface {interface}")),
        Ok(state) if state.trim() == "down" => Err(format!("{interface} is down")),
        // A device without the notion of a carrier says "unknown", and gives an error for it.
        Ok(_) => match read("carrier") {
            Ok(carrier) if carrier.trim() == "0" => Err(format!("{interface} has no carrier")),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_how_its_command_line_begins() {
        let own = fs::read("/proc/self/cmdline").unwrap();
        let own =
            String::from_utf8_lossy(own.split(|byte| *byte == 0).next().unwrap()).into_owned();
        assert_eq!(processes(&own, 1), Ok(()));
        assert!(processes(&own, 1000).unwrap_err().contains("not 1000"));
        assert!(processes("/nowhere/at/all", 1).is_err());
    }

    #[test]
    fn loopback_is_up_and_what_is_not_there_is_named() {
        assert_eq!(carrier("lo"), Ok(()));
        assert!(carrier("nothing0").unwrap_err().contains("nothing0"));
    }
}
