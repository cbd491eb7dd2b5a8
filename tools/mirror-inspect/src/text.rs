//! The inspection for people.

use std::fmt::Write;

use mirror_core::layout::geometry::SUPERBLOCK_OFFSETS;
use mirror_core::layout::log_record::{LogFault, LogRecord, Trust};
use mirror_core::layout::metadata::Loaded;
use mirror_core::layout::superblock::Superblock;
use mirror_core::units::{EXTENT_BYTES, FullSyncId, Generation, Uuid};

use crate::compare::{Outcome, meaning};
use crate::inspection::{Dirty, Inspection, ranges};
use crate::json::{flags, trust};

/// Only what is wrong, or that nothing is.
pub fn problems(inspection: &Inspection) -> String {
    let path = inspection.area.path.display();
    let problems = inspection.problems();
    if problems.is_empty() {
        return format!("{path}: every check passed\n");
    }
    problems
        .iter()
        .map(|problem| format!("{path}: {problem}\n"))
        .collect()
}

pub fn render(inspection: &Inspection, verdict: Option<&Outcome>) -> String {
    let mut page = Page::default();
    let area = &inspection.area;
    page.line("metadata", area.path.display());
    match area.internal_offset {
        Some(offset) => page.line(
            "place",
            format!("internal, at byte {offset} of {}", area.device_bytes),
        ),
        None => page.line(
            "place",
            format!("by itself, on {}", bytes(area.device_bytes)),
        ),
    }
    page.title("superblock copies");
    for ((name, offset), copy) in ["A", "B"]
        .iter()
        .zip(SUPERBLOCK_OFFSETS)
        .zip(&inspection.copies)
    {
        let name = format!("copy {name}");
        let place = area.offset() + offset;
        match copy {
            Ok(block) => page.line(
                &name,
                format!("valid, update {}, at byte {place}", block.update),
            ),
            Err(fault) => page.line(&name, format!("BAD: {fault}, at byte {place}")),
        }
    }
    if let Ok(loaded) = &inspection.loaded {
        superblock(&mut page, &loaded.superblock);
        log(&mut page, inspection, loaded);
        bitmap(&mut page, loaded);
    } else {
        // Show what there is: a copy may be whole and refused only for what lies beside it.
        for block in inspection.copies.iter().flatten() {
            superblock(&mut page, block);
        }
    }
    if let Some(outcome) = verdict {
        page.title("handshake with the other node");
        page.line("rule", outcome.rule.name());
        page.line("this node is", meaning(outcome.strategy));
    }
    page.title("checks");
    page.text += &problems(inspection);
    page.text
}

/// The rule in one line.
pub fn rule(outcome: &Outcome) -> String {
    format!(
        "handshake rule {}: this node is {}\n",
        outcome.rule.name(),
        meaning(outcome.strategy)
    )
}

fn superblock(page: &mut Page, block: &Superblock) {
    page.title("superblock");
    page.line("update", block.update);
    page.line(
        "features",
        format!(
            "compatible {:#x}, read-only {:#x}, incompatible {:#x}",
            block.features_compatible, block.features_read_only, block.features_incompatible
        ),
    );
    page.line("cluster", block.cluster);
    page.line("mirror", block.mirror);
    page.line("node", block.node);
    page.line("consistency set", or_none(block.consistency_set));
    page.line("last run", or_none(block.run.incarnation));
    page.line("in boot", or_none(block.run.boot));
    page.line(
        "agreed size",
        match block.size_bytes {
            0 => "not agreed yet".to_owned(),
            size => bytes(size),
        },
    );
    page.line("usable", bytes(block.usable_bytes));
    page.line("logical block", format!("{} B", block.logical_block_bytes));
    page.line("one dirty bit", bytes(1 << block.block_shift));
    page.line("log slots", block.log_slots);
    let set = flags(block);
    page.line(
        "flags",
        if set.is_empty() {
            "none".to_owned()
        } else {
            set.join(", ")
        },
    );
    page.line("epoch", block.epoch.0);
    page.line("log epoch", block.log_epoch);
    page.line("generation", generation(block.generations.current));
    let history: Vec<_> = block
        .generations
        .history
        .iter()
        .filter(|generation| !generation.is_none())
        .map(Generation::to_string)
        .collect();
    page.line(
        "history",
        if history.is_empty() {
            "none".to_owned()
        } else {
            history.join(" ")
        },
    );
    let discard = block.last_discard;
    page.line(
        "last discard",
        match discard.unix_s {
            0 if discard.bytes == 0 => "none".to_owned(),
            time => format!(
                "{} in {} ranges of generation {}, {time} s after 1970",
                bytes(discard.bytes),
                discard.ranges,
                discard.generation
            ),
        },
    );
    page.title("peer slot 0");
    page.line("node", block.peer.node);
    page.line("incarnation", or_none(block.peer.incarnation));
    page.line(
        "bitmap against",
        match block.generations.base {
            Generation::NONE => "none: the peer missed no generation".to_owned(),
            base => base.to_string(),
        },
    );
    let state: Vec<_> = [
        (block.peer.outdated, "outdated"),
        (block.peer.detached, "detached"),
        (block.peer.stopped_cleanly, "stopped-cleanly"),
        (block.peer.confirmed_down, "confirmed-down"),
        (block.peer.had_copy, "had-copy"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    page.line(
        "state",
        if state.is_empty() {
            "none".to_owned()
        } else {
            state.join(", ")
        },
    );
    page.line(
        "full copy",
        match block.peer.full_sync {
            FullSyncId::NONE => "none under way".to_owned(),
            number => format!("number {:016x} is under way", number.0),
        },
    );
}

fn log(page: &mut Page, inspection: &Inspection, loaded: &Loaded) {
    page.title("activity log");
    page.line("trust", trust(loaded.log.trust));
    let present = inspection.ring.iter().flatten();
    let current = present
        .clone()
        .filter(|record| record.log_epoch == loaded.superblock.log_epoch)
        .count();
    let bad = inspection
        .ring
        .iter()
        .filter(|record| !matches!(record, Ok(_) | Err(LogFault::Void)))
        .count();
    page.line(
        "transactions",
        format!(
            "{} in the ring, {current} of this log epoch, {bad} bad; newest {}",
            present.clone().count(),
            present.map(|record| record.number).max().unwrap_or(0)
        ),
    );
    if loaded.log.trust != Trust::Doubtful {
        page.line("next number", loaded.log.next_number);
    }
    let extents = inspection.hot_extents();
    page.line(
        "hot extents",
        format!(
            "{} of {} slots, {}",
            extents.len(),
            loaded.log.slots.len(),
            bytes(extents.len() as u64 * EXTENT_BYTES)
        ),
    );
    if !extents.is_empty() {
        page.line("extents", ranges(&extents));
    }
    page.title("ring of the activity log");
    for (block, record) in inspection.ring.iter().enumerate() {
        let name = format!("block {block}");
        match record {
            Ok(record) => transaction(page, &name, record, loaded.log.slots.len()),
            Err(LogFault::Void) => {}
            Err(fault) => page.line(&name, format!("BAD: {fault}")),
        }
    }
    if inspection.ring.iter().all(|r| r == &Err(LogFault::Void)) {
        page.line("blocks", "all empty");
    }
}

/// One transaction, each slot with its extent.
fn transaction(page: &mut Page, name: &str, record: &LogRecord, slots: usize) {
    page.line(
        name,
        format!(
            "number {}, log epoch {}, {} updates, context of {} slots from slot {}",
            record.number,
            record.log_epoch,
            record.updates.len(),
            record.context.len(),
            record.context_first,
        ),
    );
    let updates: Vec<_> = record
        .updates
        .iter()
        .map(|(slot, extent)| match extent {
            Some(extent) => format!("{slot}={}", extent.0),
            None => format!("{slot}=empty"),
        })
        .collect();
    if !updates.is_empty() {
        page.line("  slot=extent", updates.join(" "));
    }
    let context: Vec<_> = (usize::from(record.context_first)..)
        .zip(&record.context)
        .filter_map(|(slot, extent)| Some((slot % slots.max(1), (*extent)?)))
        .map(|(slot, extent)| format!("{slot}={}", extent.0))
        .collect();
    if !context.is_empty() {
        page.line("  context", context.join(" "));
    }
}

fn bitmap(page: &mut Page, loaded: &Loaded) {
    let geometry = loaded.geometry;
    let dirty = Dirty::of(geometry, &loaded.words);
    page.title("dirty bitmap");
    page.line("blocks", geometry.blocks());
    page.line("pages", geometry.pages());
    page.line("area", bytes(geometry.area_bytes()));
    page.line(
        "dirty",
        format!(
            "{} blocks in {} runs, {}",
            dirty.blocks,
            dirty.runs,
            bytes(dirty.bytes)
        ),
    );
    if let Some((first, end)) = dirty.span {
        page.line("between", format!("byte {first} and byte {end}"));
    }
    page.line(
        "bad pages",
        match loaded.bad_pages.is_empty() {
            true => "none".to_owned(),
            false => format!("{}: {}", loaded.bad_pages.len(), ranges(&loaded.bad_pages)),
        },
    );
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn title(&mut self, title: &str) {
        let _ = writeln!(self.text, "\n{title}");
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "  {name:<16} {value}");
    }
}

fn generation(generation: Generation) -> String {
    match generation {
        Generation::NONE => "none: no data yet".to_owned(),
        generation => generation.to_string(),
    }
}

fn or_none(id: Uuid) -> String {
    match id == Uuid::default() {
        true => "none".to_owned(),
        false => id.to_string(),
    }
}

fn bytes(count: u64) -> String {
    let (unit, name) = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| count >> shift > 0)
        .unwrap_or((0, "B"));
    if unit == 0 {
        return format!("{count} B");
    }
    format!(
        "{:.2} {name} ({count} B)",
        count as f64 / (1u64 << unit) as f64
    )
}
