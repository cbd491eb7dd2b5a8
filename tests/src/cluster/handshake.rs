//! What two sides of the model agree on when they meet: who is copied to whom, or that they stay apart.
//! It stands for `mirror_core::link::handshake::decide` and the step down of D8.

use super::mirror::{Link, Mirror};

/// Bytes matter to nobody here; a copy takes this long, and longer the more is missing.
const COPY_MS: u64 = 50;
const COPY_MS_MAX: u64 = 3_000;
/// Pause before a refused handshake is tried again.
const RETRY_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Source(usize),
    SplitBrain,
    Refuse,
}

/// Both run, reach each other and have no link.
pub fn meet(mirrors: &mut [Mirror; 2], nodes_ms: [u64; 2], session: u64) -> Option<String> {
    step_down(mirrors);
    let verdict = decide(mirrors);
    let Verdict::Source(source) = verdict else {
        for (mirror, now_ms) in mirrors.iter_mut().zip(nodes_ms) {
            if let Some(process) = &mut mirror.process {
                let news = !process.split_brain && verdict == Verdict::SplitBrain;
                process.split_brain = verdict == Verdict::SplitBrain;
                process.retry_ms = now_ms + if news { RETRY_MS } else { 2 * RETRY_MS };
            }
        }
        return None;
    };
    let target = 1 - source;
    let missing = mirrors[source]
        .disk
        .data
        .count_missing_in(&mirrors[target].disk.data)
        + mirrors[target]
            .disk
            .data
            .count_missing_in(&mirrors[source].disk.data);
    let same = mirrors[0].disk.generation == mirrors[1].disk.generation;
    let copies = missing > 0 || !same || !mirrors[target].disk.is_current();
    let primary = [0, 1].map(|node| mirrors[node].is_primary());
    if copies {
        mirrors[target].disk.inconsistent |= missing > 0;
    }
    let current = [0, 1].map(|node| mirrors[node].disk.is_current());
    for node in 0..2 {
        let disk = &mut mirrors[node].disk;
        disk.peer_confirmed_down = false;
        let now_ms = nodes_ms[node];
        let Some(process) = &mut mirrors[node].process else {
            continue;
        };
        process.peer_seen = true;
        process.split_brain = false;
        process.is_source = node == source;
        process.link = Some(Link::new(
            session,
            now_ms,
            primary[node] && node == source,
            primary[1 - node],
            current[1 - node],
        ));
        let copy_ms = COPY_MS + (missing * 2).min(COPY_MS_MAX);
        process.resync_until_ms = copies.then_some(now_ms + copy_ms);
    }
    if !copies {
        settle(mirrors, source);
    }
    Some(format!(
        "mirrors meet: {source} is the source, {missing} to copy"
    ))
}

/// The copy is done and durable.
pub fn settle(mirrors: &mut [Mirror; 2], source: usize) {
    let truth = mirrors[source].disk.clone();
    let target = &mut mirrors[1 - source];
    target.disk.data = truth.data;
    target.disk.generation = truth.generation;
    target.disk.ancestors = truth.ancestors;
    target.disk.base = 0;
    target.disk.inconsistent = false;
    target.disk.outdated = false;
    target.disk.discard_local = false;
    target.disk.peer_outdated = false;
    target.disk.primary = false;
    let epoch = target.disk.epoch.max(truth.epoch);
    target.disk.epoch = epoch;
    let source = &mut mirrors[source];
    source.disk.peer_outdated = false;
    source.disk.base = 0;
    for mirror in mirrors.iter_mut() {
        if let Some(process) = &mut mirror.process {
            process.resync_until_ms = None;
            process.end_alone();
            if let Some(link) = &mut process.link {
                link.peer_current = true;
            }
        }
    }
}

/// With an arbiter, whoever meets a later epoch is primary no more (D8).
fn step_down(mirrors: &mut [Mirror; 2]) {
    if !mirrors[0].rules.arbiter {
        return;
    }
    for node in 0..2 {
        let (mine, theirs) = (mirrors[node].disk.epoch, mirrors[1 - node].disk.epoch);
        if mirrors[node].is_primary() && theirs > mine {
            mirrors[node].step_aside();
        }
    }
}

fn decide(mirrors: &mut [Mirror; 2]) -> Verdict {
    let source = match lineage(mirrors) {
        Verdict::Source(source) => source,
        other => return other,
    };
    let target = 1 - source;
    if mirrors[source].disk.inconsistent {
        return Verdict::Refuse;
    }
    if mirrors[target].is_primary() {
        let newer = mirrors[source].disk.epoch > mirrors[target].disk.epoch;
        if !newer || !mirrors[source].is_primary() {
            return Verdict::Refuse;
        }
        mirrors[target].step_aside();
    }
    Verdict::Source(source)
}

fn lineage(mirrors: &[Mirror; 2]) -> Verdict {
    let disks = [&mirrors[0].disk, &mirrors[1].disk];
    let primary = [0, 1].map(|node: usize| mirrors[node].is_primary());
    let toward = |first: bool| Verdict::Source(usize::from(!first));
    if disks[0].generation == disks[1].generation {
        if primary[0] && primary[1] {
            return Verdict::Refuse;
        }
        if disks[0].inconsistent != disks[1].inconsistent {
            return toward(!disks[0].inconsistent);
        }
        if primary[0] != primary[1] {
            return toward(primary[0]);
        }
        if disks[0].outdated != disks[1].outdated {
            return toward(!disks[0].outdated);
        }
        return toward(disks[0].last_primary || !disks[1].last_primary);
    }
    if mirrors[0].rules.arbiter && disks[0].epoch != disks[1].epoch {
        let later = usize::from(disks[1].epoch > disks[0].epoch);
        if disks[later].is_current() && !disks[later].discard_local {
            return Verdict::Source(later);
        }
    }
    let descends = |node: usize| disks[node].ancestors.contains(&disks[1 - node].generation);
    match (descends(0), descends(1)) {
        (true, _) => toward(true),
        (_, true) => toward(false),
        _ if disks[0].discard_local != disks[1].discard_local => toward(disks[1].discard_local),
        _ => Verdict::SplitBrain,
    }
}
