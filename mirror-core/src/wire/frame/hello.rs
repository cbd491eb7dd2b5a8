//! The payload of a hello. Its fields keep their places for good; later versions append. So even a
//! hello whose protocol this build does not speak can be read far enough to name the versions.

use crate::generation::{GenerationSet, HISTORY_LENGTH};
use crate::layout::geometry::{BLOCK_SHIFT_MAX, BLOCK_SHIFT_MIN, USABLE_BYTES_MAX};
use crate::units::{FullSyncId, Generation, Uuid};
use crate::wire::frame::{disk_code, disk_of, role_code, role_of};
use crate::wire::header::{FrameFault, GENERATIONS_BYTES, HELLO_BYTES, Kind};
use crate::wire::message::{Hello, InitialSync, Mode, PeerLoss, VERSION_MAX, VERSION_MIN};

/// Offsets in the payload.
mod at {
    pub const VERSION_MIN: usize = 0;
    pub const VERSION_MAX: usize = 2;
    pub const LOGICAL_BLOCK_BYTES: usize = 4;
    pub const FEATURES: usize = 8;
    pub const CLUSTER: usize = 16;
    pub const MIRROR: usize = 32;
    pub const NODE: usize = 48;
    pub const INCARNATION: usize = 64;
    pub const PEER_INCARNATION_SEEN: usize = 80;
    pub const SIZE_BYTES: usize = 96;
    pub const USABLE_BYTES: usize = 104;
    pub const CONFIG_DIGEST: usize = 112;
    pub const GENERATIONS: usize = 128;
    pub const FULL_SYNC: usize = 208;
    pub const FLAGS: usize = 216;
    pub const MODE: usize = 220;
    pub const BLOCK_SHIFT: usize = 221;
    pub const ROLE: usize = 222;
    pub const DISK: usize = 223;
    pub const INITIAL_SYNC: usize = 224;
    pub const PEER_LOSS: usize = 225;
}

const _: () = {
    assert!(at::GENERATIONS + GENERATIONS_BYTES == at::FULL_SYNC);
    assert!(at::PEER_LOSS < HELLO_BYTES);
    assert!(GENERATIONS_BYTES == (2 + HISTORY_LENGTH) * 8);
};

pub(super) fn encode(hello: &Hello) -> Vec<u8> {
    let mut bytes = vec![0; HELLO_BYTES];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(at::VERSION_MIN, &hello.version_min.to_le_bytes());
    put(at::VERSION_MAX, &hello.version_max.to_le_bytes());
    put(
        at::LOGICAL_BLOCK_BYTES,
        &hello.logical_block_bytes.to_le_bytes(),
    );
    put(at::FEATURES, &hello.features.to_le_bytes());
    put(at::CLUSTER, &hello.cluster.0);
    put(at::MIRROR, &hello.mirror.0);
    put(at::NODE, &hello.node.0);
    put(at::INCARNATION, &hello.incarnation.0);
    put(at::PEER_INCARNATION_SEEN, &hello.peer_incarnation_seen.0);
    put(at::SIZE_BYTES, &hello.size_bytes.to_le_bytes());
    put(at::USABLE_BYTES, &hello.usable_bytes.to_le_bytes());
    put(at::CONFIG_DIGEST, &hello.config_digest);
    put(at::GENERATIONS, &encode_generations(&hello.generations));
    put(at::FULL_SYNC, &hello.full_sync.0.to_le_bytes());
    let flags = [
        hello.crashed_primary,
        hello.last_primary,
        hello.had_copy,
        hello.discard_local,
        hello.full_resync,
        hello.fast_zero,
        hello.first,
    ]
    .iter()
    .rev()
    .fold(0u32, |flags, flag| flags << 1 | u32::from(*flag));
    put(at::FLAGS, &flags.to_le_bytes());
    put(
        at::MODE,
        &[
            mode_code(hello.mode),
            hello.block_shift,
            role_code(hello.role),
            disk_code(hello.disk),
            initial_sync_code(hello.initial_sync),
            peer_loss_code(hello.peer_loss),
        ],
    );
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<Hello, FrameFault> {
    let hello = fields(bytes);
    match (&hello, versions(bytes)) {
        // Values that a later protocol may have introduced: the version is what is wrong.
        (Err(_), Some((min, max))) if min > VERSION_MAX || max < VERSION_MIN => {
            Err(FrameFault::Protocol { min, max })
        }
        _ => hello.map_err(|field| FrameFault::Invalid {
            kind: Kind::Hello,
            field,
        }),
    }
}

fn versions(bytes: &[u8]) -> Option<(u16, u16)> {
    let min = array(bytes, at::VERSION_MIN)?;
    let max = array(bytes, at::VERSION_MAX)?;
    Some((u16::from_le_bytes(min), u16::from_le_bytes(max)))
}

fn fields(bytes: &[u8]) -> Result<Hello, &'static str> {
    if bytes.len() < HELLO_BYTES {
        return Err("payload length");
    }
    let u64_at = |at| array(bytes, at).map_or(0, u64::from_le_bytes);
    let uuid_at = |at| Uuid(array(bytes, at).unwrap_or_default());
    let flags = array(bytes, at::FLAGS).map_or(0, u32::from_le_bytes);
    let flag = |bit: u32| flags >> bit & 1 == 1;
    let (version_min, version_max) = versions(bytes).ok_or("versions")?;
    if version_min > version_max {
        return Err("versions");
    }
    let hello = Hello {
        version_min,
        version_max,
        features: u64_at(at::FEATURES),
        cluster: uuid_at(at::CLUSTER),
        mirror: uuid_at(at::MIRROR),
        node: uuid_at(at::NODE),
        incarnation: uuid_at(at::INCARNATION),
        peer_incarnation_seen: uuid_at(at::PEER_INCARNATION_SEEN),
        mode: mode_of(bytes[at::MODE]).ok_or("mode")?,
        size_bytes: u64_at(at::SIZE_BYTES),
        usable_bytes: u64_at(at::USABLE_BYTES),
        logical_block_bytes: array(bytes, at::LOGICAL_BLOCK_BYTES).map_or(0, u32::from_le_bytes),
        block_shift: bytes[at::BLOCK_SHIFT],
        config_digest: array(bytes, at::CONFIG_DIGEST).unwrap_or_default(),
        generations: decode_generations(&bytes[at::GENERATIONS..at::FULL_SYNC])
            .ok_or("generations")?,
        role: role_of(bytes[at::ROLE]).ok_or("role")?,
        disk: disk_of(bytes[at::DISK]).ok_or("disk state")?,
        crashed_primary: flag(0),
        last_primary: flag(1),
        had_copy: flag(2),
        discard_local: flag(3),
        full_resync: flag(4),
        fast_zero: flag(5),
        initial_sync: initial_sync_of(bytes[at::INITIAL_SYNC]).ok_or("first sync")?,
        peer_loss: peer_loss_of(bytes[at::PEER_LOSS]).ok_or("peer loss")?,
        first: flag(6),
        full_sync: FullSyncId(u64_at(at::FULL_SYNC)),
    };
    if !matches!(hello.logical_block_bytes, 512 | 4096) {
        return Err("logical block size");
    }
    if !(BLOCK_SHIFT_MIN..=BLOCK_SHIFT_MAX).contains(&hello.block_shift) {
        return Err("block size");
    }
    if hello.usable_bytes > USABLE_BYTES_MAX || hello.size_bytes > USABLE_BYTES_MAX {
        return Err("size");
    }
    Ok(hello)
}

fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Sync => 0,
        Mode::Semisync => 1,
        Mode::Async => 2,
    }
}

fn mode_of(code: u8) -> Option<Mode> {
    [Mode::Sync, Mode::Semisync, Mode::Async]
        .into_iter()
        .find(|mode| mode_code(*mode) == code)
}

fn initial_sync_code(initial_sync: InitialSync) -> u8 {
    match initial_sync {
        InitialSync::Full => 0,
        InitialSync::Sparse => 1,
        InitialSync::Skip => 2,
    }
}

fn initial_sync_of(code: u8) -> Option<InitialSync> {
    [InitialSync::Full, InitialSync::Sparse, InitialSync::Skip]
        .into_iter()
        .find(|initial_sync| initial_sync_code(*initial_sync) == code)
}

fn peer_loss_code(peer_loss: PeerLoss) -> u8 {
    match peer_loss {
        PeerLoss::Hold => 0,
        PeerLoss::Continue => 1,
    }
}

fn peer_loss_of(code: u8) -> Option<PeerLoss> {
    [PeerLoss::Hold, PeerLoss::Continue]
        .into_iter()
        .find(|peer_loss| peer_loss_code(*peer_loss) == code)
}

pub(super) fn encode_generations(set: &GenerationSet) -> [u8; GENERATIONS_BYTES] {
    let mut bytes = [0; GENERATIONS_BYTES];
    let all = [set.current, set.base].into_iter().chain(set.history);
    for (place, generation) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(all) {
        *place = generation.0.to_le_bytes();
    }
    bytes
}

pub(super) fn decode_generations(bytes: &[u8]) -> Option<GenerationSet> {
    let (values, []) = bytes.as_chunks::<8>() else {
        return None;
    };
    let [current, base, history @ ..] = values else {
        return None;
    };
    let history: &[[u8; 8]; HISTORY_LENGTH] = history.try_into().ok()?;
    let generation = |bytes: &[u8; 8]| Generation(u64::from_le_bytes(*bytes));
    Some(GenerationSet {
        current: generation(current),
        base: generation(base),
        history: std::array::from_fn(|index| generation(&history[index])),
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
