//! `kill -9` of the witness while both nodes of several mirrors ask it as fast as they can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use agent::arbiter::call::Reply;
use agent::io::arbiter::WitnessClient;

use super::process::*;

const KILLS: usize = 12;
const MIRRORS: usize = 3;
/// Grants between two kills.
const GRANTS_MIN: usize = 10;

#[derive(Default)]
struct Load {
    over: AtomicBool,
    grants: AtomicUsize,
}

/// Takes the mirror and gives it back until the load is over. Returns every epoch that it was granted.
async fn take_turns(node: Arc<WitnessClient>, mirror: String, load: Arc<Load>) -> Vec<u64> {
    let mut epochs = Vec::new();
    while !load.over.load(Ordering::Relaxed) {
        match node.call(acquire(&mirror)).await {
            Ok(answered) => {
                if let Reply::Granted { epoch } = answered.reply {
                    epochs.push(epoch.0);
                    load.grants.fetch_add(1, Ordering::Relaxed);
                    let _ = node.call(release(&mirror, epoch.0)).await;
                }
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
    epochs
}

#[tokio::test]
async fn no_kill_makes_an_epoch_twice() {
    let mut witness = Witness::start(&[("c", 1)]);
    let nodes = ["a", "b"].map(|node| Arc::new(witness.client("c", 1, node)));
    let mirrors: Vec<String> = (0..MIRRORS).map(|index| format!("md{index}")).collect();
    for mirror in &mirrors {
        for node in &nodes {
            ask(node, enrol(mirror, 0)).await;
        }
    }
    let load = Arc::new(Load::default());
    let mut tasks = Vec::new();
    for mirror in &mirrors {
        for node in &nodes {
            let turns = take_turns(Arc::clone(node), mirror.clone(), Arc::clone(&load));
            tasks.push((mirror.clone(), tokio::spawn(turns)));
        }
    }
    for _ in 0..KILLS {
        let before = load.grants.load(Ordering::Relaxed);
        let started = Instant::now();
        while load.grants.load(Ordering::Relaxed) < before + GRANTS_MIN {
            assert!(started.elapsed() < LIMIT, "no grants");
            tokio::task::yield_now().await;
        }
        witness.kill();
        witness.restart();
    }
    load.over.store(true, Ordering::Relaxed);
    let mut granted: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (mirror, task) in tasks {
        let epochs = task.await.unwrap();
        assert!(epochs.is_sorted(), "they grow");
        granted.entry(mirror).or_default().extend(epochs);
    }
    for (mirror, mut epochs) in granted {
        let count = epochs.len();
        epochs.sort_unstable();
        epochs.dedup();
        assert_eq!(epochs.len(), count, "{mirror}: an epoch was granted twice");
    }
}
