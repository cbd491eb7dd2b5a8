//! One mirror's device, from attach to detach, on the control plane's runtime.
//!
//! While the mirror is primary its device is attached; before it ceases to be, by order, the device is detached, and
//! that is refused while somebody has it open. A mirror that lost its role without being asked has its device
//! detached at once, so that whoever uses it gets errors and no stale data. At the start of the daemon a device that
//! a dead one left is gone on with or released, as [`plan`] says.
//!
//! The kernel's calls may wait, so each runs on a thread of its own. Sockets go to the mirror's thread through
//! [`DeviceOrder`]; this end keeps none open.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mirror_core::control::Notice;
use mirror_core::io::local::ExportState;
use mirror_core::io::mirror::MirrorHandle;
use mirror_core::units::Uuid;
use mirror_core::volume::event::Command;
use mirror_core::volume::promotion::NOT_REINSTATED;
use mirror_core::volume::refusal::Refusal;
use nix::sys::socket::{MsgFlags, recv};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::found::DeviceNumber;
use super::netlink::{Connect, NbdDriver, NetlinkError};
use super::plan::{self, AtStart, Identity, Owner, ToAttach};
use super::users::users_of;
use crate::control::events::EventRing;
use crate::control::port::{Gone, Port};
use crate::nbd::export::ExportInfo;
use crate::nbd::handshake::transmission_flags;

/// Orders that may wait for the mirror's thread.
pub const ORDERS_MAX: usize = 64;
/// With one connection, how old a request has to be before the kernel looks whether its connection was replaced: what
/// was under way when a daemon died is sent again then. The kernel adds a second of its own between two looks, so this is
/// the part of a pause that is ours; with less, more requests of slow disks are logged as possibly stuck.
const REQUEST_CHECK_MS: u32 = 250;
/// Between two tries to be primary again under a device that waits. Short, so that the peer is asked for its word
/// before it gets more to do: what the last run left in doubt is compared as soon as both are connected.
const REINSTATE_INTERVAL: Duration = Duration::from_millis(10);
/// How long the peer's word is waited for before an arbiter's has to do.
const PEER_WAIT: Duration = Duration::from_secs(3);
/// Longest that a call of the kernel may take.
const KERNEL_LIMIT: Duration = Duration::from_secs(20);
/// Replaced connections in a row, each within [`MEND_SPAN`] of the one before.
const MENDS_MAX: u32 = 5;
const MEND_SPAN: Duration = Duration::from_secs(5);

/// What the mirror's thread does for its device.
#[derive(Debug)]
pub enum DeviceOrder {
    Describe(oneshot::Sender<ExportInfo>),
    /// Serve the other end of this socket; `ended` when the connection is gone.
    Adopt {
        socket: UnixStream,
        ended: mpsc::Sender<u64>,
        number: u64,
    },
    /// The device is about to grow to this.
    Resize(u64),
}

/// What is asked of the keeper.
#[derive(Debug)]
pub enum Ask {
    Attach(oneshot::Sender<Result<String, Refusal>>),
    Detach {
        /// Whoever has it open gets errors.
        force: bool,
        reply: oneshot::Sender<Result<String, Refusal>>,
    },
}

/// What others are told of the device.
#[derive(Debug, Clone, Default)]
enum Shown {
    #[default]
    Nothing,
    /// One of the last run waits to be gone on with.
    Waits,
    Attached(PathBuf),
}

/// The control API's end.
#[derive(Debug, Clone)]
pub struct DevicePort {
    port: Port<Ask>,
    shown: watch::Receiver<Shown>,
}

impl DevicePort {
    pub async fn attach(&self) -> Result<Result<String, Refusal>, Gone> {
        self.port.ask(Ask::Attach).await
    }

    pub async fn detach(&self, force: bool) -> Result<Result<String, Refusal>, Gone> {
        self.port.ask(|reply| Ask::Detach { force, reply }).await
    }

    /// The device that serves the mirror at this moment.
    pub fn attached(&self) -> Option<PathBuf> {
        match &*self.shown.borrow() {
            Shown::Attached(path) => Some(path.clone()),
            Shown::Nothing | Shown::Waits => None,
        }
    }

    /// A device of the last run waits for the mirror to be primary again in the epoch of then.
    pub fn waits(&self) -> bool {
        matches!(*self.shown.borrow(), Shown::Waits)
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub mirror: String,
    pub uuid: Uuid,
    pub device: DeviceNumber,
    /// Sockets between the kernel and the mirror.
    pub connections: usize,
    /// How long requests wait for a daemon that died before they fail.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Detached,
    /// A device waits for its mirror to be primary again.
    Waiting {
        identity: Identity,
        since: Instant,
    },
    Attached {
        identity: Identity,
        size_bytes: u64,
    },
}

#[derive(Debug)]
pub struct Keeper {
    settings: Settings,
    handle: MirrorHandle,
    state: watch::Receiver<ExportState>,
    orders: mpsc::Sender<DeviceOrder>,
    events: EventRing,
    asks: mpsc::Receiver<Ask>,
    shown: watch::Sender<Shown>,
    phase: Phase,
    /// Our ends of what the kernel sends requests to while its device waits. Nobody reads them before the mirror is
    /// primary again.
    offered: Vec<UnixStream>,
    /// Ended connections, by the number of the attachment they belonged to.
    ended: mpsc::Receiver<u64>,
    ending: mpsc::Sender<u64>,
    number: u64,
    mends: u32,
    mended: Instant,
}

/// What went wrong, for people.
type Trouble = String;

impl Keeper {
    pub fn new(
        settings: Settings,
        handle: MirrorHandle,
        state: watch::Receiver<ExportState>,
        orders: mpsc::Sender<DeviceOrder>,
        events: EventRing,
    ) -> (Self, DevicePort) {
        let (port, asks) = Port::new();
        let (shown, seen) = watch::channel(Shown::default());
        let (ending, ended) = mpsc::channel(ORDERS_MAX);
        let port = DevicePort { port, shown: seen };
        let keeper = Self {
            settings,
            handle,
            state,
            orders,
            events,
            asks,
            shown,
            phase: Phase::Detached,
            offered: Vec::new(),
            ended,
            ending,
            number: 0,
            mends: 0,
            mended: Instant::now(),
        };
        (keeper, port)
    }

    /// Until the mirror's thread or the control API is gone. The device is left as it is then: a daemon that comes
    /// back goes on with it.
    pub async fn run(mut self) {
        self.look_at_start().await;
        let mut ticks = tokio::time::interval(REINSTATE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let waiting = matches!(self.phase, Phase::Waiting { .. });
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow().await;
                }
                ask = self.asks.recv() => match ask {
                    None => return,
                    Some(Ask::Attach(reply)) => {
                        let _ = reply.send(self.on_attach().await);
                    }
                    Some(Ask::Detach { force, reply }) => {
                        let _ = reply.send(self.on_detach(force).await);
                    }
                },
                Some(number) = self.ended.recv() => self.on_ended(number).await,
                _ = ticks.tick(), if waiting => self.try_again().await,
            }
        }
    }

    // ---- At the start

    async fn look_at_start(&mut self) {
        let Some(own) = self.own_identity().await else {
            return;
        };
        match plan::at_start(&self.settings.device.device(), own) {
            AtStart::Nothing => self.follow().await,
            AtStart::GoOn => {
                self.phase = Phase::Waiting {
                    identity: own,
                    since: Instant::now(),
                };
                self.shown.send_replace(Shown::Waits);
                // Now, and not when the mirror is primary: the kernel sends what was under way again when it next looks
                // at it after its connection was replaced, so that it looks while the mirror gets ready. Nothing is
                // lost where this does not work: `reconnect` offers what is missing, and says what is wrong.
                self.offered = self
                    .offer(own, self.settings.connections)
                    .await
                    .unwrap_or_default();
            }
            AtStart::Release => {
                self.release("it is of an epoch that is over").await;
                self.follow().await;
            }
        }
    }

    /// One try to be primary again in the epoch of the device that waits.
    async fn try_again(&mut self) {
        let Phase::Waiting { identity, since } = self.phase else {
            return;
        };
        if self.state.borrow().serving {
            // Somebody promoted the mirror anew.
            self.forget();
            self.release("the mirror was promoted anew").await;
            return self.follow().await;
        }
        let alone = since.elapsed() > PEER_WAIT;
        let why = match self.handle.command(Command::Reinstate { alone }).await {
            Err(_) => return,
            Ok(Ok(_)) => return self.go_on(identity).await,
            Ok(Err(refusal)) if refusal.rule == NOT_REINSTATED => refusal.reason,
            Ok(Err(refusal)) if since.elapsed() > self.settings.timeout => refusal.reason,
            Ok(Err(_)) => return,
        };
        self.forget();
        self.release(&why).await;
        self.follow().await;
    }

    async fn go_on(&mut self, identity: Identity) {
        let took = match self.phase {
            Phase::Waiting { since, .. } => since.elapsed(),
            _ => Duration::ZERO,
        };
        match self.reconnect(identity).await {
            Ok(()) => {
                let device = self.settings.device;
                let size_bytes = device.size_bytes().unwrap_or_default();
                self.set_attached(identity, size_bytes);
                self.notice(Notice::info(
                    "device-resumed",
                    format!(
                        "{} goes on, {} ms after the start",
                        self.path(),
                        took.as_millis()
                    ),
                ));
                self.follow().await;
            }
            Err(trouble) => {
                self.forget();
                self.notice(Notice::error("attach-failed", trouble));
                self.release("it cannot be gone on with").await;
            }
        }
    }

    // ---- While it runs

    /// Does what the state of the mirror asks for.
    async fn follow(&mut self) {
        let state = *self.state.borrow_and_update();
        match self.phase {
            Phase::Detached if state.serving => {
                if let Err(refusal) = self.attach().await {
                    self.notice(Notice::error("attach-failed", attach_failed(&refusal)));
                }
            }
            Phase::Attached { .. } if !state.serving => {
                self.release("the mirror is not primary any more").await;
            }
            Phase::Attached {
                identity,
                size_bytes,
            } if size_bytes < state.size_bytes => self.resize(identity, state.size_bytes).await,
            Phase::Waiting { .. } | Phase::Attached { .. } | Phase::Detached => {}
        }
    }

    async fn on_attach(&mut self) -> Result<String, Refusal> {
        match self.phase {
            Phase::Attached { .. } => Ok(format!("{} is attached", self.path())),
            Phase::Waiting { .. } => Err(Refusal::new(
                "device-waits",
                format!("{} waits for the mirror to be primary again", self.path()),
                "wait, or promote the mirror: what waits in the device fails then",
            )),
            Phase::Detached if !self.state.borrow().serving => Err(Refusal::new(
                "not-primary",
                "only a primary's device is attached",
                format!("run `mirrorctl promote {}` first", self.settings.mirror),
            )),
            Phase::Detached => self.attach().await,
        }
    }

    async fn on_detach(&mut self, force: bool) -> Result<String, Refusal> {
        if matches!(self.phase, Phase::Detached) {
            return Ok(format!("{} is not attached", self.path()));
        }
        let device = self.settings.device;
        let users = match in_thread(move || Ok(users_of(device))).await {
            Ok(users) => users,
            Err(trouble) => vec![trouble],
        };
        if !users.is_empty() && !force {
            return Err(Refusal::new(
                "device-held-open",
                format!("{} is in use: {}", self.path(), users.join("; ")),
                "unmount or close it first; --force detaches it all the same, and its users get errors",
            ));
        }
        self.forget();
        let detached = with_driver(move |driver| driver.disconnect(device)).await;
        match detached {
            Ok(()) => {
                self.notice(Notice::info(
                    "detached",
                    format!("{} is detached", self.path()),
                ));
                Ok(format!("{} is detached", self.path()))
            }
            Err(trouble) => Err(Refusal::new("detach-failed", trouble, "look at `dmesg`")),
        }
    }

    /// A connection is gone that nobody here closed: the kernel gives one up when it does not get on.
    async fn on_ended(&mut self, number: u64) {
        let Phase::Attached { identity, .. } = self.phase else {
            return;
        };
        if number != self.number || !self.state.borrow().serving {
            return;
        }
        if self.mended.elapsed() > MEND_SPAN {
            self.mends = 0;
        }
        self.mends += 1;
        self.mended = Instant::now();
        let mended = if self.mends > MENDS_MAX {
            Err(format!(
                "{} gave up {MENDS_MAX} connections in a row",
                self.path()
            ))
        } else {
            self.reconnect_dead(identity).await
        };
        match mended {
            Ok(()) => self.notice(Notice::warning(
                "device-reconnected",
                format!("{} gave a connection up and has a new one", self.path()),
            )),
            Err(trouble) => {
                self.notice(Notice::error("attach-failed", trouble));
                self.release("it has lost its connection").await;
            }
        }
    }

    // ---- What the kernel is told

    async fn attach(&mut self) -> Result<String, Refusal> {
        let failed = |trouble| {
            Refusal::new(
                "attach-failed",
                trouble,
                "mend it and run `mirrorctl attach`; the exports in `mdstat` are served all the same",
            )
        };
        let identity = self
            .own_identity()
            .await
            .ok_or_else(|| failed("the mirror does not answer".into()))?;
        let device = self.settings.device;
        match plan::to_attach(&device.device(), identity) {
            ToAttach::Connect => {}
            ToAttach::ReleaseAndConnect => self.release("nobody serves it").await,
            ToAttach::Refuse(owner) => {
                let path = self.path();
                let owner = match owner {
                    Owner::Mirror(other) => format!("another mirror ({other})"),
                    Owner::Foreign(Some(name)) => format!("another program, as {name:?}"),
                    Owner::Foreign(None) => "another program".into(),
                };
                return Err(Refusal::new(
                    "device-in-use",
                    format!("{path} belongs to {owner}"),
                    format!(
                        "detach it there (`nbd-client -d {path}`), or name another device in `device` and restart mirrord"
                    ),
                ));
            }
        }
        let size_bytes = self.connect(identity).await.map_err(failed)?;
        self.set_attached(identity, size_bytes);
        self.notice(Notice::info(
            "attached",
            format!("{} is attached", self.path()),
        ));
        Ok(format!("{} is attached", self.path()))
    }

    async fn connect(&mut self, identity: Identity) -> Result<u64, Trouble> {
        let info = self.describe().await?;
        let size_bytes = info.size_bytes;
        let sockets = self.new_sockets(self.settings.connections).await?;
        let (device, timeout) = (self.settings.device, self.settings.timeout);
        with_driver(move |driver| {
            let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            driver.connect(&Connect {
                device,
                identity,
                size_bytes,
                block_bytes: info.logical_block_bytes,
                server_flags: transmission_flags(&info, false),
                dead_connection_timeout: timeout,
                sockets: &sockets,
            })
        })
        .await?;
        if Owner::Mirror(identity) != owner_of(device) {
            let _ = with_driver(move |driver| driver.disconnect(device)).await;
            return Err(format!(
                "this kernel does not keep whose device {} is, so that a restart of mirrord could take over what is not its own; Linux 5.14 or later does",
                self.path()
            ));
        }
        if self.settings.connections == 1
            && let Err(error) = device.set_request_timeout_ms(REQUEST_CHECK_MS)
        {
            self.notice(Notice::warning(
                "device-slow-resume",
                format!("after a restart of mirrord requests may wait for 30 s: this kernel does not take another time ({error}); Linux 5.0 or later does"),
            ));
        }
        Ok(size_bytes)
    }

    /// Takes over all connections of a device whose daemon died.
    async fn reconnect(&mut self, identity: Identity) -> Result<(), Trouble> {
        self.number += 1;
        let mut taken = std::mem::take(&mut self.offered);
        taken.retain(|socket| !is_hung_up(socket));
        // The kernel gives up one of several that does not answer for long.
        let missing = self.settings.connections.saturating_sub(taken.len());
        if missing > 0 {
            taken.extend(self.offer(identity, missing).await?);
        }
        if taken.is_empty() {
            return Err(format!(
                "the kernel took no new connection for {}: it holds the old ones for alive",
                self.path()
            ));
        }
        self.adopt_all(taken).await
    }

    async fn reconnect_dead(&mut self, identity: Identity) -> Result<(), Trouble> {
        let taken = self.offer(identity, 1).await?;
        if taken.is_empty() {
            return Err(format!(
                "the kernel took no new connection for {}",
                self.path()
            ));
        }
        self.adopt_all(taken).await
    }

    /// Our ends of those of so many new sockets that the kernel took: it says nothing of it.
    async fn offer(&self, identity: Identity, count: usize) -> Result<Vec<UnixStream>, Trouble> {
        let (mut ours, theirs): (Vec<_>, Vec<_>) = self.pairs(count)?.into_iter().unzip();
        let device = self.settings.device;
        with_driver(move |driver| {
            let sockets: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
            // One by one: the kernel stops at the first that it has no place for.
            sockets
                .chunks(1)
                .try_for_each(|one| driver.reconnect(device, identity, one))
        })
        .await?;
        // Nobody else has the other end by now, if the kernel has not.
        ours.retain(|socket| !is_hung_up(socket));
        Ok(ours)
    }

    async fn resize(&mut self, identity: Identity, size_bytes: u64) {
        if self
            .orders
            .send(DeviceOrder::Resize(size_bytes))
            .await
            .is_err()
        {
            return;
        }
        let device = self.settings.device;
        let resized = with_driver(move |driver| driver.resize(device, identity, size_bytes)).await;
        match resized {
            Ok(()) => {
                self.phase = Phase::Attached {
                    identity,
                    size_bytes,
                };
                self.notice(Notice::info(
                    "device-resized",
                    format!(
                        "{} has {size_bytes} bytes; grow the file system now",
                        self.path()
                    ),
                ));
            }
            Err(trouble) => self.notice(Notice::error("attach-failed", trouble)),
        }
    }

    /// Fails what waits in the device, and what comes.
    async fn release(&mut self, why: &str) {
        self.forget();
        let device = self.settings.device;
        self.notice(Notice::warning(
            "device-released",
            format!(
                "{} is let go of: {why}; whoever has it open gets errors and has to open it anew",
                self.path()
            ),
        ));
        if let Err(trouble) = with_driver(move |driver| driver.disconnect(device)).await {
            self.notice(Notice::error("attach-failed", trouble));
        }
    }

    // ---- Parts

    /// The kernel's ends; ours are with the mirror's thread.
    async fn new_sockets(&mut self, count: usize) -> Result<Vec<UnixStream>, Trouble> {
        self.number += 1;
        let mut theirs = Vec::new();
        for (our, their) in self.pairs(count)? {
            self.adopt(our).await?;
            theirs.push(their);
        }
        Ok(theirs)
    }

    async fn adopt_all(&self, ours: Vec<UnixStream>) -> Result<(), Trouble> {
        for socket in ours {
            self.adopt(socket).await?;
        }
        Ok(())
    }

    fn pairs(&self, count: usize) -> Result<Vec<(UnixStream, UnixStream)>, Trouble> {
        let pairs = std::iter::repeat_with(UnixStream::pair).take(count);
        pairs
            .collect::<Result<_, _>>()
            .map_err(|error| format!("cannot make a pair of sockets: {error}"))
    }

    async fn adopt(&self, socket: UnixStream) -> Result<(), Trouble> {
        let order = DeviceOrder::Adopt {
            socket,
            ended: self.ending.clone(),
            number: self.number,
        };
        let sent = self.orders.send(order).await;
        sent.map_err(|_| "the mirror's thread has ended".to_owned())
    }

    async fn describe(&self) -> Result<ExportInfo, Trouble> {
        let (reply, described) = oneshot::channel();
        let gone = "the mirror's thread has ended";
        let sent = self.orders.send(DeviceOrder::Describe(reply)).await;
        sent.map_err(|_| gone.to_owned())?;
        described.await.map_err(|_| gone.to_owned())
    }

    /// Of this mirror in its present epoch.
    async fn own_identity(&self) -> Option<Identity> {
        let status = self.handle.status().await.ok()?;
        Some(Identity {
            mirror: self.settings.uuid,
            epoch: status.epoch,
        })
    }

    fn set_attached(&mut self, identity: Identity, size_bytes: u64) {
        self.phase = Phase::Attached {
            identity,
            size_bytes,
        };
        let path = self.settings.device.path();
        self.shown.send_replace(Shown::Attached(path));
    }

    fn forget(&mut self) {
        // Before the device is disconnected: the kernel waits then for whoever is sending to one that nobody reads.
        self.offered.clear();
        self.phase = Phase::Detached;
        self.shown.send_replace(Shown::Nothing);
    }

    fn path(&self) -> String {
        self.settings.device.path().display().to_string()
    }

    fn notice(&self, notice: Notice) {
        crate::daemon::mirror::log(&self.settings.mirror, &notice);
        self.events.push(&self.settings.mirror, notice);
    }
}

fn attach_failed(refusal: &Refusal) -> String {
    format!("{}; {}", refusal.reason, refusal.remedy)
}

fn owner_of(device: DeviceNumber) -> Owner {
    match device.device() {
        plan::Device::Taken(owner) => owner,
        plan::Device::Absent | plan::Device::Free => Owner::Foreign(None),
    }
}

fn is_hung_up(socket: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    // Nothing sent yet, and nobody left who could.
    recv(socket.as_raw_fd(), &mut [0], flags) == Ok(0)
}

/// The kernel's calls wait for what is under way in the device. One that does not come back keeps its thread.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::time::timeout(KERNEL_LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(format!("a call of the kernel failed: {error}")),
        Err(_) => Err(format!(
            "a call of the kernel did not end within {KERNEL_LIMIT:?}"
        )),
    }
}

async fn with_driver<T: Send + 'static>(
    work: impl FnOnce(&mut NbdDriver) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, Trouble> {
    in_thread(move || {
        NbdDriver::open()
            .and_then(|mut driver| work(&mut driver))
            .map_err(|error| error.to_string())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_has_the_other_end_of_is_hung_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!is_hung_up(&ours));
        drop(theirs);
        assert!(is_hung_up(&ours));
    }
}
