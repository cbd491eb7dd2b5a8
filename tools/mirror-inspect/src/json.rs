//! The inspection as JSON, every field by its name in `docs/metadata-format.md`.

use mirror_core::layout::log_record::{LogFault, LogRecord, Trust};
use mirror_core::layout::superblock::{FLAG_NAMES, Superblock, SuperblockFault};
use mirror_core::units::{ExtentIndex, Generation};
use serde_json::{Value, json};

use crate::compare::{Outcome, meaning};
use crate::inspection::{Dirty, Inspection};

pub fn render(inspection: &Inspection, verdict: Option<&Outcome>) -> String {
    let problems = inspection.problems();
    let mut value = json!({
        "path": inspection.area.path.display().to_string(),
        "device_bytes": inspection.area.device_bytes,
        "internal_offset": inspection.area.internal_offset,
        "valid": problems.is_empty(),
        "problems": problems,
        "superblocks": inspection.copies.each_ref().map(copy),
    });
    if let Ok(loaded) = &inspection.loaded {
        let geometry = loaded.geometry;
        let dirty = Dirty::of(geometry, &loaded.words);
        value["superblock"] = superblock(&loaded.superblock);
        value["fell_back"] = json!(loaded.fell_back);
        value["geometry"] = json!({
            "block_bytes": geometry.block_bytes(),
            "blocks": geometry.blocks(),
            "pages": geometry.pages(),
            "area_bytes": geometry.area_bytes(),
        });
        value["activity_log"] = json!({
            "trust": trust(loaded.log.trust),
            "next_number": loaded.log.next_number,
            "slots": loaded.log.slots.len(),
            "extents": inspection.hot_extents(),
            "ring": inspection.ring.iter().map(record).collect::<Vec<_>>(),
        });
        value["bitmap"] = json!({
            "dirty_blocks": dirty.blocks,
            "dirty_bytes": dirty.bytes,
            "dirty_runs": dirty.runs,
            "first_dirty_byte": dirty.span.map(|span| span.0),
            "end_dirty_byte": dirty.span.map(|span| span.1),
            "bad_pages": loaded.bad_pages,
        });
    }
    if let Some(outcome) = verdict {
        value["handshake"] = json!({
            "rule": outcome.rule.name(),
            "strategy": format!("{:?}", outcome.strategy),
            "meaning": meaning(outcome.strategy),
        });
    }
    format!("{value:#}\n")
}

fn copy(copy: &Result<Superblock, SuperblockFault>) -> Value {
    match copy {
        Ok(block) => json!({ "valid": true, "update": block.update, "fields": superblock(block) }),
        Err(fault) => json!({ "valid": false, "fault": fault.to_string() }),
    }
}

fn record(record: &Result<LogRecord, LogFault>) -> Value {
    match record {
        Ok(record) => json!({
            "number": record.number,
            "log_epoch": record.log_epoch,
            "updates": record
                .updates
                .iter()
                .map(|(slot, extent)| json!({ "slot": slot, "extent": number(extent) }))
                .collect::<Vec<_>>(),
            "context_first": record.context_first,
            "context": record.context.iter().map(number).collect::<Vec<_>>(),
        }),
        Err(LogFault::Void) => Value::Null,
        Err(fault) => json!({ "fault": fault.to_string() }),
    }
}

/// An extent; null for an empty slot.
fn number(extent: &Option<ExtentIndex>) -> Option<u32> {
    extent.map(|extent| extent.0)
}

fn superblock(block: &Superblock) -> Value {
    let hex = |generation: Generation| generation.to_string();
    json!({
        "update": block.update,
        "features_compatible": block.features_compatible,
        "features_read_only": block.features_read_only,
        "features_incompatible": block.features_incompatible,
        "cluster": block.cluster.to_string(),
        "mirror": block.mirror.to_string(),
        "node": block.node.to_string(),
        "consistency_set": block.consistency_set.to_string(),
        "size_bytes": block.size_bytes,
        "usable_bytes": block.usable_bytes,
        "logical_block_bytes": block.logical_block_bytes,
        "block_shift": block.block_shift,
        "log_slots": block.log_slots,
        "flags": flags(block),
        "epoch": block.epoch.0,
        "log_epoch": block.log_epoch,
        "generation": hex(block.generations.current),
        "history": block.generations.history.map(hex),
        "last_discard": {
            "generation": hex(block.last_discard.generation),
            "bytes": block.last_discard.bytes,
            "ranges": block.last_discard.ranges,
            "unix_s": block.last_discard.unix_s,
        },
        "run": {
            "incarnation": block.run.incarnation.to_string(),
            "boot": block.run.boot.to_string(),
        },
        "peer": {
            "node": block.peer.node.to_string(),
            "incarnation": block.peer.incarnation.to_string(),
            "generation": hex(block.generations.base),
            "outdated": block.peer.outdated,
            "detached": block.peer.detached,
            "stopped_cleanly": block.peer.stopped_cleanly,
            "confirmed_down": block.peer.confirmed_down,
            "had_copy": block.peer.had_copy,
            "full_sync": format!("{:016x}", block.peer.full_sync.0),
        },
    })
}

/// The names of the flags that are set.
pub fn flags(block: &Superblock) -> Vec<&'static str> {
    let bits = block.flags.bits();
    (0..)
        .zip(FLAG_NAMES)
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| name)
        .collect()
}

pub fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::Intact => "intact",
        Trust::TornTail => "torn-tail",
        Trust::Doubtful => "doubtful",
    }
}
