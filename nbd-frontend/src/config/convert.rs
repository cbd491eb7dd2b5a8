//! From configuration to what the engine takes.

use mirror_core::units::{BLOCK_BYTES_MIN, Uuid};
use mirror_core::volume::config::{LeaseCheck, Rates, VolumeConfig};
use mirror_core::wire::message::Mode;

use super::agent::ResourceKind;
use super::{Config, Encryption, Mirror, PeerLoss};

/// Resync steps in flight, each of up to 1 MiB.
const RESYNC_IN_FLIGHT: u32 = 16;
/// What a resync that is cut may have to copy again: half a second of a fast link.
const RESYNC_CHECKPOINT_BYTES: u64 = 64 << 20;

impl Config {
    pub fn cluster_id(&self) -> Uuid {
        Uuid::from_name("cluster", &self.cluster)
    }

    /// Identity of the node at `index` of [`Config::nodes`].
    pub fn node_id(&self, index: usize) -> Uuid {
        Uuid::from_name("node", &format!("{}/{}", self.cluster, self.nodes[index]))
    }

    pub fn mirror_id(&self, mirror: &Mirror) -> Uuid {
        Uuid::from_name("mirror", &format!("{}/{}", self.cluster, mirror.name))
    }

    /// What the engine takes for `mirror` on the node at `node`. The figures of the data partition
    /// are not known here; whoever opens it fills them in.
    pub fn volume_config(&self, mirror: &Mirror, node: usize) -> VolumeConfig {
        let peer = 1 - node;
        VolumeConfig {
            name: mirror.name.clone(),
            node_name: self.nodes[node].clone(),
            peer_name: self.nodes[peer].clone(),
            cluster: self.cluster_id(),
            mirror: self.mirror_id(mirror),
            node: self.node_id(node),
            peer: self.node_id(peer),
            mode: mirror.mode,
            initial_sync: mirror.initial_sync,
            peer_loss: mirror.peer_loss,
            fast_zero: false,
            config_digest: self.digest(mirror),
            usable_bytes: 0,
            logical_block_bytes: BLOCK_BYTES_MIN as u32,
            first: node == 0,
            peer_timeout_ms: u64::try_from(mirror.peer_timeout.as_millis()).unwrap_or(u64::MAX),
            resync_rates: Rates {
                min: mirror.resync_rate_min,
                max: mirror.resync_rate_max,
            },
            resync_in_flight: RESYNC_IN_FLIGHT,
            arbitration: self.arbitration(mirror),
            checkpoint_bytes: RESYNC_CHECKPOINT_BYTES,
            queue_bytes: mirror.queue_size,
            queue_full: mirror.queue_full,
            compression: mirror.compression,
            bandwidth_max: if mirror.mode == Mode::Async {
                mirror.bandwidth_max
            } else {
                0
            },
        }
    }

    /// Payload memory that `mirror` takes at start. What is in line for a peer is still in memory, and clients
    /// may have three quarters of all: the queue comes on top of what a mirror in sync mode needs.
    pub fn payload_memory(&self, mirror: &Mirror) -> usize {
        let queue = match mirror.mode {
            Mode::Sync => 0,
            Mode::Semisync | Mode::Async => mirror.queue_size / 3 * 4,
        };
        usize::try_from(mirror.buffer_memory.saturating_add(queue)).unwrap_or(usize::MAX)
    }

    /// How `mirror` checks its lease before it answers; `None` where it needs none. Only mirrors of a
    /// group do: nobody asks the arbiter on behalf of the others.
    pub fn arbitration(&self, mirror: &Mirror) -> Option<LeaseCheck> {
        let agent = self.agent.as_ref()?;
        let arbiter = agent.arbiter.as_ref()?;
        let disks = agent.groups.iter().flat_map(|group| &group.resources);
        let in_a_group = disks.into_iter().any(|resource| match &resource.kind {
            ResourceKind::MirrorDisk(disk) => disk.mirror == mirror.name,
            _ => false,
        });
        in_a_group.then_some(arbiter.lease_check)
    }

    /// Digest over the settings that both sides must share: who takes part and how an answer is
    /// earned. Paths, addresses, rates and time-outs may differ while a file is being rolled out.
    pub fn digest(&self, mirror: &Mirror) -> [u8; 16] {
        let peer_loss = match mirror.peer_loss {
            PeerLoss::Hold => "hold",
            PeerLoss::Continue => "continue",
        };
        let encryption = match mirror.encryption {
            Encryption::Tls => "tls",
            Encryption::Off => "off",
        };
        // Nothing is added without one, so that such pairs keep the digest that they had.
        let arbitration = match self.arbitration(mirror) {
            Some(_) => "\narbiter",
            None => "",
        };
        let shared = format!(
            "{}\n{}\n{}\n{}\n{:?}\n{:?}\n{peer_loss}\n{encryption}{arbitration}",
            self.cluster,
            self.nodes[0],
            self.nodes[1],
            mirror.name,
            mirror.mode,
            mirror.initial_sync,
        );
        Uuid::from_name("shared settings", &shared).0
    }
}
