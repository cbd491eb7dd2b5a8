//! The two nodes of a world as they are before the first start.

use mirror_core::layout::geometry::Geometry;
use mirror_core::layout::metadata::{self, FreshParams, Image};
use mirror_core::units::Uuid;
use mirror_core::volume::config::{Compression, VolumeConfig};

use crate::sim::disk::SimDisk;
use crate::sim::metadata_disk::MetadataDisk;
use crate::sim::mutation::Mutation;
use crate::sim::network::{NodeIndex, other};
use crate::sim::node::SimNode;
use crate::sim::settings::Settings;

pub(super) fn new_node(index: NodeIndex, settings: &Settings) -> SimNode {
    let name = |index: NodeIndex| ["alpha", "beta"][index].to_owned();
    let id = |index: NodeIndex| Uuid::from_name("node", &name(index));
    let config = VolumeConfig {
        name: "md1".into(),
        node_name: name(index),
        peer_name: name(other(index)),
        cluster: Uuid::from_name("cluster", "sim"),
        mirror: Uuid::from_name("mirror", "md1"),
        node: id(index),
        peer: id(other(index)),
        mode: settings.mode,
        queue_bytes: settings.queue_bytes,
        bandwidth_max: settings.bandwidth_max,
        compression: Compression::None,
        queue_full: settings.queue_full,
        initial_sync: settings.initial_sync,
        peer_loss: settings.peer_loss,
        fast_zero: true,
        config_digest: [7; 16],
        usable_bytes: settings.size_bytes,
        logical_block_bytes: settings.unit_bytes,
        first: index == 0,
        peer_timeout_ms: settings.peer_timeout_ms,
        resync_rates: settings.resync_rates,
        resync_in_flight: settings.resync_in_flight,
        arbitration: settings.arbiter.map(|plan| plan.check),
        checkpoint_bytes: settings.checkpoint_bytes,
    };
    let mut metadata = MetadataDisk::new(fresh_metadata(&config, settings));
    let mut data = SimDisk::new(settings.unit_bytes);
    if settings.mutation == Some(Mutation::SkipMetadataFlush) {
        metadata.volatile = Some(Vec::new());
    }
    data.lies_about_flushes = settings.mutation == Some(Mutation::SkipDataFlush);
    let mut node = SimNode::new(config, data, metadata);
    node.clock_offset_ms = 5_000 * index as u64;
    node
}

pub(super) fn fresh_metadata(config: &VolumeConfig, settings: &Settings) -> Vec<u8> {
    let params = FreshParams {
        cluster: config.cluster,
        mirror: config.mirror,
        node: config.node,
        peer: config.peer,
        usable_bytes: config.usable_bytes,
        logical_block_bytes: config.logical_block_bytes,
        adopted: None,
    };
    let (mut superblock, _) = metadata::fresh(params).expect("a simulated size is in range");
    superblock.log_slots = settings.log_slots;
    let image = Image::new(&superblock, None).expect("a simulated size is in range");
    // A metadata partition has room for a larger mirror from the start.
    let largest = Geometry::of(&superblock)
        .and_then(|geometry| geometry.resized(config.usable_bytes + settings.room_bytes))
        .expect("a simulated size is in range");
    let mut bytes = vec![0; largest.area_bytes() as usize];
    for piece in image {
        bytes[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    bytes
}
