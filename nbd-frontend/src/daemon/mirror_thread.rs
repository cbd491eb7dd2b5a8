//! One mirror on its own thread: a ring, the driver with disk and peer link, the NBD server, and the
//! end of the port on which the control plane asks.
//!
//! Everything of the mirror lives and dies on this thread. What crosses the border is the port, the
//! events, and two one-shot words: "open, or not and why" and "ended, and how".

use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use mirror_core::control::Refusal;
use mirror_core::io::driver::{Driver, Settings};
use mirror_core::volume::event::Command;
use tokio::sync::{mpsc, oneshot};

use super::export::MirrorExport;
use crate::config::{ClusterKey, Config, Mirror, NbdListen};
use crate::control::events::EventRing;
use crate::control::port::{Ask, MirrorPort};
use crate::control::run_dir::RunDir;
use crate::nbd::listener::{Address, Limits, Server};

/// Longest wait at the end for clients to take their last answers.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A thread that is starting.
#[derive(Debug)]
pub struct MirrorThread {
    pub name: String,
    running: Running,
    ready: oneshot::Receiver<anyhow::Result<()>>,
}

/// A thread whose mirror is open.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    pub port: MirrorPort,
    /// What clients connect to.
    pub exports: Vec<String>,
    pub stop_timeout: Duration,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What the thread takes with it.
#[derive(Debug)]
struct Plan {
    settings: Settings,
    addresses: Vec<Address>,
    name: String,
    events: EventRing,
    asks: mpsc::Receiver<Ask>,
    ready: oneshot::Sender<anyhow::Result<()>>,
}

impl MirrorThread {
    /// Starts the thread of `mirror`; [`Self::ready`] tells whether it could open it.
    pub fn start(
        config: &Config,
        mirror: &Mirror,
        node: usize,
        key: &ClusterKey,
        run_dir: &RunDir,
        events: &EventRing,
    ) -> anyhow::Result<Self> {
        let (port, asks) = MirrorPort::new(&mirror.name);
        let (ready_sender, ready) = oneshot::channel();
        let addresses = addresses(mirror, node, run_dir)?;
        let exports = addresses
            .iter()
            .map(|address| uri(&mirror.name, address))
            .collect();
        let plan = Plan {
            settings: settings(config, mirror, node, key),
            addresses,
            name: mirror.name.clone(),
            events: events.clone(),
            asks,
            ready: ready_sender,
        };
        let thread = std::thread::Builder::new()
            .name(format!("mirror {}", mirror.name))
            .spawn(move || plan.run())
            .context("cannot start a thread")?;
        Ok(Self {
            name: mirror.name.clone(),
            running: Running {
                name: mirror.name.clone(),
                port,
                exports,
                stop_timeout: mirror.stop_timeout,
                thread,
            },
            ready,
        })
    }

    /// Waits until the mirror is open, or gives the reason why it is not.
    pub async fn ready(self) -> anyhow::Result<Running> {
        match self.ready.await {
            Ok(Ok(())) => Ok(self.running),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("its thread ended while it was being opened; see the log"),
        }
    }
}
