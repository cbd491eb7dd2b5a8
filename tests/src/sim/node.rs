//! One node: its disks always, its volume only while it runs.

use mirror_core::units::{Epoch, Uuid};
use mirror_core::volume::Volume;
use mirror_core::volume::config::VolumeConfig;

use crate::sim::disk::SimDisk;
use crate::sim::durable::DurableView;
use crate::sim::metadata_disk::MetadataDisk;
use crate::sim::oracle::Order;
use crate::sim::world::Happening;

#[derive(Debug)]
pub struct SimNode {
    pub config: VolumeConfig,
    /// `None` while the node is down.
    pub volume: Option<Volume>,
    /// Counts starts: happenings of an earlier life are void.
    pub life: u64,
    /// Counts restarts of its machine.
    pub boots: u64,
    pub data: SimDisk,
    pub metadata: MetadataDisk,
    /// When its disk last lost its cache and did not get everything back from the peer since.
    pub cache_lost: Order,
    /// When it last went down, by whatever cause, and was not in sync since. The other side cannot
    /// tell a killed process from a lost cache.
    pub broken: Order,
    /// Clients are let in.
    pub serving: bool,
    /// The epoch in which its kernel device was made.
    pub device: Option<Epoch>,
    /// It serves for the kernel device of before its crash, whose page cache is of then.
    pub goes_on: bool,
    /// It goes on under an arbiter with data of the past, and has answered nothing yet: it never may.
    pub unproven: bool,
    /// The other side was primary since this one was promoted: what such a device has cached is of the past.
    pub overtaken: bool,
    /// The operator told this node that its peer is down, and the peer is not whole again
    /// since.
    pub told_down: bool,
    /// The arbiter granted the role to the other node, which could not ask this one for what it lacks.
    pub superseded: bool,
    /// The peer took leave of this run, and no link was made since.
    pub peer_left: bool,
    /// The next operation of that kind fails.
    pub fail_next_write: bool,
    /// An operation has failed or will: until that is made good, none of the other side may.
    pub doomed: bool,
    /// Disk operations are taken and do not end.
    pub hangs: bool,
    pub fail_next_flush: bool,
    pub fail_next_metadata: bool,
    pub full_next_write: bool,
    /// Metadata as of `view_version`.
    pub view: Option<DurableView>,
    pub view_version: u64,
    /// Notices it reported, by kind, since its start.
    pub notices: Vec<(String, String)>,
    /// Added to its clock.
    pub clock_offset_ms: u64,
    /// How wrong its clock runs, in millionths.
    pub drift_ppm: i64,
    /// Virtual time that its clock has missed, standing still.
    pub stopped_us: u64,
    pub paused_since_us: Option<u64>,
    /// When it last took a step, by the world's clock.
    pub stepped_us: u64,
    pub(super) clock_stopped: bool,
    /// What came while it was paused.
    pub(super) backlog: Vec<Happening>,
}

impl SimNode {
    pub fn new(config: VolumeConfig, data: SimDisk, metadata: MetadataDisk) -> Self {
        Self {
            config,
            volume: None,
            life: 0,
            boots: 0,
            data,
            metadata,
            cache_lost: 0,
            broken: 0,
            serving: false,
            device: None,
            goes_on: false,
            unproven: false,
            overtaken: false,
            told_down: false,
            superseded: false,
            peer_left: false,
            fail_next_write: false,
            doomed: false,
            hangs: false,
            fail_next_flush: false,
            fail_next_metadata: false,
            full_next_write: false,
            view: None,
            view_version: 0,
            notices: Vec::new(),
            clock_offset_ms: 0,
            drift_ppm: 0,
            stopped_us: 0,
            paused_since_us: None,
            stepped_us: 0,
            clock_stopped: false,
            backlog: Vec::new(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.volume.is_some()
    }

    /// An operation on its data is to fail.
    pub fn is_armed(&self) -> bool {
        self.fail_next_write || self.fail_next_flush || self.full_next_write
    }

    pub fn incarnation(&self) -> Uuid {
        Uuid::from_name(
            "incarnation",
            &format!("{}-{}", self.config.node_name, self.life),
        )
    }

    pub fn boot(&self) -> Uuid {
        let name = format!("{}-{}", self.config.node_name, self.boots);
        Uuid::from_name("boot", &name)
    }

    /// What its metadata would say after a crash now.
    pub fn durable(&mut self) -> Option<&DurableView> {
        if self.view_version != self.metadata.version {
            self.view = DurableView::of(self.metadata.image());
            self.view_version = self.metadata.version;
        }
        self.view.as_ref()
    }

    pub fn has_noticed(&self, kind: &str) -> bool {
        self.notices.iter().any(|(noticed, _)| noticed == kind)
    }
}
