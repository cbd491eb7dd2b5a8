//! Two mirrors with real disks and sockets in one process: what one side answers is on the other.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mirror_core::control::{Connection, MirrorStatus};
use mirror_core::io::error::OpenError;
use mirror_core::io::init::{InitSettings, init_mirror};
use mirror_core::io::local::LocalMirror;
use mirror_core::io::mirror::{Ended, MirrorHandle};
use mirror_core::io::open::{MetadataPlace, MirrorSettings};
use mirror_core::link::preface::ClusterKey;
use mirror_core::request::{Answer, Failure, Operation};
use mirror_core::units::{ByteRange, Uuid};
use mirror_core::volume::config::{Compression, PeerLoss, QueueFull, Rates, VolumeConfig};
use mirror_core::volume::event::Command;
use mirror_core::wire::message::{DiskState, InitialSync, Mode, Role};
use tokio::sync::{mpsc, oneshot};

use crate::older;
use crate::party::noise;

const BYTES: u64 = 32 << 20;
const LIMIT: Duration = Duration::from_secs(60);

struct Node {
    index: usize,
    folder: tempfile::TempDir,
    addresses: [SocketAddr; 2],
    encrypted: bool,
    internal: bool,
    compression: Compression,
}

/// Requests as they travel to the mirror's thread; buffers are made there.
enum Ask {
    Write { offset: u64, bytes: Vec<u8> },
    Read(ByteRange),
    Zero(ByteRange),
    Flush,
}

type Reply = Result<Vec<u8>, Failure>;
type Asked = (Ask, oneshot::Sender<Reply>);

/// A running mirror and the way to its requests.
struct Running {
    handle: MirrorHandle,
    requests: mpsc::Sender<Asked>,
}

fn pair(encrypted: bool, internal: bool) -> [Node; 2] {
    let addresses = local_pair::loopback_addresses().unwrap();
    let addresses = addresses.map(|address| address.parse().unwrap());
    [0, 1].map(|index| {
        let node = Node {
            index,
            folder: tempfile::tempdir_in("/dev/shm").unwrap(),
            addresses,
            encrypted,
            internal,
            compression: Compression::None,
        };
        let file = |name, bytes| {
            let file = std::fs::File::create(node.folder.path().join(name)).unwrap();
            file.set_len(bytes).unwrap();
        };
        file("data", BYTES);
        file("metadata", 2 << 20);
        init_mirror(&InitSettings {
            cluster: id("cluster"),
            mirror: id("md1"),
            node: id(NAMES[index]),
            peer: id(NAMES[1 - index]),
            data: node.data(),
            metadata: node.metadata(),
            adopt: false,
            force: false,
        })
        .unwrap();
        node
    })
}

const NAMES: [&str; 2] = ["one", "two"];

fn id(name: &str) -> Uuid {
    Uuid::from_name("test", name)
}

impl Node {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn metadata(&self) -> MetadataPlace {
        match self.internal {
            true => MetadataPlace::Internal,
            false => MetadataPlace::Path(self.folder.path().join("metadata")),
        }
    }

    fn settings(&self) -> MirrorSettings {
        let (node, peer) = (NAMES[self.index], NAMES[1 - self.index]);
        MirrorSettings {
            volume: VolumeConfig {
                name: "md1".into(),
                node_name: node.into(),
                peer_name: peer.into(),
                cluster: id("cluster"),
                mirror: id("md1"),
                node: id(node),
                peer: id(peer),
                mode: Mode::Sync,
                initial_sync: InitialSync::Full,
                peer_loss: PeerLoss::Continue,
                fast_zero: false,
                config_digest: [1; 16],
                usable_bytes: 0,
                logical_block_bytes: 512,
                first: self.index == 0,
                peer_timeout_ms: 6000,
                resync_rates: Rates::default(),
                resync_in_flight: 8,
                arbitration: None,
                checkpoint_bytes: 4 << 20,
                queue_bytes: 1 << 20,
                bandwidth_max: 0,
                compression: self.compression,
                queue_full: QueueFull::Block,
            },
            data: self.data(),
            metadata: self.metadata(),
            listen: self.addresses[self.index],
            peer: self.addresses[1 - self.index],
            key: ClusterKey::new(&[3; 32]).unwrap(),
            encrypted: self.encrypted,
            buffer_bytes: 24 << 20,
            busy_poll: Duration::from_micros(200),
            claim_timeout: Duration::ZERO,
        }
    }

    fn start(&self) -> Result<Running, OpenError> {
        let (requests, mut asked) = mpsc::channel::<Asked>(64);
        let handle = MirrorHandle::spawn(self.settings(), move |mirror: LocalMirror| {
            tokio::task::spawn_local(async move {
                while let Some((ask, reply)) = asked.recv().await {
                    let (range, operation) = ask.request();
                    mirror.submit(range, operation, move |answer| {
                        let reply = reply.send(match answer {
                            Answer::Done => Ok(Vec::new()),
                            Answer::Data(data) => Ok(data.to_vec()),
                            Answer::Failed(failure) => Err(failure),
                        });
                        reply.expect("the test waits for each answer");
                    });
                }
            });
        })?;
        Ok(Running { handle, requests })
    }
}

impl Ask {
    fn request(self) -> (ByteRange, Operation) {
        match self {
            Self::Write { offset, bytes } => (
                ByteRange::new(offset, bytes.len() as u32),
                Operation::Write {
                    data: bytes.into(),
                    fua: false,
                },
            ),
            Self::Read(range) => (range, Operation::Read),
            Self::Zero(range) => (range, Operation::Trim { fua: false }),
            Self::Flush => (ByteRange::new(0, 0), Operation::Flush),
        }
    }
}

impl Running {
    async fn wait(&self, what: &str, holds: impl Fn(&MirrorStatus) -> bool) -> MirrorStatus {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let status = self.handle.status().await.unwrap();
                if holds(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!("never {what}: {:#?}", self.handle.status().await),
        }
    }

    async fn synced(&self) -> MirrorStatus {
        self.wait("synced", |status| {
            status.connection == Connection::Connected
                && status.disk == DiskState::UpToDate
                && status.peer.disk == DiskState::UpToDate
                && status.out_of_sync_bytes == 0
        })
        .await
    }

    async fn command(&self, command: Command) {
        self.handle.command(command).await.unwrap().unwrap();
    }

    async fn ask(&self, ask: Ask) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.requests.send((ask, reply)).await.unwrap();
        tokio::time::timeout(LIMIT, answer)
            .await
            .expect("a request was never answered")
            .unwrap()
    }

    async fn write(&self, offset: u64, bytes: Vec<u8>) {
        self.ask(Ask::Write { offset, bytes }).await.unwrap();
    }

    async fn stop(self) {
        self.handle.stop(Duration::from_secs(20)).await.unwrap();
        assert_eq!(self.handle.ended().await, Ended::Stopped);
    }
}

fn on_two_nodes<F: Future<Output = ()>>(test: impl FnOnce([Node; 2]) -> F, nodes: [Node; 2]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(nodes));
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9) >> 11) as u8)
        .collect()
}

async fn start_and_sync(nodes: &[Node; 2]) -> [Running; 2] {
    let [one, two] = [nodes[0].start().unwrap(), nodes[1].start().unwrap()];
    one.wait("connected", |status| {
        status.connection == Connection::Connected
    })
    .await;
    let force = true;
    let peer_down = false;
    one.command(Command::Promote {
        peer_down,
        force,
        grant: None,
    })
    .await;
    one.synced().await;
    [one, two]
}

fn same_data(nodes: &[Node; 2], length: usize) {
    let [one, two] = [&nodes[0], &nodes[1]].map(|node| std::fs::read(node.data()).unwrap());
    let differ = (0..length / 4096).find(|block| {
        let at = block * 4096;
        one[at..at + 4096] != two[at..at + 4096]
    });
    assert_eq!(differ, None, "the first block that differs");
}

async fn write_and_compare(nodes: [Node; 2]) {
    let [one, two] = start_and_sync(&nodes).await;
    let size = one.handle.status().await.unwrap().size_bytes;
    for (number, length) in [(1u64, 4096), (2, 512), (3, 65_536), (4, 1 << 20)] {
        one.write(number * (5 << 20) - 512, pattern(number, 512))
            .await;
        one.write(number * (5 << 20), pattern(number, length)).await;
    }
    one.ask(Ask::Zero(ByteRange::new((20 << 20) + 4096, 8192)))
        .await
        .unwrap();
    one.ask(Ask::Flush).await.unwrap();
    let read = one.ask(Ask::Read(ByteRange::new(20 << 20, 16384))).await;
    let mut expected = pattern(4, 16384);
    expected[4096..12288].fill(0);
    assert_eq!(read.unwrap(), expected);

    let refused = two.ask(Ask::Read(ByteRange::new(0, 4096))).await;
    assert_eq!(refused, Err(Failure::NotPrimary));
    let status = one.handle.status().await.unwrap();
    assert!(status.counters.bytes_sent > 1 << 20, "{status:?}");
    two.stop().await;
    one.stop().await;
    same_data(&nodes, size as usize);
}

#[test]
fn what_one_side_answers_is_on_the_other() {
    on_two_nodes(write_and_compare, pair(true, false));
}

#[test]
fn a_plain_link_and_internal_metadata_do_as_well() {
    on_two_nodes(write_and_compare, pair(false, true));
}

#[test]
fn a_side_that_was_away_gets_what_it_missed() {
    let test = |nodes: [Node; 2]| async move {
        let [one, two] = start_and_sync(&nodes).await;
        assert_eq!(two.handle.status().await.unwrap().role, Role::Secondary);
        two.stop().await;
        one.wait("alone", |status| status.connection != Connection::Connected)
            .await;
        one.write(8 << 20, pattern(7, 65_536)).await;
        let two = nodes[1].start().unwrap();
        one.synced().await;
        let size = one.handle.status().await.unwrap().size_bytes;
        two.stop().await;
        one.stop().await;
        same_data(&nodes, size as usize);
    };
    on_two_nodes(test, pair(true, false));
}

#[test]
fn sides_that_compress_differently_have_the_same_data() {
    let test = |mut nodes: [Node; 2]| async move {
        nodes[0].compression = Compression::Both;
        let [one, two] = start_and_sync(&nodes).await;
        let before = one.handle.status().await.unwrap().counters;
        for number in 0..4u64 {
            one.write(number * (5 << 20), vec![number as u8 + 1; 1 << 20])
                .await;
            one.write(number * (5 << 20) + (1 << 20), noise(number, 65_536))
                .await;
        }
        let status = one.handle.status().await.unwrap();
        let counters = status.counters;
        let covered = counters.bytes_before_compression - before.bytes_before_compression;
        assert_eq!(covered, 4 * ((1 << 20) + 65_536));
        let sent = counters.bytes_sent - before.bytes_sent;
        assert!((4 * 65_536..1 << 20).contains(&sent), "{status:?}");
        assert!(status.compression_ratio.unwrap() > 4.0, "{status:?}");

        two.stop().await;
        one.wait("alone", |status| status.connection != Connection::Connected)
            .await;
        one.write(3 << 20, vec![9; 1 << 20]).await;
        one.write(7 << 20, noise(9, 65_536)).await;
        let alone = one.handle.status().await.unwrap().counters;
        let two = nodes[1].start().unwrap();
        let status = one.synced().await;
        let resynced = status.counters.bytes_before_compression - alone.bytes_before_compression;
        assert!(resynced >= (1 << 20) + 65_536, "{status:?}");
        let sent = status.counters.bytes_sent - alone.bytes_sent;
        assert!((65_536..1 << 19).contains(&sent), "{status:?}");

        let peer = two.handle.status().await.unwrap();
        assert_eq!(peer.compression_ratio, None, "it was told nothing of it");
        two.stop().await;
        one.stop().await;
        same_data(&nodes, status.size_bytes as usize);
    };
    for encrypted in [false, true] {
        on_two_nodes(test, pair(encrypted, false));
    }
}

#[test]
fn a_peer_that_knows_no_compression_gets_everything_as_it_is() {
    let test = |mut nodes: [Node; 2]| async move {
        nodes[0].compression = Compression::Both;
        nodes[0].addresses[1] = older::put_before(nodes[1].addresses[1]);
        let [one, two] = start_and_sync(&nodes).await;
        let mut told = one.handle.notices();
        one.write(5 << 20, vec![1; 1 << 20]).await;
        let status = one.handle.status().await.unwrap();
        assert!(status.counters.bytes_sent > 1 << 20, "{status:?}");
        assert_eq!(status.counters.bytes_before_compression, 0);
        assert_eq!(status.compression_ratio, None);
        two.stop().await;
        one.stop().await;
        let mut kinds = Vec::new();
        while let Ok(notice) = told.try_recv() {
            kinds.push(notice.kind);
        }
        let times = kinds.iter().filter(|kind| *kind == "compression-off");
        assert_eq!(times.count(), 1, "{kinds:?}");
        same_data(&nodes, status.size_bytes as usize);
    };
    on_two_nodes(test, pair(false, false));
}

#[test]
fn a_second_daemon_on_the_same_disks_is_refused_and_a_successor_is_not() {
    let test = |nodes: [Node; 2]| async move {
        let first = nodes[0].start().unwrap();
        let refused = nodes[0].start().err().unwrap().to_string();
        assert!(refused.contains("is claimed by"), "{refused}");
        first.stop().await;
        nodes[0].start().unwrap().stop().await;
    };
    on_two_nodes(test, pair(true, false));
}

#[test]
fn a_store_that_does_not_fit_the_mirror_is_refused() {
    let nodes = pair(true, false);
    let mut settings = nodes[0].settings();
    settings.volume.node = id("three");
    let spawn = |settings| {
        MirrorHandle::spawn(settings, |_| {})
            .err()
            .unwrap()
            .to_string()
    };
    let refused = spawn(settings);
    assert!(refused.contains("belongs to another node"), "{refused}");

    let mut settings = nodes[0].settings();
    settings.metadata = MetadataPlace::Internal;
    let refused = spawn(settings);
    assert!(refused.contains("mirrorctl init"), "{refused}");
}

#[test]
fn a_mirror_whose_thread_breaks_says_so_and_lets_go_of_its_disks() {
    let test = |nodes: [Node; 2]| async move {
        let handle = MirrorHandle::spawn(nodes[0].settings(), |mirror| {
            tokio::task::spawn_local(async move {
                let mut changes = mirror.changes();
                changes.wait_for(|export| export.serving).await.unwrap();
                let range = ByteRange::new(0, 4096);
                mirror.submit(range, Operation::Read, |_| panic!("on purpose"));
            });
        })
        .unwrap();
        let (peer_down, force) = (true, true);
        // Whether the command is still answered is of no matter here.
        let _ = handle
            .command(Command::Promote {
                peer_down,
                force,
                grant: None,
            })
            .await;
        let ended = tokio::time::timeout(LIMIT, handle.ended()).await.unwrap();
        assert!(matches!(ended, Ended::Panicked(_)), "{ended:?}");
        nodes[0].start().unwrap().stop().await;
    };
    on_two_nodes(test, pair(true, false));
}
