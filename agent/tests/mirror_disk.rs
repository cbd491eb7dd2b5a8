//! The resource `mirror-disk` on a real mirror: two daemons, `nbdfuse`, a loop device, ext4 or xfs. Needs root.

mod ground;

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::io::resource::attachment::Attachment;
use agent::io::resource::{Permit, Presence, Resource, fuse, mounts};
use local_disks::Cleaner;
use local_pair::{MIRROR, Pair, PairOptions, Programs, Side};
use mirror_core::control::{Connection, DiskState, MirrorStatus, Role};
use nbd_frontend::config::agent::{
    Attach, Filesystem, Fsck, MirrorDisk, Resource as Config, ResourceKind,
};
use nix::sys::signal::Signal;

use ground::{Killed, LIMIT, run, wait_until};

/// A mirror and the resource on its first side. What is still mounted or attached at the end is taken down.
struct Scene {
    cleaner: Cleaner,
    pair: Pair,
    point: PathBuf,
    disk: MirrorDisk,
    /// Of the first side.
    resource: Resource,
}

impl Scene {
    async fn with_ext4() -> Self {
        let make = ["/sbin/mke2fs", "-q", "-t", "ext4", "-F"];
        Self::with(Filesystem::Ext4, 32 << 20, &make).await
    }

    /// The least that mkfs.xfs makes is 300 MiB, of which little is written.
    async fn with_xfs() -> Self {
        Self::with(Filesystem::Xfs, 320 << 20, &["/sbin/mkfs.xfs", "-q", "-K"]).await
    }

    async fn with(filesystem: Filesystem, bytes: u64, make: &[&str]) -> Self {
        let options = PairOptions {
            preallocate: false,
            ..PairOptions::sized(bytes)
        };
        let mut pair = Pair::create(Programs::fresh().unwrap(), &options).unwrap();
        let cleaner = Cleaner::start(pair.folder()).unwrap();
        pair.bring_up().unwrap();
        pair.promote_first().unwrap();
        let point = pair.folder().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let run_dir = pair.node(Side::First).run_dir();
        let mut disk = disk(Some(&point));
        disk.filesystem = filesystem;
        let scene = Self {
            cleaner,
            pair,
            point,
            resource: resource(&run_dir, disk.clone()),
            disk,
        };
        let backing = scene.backing();
        let words = &[&make[1..], &[backing.to_str().unwrap()]].concat();
        scene.while_attached(|| drop(run(make[0], words))).await;
        scene
    }

    /// The mirror as a file, while it is attached.
    fn backing(&self) -> PathBuf {
        self.run_dir().join("attached").join(MIRROR)
    }

    /// Does something to the mirror while it is attached and not mounted.
    async fn while_attached(&self, work: impl FnOnce()) {
        let device_only = resource(&self.run_dir(), disk(None));
        device_only.start(&Permit::default()).await.unwrap();
        work();
        device_only.check().await.unwrap();
        device_only.stop(false).await.unwrap();
    }

    /// The resource as it is configured, on a side.
    fn resource_of(&self, side: Side) -> Resource {
        resource(&self.pair.node(side).run_dir(), self.disk.clone())
    }

    fn run_dir(&self) -> PathBuf {
        self.pair.node(Side::First).run_dir()
    }

    fn role(&self) -> Role {
        self.pair.status(Side::First).unwrap().role
    }

    /// Both sides are back, and nothing is copied any more.
    fn wait_current(&self) {
        for side in Side::BOTH {
            self.pair
                .wait_for(side, "a current mirror", 30, |mirror| {
                    mirror.connection == Connection::Connected
                        && mirror.disk == DiskState::UpToDate
                        && mirror.peer.disk == DiskState::UpToDate
                        && mirror.sync.is_none()
                })
                .unwrap();
        }
    }

    /// A side has heard that the other one is primary no more, and may be it now.
    fn wait_turn(&self, side: Side) {
        let is_free = |mirror: &MirrorStatus| mirror.peer.role == Role::Secondary;
        let heard = self.pair.wait_for(side, "its turn", 30, is_free);
        heard.unwrap();
    }

    fn attachment(&self) -> Attachment {
        Attachment::new(&self.run_dir().join("attached"), MIRROR)
    }

    async fn presence(&self) -> Presence {
        self.resource.probe_state().await.unwrap()
    }

    async fn start(&self) {
        self.resource.start(&Permit::default()).await.unwrap();
        assert_eq!(self.presence().await, Presence::Online);
        self.resource.check().await.unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for side in Side::BOTH {
            let _ = self.pair.node_mut(side).kill();
        }
        // What may still wait for a mirror ends in errors.
        self.attachment().abort();
        self.cleaner.conclude();
    }
}

fn disk(mount: Option<&Path>) -> MirrorDisk {
    MirrorDisk {
        mirror: MIRROR.into(),
        attach: Attach::Fuse,
        mount: mount.map(Path::to_owned),
        filesystem: Filesystem::Ext4,
        options: "noatime".into(),
        fsck: Fsck::Auto,
        fsck_timeout: LIMIT,
        unmount_retries: 1,
        unmount_interval: Duration::from_millis(10),
    }
}

fn resource(run_dir: &Path, disk: MirrorDisk) -> Resource {
    let config = Config {
        name: "disk".into(),
        kind: ResourceKind::MirrorDisk(disk),
        depends_on: Vec::new(),
        start_timeout: LIMIT,
        stop_timeout: LIMIT,
        start_retries: 0,
    };
    Resource::new(&config, "group", 0, run_dir)
}

#[tokio::test]
async fn a_mirror_is_mounted_and_taken_down_again_and_keeps_its_files() {
    let scene = Scene::with_ext4().await;
    assert_eq!(scene.presence().await, Presence::Offline);
    assert_eq!(scene.role(), Role::Secondary);
    scene.start().await;
    assert_eq!(scene.role(), Role::Primary);
    std::fs::write(scene.point.join("file"), "kept").unwrap();
    // An agent that was restarted finds what runs, and leaves it alone.
    let again = scene.resource_of(Side::First);
    assert_eq!(again.probe_state().await.unwrap(), Presence::Online);
    again.start(&Permit::default()).await.unwrap();
    again.stop(false).await.unwrap();
    again.stop(false).await.unwrap();
    assert_eq!(scene.presence().await, Presence::Offline);
    assert_eq!(scene.role(), Role::Secondary);
    scene.start().await;
    let text = std::fs::read_to_string(scene.point.join("file")).unwrap();
    assert_eq!(text, "kept");
    // Nobody else's mount is touched, and none is put on top of it.
    let error = resource(&scene.run_dir(), disk(Some(Path::new("/proc"))))
        .start(&Permit::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("is mounted on /proc already"), "{error}");
    scene.resource.stop(false).await.unwrap();
}

#[tokio::test]
async fn a_forced_stop_gets_through_although_the_mirror_died_under_its_users() {
    let mut scene = Scene::with_ext4().await;
    scene.start().await;
    let script = "while :; do echo x >> file; sleep 0.01; done";
    let _writer = Killed::spawn("sh", &["-c", script], &scene.point);
    let file = scene.point.join("file");
    wait_until(|| file.exists()).await;
    scene.pair.node_mut(Side::First).kill().unwrap();
    scene.resource.stop(true).await.unwrap();
    assert_eq!(scene.presence().await, Presence::Offline);
    scene.pair.start(Side::First).unwrap();
    scene.wait_current();
    scene.start().await;
    scene.resource.stop(false).await.unwrap();
}

#[tokio::test]
async fn a_forced_stop_gets_through_although_mirrord_stands_still_under_its_users() {
    let scene = Scene::with_ext4().await;
    scene.start().await;
    let device = scene.attachment().survey().device.unwrap();
    let sequence = sequence_of(&device);
    let script = "while :; do dd if=/dev/zero of=file bs=64k count=16 conv=fsync; done";
    let writer = Killed::spawn("sh", &["-c", script], &scene.point);
    let mirrord = scene.pair.node(Side::First);
    mirrord.signal(Signal::SIGSTOP).unwrap();
    wait_until(|| waits_inside_the_kernel(writer.0.id())).await;
    let taken_down = async {
        let is_mounted = || mounts::at(&mounts::mounted().unwrap(), &scene.point).is_some();
        wait_until(|| !is_mounted() && scene.attachment().survey().is_nothing()).await;
        // Only the mirror itself waits for it.
        mirrord.signal(Signal::SIGCONT).unwrap();
    };
    let (stopped, ()) = tokio::join!(scene.resource.stop(true), taken_down);
    stopped.unwrap();
    assert_eq!(scene.presence().await, Presence::Offline);
    assert_eq!(scene.role(), Role::Secondary);
    // Its number may be someone else's by now.
    wait_until(|| sequence_of(&device) != sequence || backing_of(&device).is_empty()).await;
    scene.wait_current();
    scene.start().await;
    scene.resource.stop(false).await.unwrap();
}

/// A number that each use of a device has for itself.
fn sequence_of(device: &str) -> String {
    attribute_of(device, "diskseq")
}

fn backing_of(device: &str) -> String {
    attribute_of(device, "loop/backing_file")
}

fn attribute_of(device: &str, name: &str) -> String {
    let name = format!("/sys/block/{}/{name}", device.trim_start_matches("/dev/"));
    std::fs::read_to_string(name).unwrap_or_default()
}

/// One of the children of a process does, where no signal reaches it.
fn waits_inside_the_kernel(pid: u32) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .any(|child| {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.contains(") D ")
        })
}

#[tokio::test]
async fn what_a_dead_mirrord_left_is_found_and_taken_down_at_the_next_start() {
    let mut scene = Scene::with_ext4().await;
    scene.start().await;
    scene.pair.node_mut(Side::First).kill().unwrap();
    let error = scene.resource.check().await.unwrap_err().to_string();
    assert!(error.contains("no mirrord answers"), "{error}");
    assert_eq!(scene.presence().await, Presence::Partial);
    scene.pair.start(Side::First).unwrap();
    scene.wait_current();
    let error = scene.resource.check().await.unwrap_err().to_string();
    assert!(error.contains("not primary"), "{error}");
    scene.start().await;
    std::fs::write(scene.point.join("after"), "x").unwrap();
    scene.resource.stop(false).await.unwrap();
    assert_eq!(scene.presence().await, Presence::Offline);
}

#[tokio::test]
async fn an_xfs_file_system_moves_to_the_other_node_and_back_with_its_files() {
    let scene = Scene::with_xfs().await;
    scene.start().await;
    let file = scene.point.join("file");
    std::fs::write(&file, "of the first").unwrap();
    scene.resource.stop(false).await.unwrap();
    scene.wait_turn(Side::Second);
    let other = scene.resource_of(Side::Second);
    other.start(&Permit::default()).await.unwrap();
    other.check().await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of the first");
    std::fs::write(&file, "of the second").unwrap();
    other.stop(false).await.unwrap();
    scene.wait_turn(Side::First);
    scene.start().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of the second");
    scene.resource.stop(false).await.unwrap();
}

#[tokio::test]
async fn an_xfs_file_system_replays_its_journal_after_its_node_was_lost() {
    let mut scene = Scene::with_xfs().await;
    scene.start().await;
    let file = scene.point.join("file");
    std::fs::write(&file, "synced").unwrap();
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    scene.pair.node_mut(Side::First).kill().unwrap();
    scene.resource.stop(true).await.unwrap();
    scene
        .pair
        .ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()
        .unwrap();
    let other = scene.resource_of(Side::Second);
    other.start(&Permit::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "synced");
    other.stop(false).await.unwrap();
}

#[tokio::test]
async fn an_xfs_file_system_that_does_not_mount_is_repaired_only_where_that_is_configured() {
    let mut scene = Scene::with_xfs().await;
    scene.start().await;
    let file = scene.point.join("file");
    std::fs::write(&file, "kept").unwrap();
    scene.resource.stop(false).await.unwrap();
    // Its first superblock; the others are good.
    let backing = scene.backing();
    let damage = || {
        use std::os::unix::fs::FileExt;
        let disk = std::fs::File::options().write(true).open(&backing).unwrap();
        disk.write_all_at(&[0; 512], 0).unwrap();
        disk.sync_all().unwrap();
    };
    scene.while_attached(damage).await;
    let refused = scene.resource.start(&Permit::default()).await;
    let error = refused.unwrap_err().to_string();
    for word in ["was not mounted on", "superblock", "xfs_repair /dev/loop"] {
        assert!(error.contains(word), "{error}");
    }
    scene.resource.stop(false).await.unwrap();
    assert_eq!(scene.presence().await, Presence::Offline);
    scene.disk.fsck = Fsck::Always;
    scene.resource = scene.resource_of(Side::First);
    scene.start().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    scene.resource.stop(false).await.unwrap();
}

#[test]
fn a_connection_that_has_ended_needs_no_abort() {
    fuse::abort(u32::MAX).unwrap();
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let start = async |resource: Resource| {
        let error = resource.start(&Permit::default()).await.unwrap_err();
        error.to_string()
    };
    let missing = folder.path().join("missing");
    let error = start(resource(folder.path(), disk(Some(&missing)))).await;
    assert!(error.contains("does not exist; make it"), "{error}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = start(resource(folder.path(), disk(Some(&file)))).await;
    assert!(error.contains("is no folder"), "{error}");
    let error = start(resource(folder.path(), disk(None))).await;
    assert!(error.contains("no mirrord answers"), "{error}");
    let mut by_kernel = disk(None);
    by_kernel.attach = Attach::Kernel;
    let kernel = resource(folder.path(), by_kernel);
    let error = kernel.check().await.unwrap_err().to_string();
    assert!(error.contains("no mirrord answers"), "{error}");
}
