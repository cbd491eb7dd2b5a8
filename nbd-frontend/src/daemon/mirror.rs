//! Starts one mirror: settings from the configuration, its thread with disk and link, its NBD
//! server, and the bridges that carry questions in and events out.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mirror_core::control::{Notice, Severity};
use mirror_core::io::mirror::{Ended, MirrorHandle, StopError};
use mirror_core::io::open::MirrorSettings;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::export::{self, Bridge};
use crate::config::{ClusterKey, Config, Encryption, Mirror, NbdListen};
use crate::control::events::EventRing;
use crate::control::port::{Ask, Gone, MirrorPort};
use crate::control::run_dir::{RunDir, RunDirError};
use crate::kernel::keeper::{DevicePort, Keeper, Settings};
use crate::nbd::listener::Address;
use crate::nbd::tls::ServerTls;

/// How long a dying predecessor may take to let go of the partitions.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Time beyond the stop time-out for the thread to take down its sockets and release its disks.
const STOP_MARGIN: Duration = Duration::from_secs(3);

/// A mirror whose thread runs.
#[derive(Debug)]
pub struct RunningMirror {
    pub name: String,
    /// What clients connect to.
    pub exports: Vec<String>,
    handle: MirrorHandle,
    stop_timeout: Duration,
    /// Taken when the device's keeper starts.
    device: Mutex<Option<(Bridge, Settings)>>,
    device_port: OnceLock<DevicePort>,
}

/// Everything that is needed to start a mirror, taken from the configuration.
#[derive(Debug)]
pub struct MirrorPlan {
    pub name: String,
    node: String,
    settings: MirrorSettings,
    addresses: Vec<Address>,
    /// Of exports over TCP.
    tls: Option<ServerTls>,
    stop_timeout: Duration,
    /// The device in the kernel, if it is to have one.
    device: Option<Settings>,
}

impl MirrorPlan {
    /// Fails only where a socket path would be too long.
    pub fn new(
        config: &Config,
        mirror: &Mirror,
        node: usize,
        key: &ClusterKey,
        tls: Option<&ServerTls>,
        run_dir: &RunDir,
    ) -> Result<Self, RunDirError> {
        let [side, peer] = [&mirror.sides[node], &mirror.sides[1 - node]];
        let addresses = side
            .nbd
            .iter()
            .map(|listen| {
                Ok(match listen {
                    NbdListen::Unix => Address::Unix(run_dir.socket_path(&socket_name(mirror))?),
                    NbdListen::Tcp(address) => Address::Tcp(*address),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name: mirror.name.clone(),
            node: config.nodes[node].clone(),
            settings: MirrorSettings {
                volume: config.volume_config(mirror, node),
                data: side.data.clone(),
                metadata: side.metadata.clone(),
                listen: side.replication,
                peer: peer.replication,
                key: key.clone(),
                encrypted: mirror.encryption == Encryption::Tls,
                buffer_bytes: config.payload_memory(mirror),
                busy_poll: mirror.busy_poll,
                claim_timeout: CLAIM_TIMEOUT,
            },
            addresses,
            tls: tls.cloned(),
            stop_timeout: mirror.stop_timeout,
            device: side.device.map(|device| Settings {
                mirror: mirror.name.clone(),
                uuid: config.volume_config(mirror, node).mirror,
                device,
                connections: mirror.device_connections,
                timeout: mirror.device_timeout,
            }),
        })
    }

    /// Opens the mirror on a thread of its own and waits for that. Blocks for [`CLAIM_TIMEOUT`] at
    /// most.
    pub fn start(self) -> anyhow::Result<RunningMirror> {
        let exports = self
            .addresses
            .iter()
            .map(|address| uri(&self.name, address, self.tls.is_some()))
            .collect();
        let (listening, listened) = std::sync::mpsc::sync_channel(1);
        let (name, node, addresses) = (self.name.clone(), self.node, self.addresses);
        let tls = self.tls;
        let handle = MirrorHandle::spawn(self.settings, move |mirror| {
            // The receiver waits below for as long as this runs.
            let _ = listening.send(export::start(mirror, name, node, &addresses, tls));
        })?;
        let bridge = listened
            .recv()
            .context("the thread ended while it began to listen; see the log")??;
        Ok(RunningMirror {
            name: self.name,
            exports,
            handle,
            stop_timeout: self.stop_timeout,
            device: Mutex::new(self.device.map(|settings| (bridge, settings))),
            device_port: OnceLock::new(),
        })
    }
}

impl RunningMirror {
    /// Starts the bridges on the control plane's runtime; the port is what the control API uses.
    pub fn connect(&self, events: &EventRing) -> MirrorPort {
        let (port, asks) = MirrorPort::new(&self.name);
        tokio::spawn(answer(self.handle.clone(), asks));
        tokio::spawn(record(
            self.name.clone(),
            self.handle.notices(),
            events.clone(),
        ));
        let device = self
            .device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((bridge, settings)) = device {
            let Bridge { state, orders } = bridge;
            let handle = self.handle.clone();
            let (keeper, device_port) =
                Keeper::new(settings, handle, state, orders, events.clone());
            tokio::spawn(keeper.run());
            let _ = self.device_port.set(device_port);
        }
        port
    }

    /// The mirror's device, where it has one.
    pub fn device(&self) -> Option<DevicePort> {
        self.device_port.get().cloned()
    }

    /// Takes the device away from the kernel before a stop. Refused while somebody has it open.
    pub async fn detach(&self) -> anyhow::Result<()> {
        let Some(port) = self.device() else {
            return Ok(());
        };
        match port.detach(false).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(anyhow::Error::new(refusal).context(self.name.clone())),
            // Without its keeper nothing is attached any more, or a thread ended and was told of.
            Err(Gone) => Ok(()),
        }
    }

    /// Returns when the thread has ended, with the reason where that was no stop.
    pub async fn ended(&self) -> anyhow::Result<()> {
        match self.handle.ended().await {
            Ended::Stopped => Ok(()),
            Ended::Panicked(reason) => {
                anyhow::bail!("{}: its thread ended: {reason}", self.name)
            }
        }
    }

    /// The longest that [`Self::stop`] takes.
    pub fn stop_limit(&self) -> Duration {
        self.stop_timeout + STOP_MARGIN
    }

    /// A clean stop within the configured time. Bounded even where the thread no longer listens.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let stop = self.handle.stop(self.stop_timeout);
        let stopped = match tokio::time::timeout(self.stop_limit(), stop).await {
            // It has ended before; why was told then.
            Ok(Ok(_) | Err(StopError::Gone(_))) => return Ok(()),
            Ok(Err(error)) => anyhow::Error::new(error),
            Err(_) => anyhow::anyhow!("its thread does not answer any more"),
        };
        Err(stopped.context(format!("{} did not stop cleanly", self.name)))
    }
}

/// Name of a mirror's NBD socket in the run directory.
fn socket_name(mirror: &Mirror) -> String {
    format!("{}.nbd", mirror.name)
}

/// What NBD clients take as the address of an export.
fn uri(mirror: &str, address: &Address, tls: bool) -> String {
    match address {
        Address::Unix(path) => format!("nbd+unix:///{mirror}?socket={}", path.display()),
        Address::Tcp(address) if tls => format!("nbds://{address}/{mirror}"),
        Address::Tcp(address) => format!("nbd://{address}/{mirror}"),
    }
}

/// Carries questions of the control API to the mirror's thread. Each waits on its own, so that a
/// status never waits behind a command.
async fn answer(handle: MirrorHandle, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        let handle = handle.clone();
        // A reply that cannot be had is dropped, and so is one that nobody waits for any more.
        tokio::spawn(async move {
            match ask {
                Ask::Command { command, reply } => {
                    if let Ok(result) = handle.command(command).await {
                        let _ = reply.send(result);
                    }
                }
                Ask::Status { statistics, reply } => {
                    let asked = match statistics {
                        true => handle.status_with_statistics().await,
                        false => handle.status().await,
                    };
                    if let Ok(status) = asked {
                        let _ = reply.send(status);
                    }
                }
                Ask::ConfirmWanted { after, mut reply } => {
                    tokio::select! {
                        wanted = handle.confirm_wanted(after) => if let Ok(ticket) = wanted {
                            let _ = reply.send(ticket);
                        },
                        () = reply.closed() => {}
                    }
                }
                Ask::Explain(reply) => {
                    if let Ok(explanation) = handle.explain().await {
                        let _ = reply.send(explanation);
                    }
                }
            }
        });
    }
}

/// Keeps and logs what the mirror reports, until its thread ends.
async fn record(name: String, mut notices: broadcast::Receiver<Notice>, events: EventRing) {
    loop {
        match notices.recv().await {
            Ok(notice) => {
                log(&name, &notice);
                events.push(&name, notice);
            }
            Err(RecvError::Lagged(count)) => {
                tracing::warn!(mirror = name, count, "events were lost: too many at once");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

pub(crate) fn log(mirror: &str, notice: &Notice) {
    let Notice { kind, message, .. } = notice;
    match notice.severity {
        Severity::Info => tracing::info!(mirror, kind, "{message}"),
        Severity::Warning => tracing::warn!(mirror, kind, "{message}"),
        Severity::Error => tracing::error!(mirror, kind, "{message}"),
    }
}
