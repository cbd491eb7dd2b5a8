//! Every metric is in `docs/operations/metrics.md`, and every one there exists, since dashboards and alerts rest on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mirror_core::control::{
    Direction, MirrorStatus, NodeStatus, Role, Statistics, SyncKind, SyncStatus,
};
use nbd_frontend::control::metrics;

/// A mirror that has a sample of everything.
fn busy() -> NodeStatus {
    let mut mirror = MirrorStatus::in_step("md1", Role::Primary, "server2");
    mirror.statistics = Some(Statistics::default());
    mirror.sync = Some(SyncStatus {
        kind: SyncKind::Resync,
        direction: Direction::Source,
        done_bytes: 1,
        total_bytes: 2,
        rate_bytes_per_s: 1,
        eta_s: Some(1),
        paused: false,
    });
    NodeStatus {
        node: "server1".into(),
        mirrors: vec![mirror],
        down: Vec::new(),
        resident_bytes: Some(1),
    }
}

#[test]
fn the_page_lists_exactly_the_metrics_there_are_with_their_types() {
    let text = metrics::text(&busy());
    let written: BTreeSet<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => (format!("{name}_total"), kind.into()),
            _ => (name.into(), kind.into()),
        })
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/operations/metrics.md")).unwrap();
    let listed: BTreeSet<(String, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| Some((name.to_owned(), rest.split(" |").next()?.to_owned())))
        .filter(|(name, _)| name.starts_with("mirror_") || name.starts_with("process_"))
        .collect();
    assert_eq!(listed, written);
}
