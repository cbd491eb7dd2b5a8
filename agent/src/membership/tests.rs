use mirror_core::link::preface::ClusterKey;
use proptest::prelude::*;

use super::*;

const INTERVAL_MS: u64 = 100;
const TIMEOUT_MS: u64 = 1_000;

fn key(secret: &[u8]) -> BeatKey {
    BeatKey::new(&ClusterKey::new(secret).expect("long enough"))
}

fn right_key() -> BeatKey {
    key(b"a secret of the cluster")
}

fn id(name: &str) -> Uuid {
    Uuid::from_name("node", name)
}

fn member(node: &str, peer: &str, run: u64, now_ms: u64) -> Membership {
    let config = MembershipConfig {
        key: right_key(),
        cluster: Uuid::from_name("cluster", "c"),
        node: id(node),
        peer: id(peer),
        paths: vec!["interconnect".into(), "public".into()],
        interval_ms: INTERVAL_MS,
        timeout_ms: TIMEOUT_MS,
    };
    Membership::new(config, Run(run), now_ms)
}

/// Two nodes and the datagrams between them.
struct Pair {
    nodes: [Membership; 2],
    now_ms: u64,
    /// Paths that carry nothing.
    cut: [bool; 2],
    /// Everything that ever travelled, as (to, path, bytes).
    recorded: Vec<(usize, usize, Vec<u8>)>,
    happened: [Vec<Effect>; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            nodes: [member("one", "two", 11, 0), member("two", "one", 22, 0)],
            now_ms: 0,
            cut: [false; 2],
            recorded: Vec::new(),
            happened: [Vec::new(), Vec::new()],
        }
    }

    fn step(&mut self, node: usize, event: &Event) {
        let mut out = Vec::new();
        self.nodes[node].step(self.now_ms, event, &mut out);
        for effect in out {
            let Effect::Send { path, bytes } = effect else {
                self.happened[node].push(effect);
                continue;
            };
            self.recorded.push((1 - node, path, bytes.clone()));
            if !self.cut[path] {
                self.step(1 - node, &Event::Received { path, bytes });
            }
        }
    }

    fn run_for(&mut self, span_ms: u64) {
        for _ in 0..span_ms / 20 {
            self.now_ms += 20;
            for node in [0, 1] {
                self.step(node, &Event::Tick);
            }
        }
    }

    fn peers(&self) -> [Peer; 2] {
        [self.nodes[0].peer(), self.nodes[1].peer()]
    }
}

#[test]
fn two_nodes_hear_each_other_over_every_path() {
    let mut pair = Pair::new();
    pair.run_for(500);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    assert!((0..2).all(|path| pair.nodes.iter().all(|node| node.is_path_up(path))));
}

#[test]
fn one_path_is_enough_and_its_loss_is_told() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.cut = [true, false];
    pair.run_for(3 * TIMEOUT_MS);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    assert!(pair.happened[0].contains(&Effect::PathLost { path: 0 }));
    assert!(!pair.nodes[0].is_path_up(0) && pair.nodes[0].is_path_up(1));
}

#[test]
fn silence_on_every_path_is_a_loss_after_the_time_out_and_not_before() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.cut = [true, true];
    pair.run_for(TIMEOUT_MS - 2 * INTERVAL_MS);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    pair.run_for(3 * INTERVAL_MS);
    assert_eq!(pair.peers(), [Peer::Lost, Peer::Lost]);
    pair.cut = [false, false];
    pair.run_for(500);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
}

#[test]
fn recorded_beats_keep_nobody_alive() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.cut = [true, true];
    let recorded: Vec<_> = pair
        .recorded
        .iter()
        .filter(|(to, _, _)| *to == 0)
        .cloned()
        .collect();
    for _ in 0..2 * TIMEOUT_MS / 20 {
        pair.run_for(20);
        for (to, path, bytes) in recorded.clone() {
            pair.step(to, &Event::Received { path, bytes });
        }
    }
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
    // Nor do they make a restarted node believe that its peer is there.
    pair.nodes[0] = member("one", "two", 12, pair.now_ms);
    for (to, path, bytes) in recorded {
        pair.step(to, &Event::Received { path, bytes });
    }
    pair.run_for(100);
    assert_eq!(pair.nodes[0].peer(), Peer::Unknown);
}

#[test]
fn a_restarted_peer_is_known_anew_and_its_old_run_never_again() {
    let mut pair = Pair::new();
    pair.run_for(500);
    let old = pair
        .recorded
        .iter()
        .rfind(|(to, _, _)| *to == 0)
        .cloned()
        .expect("it was heard");
    pair.nodes[1] = member("two", "one", 23, pair.now_ms);
    pair.happened[0].clear();
    pair.run_for(500);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    assert!(pair.happened[0].contains(&Effect::PeerUp));
    let (to, path, bytes) = old;
    pair.happened[0].clear();
    pair.step(to, &Event::Received { path, bytes });
    assert_eq!(pair.happened[0], []);
}

#[test]
fn of_two_machines_under_one_name_the_first_stays_believed_and_all_three_are_told() {
    let mut pair = Pair::new();
    pair.run_for(500);
    let mut clone = member("two", "one", 99, pair.now_ms);
    let mut told_to_clone = Vec::new();
    pair.happened[0].clear();
    for _ in 0..2 * TIMEOUT_MS / 20 {
        pair.run_for(20);
        let from = pair.recorded.len().saturating_sub(8);
        let mut events = vec![Event::Tick];
        for (to, path, bytes) in pair.recorded[from..].iter().cloned() {
            if to == 1 {
                events.push(Event::Received { path, bytes });
            }
        }
        for event in events {
            let mut out = Vec::new();
            clone.step(pair.now_ms, &event, &mut out);
            for effect in out {
                match effect {
                    Effect::Send { path, bytes } => pair.step(0, &Event::Received { path, bytes }),
                    effect => told_to_clone.push(effect),
                }
            }
        }
    }
    pair.happened[0].retain(|effect| !matches!(effect, Effect::Body(_)));
    let told = |whose| Effect::SameName { path: 0, whose };
    assert_eq!(pair.happened[0], [told(Whose::Peers)], "once, and no more");
    assert!(pair.nodes[0].has_namesake(Whose::Peers));
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    assert_eq!(told_to_clone, [told(Whose::Mine)]);
    assert_eq!(clone.peer(), Peer::Unknown);
    // The first stops: the second is the node now.
    pair.cut = [true, true];
    pair.nodes[1] = clone;
    pair.run_for(3 * INTERVAL_MS);
    pair.cut = [false, false];
    pair.run_for(5 * INTERVAL_MS);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    pair.run_for(2 * TIMEOUT_MS);
    assert!(!pair.nodes[0].has_namesake(Whose::Peers));
    assert!(!pair.nodes[1].has_namesake(Whose::Mine));
}

#[test]
fn a_node_that_was_frozen_says_so_first_and_blames_nobody() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.now_ms += 10 * TIMEOUT_MS;
    pair.happened[0].clear();
    pair.step(0, &Event::Tick);
    let frozen = Effect::Frozen {
        for_ms: 10 * TIMEOUT_MS,
    };
    assert_eq!(pair.happened[0][0], frozen);
    assert_eq!(pair.nodes[0].peer(), Peer::Up);
}

#[test]
fn a_peer_that_leaves_is_not_lost() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.nodes[1].describe(true, b"bye".to_vec(), false);
    pair.run_for(200);
    pair.cut = [true, true];
    pair.run_for(3 * TIMEOUT_MS);
    assert_eq!(pair.nodes[0].peer(), Peer::Left);
    assert!(pair.happened[0].contains(&Effect::Body(b"bye".to_vec())));
    assert!(
        !pair.happened[0]
            .iter()
            .any(|effect| matches!(effect, Effect::PeerLost { .. }))
    );
}

#[test]
fn strangers_are_named_once() {
    let mut node = member("one", "two", 11, 0);
    let mut beat = member("two", "one", 22, 0).beat(0, Run(11));
    let mut refused = |beat: &Beat, key: &BeatKey, path| {
        let bytes = beat.encode(key).to_vec();
        let mut out = Vec::new();
        node.step(0, &Event::Received { path, bytes }, &mut out);
        out.retain(|effect| !matches!(effect, Effect::Send { .. }));
        out
    };
    let said = |effects: Vec<Effect>, words: &str| {
        assert!(
            matches!(&effects[..], [Effect::Refused { reason, .. }] if reason.contains(words)),
            "{effects:?}"
        );
    };
    let wrong = key(b"a secret of another cluster");
    said(refused(&beat, &wrong, 0), "key");
    assert_eq!(refused(&beat, &wrong, 0), [], "once is enough");
    said(
        refused(&beat, &right_key(), 1),
        "meant for path interconnect",
    );
    beat.node = id("three");
    said(refused(&beat, &right_key(), 0), "not configured");
    beat.cluster = Uuid::from_name("cluster", "d");
    said(refused(&beat, &right_key(), 0), "another cluster");
    let mut own = member("one", "two", 99, 0).beat(0, Run::NONE);
    assert_eq!(
        refused(&own, &right_key(), 0),
        [Effect::SameName {
            path: 0,
            whose: Whose::Mine
        }]
    );
    assert_eq!(refused(&own, &right_key(), 0), [], "once is enough");
    own.run = Run(11);
    assert_eq!(refused(&own, &right_key(), 0), [], "its own echo");
}

proptest! {
    #[test]
    fn a_beat_round_trips(ids in any::<[[u8; 16]; 2]>(), numbers in any::<[u64; 3]>(), path: u8, leaving: bool, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let beat = Beat {
            cluster: Uuid(ids[0]),
            node: Uuid(ids[1]),
            path,
            run: Run(numbers[0]),
            heard: Run(numbers[1]),
            sequence: numbers[2],
            leaving,
            body,
        };
        prop_assert_eq!(Beat::decode(&beat.encode(&right_key()), &right_key()), Ok(beat));
    }

    #[test]
    fn no_change_of_a_beat_goes_unnoticed(at in 0..96usize, change in 1u8..) {
        let mut bytes = member("one", "two", 11, 0).beat(0, Run(3)).encode(&right_key());
        bytes[at] ^= change;
        prop_assert!(Beat::decode(&bytes, &right_key()).is_err());
    }

    #[test]
    fn noise_is_no_beat(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Beat::decode(&bytes, &right_key()).is_err());
    }
}
