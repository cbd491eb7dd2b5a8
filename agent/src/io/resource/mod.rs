//! What a group is made of, carried out: one [`Resource`] for each of its configured resources.
//!
//! `group` decides, this does: [`start`](Resource::start), [`stop`](Resource::stop) and [`check`](Resource::check)
//! work within the configured time-outs. Start and stop are content with what is done already, and a stop may
//! follow a start that failed halfway. A forced stop interrupts whatever runs on the resource and takes over.
//! [`probe_state`](Resource::probe_state) tells an agent that was restarted what there is; nothing here remembers
//! it. A resource knows neither its group nor the others in it.

pub mod attachment;
pub mod exec;
pub mod floating_ip;
pub mod fuse;
pub mod mirror_disk;
pub mod mounts;
pub mod neighbours;
pub mod probe_port;
pub mod users;

use std::path::Path;
use std::time::Duration;

use nbd_frontend::config::agent::{Resource as Config, ResourceKind};
use tokio::sync::{Mutex, watch};

pub use crate::node::event::Permit;
use exec::{Exec, ExecError, Systemd, SystemdError};
use floating_ip::{FloatingIp, FloatingIpError};
use mirror_disk::{MirrorDisk, MirrorDiskError};
use probe_port::{ProbePort, ProbePortError};

/// Longest that [`Resource::check`] and [`Resource::probe_state`] may take.
pub const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// What was found of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Online,
    Offline,
    /// Some of it runs: a start or a stop ended halfway.
    Partial,
}

#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    #[error(transparent)]
    MirrorDisk(#[from] MirrorDiskError),
    #[error(transparent)]
    FloatingIp(#[from] FloatingIpError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error(transparent)]
    ProbePort(#[from] ProbePortError),
    #[error("the {what} did not end within {}; look at the log for how far it got, or give it longer with `{key}`", humantime::format_duration(*limit))]
    TimedOut {
        what: &'static str,
        key: &'static str,
        limit: Duration,
    },
    #[error(
        "a check did not end within {}",
        humantime::format_duration(CHECK_LIMIT)
    )]
    CheckTimedOut,
    #[error("a forced stop interrupted it")]
    Interrupted,
}

impl ResourceError {
    /// The same may succeed in a moment.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::MirrorDisk(error) if error.is_passing())
    }
}

#[derive(Debug)]
pub struct Resource {
    name: String,
    start_timeout: Duration,
    stop_timeout: Duration,
    driver: Driver,
    /// One start or stop at a time.
    turn: Mutex<()>,
    /// Forced stops that wait for their turn or have it.
    forced: watch::Sender<u32>,
}

#[derive(Debug)]
enum Driver {
    MirrorDisk(Box<MirrorDisk>),
    FloatingIp(FloatingIp),
    Exec(Exec),
    Systemd(Systemd),
    ProbePort(ProbePort),
}

impl Resource {
    /// `node` is the index of this node, `run_dir` the folder of `mirrord`'s sockets.
    pub fn new(config: &Config, group: &str, node: usize, run_dir: &Path) -> Self {
        let driver = match &config.kind {
            ResourceKind::MirrorDisk(disk) => {
                Driver::MirrorDisk(Box::new(MirrorDisk::new(disk.clone(), run_dir)))
            }
            ResourceKind::FloatingIp(address) => Driver::FloatingIp(FloatingIp::new(address, node)),
            ResourceKind::Exec { start, stop, check } => Driver::Exec(Exec::new(
                [start.clone(), stop.clone()],
                check.clone(),
                group,
                &config.name,
                run_dir,
            )),
            ResourceKind::Systemd { unit } => Driver::Systemd(Systemd::new(unit.clone())),
            ResourceKind::ProbePort(port) => Driver::ProbePort(ProbePort::new(port.clone())),
        };
        Self {
            name: config.name.clone(),
            start_timeout: config.start_timeout,
            stop_timeout: config.stop_timeout,
            driver,
            turn: Mutex::new(()),
            forced: watch::Sender::new(0),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Once at the start of the agent: opens what answers also while the resource is offline.
    pub async fn prepare(&self) -> Result<(), ResourceError> {
        match &self.driver {
            Driver::ProbePort(port) => Ok(port.prepare().await?),
            Driver::MirrorDisk(_)
            | Driver::FloatingIp(_)
            | Driver::Exec(_)
            | Driver::Systemd(_) => Ok(()),
        }
    }

    pub async fn start(&self, permit: &Permit) -> Result<(), ResourceError> {
        let mut forced = self.forced.subscribe();
        let work = async {
            let _turn = self.turn.lock().await;
            match &self.driver {
                Driver::MirrorDisk(disk) => disk.start(permit).await?,
                Driver::FloatingIp(address) => address.start(permit).await?,
                Driver::Exec(exec) => exec.start(inner(self.start_timeout)).await?,
                Driver::Systemd(unit) => unit.start(inner(self.start_timeout)).await?,
                Driver::ProbePort(port) => port.start().await?,
            }
            Ok(())
        };
        tokio::select! {
            biased;
            _ = forced.wait_for(|count| *count > 0) => Err(ResourceError::Interrupted),
            done = within(self.start_timeout, "start", "start_timeout", work) => done,
        }
    }

    /// `force`: users of the resource are killed at once, and what cannot be done cleanly is done anyway.
    pub async fn stop(&self, force: bool) -> Result<(), ResourceError> {
        let work = async {
            let _turn = self.turn.lock().await;
            match &self.driver {
                Driver::MirrorDisk(disk) => disk.stop(force).await?,
                Driver::FloatingIp(address) => address.stop().await?,
                Driver::Exec(exec) => exec.stop(force, inner(self.stop_timeout)).await?,
                Driver::Systemd(unit) => unit.stop(force, inner(self.stop_timeout)).await?,
                Driver::ProbePort(port) => port.stop().await,
            }
            Ok(())
        };
        let work = within(self.stop_timeout, "stop", "stop_timeout", work);
        if force {
            let _forced = Forced::announce(&self.forced);
            return work.await;
        }
        let mut forced = self.forced.subscribe();
        tokio::select! {
            biased;
            _ = forced.wait_for(|count| *count > 0) => Err(ResourceError::Interrupted),
            done = work => done,
        }
    }

    /// The group is online here, or is not any more: what readiness probes answer. Called for every change.
    pub async fn set_ready(&self, ready: bool) -> Result<(), ResourceError> {
        match &self.driver {
            Driver::ProbePort(port) => Ok(port.set_ready(ready).await?),
            Driver::MirrorDisk(_)
            | Driver::FloatingIp(_)
            | Driver::Exec(_)
            | Driver::Systemd(_) => Ok(()),
        }
    }

    /// While it is online: is it as it should be?
    pub async fn check(&self) -> Result<(), ResourceError> {
        let work = async {
            match &self.driver {
                Driver::MirrorDisk(disk) => disk.check().await?,
                Driver::FloatingIp(address) => address.check()?,
                Driver::Exec(exec) => exec.check().await?,
                Driver::Systemd(unit) => unit.check().await?,
                Driver::ProbePort(port) => port.check().await?,
            }
            Ok(())
        };
        tokio::time::timeout(CHECK_LIMIT, work)
            .await
            .unwrap_or(Err(ResourceError::CheckTimedOut))
    }

    pub async fn probe_state(&self) -> Result<Presence, ResourceError> {
        let work = async {
            Ok(match &self.driver {
                Driver::MirrorDisk(disk) => disk.probe_state().await?,
                Driver::FloatingIp(address) => address.probe_state()?,
                Driver::Exec(exec) => exec.probe_state().await?,
                Driver::Systemd(unit) => match unit.probe_state().await {
                    Err(SystemdError::NoSuchUnit { .. }) => Presence::Offline,
                    found => found?,
                },
                Driver::ProbePort(port) => port.probe_state().await,
            })
        };
        tokio::time::timeout(CHECK_LIMIT, work)
            .await
            .unwrap_or(Err(ResourceError::CheckTimedOut))
    }
}

/// What of a limit is given to a program, so that its output comes with the error when it hangs.
fn inner(limit: Duration) -> Duration {
    limit - limit / 20
}

async fn within<F>(
    limit: Duration,
    what: &'static str,
    key: &'static str,
    work: F,
) -> Result<(), ResourceError>
where
    F: Future<Output = Result<(), ResourceError>>,
{
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(ResourceError::TimedOut { what, key, limit }))
}

/// A forced stop that is under way, until it is dropped.
struct Forced<'r>(&'r watch::Sender<u32>);

impl<'r> Forced<'r> {
    fn announce(forced: &'r watch::Sender<u32>) -> Self {
        forced.send_modify(|count| *count += 1);
        Self(forced)
    }
}

impl Drop for Forced<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn exec(folder: &Path, start: &str, stop: &str, timeout: Duration) -> Resource {
        let shell = |script: &str| ["sh", "-c", script].map(String::from).to_vec();
        let config = Config {
            name: "app".into(),
            kind: ResourceKind::Exec {
                start: shell(start),
                stop: shell(stop),
                check: None,
            },
            depends_on: Vec::new(),
            start_timeout: timeout,
            stop_timeout: timeout,
            start_retries: 0,
        };
        Resource::new(&config, "web", 0, folder)
    }

    #[tokio::test]
    async fn a_forced_stop_interrupts_a_start_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let resource = exec(folder.path(), "sleep 1000", "true", LONG);
        let permit = Permit::default();
        let force = async {
            while resource.probe_state().await.unwrap() != Presence::Partial {
                tokio::task::yield_now().await;
            }
            resource.stop(true).await
        };
        let (started, stopped) = tokio::join!(resource.start(&permit), force);
        assert!(matches!(started, Err(ResourceError::Interrupted)));
        stopped.unwrap();
        assert_eq!(resource.probe_state().await.unwrap(), Presence::Offline);
    }

    #[tokio::test]
    async fn a_forced_stop_takes_over_from_a_clean_one() {
        let folder = tempfile::tempdir().unwrap();
        let stop = "[ $MIRROR_FORCE = 1 ] || { touch $0.hangs; sleep 1000; }";
        let note = folder.path().join("stop");
        let stop = stop.replace("$0", &note.display().to_string());
        let resource = exec(folder.path(), "true", &stop, LONG);
        resource.start(&Permit::default()).await.unwrap();
        let force = async {
            while !note.with_extension("hangs").exists() {
                tokio::task::yield_now().await;
            }
            resource.stop(true).await
        };
        let (clean, forced) = tokio::join!(resource.stop(false), force);
        assert!(matches!(clean, Err(ResourceError::Interrupted)));
        forced.unwrap();
        resource.start(&Permit::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_start_ends_within_its_time_out() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(100);
        let resource = exec(folder.path(), "sleep 1000", "true", limit);
        let error = resource.start(&Permit::default()).await.unwrap_err();
        // The script's own limit or the one around it, whichever comes first on a busy machine.
        assert!(error.to_string().contains("did not end within"), "{error}");
    }
}
