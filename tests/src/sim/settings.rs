//! What kind of world a seed makes. Each kind of fault is switched on or off for a whole world, so that
//! rare combinations are met by some worlds instead of being thinned out over all.

use mirror_core::units::EXTENT_BYTES;
use mirror_core::volume::config::{LeaseCheck, PeerLoss, QueueFull, Rates};
use mirror_core::wire::message::{InitialSync, Mode};

use crate::random::Random;
use crate::sim::mutation::Mutation;

/// Share in percent, or zero for never.
pub type Percent = u64;

#[derive(Debug, Clone)]
pub struct FaultPlan {
    pub kill: bool,
    pub power_loss: bool,
    pub both_down: bool,
    pub cut: bool,
    pub cut_one_way: bool,
    pub read_errors: bool,
    pub write_errors: bool,
    pub flush_errors: bool,
    pub no_space: bool,
    pub metadata_errors: bool,
    pub corruption: bool,
    pub pauses: bool,
    /// Of the arbiter: cut off, restarted, robbed of its file.
    pub arbiter: bool,
    /// Mean time between faults.
    pub every_ms: u64,
}

impl FaultPlan {
    pub const NONE: Self = Self {
        kill: false,
        power_loss: false,
        both_down: false,
        cut: false,
        cut_one_way: false,
        read_errors: false,
        write_errors: false,
        flush_errors: false,
        no_space: false,
        metadata_errors: false,
        corruption: false,
        pauses: false,
        arbiter: false,
        every_ms: 500,
    };
}

#[derive(Debug, Clone)]
pub struct ClientPlan {
    pub in_flight_max: usize,
    pub pause_us_max: u64,
    /// Units that writes gather on, by extent.
    pub hot_spots: u64,
    pub flush: Percent,
    pub trim: Percent,
    pub read: Percent,
    pub fua: Percent,
    pub large: Percent,
}

/// An arbiter for both nodes.
#[derive(Debug, Clone, Copy)]
pub struct ArbiterPlan {
    pub check: LeaseCheck,
    pub lease_ms: u64,
    /// How far each clock may be off, in millionths.
    pub drift_ppm_max: u64,
}

impl ArbiterPlan {
    /// How long a holder counts its lease, from the sending of its request (`docs/leases.md`).
    pub fn held_ms(self) -> u64 {
        self.lease_ms - (self.lease_ms * 2 * self.drift_ppm_max).div_ceil(1_000_000)
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub unit_bytes: u32,
    pub size_bytes: u64,
    /// What each data partition can grow by.
    pub room_bytes: u64,
    pub log_slots: u32,
    pub mode: Mode,
    pub queue_bytes: u64,
    pub queue_full: QueueFull,
    pub bandwidth_max: u64,
    pub peer_loss: PeerLoss,
    pub initial_sync: InitialSync,
    /// Units that hold something on each side before the first sync.
    pub leftovers: u64,
    pub peer_timeout_ms: u64,
    pub resync_in_flight: u32,
    pub resync_rates: Rates,
    pub checkpoint_bytes: u64,
    /// Virtual time of the eventful part.
    pub duration_ms: u64,
    pub disk_us: (u64, u64),
    pub flush_us: (u64, u64),
    pub network_us: (u64, u64),
    /// How many times as long what the two nodes say to each other takes.
    pub link_slower: u64,
    /// An operation or message takes a hundred times as long.
    pub hiccups: Percent,
    pub faults: FaultPlan,
    pub client: ClientPlan,
    /// The operator acts by itself.
    pub operator: bool,
    /// The operator promotes both sides while they are apart.
    pub split_brain: bool,
    pub arbiter: Option<ArbiterPlan>,
    pub mutation: Option<Mutation>,
}

impl Settings {
    /// A world in which nothing happens that a test does not bring about.
    pub fn quiet() -> Self {
        Self {
            unit_bytes: 4096,
            size_bytes: 8 * EXTENT_BYTES,
            room_bytes: 0,
            log_slots: 4,
            mode: Mode::Sync,
            queue_bytes: 1 << 20,
            queue_full: QueueFull::Block,
            bandwidth_max: 0,
            peer_loss: PeerLoss::Continue,
            initial_sync: InitialSync::Skip,
            leftovers: 0,
            peer_timeout_ms: 600,
            resync_in_flight: 4,
            resync_rates: Rates::default(),
            checkpoint_bytes: 1 << 20,
            duration_ms: 0,
            disk_us: (100, 100),
            flush_us: (500, 500),
            network_us: (50, 50),
            link_slower: 1,
            hiccups: 0,
            faults: FaultPlan::NONE,
            client: ClientPlan {
                in_flight_max: 0,
                pause_us_max: 1000,
                hot_spots: 4,
                flush: 5,
                trim: 5,
                read: 30,
                fua: 5,
                large: 2,
            },
            operator: false,
            split_brain: false,
            arbiter: None,
            mutation: None,
        }
    }

    /// A quiet world with an arbiter.
    pub fn arbitrated(check: LeaseCheck) -> Self {
        Self {
            peer_loss: PeerLoss::Hold,
            arbiter: Some(ArbiterPlan {
                check,
                lease_ms: 1_000,
                drift_ppm_max: 10_000,
            }),
            ..Self::quiet()
        }
    }

    /// The world of a seed in which an arbiter decides who is primary. The disks do what they are told.
    pub fn draw_arbitrated(random: &mut Random) -> Self {
        let drawn = Self::draw(random);
        let faults = FaultPlan {
            kill: random.percent(50),
            power_loss: random.percent(40),
            both_down: random.percent(15),
            cut: random.percent(70),
            cut_one_way: random.percent(40),
            pauses: random.percent(60),
            arbiter: random.percent(60),
            every_ms: random.skewed(150, 1_500),
            ..FaultPlan::NONE
        };
        Self {
            peer_loss: PeerLoss::Hold,
            split_brain: false,
            faults,
            duration_ms: random.between(1_500, 6_000),
            arbiter: Some(ArbiterPlan {
                check: if random.coin() {
                    LeaseCheck::Clock
                } else {
                    LeaseCheck::RoundTrip
                },
                lease_ms: random.between(200, 1_500),
                drift_ppm_max: random.skewed(100, 40_000),
            }),
            ..drawn
        }
    }

    /// The same world in another mode. What it needs beside is drawn apart, so that the rest stays what it is.
    pub fn in_mode(self, mode: Mode, random: &mut Random) -> Self {
        if !mode.runs_ahead() {
            return self;
        }
        Self {
            mode,
            queue_bytes: random.skewed(4096, 1 << 20),
            link_slower: random.skewed(1, 40),
            bandwidth_max: if mode == Mode::Async && random.percent(30) {
                random.skewed(1 << 20, 64 << 20)
            } else {
                0
            },
            queue_full: if random.coin() {
                QueueFull::Block
            } else {
                QueueFull::Degrade
            },
            ..self
        }
    }

    /// The world of a seed.
    pub fn draw(random: &mut Random) -> Self {
        let split_brain = random.percent(12);
        let mut faults = FaultPlan {
            kill: random.percent(60),
            power_loss: random.percent(60),
            both_down: random.percent(25),
            cut: random.percent(60),
            cut_one_way: random.percent(40),
            read_errors: random.percent(25),
            write_errors: random.percent(20),
            flush_errors: random.percent(15),
            no_space: random.percent(10),
            metadata_errors: random.percent(10),
            corruption: random.percent(15),
            pauses: false,
            arbiter: false,
            every_ms: random.skewed(80, 1_500),
        };
        if split_brain {
            faults = FaultPlan::NONE;
        }
        let disk = random.skewed(20, 500);
        let flush = random.skewed(50, 3_000);
        let network = random.skewed(20, 1_000);
        Self {
            unit_bytes: if random.percent(30) { 512 } else { 4096 },
            room_bytes: if random.percent(20) {
                random.between(1, 40) * EXTENT_BYTES
            } else {
                0
            },
            size_bytes: random.between(2, 8) * EXTENT_BYTES
                + if random.percent(30) { 12 * 4096 } else { 0 },
            log_slots: random.between(1, 6) as u32,
            mode: Mode::Sync,
            queue_bytes: 1 << 20,
            queue_full: QueueFull::Block,
            bandwidth_max: 0,
            peer_loss: if random.percent(40) {
                PeerLoss::Hold
            } else {
                PeerLoss::Continue
            },
            initial_sync: *random.pick(&[
                InitialSync::Skip,
                InitialSync::Skip,
                InitialSync::Skip,
                InitialSync::Sparse,
                InitialSync::Sparse,
                InitialSync::Full,
            ]),
            leftovers: random.below(40),
            peer_timeout_ms: random.between(300, 1_500),
            resync_in_flight: random.between(1, 8) as u32,
            // Between what short steps come to beside clients and what long ones do.
            resync_rates: Rates {
                min: 64 << 20,
                max: 0,
            },
            checkpoint_bytes: random.skewed(4096, 16 << 20),
            duration_ms: random.between(500, 3_500),
            disk_us: (disk / 4 + 1, disk * 2),
            flush_us: (flush / 4 + 1, flush * 2),
            network_us: (network / 4 + 1, network * 2),
            link_slower: 1,
            hiccups: if random.percent(40) { 1 } else { 0 },
            faults,
            client: ClientPlan {
                in_flight_max: random.between(1, 16) as usize,
                pause_us_max: random.skewed(300, 20_000),
                hot_spots: random.between(1, 6),
                flush: random.below(15),
                trim: random.below(20),
                read: random.between(5, 50),
                fua: random.below(20),
                large: random.below(6),
            },
            operator: true,
            split_brain,
            arbiter: None,
            mutation: None,
        }
    }
}
