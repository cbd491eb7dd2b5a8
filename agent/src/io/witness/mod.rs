//! `mirror-witness`: the arbiter on a third host, for many clusters.
//!
//! `http` takes requests and checks their proof, `service` answers them by the rules of
//! [`crate::arbiter`], and `state_file` keeps what must not be forgotten.

mod http;
mod service;
pub mod state_file;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use nbd_frontend::config::key;
use nbd_frontend::config::witness::WitnessConfig;
use nbd_frontend::daemon::notify::notify;
use nix::sys::signal::{SigSet, Signal};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::clock::boottime_ms;
use crate::arbiter::envelope::WitnessKey;
use service::Service;
use state_file::StateFile;

pub use nbd_frontend::config::witness::PATH_DEFAULT;
pub use service::{ClusterStatus, NodeStatus, OtherKey, Status};
pub use state_file::StateFileError;

const RUN_BYTES: usize = 16;

/// The command line, parsed.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
    /// Instead of the configured address.
    pub listen: Option<SocketAddr>,
}

/// Serves until it is told to stop. An error is the reason for a non-zero exit code.
pub fn run(options: &Options) -> anyhow::Result<()> {
    accept_stop_signals()?;
    let (config, keys) = load(&options.config)?;
    let file = StateFile::open(&config.state_file)?;
    let service = Service::new(keys, file, &random_run()?, boottime_ms)
        .with_context(|| format!("cannot use {}", config.state_file.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let listen = options.listen.unwrap_or(config.listen);
    runtime.block_on(serve(Arc::new(service), listen))
}

/// Reads the configuration and every file that it names, and changes nothing. Returns what it found.
pub fn check(path: &Path) -> anyhow::Result<String> {
    let (config, keys) = load(path)?;
    let mut found = format!(
        "{} is valid: {} clusters, listening on {}\n",
        path.display(),
        keys.len(),
        config.listen
    );
    let state_file = config.state_file.display();
    found += &match state_file::read(&config.state_file)? {
        None => format!("{state_file} is not there yet; every cluster has to enrol\n"),
        Some(state) => format!(
            "{state_file} is sound: {} clusters are recorded\n",
            state.len()
        ),
    };
    Ok(found)
}

/// Drops what is recorded of a cluster, or of one mirror. The witness must not run meanwhile.
pub fn forget(path: &Path, cluster: &str, mirror: Option<&str>) -> anyhow::Result<()> {
    let config = WitnessConfig::load_trusted(path)?;
    let file = StateFile::open(&config.state_file)?;
    let removed = file
        .remove(cluster, mirror)
        .with_context(|| format!("cannot write {}", config.state_file.display()))?;
    if !removed {
        let what = match mirror {
            Some(mirror) => format!("mirror {mirror} of cluster {cluster}"),
            None => format!("cluster {cluster}"),
        };
        bail!("{} holds nothing of {what}", config.state_file.display());
    }
    Ok(())
}

fn load(path: &Path) -> anyhow::Result<(WitnessConfig, Vec<WitnessKey>)> {
    let config = WitnessConfig::load_trusted(path)?;
    let mut keys = Vec::with_capacity(config.clusters.len());
    let mut problems = Vec::new();
    for cluster in &config.clusters {
        match key::load(&cluster.key_file) {
            Ok(key) => keys.push(WitnessKey::new(&cluster.name, &key)),
            Err(error) => problems.push(format!("cluster {}: {error}", cluster.name)),
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok((config, keys))
}

async fn serve(service: Arc<Service>, listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; choose another `listen`, or stop what uses it")
    })?;
    let address = listener.local_addr().context("cannot read the address")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(http::serve(listener, service, stopped));
    tracing::info!("listening on {address}");
    notify(&format!("READY=1\nSTATUS=listening on {address}"));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    notify("STOPPING=1");
    stop.send_replace(true);
    serving.await.context("serving broke off")
}

/// A parent that blocks these signals leaves them blocked in its children.
fn accept_stop_signals() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
        .thread_unblock()
        .context("cannot accept the signals that stop it")
}

fn random_run() -> anyhow::Result<String> {
    let mut bytes = [0; RUN_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read random numbers from /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
