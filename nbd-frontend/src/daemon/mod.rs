//! The daemon: configuration → checks → one thread a mirror → control API → clean stop.
//!
//! The main thread runs the control plane on an ordinary runtime; each mirror has a thread with a
//! ring of its own and is reached only through its handle. A mirror that cannot be opened, or whose
//! thread ends, does not stop the others, but it makes the daemon end with an error.

mod export;
pub mod log;
pub(crate) mod mirror;
pub mod notify;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use mirror_core::control::Notice;
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::{self, Config};
use crate::control::events::EventRing;
use crate::control::router::{self, MirrorEntry, MirrorState, Node};
use crate::control::run_dir::RunDir;
use crate::control::{MIRRORD, SOCKET_NAME, server};
use mirror::{MirrorPlan, RunningMirror};

/// The command line, parsed.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
    pub node: Option<String>,
    pub run_dir: PathBuf,
}

/// Runs until it is told to stop. An error is the reason for a non-zero exit code.
pub fn run(options: &Options) -> anyhow::Result<()> {
    accept_stop_signals()?;
    let config = Config::load_trusted(&options.config)?;
    let node = config.node_index(options.node.as_deref())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let key = config::key::load(&config.key_file)?;
    let tls = config.load_nbd_tls()?;
    mirror_core::io::probe::probe()?;
    let run_dir = RunDir::claim(&options.run_dir, &MIRRORD)?;
    let plans = config
        .mirrors
        .iter()
        .map(|mirror| MirrorPlan::new(&config, mirror, node, &key, tls.as_ref(), &run_dir))
        .collect::<Result<Vec<_>, _>>()?;
    let control = run_dir.listen(SOCKET_NAME)?;
    let started = start_all(plans);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    let outcome = runtime.block_on(supervise(&config.nodes[node], started, control));
    run_dir.remove(SOCKET_NAME);
    outcome
}

/// A parent that blocks these signals leaves them blocked in its children: nobody could stop the
/// daemon then.
fn accept_stop_signals() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGHUP);
    signals
        .thread_unblock()
        .context("cannot accept the signals that stop it")
}

/// A mirror's name, and the mirror or why it could not be opened.
type Started = (String, anyhow::Result<RunningMirror>);

/// Starts all mirrors at once, since each may have to wait for its partitions.
fn start_all(plans: Vec<MirrorPlan>) -> Vec<Started> {
    std::thread::scope(|scope| {
        let starting: Vec<_> = plans
            .into_iter()
            .map(|plan| {
                let name = plan.name.clone();
                (name, scope.spawn(|| plan.start()))
            })
            .collect();
        starting
            .into_iter()
            .map(|(name, thread)| {
                let failed = |_| Err(anyhow::anyhow!("opening it failed; see the log"));
                (name, thread.join().unwrap_or_else(failed))
            })
            .collect()
    })
}

/// Serves the control API until a signal comes or no mirror is left, then stops what runs.
async fn supervise(
    node: &str,
    started: Vec<Started>,
    control: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    // The terminal that it was started on went away.
    let mut hangup = signal(SignalKind::hangup()).context("cannot take SIGHUP")?;
    let events = EventRing::default();
    let mut troubles = Vec::new();
    let mut running = Vec::new();
    let mut entries = Vec::new();
    for (name, started) in started {
        let state = match started {
            Ok(mirror) => {
                let port = mirror.connect(&events);
                let exports = mirror.exports.clone();
                running.push(Arc::new(mirror));
                let device = running
                    .last()
                    .and_then(|mirror: &Arc<RunningMirror>| mirror.device());
                MirrorState::Running {
                    port,
                    exports,
                    device,
                }
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
        name: node.into(),
        mirrors: entries,
        events,
    });
    let listener = tokio::net::UnixListener::from_std(control)
        .context("cannot listen on the control socket")?;
    let serving = tokio::spawn(server::serve(listener, router::router(api)));
    tracing::info!(node, mirrors = running.len(), "ready");
    notify::notify("READY=1");

    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            () = all_ended(&running) => break,
        }
        match detach_all(&running).await {
            Ok(()) => break,
            // It has to go on: what is mounted would be left without its disk.
            Err(error) => {
                tracing::error!("not stopping: {error:#}");
                notify::notify(&format!("STATUS=not stopping: {error:#}"));
            }
        }
    }
    tracing::info!("stopping");
    let limit = running.iter().map(|mirror| mirror.stop_limit()).max();
    notify::notify(&format!(
        "STOPPING=1\nEXTEND_TIMEOUT_USEC={}",
        limit.unwrap_or_default().as_micros()
    ));
    let mut stops: JoinSet<_> = running.into_iter().map(stop).collect();
    while let Some(stopped) = stops.join_next().await {
        let stopped = stopped.context("a stop failed").and_then(|stopped| stopped);
        troubles.extend(stopped.err().map(|error| format!("{error:#}")));
    }
    serving.abort();
    if troubles.is_empty() {
        tracing::info!("stopped");
        return Ok(());
    }
    bail!("not all went well:\n  {}", troubles.join("\n  "));
}

/// Takes all devices away from the kernel, or none that is in use.
async fn detach_all(running: &[Arc<RunningMirror>]) -> anyhow::Result<()> {
    for mirror in running {
        mirror.detach().await?;
    }
    Ok(())
}

/// Returns when no mirror runs any more; says so of each at once.
async fn all_ended(running: &[Arc<RunningMirror>]) {
    let mut ends: JoinSet<_> = running
        .iter()
        .cloned()
        .map(|mirror| async move {
            if let Err(error) = mirror.ended().await {
                tracing::error!("{error:#}");
                notify::notify(&format!("STATUS={error:#}"));
            }
        })
        .collect();
    while ends.join_next().await.is_some() {}
}

/// Stops one mirror; an error if it ended in any other way.
async fn stop(mirror: Arc<RunningMirror>) -> anyhow::Result<()> {
    mirror.stop().await?;
    mirror.ended().await
}
