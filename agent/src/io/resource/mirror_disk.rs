//! A mirror, mounted: promote → attach → fsck → mount, and back: unmount → detach → demote.
//!
//! Every step looks at the kernel and at `mirrord` for whether it is needed, and remembers nothing. A start of
//! what runs is done at once, a start of what runs in part goes on where that ended, and an agent that was
//! restarted finds out what there is. The way down is the way up in reverse: the mirror is demoted only when no
//! file system of this node is on it any more.
//!
//! On the way down users of the file system get time to leave, then they are killed. Only a forced stop goes
//! further: the mirror fails what is under way, and where that is not enough, the connection of `nbdfuse` is
//! aborted, so that all that waits inside the kernel gets errors and its users can be killed. What still does not
//! unmount is taken out of sight with its users in it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mirror_core::control::{CommandRequest, DeviceRequest, Grant, MirrorStatus, Role};
use nbd_frontend::config::agent::{Attach, Filesystem, Fsck, MirrorDisk as Config};
use nbd_frontend::control::client::{Client, ClientError};
use nbd_frontend::kernel::found::DeviceNumber;
use nbd_frontend::kernel::plan::{Device, Owner};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::attachment::{AttachError, Attachment};
use super::users::{self, User};
use super::{Permit, Presence, mounts};
use crate::io::blocking::{Slot, Stuck};
use crate::io::command::{CommandError, Invocation};

/// A little over what `mirrord` gives a command, so that its own answer comes first.
const COMMAND_LIMIT: Duration = Duration::from_secs(65);
/// Longest look at `/proc` or at a mount table.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Longest run of `mount`; a journal may have to be replayed.
const MOUNT_LIMIT: Duration = Duration::from_secs(600);
/// Longest one attempt to unmount may flush what is not written yet.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);
/// The same once everything may fail.
const FORCED_UNMOUNT_LIMIT: Duration = Duration::from_secs(5);
/// How long users may take to end after SIGTERM, and again after SIGKILL.
const USERS_END_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for `mirrord` on the way of a forced stop.
const FAIL_IO_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Users that an error names.
const USERS_NAMED_MAX: usize = 8;

impl MirrorDiskError {
    /// Nobody is at the other end. Any other fault, such as too many open files here, says nothing of `mirrord`.
    fn says_not_running(&self) -> bool {
        match self {
            Self::NotRunning { .. } => true,
            Self::Mirrord {
                source: ClientError::Unreachable { source, .. },
                ..
            } => matches!(
                source.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ),
            _ => false,
        }
    }
}

#[derive(Debug)]
pub struct MirrorDisk {
    config: Config,
    mirrord: Client,
    attachment: Attachment,
    /// Unmounts, which may flush for long.
    kernel: Slot,
    /// Looks, which must not wait behind an unmount that hangs.
    looks: Slot,
}

/// Rules by which `mirrord` refuses a promotion for a moment: another change of role is under way, the link
/// broke while the peer was asked, what may differ after a restart is being copied, which this side may not have
/// heard yet from the peer that refuses, the peer's demotion is on its way, which the agents' heartbeat may overtake,
/// or the grant ran out and there is a newer one.
const PASSING_RULES: [&str; 6] = [
    "busy",
    "peer-is-primary",
    "peer-lost",
    "peer-refused",
    "resync-target",
    "grant-is-over",
];

#[derive(Debug, thiserror::Error)]
pub enum MirrorDiskError {
    #[error("mirror {mirror} cannot be asked: {source}")]
    Mirrord { mirror: String, source: ClientError },
    #[error("mirrord does not run mirror {mirror}: {reason}")]
    NotRunning { mirror: String, reason: String },
    #[error("mirror {mirror} was not promoted: {source}")]
    Promote { mirror: String, source: ClientError },
    #[error("mirror {mirror} was not demoted: {source}")]
    Demote { mirror: String, source: ClientError },
    #[error(
        "mirror {mirror} has no NBD export on a Unix socket; add \"unix\" to `nbd` in its section of this node"
    )]
    NoExport { mirror: String },
    #[error("mirror {mirror} was not attached to the kernel: {source}")]
    AttachKernel { mirror: String, source: ClientError },
    #[error(
        "mirror {mirror} has no device on this node; add device = \"/dev/nbd0\" to its section of this node, or write attach = \"fuse\""
    )]
    NoDevice { mirror: String },
    #[error("mirror {mirror} was not detached from the kernel: {source}")]
    DetachKernel { mirror: String, source: ClientError },
    #[error("mirror {mirror} was not attached: {source}")]
    Attach { mirror: String, source: AttachError },
    #[error("mirror {mirror} was not detached: {source}")]
    Detach { mirror: String, source: AttachError },
    #[error("the mount point {} does not exist; make it on both nodes with `mkdir -p`", point.display())]
    NoMountPoint { point: PathBuf },
    #[error("the mount point {} is no folder; choose another one", point.display())]
    NoFolder { point: PathBuf },
    #[error("{} is mounted on {} already; unmount it, or choose another mount point", source_name, point.display())]
    PointInUse { point: PathBuf, source_name: String },
    #[error(
        "e2fsck could not check {device}: {source}; see that e2fsprogs is installed, and run `e2fsck -f {device}` by hand; `fsck_timeout` bounds it"
    )]
    Fsck {
        device: String,
        source: CommandError,
    },
    #[error(
        "the file system on {device} has faults that e2fsck does not mend by itself ({source}); attach the mirror by hand, run `e2fsck -f {device}` and answer its questions"
    )]
    Damaged {
        device: String,
        source: CommandError,
    },
    #[error(
        "{device} does not mount, and xfs_repair did not mend it: {source}; see that xfsprogs is installed, attach the mirror by hand, and run `xfs_repair {device}`; `fsck_timeout` bounds it"
    )]
    Repair {
        device: String,
        source: CommandError,
    },
    #[error(
        "{device} was not mounted on {}: {source}; `dmesg` may say why; if the file system is damaged, attach the mirror by hand and run `{repair} {device}`",
        point.display()
    )]
    Mount {
        device: String,
        repair: &'static str,
        point: PathBuf,
        source: CommandError,
    },
    #[error("{} does not unmount: {errno}; {}", point.display(), users_text(users))]
    Busy {
        point: PathBuf,
        errno: Errno,
        users: Vec<User>,
    },
    #[error(
        "mirror {mirror} is {role:?} here and not primary; something else demoted it, or mirrord was restarted"
    )]
    NotPrimary { mirror: String, role: Role },
    #[error(
        "mirror {mirror} is not attached any more: {missing} is gone; look at the log of mirrord and restart the group"
    )]
    NotAttached {
        mirror: String,
        missing: &'static str,
    },
    #[error("{} is not mounted any more; restart the group", point.display())]
    NotMounted { point: PathBuf },
    #[error("the kernel made {} read-only after an error of {device}; look at `dmesg`, then restart the group", point.display())]
    ReadOnly { point: PathBuf, device: String },
    #[error("cannot read what is mounted: {0}")]
    Table(std::io::Error),
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

type Result<T> = std::result::Result<T, MirrorDiskError>;

fn users_text(users: &[User]) -> String {
    if users.is_empty() {
        return "no process uses it, so look for a swap file, a loop device or an NFS export on it"
            .into();
    }
    let mut text: Vec<String> = users
        .iter()
        .take(USERS_NAMED_MAX)
        .map(User::to_string)
        .collect();
    if users.len() > USERS_NAMED_MAX {
        text.push(format!("and {} more", users.len() - USERS_NAMED_MAX));
    }
    text.join("; ")
}

impl MirrorDiskError {
    /// Tried again a moment later, it may succeed: a `mirrord` that died is started again by who watches over it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Mirrord { source, .. } | Self::Promote { source, .. } => match source {
                ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
                ClientError::Refused(refusal) => PASSING_RULES.contains(&refusal.rule.as_str()),
                ClientError::TimedOut { .. } => false,
            },
            _ => false,
        }
    }
}

impl MirrorDisk {
    /// `run_dir`: where `mirrord` has its sockets, and the attached file is made.
    pub fn new(config: Config, run_dir: &Path) -> Self {
        Self {
            mirrord: Client::new(run_dir, COMMAND_LIMIT),
            attachment: Attachment::new(&run_dir.join("attached"), &config.mirror),
            kernel: Slot::default(),
            looks: Slot::default(),
            config,
        }
    }

    pub async fn start(&self, permit: &Permit) -> Result<()> {
        self.step("look at the mount point", self.check_mount_point())
            .await?;
        self.step("promote", self.promote(permit)).await?;
        let status = self.status().await?;
        let device = match self.config.attach {
            Attach::Kernel => self.step("attach", self.attach_kernel()).await?,
            Attach::Fuse => self.attach_fuse(&status).await?,
        };
        let Some(point) = &self.config.mount else {
            return Ok(());
        };
        if self.mount_at(point).await?.is_some() {
            return Ok(());
        }
        self.step("check the file system", self.fsck(&device))
            .await?;
        let mounted = self.step("mount", self.mount(&device, point)).await;
        match mounted {
            Err(MirrorDiskError::Mount { source, .. }) if self.repairs_xfs() => {
                self.step("repair the file system", self.repair(&device, source))
                    .await?;
                self.step("mount", self.mount(&device, point)).await
            }
            result => result,
        }
    }

    pub async fn stop(&self, force: bool) -> Result<()> {
        self.take_down(force).await?;
        self.step("demote", self.demote()).await
    }

    pub async fn check(&self) -> Result<()> {
        let mirror = || self.config.mirror.clone();
        let status = self.status().await?;
        if status.role != Role::Primary {
            return Err(MirrorDiskError::NotPrimary {
                mirror: mirror(),
                role: status.role,
            });
        }
        if let Some(missing) = self.missing(&status) {
            return Err(MirrorDiskError::NotAttached {
                mirror: mirror(),
                missing,
            });
        }
        let Some(point) = &self.config.mount else {
            return Ok(());
        };
        match self.mount_at(point).await? {
            None => Err(MirrorDiskError::NotMounted {
                point: point.clone(),
            }),
            Some(mount) if mount.is_read_only && !self.is_read_only() => {
                Err(MirrorDiskError::ReadOnly {
                    point: point.clone(),
                    device: mount.source,
                })
            }
            Some(_) => Ok(()),
        }
    }

    pub async fn probe_state(&self) -> Result<Presence> {
        let status = match self.status().await {
            Ok(status) => Some(status),
            // A mirror that does not run is not primary: nothing makes it so at its start.
            Err(error) if error.says_not_running() => None,
            Err(error) => return Err(error),
        };
        let is_primary = status
            .as_ref()
            .is_some_and(|status| status.role == Role::Primary);
        let attached = self.attachment.survey();
        let (is_whole, is_nothing) = match (self.config.attach, &status) {
            (Attach::Fuse, _) => (attached.is_whole(), attached.is_nothing()),
            (Attach::Kernel, status) => {
                let device = status.as_ref().and_then(|status| status.device.as_ref());
                (device.is_some(), device.is_none())
            }
        };
        let is_mounted = match &self.config.mount {
            Some(point) => Some(self.mount_at(point).await?.is_some()),
            None => None,
        };
        let all = is_primary && is_whole && is_mounted != Some(false);
        let none = !is_primary && is_nothing && is_mounted != Some(true);
        Ok(match (all, none) {
            (true, _) => Presence::Online,
            (_, true) => Presence::Offline,
            _ => Presence::Partial,
        })
    }

    /// The part of the attachment that is not there, if any.
    fn missing(&self, status: &MirrorStatus) -> Option<&'static str> {
        match self.config.attach {
            Attach::Fuse => self.attachment.survey().missing(),
            Attach::Kernel => status
                .device
                .is_none()
                .then_some("its device in the kernel"),
        }
    }

    async fn attach_fuse(&self, status: &MirrorStatus) -> Result<String> {
        let uri = status
            .exports
            .iter()
            .find(|export| export.starts_with("nbd+unix:"))
            .ok_or_else(|| MirrorDiskError::NoExport {
                mirror: self.config.mirror.clone(),
            })?;
        let found = self.attachment.survey();
        if !found.is_nothing() && !found.serves() {
            self.step("take down what a dead mirrord left", self.take_down(true))
                .await?;
        }
        self.step("attach", self.attach(uri)).await
    }

    /// `mirrord` does it when it becomes primary; asked again, it says why it could not.
    async fn attach_kernel(&self) -> Result<String> {
        let mirror = || self.config.mirror.clone();
        self.mirrord
            .device(&self.config.mirror, &DeviceRequest::Attach)
            .await
            .map_err(|source| MirrorDiskError::AttachKernel {
                mirror: mirror(),
                source,
            })?;
        self.status()
            .await?
            .device
            .ok_or_else(|| MirrorDiskError::NoDevice { mirror: mirror() })
    }

    async fn detach_kernel(&self, force: bool) -> Result<()> {
        let asked = self
            .mirrord
            .device(&self.config.mirror, &DeviceRequest::Detach { force })
            .await;
        match asked {
            Ok(_) => Ok(()),
            Err(source) => {
                let error = MirrorDiskError::DetachKernel {
                    mirror: self.config.mirror.clone(),
                    source,
                };
                // Its device fails what waits in it by itself, after its time-out.
                if force || matches!(self.status().await, Err(error) if error.says_not_running()) {
                    tracing::warn!("{error}");
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// Runs one step and logs how long it took.
    async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let begun = Instant::now();
        let result = work.await;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mirror = &self.config.mirror;
        match &result {
            Ok(_) => tracing::info!(mirror, took_ms, "{name}: done"),
            Err(error) => tracing::warn!(mirror, took_ms, "{name}: {error}"),
        }
        result
    }

    async fn take_down(&self, force: bool) -> Result<()> {
        if let Some(point) = &self.config.mount {
            self.step("unmount", self.unmount(point, force)).await?;
        }
        self.step("detach", self.detach(force)).await
    }

    async fn status(&self) -> Result<MirrorStatus> {
        let mirror = &self.config.mirror;
        let node = self
            .mirrord
            .status()
            .await
            .map_err(|source| MirrorDiskError::Mirrord {
                mirror: mirror.clone(),
                source,
            })?;
        let reason = node
            .down
            .iter()
            .find(|down| down.name == *mirror)
            .map_or("it is not in its configuration", |down| &down.reason)
            .to_owned();
        node.mirrors
            .into_iter()
            .find(|status| status.name == *mirror)
            .ok_or_else(|| MirrorDiskError::NotRunning {
                mirror: mirror.clone(),
                reason,
            })
    }

    async fn promote(&self, permit: &Permit) -> Result<()> {
        let command = CommandRequest::Promote {
            peer_down: permit.peer_down,
            force: permit.force,
            grant: permit.grant.map(|grant| Grant {
                epoch: grant.epoch,
                deadline_ms: grant.deadline_ms,
            }),
        };
        self.mirrord
            .command(&self.config.mirror, &command)
            .await
            .map(drop)
            .map_err(|source| MirrorDiskError::Promote {
                mirror: self.config.mirror.clone(),
                source,
            })
    }

    /// Fine too where there is nothing to demote: a mirror that does not run is primary nowhere.
    async fn demote(&self) -> Result<()> {
        match self.status().await {
            Ok(status) if status.role != Role::Primary => return Ok(()),
            Ok(_) => {}
            Err(error) if error.says_not_running() => {
                tracing::warn!("nothing to demote: {error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.mirrord
            .command(&self.config.mirror, &CommandRequest::Demote)
            .await
            .map(drop)
            .map_err(|source| MirrorDiskError::Demote {
                mirror: self.config.mirror.clone(),
                source,
            })
    }

    async fn attach(&self, uri: &str) -> Result<String> {
        self.attachment
            .attach(uri)
            .await
            .map_err(|source| MirrorDiskError::Attach {
                mirror: self.config.mirror.clone(),
                source,
            })
    }

    async fn detach(&self, force: bool) -> Result<()> {
        if self.config.attach == Attach::Kernel {
            return self.detach_kernel(force).await;
        }
        self.attachment
            .detach(force)
            .await
            .map_err(|source| MirrorDiskError::Detach {
                mirror: self.config.mirror.clone(),
                source,
            })
    }

    fn is_read_only(&self) -> bool {
        self.config.options.split(',').any(|option| option == "ro")
    }

    /// Our file system on the mount point. Another one there is an error.
    async fn mount_at(&self, point: &Path) -> Result<Option<mounts::Mount>> {
        let Some(mount) = any_mount_at(&self.looks, point).await? else {
            return Ok(None);
        };
        let is_ours = match self.config.attach {
            Attach::Fuse => self.attachment.owns(&mount.source),
            Attach::Kernel => is_device_of_a_mirror(&mount.source),
        };
        if is_ours {
            return Ok(Some(mount));
        }
        Err(MirrorDiskError::PointInUse {
            point: point.into(),
            source_name: mount.source,
        })
    }

    async fn check_mount_point(&self) -> Result<()> {
        let Some(point) = self.config.mount.clone() else {
            return Ok(());
        };
        // Fails where another file system is there.
        if self.mount_at(&point).await?.is_some() {
            return Ok(());
        }
        match std::fs::metadata(&point) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(MirrorDiskError::NoFolder { point }),
            Err(_) => Err(MirrorDiskError::NoMountPoint { point }),
        }
    }

    async fn fsck(&self, device: &str) -> Result<()> {
        // xfs replays its journal when it is mounted; only where that fails there is something to repair.
        if self.config.filesystem != Filesystem::Ext4 || self.config.fsck == Fsck::Never {
            return Ok(());
        }
        check_ext4(
            device,
            self.config.fsck == Fsck::Always,
            self.config.fsck_timeout,
        )
        .await
    }

    fn repairs_xfs(&self) -> bool {
        self.config.filesystem == Filesystem::Xfs && self.config.fsck == Fsck::Always
    }

    async fn repair(&self, device: &str, refused: CommandError) -> Result<()> {
        tracing::warn!("{device} was not mounted and is repaired: {refused}");
        repair_xfs(device, self.config.fsck_timeout).await
    }

    async fn mount(&self, device: &str, point: &Path) -> Result<()> {
        mount(self.config.filesystem, &self.config.options, device, point).await
    }

    async fn unmount(&self, point: &Path, force: bool) -> Result<()> {
        // What someone else mounted there is not ours to take down.
        let point = match self.mount_at(point).await {
            Ok(Some(mount)) => mount.point,
            Ok(None) | Err(MirrorDiskError::PointInUse { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let tries = Tries {
            count: self.config.unmount_retries,
            interval: self.config.unmount_interval,
        };
        match unmount(&self.kernel, &point, tries, force).await {
            Err(error) if force => {
                tracing::warn!("{error}; what is under way on it fails from now on");
                self.fail_io().await;
                self.attachment.abort();
                // The call that hung may still hold the slot for a moment.
                let kernel = Slot::default();
                match unmount(&kernel, &point, tries, true).await {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        tracing::warn!("{error}; it is taken out of sight with what uses it");
                        hide(&point).await
                    }
                }
            }
            result => result,
        }
    }

    /// Nothing that is under way may wait for the peer or for a lease any longer.
    async fn fail_io(&self) {
        let failed = self
            .mirrord
            .command(&self.config.mirror, &CommandRequest::FailIo);
        match tokio::time::timeout(FAIL_IO_LIMIT, failed).await {
            Ok(Ok(_)) => {}
            // nbdfuse is killed next, which has the same effect for this node.
            Ok(Err(error)) => tracing::warn!("mirror {}: {error}", self.config.mirror),
            Err(_) => tracing::warn!("mirror {}: mirrord is silent", self.config.mirror),
        }
    }
}

/// Also where `mirrord` is gone and its device waits for it.
fn is_device_of_a_mirror(source: &str) -> bool {
    DeviceNumber::of(Path::new(source))
        .is_ok_and(|device| matches!(device.device(), Device::Taken(Owner::Mirror(_))))
}

/// How often a clean unmount is tried again, and how long is waited between two tries.
#[derive(Debug, Clone, Copy)]
pub struct Tries {
    pub count: u32,
    pub interval: Duration,
}

/// Checks an ext4 file system that is not mounted. It mends what needs no judgement; without `fully` it is
/// content with a replayed journal where nothing points to faults.
pub async fn check_ext4(device: &str, fully: bool, limit: Duration) -> Result<()> {
    let words = ["e2fsck", "-p"]
        .into_iter()
        .chain(fully.then_some("-f"))
        .chain([device]);
    let ended =
        Invocation::new(words)
            .run(limit)
            .await
            .map_err(|source| MirrorDiskError::Fsck {
                device: device.into(),
                source,
            })?;
    match ended.code {
        // Bit 0: faults were mended. Bit 1: restart if it was the root file system, which it is not.
        Some(0..4) => Ok(()),
        // Bit 2: faults are left. The others: it could not work.
        Some(4..8) => Err(MirrorDiskError::Damaged {
            device: device.into(),
            source: ended.failure(),
        }),
        _ => Err(MirrorDiskError::Fsck {
            device: device.into(),
            source: ended.failure(),
        }),
    }
}

/// Repairs an xfs file system that is not mounted. One whose journal has to be replayed first, which only a mount
/// does, is left alone.
pub async fn repair_xfs(device: &str, limit: Duration) -> Result<()> {
    Invocation::new(["xfs_repair", device])
        .succeed(limit)
        .await
        .map(drop)
        .map_err(|source| MirrorDiskError::Repair {
            device: device.into(),
            source,
        })
}

pub async fn mount(
    filesystem: Filesystem,
    options: &str,
    device: &str,
    point: &Path,
) -> Result<()> {
    let (name, repair) = match filesystem {
        Filesystem::Ext4 => ("ext4", "e2fsck -f"),
        Filesystem::Xfs => ("xfs", "xfs_repair"),
    };
    let options = if options.is_empty() { "rw" } else { options };
    Invocation::new(["mount", "-t", name, "-o", options, device])
        .argument(point)
        .succeed(MOUNT_LIMIT)
        .await
        .map(drop)
        .map_err(|source| MirrorDiskError::Mount {
            device: device.into(),
            repair,
            point: point.into(),
            source,
        })
}

/// Takes a mount down. After the tries its users are asked to end, then killed; with `force` they are killed
/// at once.
pub async fn unmount(kernel: &Slot, point: &Path, tries: Tries, force: bool) -> Result<()> {
    let limit = if force {
        FORCED_UNMOUNT_LIMIT
    } else {
        UNMOUNT_LIMIT
    };
    let tries_left = if force { 0 } else { tries.count };
    for left in (0..=tries_left).rev() {
        match try_unmount(kernel, point, limit).await {
            Err(MirrorDiskError::Busy { users, .. }) if left > 0 => {
                tracing::info!(
                    "{} is in use; {left} more tries: {}",
                    point.display(),
                    users_text(&users)
                );
                tokio::time::sleep(tries.interval).await;
            }
            Err(MirrorDiskError::Busy { .. }) => {}
            result => return result,
        }
    }
    let signals: &[Signal] = if force {
        &[Signal::SIGKILL]
    } else {
        &[Signal::SIGTERM, Signal::SIGKILL]
    };
    for signal in signals {
        match end_users(kernel, point, *signal, limit).await {
            Err(MirrorDiskError::Busy { .. }) => {}
            result => return result,
        }
    }
    try_unmount(kernel, point, limit).await
}

/// Takes a mount out of sight; the kernel lets go of it when its last user does.
async fn hide(point: &Path) -> Result<()> {
    // Calls that hang may hold every slot there is; another thread is worth the end of this.
    let kernel = Slot::default();
    if let Ok(None) = any_mount_at(&kernel, point).await {
        return Ok(());
    }
    let owned = point.to_owned();
    let errno = kernel
        .run("a lazy unmount", FORCED_UNMOUNT_LIMIT, move || {
            mounts::unmount(&owned, true)
        })
        .await?;
    errno.map_err(|errno| MirrorDiskError::Busy {
        point: point.into(),
        errno,
        users: Vec::new(),
    })
}

async fn try_unmount(kernel: &Slot, point: &Path, limit: Duration) -> Result<()> {
    let owned = point.to_owned();
    let (errno, users) = kernel
        .run("an unmount", limit, move || {
            match mounts::unmount(&owned, false) {
                Ok(()) => (None, Vec::new()),
                Err(errno) => (Some(errno), users_of(&owned)),
            }
        })
        .await?;
    match errno {
        None => Ok(()),
        Some(errno) => Err(MirrorDiskError::Busy {
            point: point.into(),
            errno,
            users,
        }),
    }
}

/// Sends the signal to whoever uses the mount, to each once, and unmounts between what comes and goes.
async fn end_users(kernel: &Slot, point: &Path, signal: Signal, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut told = HashSet::new();
    loop {
        let busy = match try_unmount(kernel, point, limit).await {
            Err(busy @ MirrorDiskError::Busy { .. }) => busy,
            result => return result,
        };
        let MirrorDiskError::Busy { users, .. } = &busy else {
            return Err(busy);
        };
        let hopeless = !users.is_empty() && users::killable(users).next().is_none();
        if hopeless || begun.elapsed() > USERS_END_LIMIT {
            return Err(busy);
        }
        let news: Vec<User> = users
            .iter()
            .filter(|user| told.insert(user.pid))
            .cloned()
            .collect();
        if !news.is_empty() {
            users::signal_all(&news, signal);
            tracing::warn!(
                "{signal} to what uses {}: {}",
                point.display(),
                users_text(&news)
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Users of the file system on `point`. Not of those mounted below it: `/dev` may be shown there, and everything
/// uses that.
fn users_of(point: &Path) -> Vec<User> {
    let mounts = mounts::mounted().unwrap_or_default();
    mounts::at(&mounts, point)
        .map(|mount| users::of_device(mount.device))
        .unwrap_or_default()
}

async fn any_mount_at(kernel: &Slot, point: &Path) -> Result<Option<mounts::Mount>> {
    let point = point.to_owned();
    kernel
        .run("a look at what is mounted", LOOK_LIMIT, move || {
            let mounts = mounts::mounted()?;
            let real = point.canonicalize().unwrap_or(point);
            Ok(mounts::at(&mounts, &real).cloned())
        })
        .await?
        .map_err(MirrorDiskError::Table)
}

#[cfg(test)]
mod tests {
    use mirror_core::control::Refusal;

    use super::*;

    #[test]
    fn a_promotion_that_may_succeed_in_a_moment_is_told_from_one_that_will_not() {
        let refused = |rule: &str| {
            let refusal = Refusal::new(rule, "", "");
            let promote = MirrorDiskError::Promote {
                mirror: "md1".into(),
                source: ClientError::Refused(refusal),
            };
            promote.is_passing()
        };
        // The peer gives back what this side may have lost when it was killed.
        assert!(refused("resync-target") && refused("peer-refused"));
        assert!(refused("peer-is-primary"), "it was, until a moment ago");
        assert!(!refused("disk-failed") && !refused("outdated"));
    }

    #[test]
    fn an_error_names_some_users_and_counts_the_others() {
        let user = |pid| User {
            pid,
            command: "tail -f log".into(),
            by: users::UsedBy::OpenFile,
        };
        let text = users_text(&(1..=10).map(user).collect::<Vec<_>>());
        assert!(
            text.contains("process 1 (tail -f log): it has a file open"),
            "{text}"
        );
        assert!(text.ends_with("and 2 more"), "{text}");
        assert!(users_text(&[]).contains("NFS export"));
    }
}
