//! The daemon: configuration → checks → one thread a mirror → control API → clean stop.
//!
//! The main thread runs the control plane on an ordinary runtime; each mirror has a thread with a
//! ring of its own ([`mirror_thread`]) and is reached only through its port. A mirror that cannot be
//! opened, or whose thread ends, does not stop the others, but it makes the daemon end with an error.

pub mod log;
mod mirror_thread;
mod notify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::{self, Config, NbdListen};
use crate::control::events::EventRing;
use crate::control::port::MirrorPort;
use crate::control::router::{self, MirrorEntry, MirrorState, Node};
use crate::control::run_dir::RunDir;
use crate::control::{SOCKET_NAME, server};
use mirror_core::volume::event::Command;
use mirror_thread::MirrorThread;

/// Time that a thread gets beyond its `stop_timeout` to take down its sockets.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The command line, parsed.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
    pub node: Option<String>,
    pub run_dir: PathBuf,
}

/// Runs until it is told to stop. An error is the reason for a non-zero exit code.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let config = Config::load(&options.config)?;
    let node = config.node_index(options.node.as_deref())?;
    refuse_unsupported(&config)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let key = config::key::load(&config.key_file)?;
    mirror_core::io::probe::probe()?;
    let run_dir = RunDir::claim(&options.run_dir)?;
    for mirror in &config.mirrors {
        run_dir.socket_path(&socket_name(&mirror.name))?;
    }
    let control = run_dir.listen(SOCKET_NAME)?;

    let events = EventRing::default();
    let threads: Vec<_> = config
        .mirrors
        .iter()
        .map(|mirror| MirrorThread::start(&config, mirror, node, &key, &run_dir, &events))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    let outcome = runtime.block_on(supervise(&config, node, threads, control, events));
    run_dir.remove(SOCKET_NAME);
    outcome
}

/// Name of a mirror's NBD socket in the run directory.
pub fn socket_name(mirror: &str) -> String {
    format!("{mirror}.nbd")
}

fn refuse_unsupported(config: &Config) -> anyhow::Result<()> {
    if config.unsupported.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = config
        .unsupported
        .iter()
        .map(ToString::to_string)
        .collect();
    bail!("{}", problems.join("\n"))
}

/// Serves the control API until a signal comes or no mirror is left, then stops what runs.
async fn supervise(
    config: &Config,
    node: usize,
    threads: Vec<MirrorThread>,
    control: std::os::unix::net::UnixListener,
    events: EventRing,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    let mut troubles = Vec::new();
    let mut running = Vec::new();
    let mut entries = Vec::new();
    for thread in threads {
        let name = thread.name.clone();
        let state = match thread.ready().await {
            Ok(thread) => {
                let port = thread.port.clone();
                let exports = thread.exports.clone();
                running.push(thread);
                MirrorState::Running { port, exports }
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(mirror = name, "cannot open the mirror: {reason}");
                events.push(&name, Notice::error("open-failed", reason.clone()));
                troubles.push(format!("{name}: {reason}"));
                MirrorState::Down { reason }
            }
        };
        entries.push(MirrorEntry { name, state });
    }
    if running.is_empty() {
        bail!("no mirror could be opened:\n  {}", troubles.join("\n  "));
    }
    let api = Arc::new(Node {
        name: config.nodes[node].clone(),
        mirrors: entries,
        events,
    });
    let listener = tokio::net::UnixListener::from_std(control)
        .context("cannot listen on the control socket")?;
    let serving = tokio::spawn(server::serve(listener, router::router(Arc::clone(&api))));
    tracing::info!(
        node = config.nodes[node],
        mirrors = running.len(),
        "ready"
    );
    notify::notify("READY=1");

    let mut ends: JoinSet<_> = running.into_iter().map(MirrorThread::watch).collect();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            ended = ends.join_next() => match ended {
                Some(ended) => troubles.push(unexpected_end(ended)),
                None => break,
            },
        }
    }
    tracing::info!("stopping");
    notify::notify("STOPPING=1");
    stop_all(&api, &mut ends, &mut troubles).await;
    serving.abort();
    if troubles.is_empty() {
        tracing::info!("stopped");
        return Ok(());
    }
    bail!("stopped, but not all was well:\n  {}", troubles.join("\n  "));
}
