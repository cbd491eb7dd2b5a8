use std::net::{IpAddr, Ipv4Addr};

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

/// Where a machine speaks from.
fn address(machine: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, machine)), 29_002)
}

fn received(from: u8, path: usize, bytes: Vec<u8>) -> Event {
    Event::Received {
        path,
        from: address(from),
        bytes,
    }
}

/// Two nodes and the datagrams between them.
struct Pair {
    nodes: [Membership; 2],
    now_ms: u64,
    /// Paths that carry nothing.
    cut: [bool; 2],
    /// Nodes whose datagrams do not arrive, and are recorded.
    mute: [bool; 2],
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
            mute: [false; 2],
            recorded: Vec::new(),
            happened: [Vec::new(), Vec::new()],
        }
    }

    fn step(&mut self, node: usize, event: &Event) {
        let mut out = Vec::new();
        self.nodes[node].step(self.now_ms, event, &mut out);
        for effect in out {
            let Effect::Send { path, to, bytes } = effect else {
                self.happened[node].push(effect);
                continue;
            };
            if to.is_some_and(|to| to != address(1 - node as u8)) {
                continue;
            }
            self.recorded.push((1 - node, path, bytes.clone()));
            if !self.cut[path] && !self.mute[node] {
                self.step(1 - node, &received(node as u8, path, bytes));
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

    fn restart(&mut self, node: usize, run: u64) {
        let [me, peer] = [["one", "two"], ["two", "one"]][node];
        self.nodes[node] = member(me, peer, run, self.now_ms);
    }

    /// All that was ever sent to a node.
    fn sent_to(&self, node: usize) -> Vec<(usize, Vec<u8>)> {
        let to = self.recorded.iter().filter(|(to, _, _)| *to == node);
        to.map(|(_, path, bytes)| (*path, bytes.clone())).collect()
    }

    /// Somebody sends all of it to this node.
    fn replay(&mut self, to: usize, tape: &[(usize, Vec<u8>)]) {
        for (path, bytes) in tape.iter().cloned() {
            self.step(to, &received(66, path, bytes));
        }
    }

    /// The same, a few at a time, for longer than a node may be silent.
    fn replay_for_long(&mut self, to: usize, tape: &[(usize, Vec<u8>)]) {
        let steps = 3 * TIMEOUT_MS / 20;
        let chunk = tape.len().div_ceil(steps as usize).max(1);
        let mut chunks = tape.chunks(chunk).cycle();
        for _ in 0..steps {
            self.run_for(20);
            self.replay(to, chunks.next().unwrap_or_default());
        }
    }

    fn refused(&self, node: usize) -> Vec<Refusal> {
        let refused = |effect: &Effect| match effect {
            Effect::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        };
        let mut refused: Vec<_> = self.happened[node].iter().filter_map(refused).collect();
        refused.sort_unstable();
        refused.dedup();
        refused
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
    let tape = pair.sent_to(0);
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
    assert_eq!(pair.refused(0), [Refusal::Replayed]);
    assert_eq!(pair.nodes[0].refused(0), Some(Refusal::Replayed));
    // Nor do they make a restarted node believe that its peer is there.
    pair.happened[0].clear();
    pair.restart(0, 12);
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.nodes[0].peer(), Peer::Unknown);
    assert_eq!(pair.refused(0), [Refusal::Stale]);
}

#[test]
fn beats_that_were_held_back_keep_nobody_alive() {
    let mut pair = Pair::new();
    pair.run_for(500);
    pair.recorded.clear();
    pair.mute = [false, true];
    // Long enough that there is one for each time-out to come.
    pair.run_for(20 * TIMEOUT_MS);
    let tape = pair.sent_to(0);
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
    pair.cut = [true, true];
    pair.run_for(TIMEOUT_MS);
    pair.happened[0].clear();
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
    assert_eq!(pair.refused(0), [Refusal::Stale]);
    // Beats that come to whom does not hear count for nothing either.
    pair.cut = [false, false];
    pair.mute = [true, false];
    pair.run_for(3 * TIMEOUT_MS);
    assert_eq!(pair.peers(), [Peer::Lost, Peer::Lost]);
    pair.mute = [false, false];
    pair.run_for(500);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
}

#[test]
fn a_run_that_died_before_it_was_known_comes_to_no_life() {
    let mut pair = Pair::new();
    pair.run_for(500);
    // Restarted twice in so short a time that the first was still believed.
    let known = pair.recorded.len();
    pair.restart(1, 23);
    pair.run_for(INTERVAL_MS);
    let tape: Vec<_> = pair.sent_to(0).split_off(known / 2);
    assert!(!tape.is_empty());
    pair.restart(1, 24);
    pair.run_for(2 * TIMEOUT_MS);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    pair.cut = [true, true];
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
}

#[test]
fn what_a_node_said_itself_is_no_second_machine() {
    let mut pair = Pair::new();
    pair.run_for(500);
    let tape = pair.sent_to(1);
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.refused(0), [Refusal::Echo]);
    // Not even after a restart, with nobody there to tell.
    pair.cut = [true, true];
    pair.restart(0, 12);
    pair.happened[0].clear();
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.refused(0), [Refusal::OwnName]);
    assert!(!pair.nodes[0].has_namesake(Whose::Mine));
    // What the other one said of the former run tells of no second machine either.
    let tape = pair.sent_to(0);
    pair.replay_for_long(0, &tape);
    assert!(!pair.nodes[0].has_namesake(Whose::Mine));
    assert_eq!(pair.nodes[0].peer(), Peer::Unknown);
}

#[test]
fn two_machines_that_are_each_other_s_namesake_find_each_other() {
    let mut machines = [member("one", "two", 11, 0), member("one", "two", 99, 0)];
    let mut told = [false; 2];
    let mut waiting: Vec<(usize, Vec<u8>)> = Vec::new();
    for step in 0..20 {
        let mut events = vec![(0, Event::Tick), (1, Event::Tick)];
        let came = std::mem::take(&mut waiting);
        let came = came.into_iter();
        events.extend(came.map(|(to, bytes)| (to, received(1 - to as u8, 0, bytes))));
        for (at, event) in events {
            let mut out = Vec::new();
            machines[at].step(step * INTERVAL_MS, &event, &mut out);
            for effect in out {
                match effect {
                    // Their files lead the second to the first, which knows nothing of it.
                    Effect::Send { path: 0, to, bytes } if at == 1 || to.is_some() => {
                        waiting.push((1 - at, bytes));
                    }
                    Effect::SameName { whose, .. } => told[at] |= whose == Whose::Mine,
                    _ => {}
                }
            }
        }
    }
    assert_eq!(told, [true, true]);
}

#[test]
fn a_restarted_peer_is_known_anew_and_its_old_run_never_again() {
    let mut pair = Pair::new();
    pair.run_for(500);
    let tape = pair.sent_to(0);
    pair.restart(1, 23);
    pair.happened[0].clear();
    pair.run_for(500);
    assert_eq!(pair.peers(), [Peer::Up, Peer::Up]);
    assert!(pair.happened[0].contains(&Effect::PeerUp));
    pair.cut = [true, true];
    pair.replay_for_long(0, &tape);
    assert_eq!(pair.nodes[0].peer(), Peer::Lost);
    assert_eq!(pair.refused(0), [Refusal::Ended]);
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
        let mut events = VecDeque::from([Event::Tick]);
        while let Some(event) = events.pop_front() {
            let mut out = Vec::new();
            clone.step(pair.now_ms, &event, &mut out);
            for effect in out {
                let Effect::Send { path, bytes, .. } = effect else {
                    told_to_clone.push(effect);
                    continue;
                };
                let mut answers = Vec::new();
                let now_ms = pair.now_ms;
                pair.nodes[0].step(now_ms, &received(99, path, bytes), &mut answers);
                for answer in answers {
                    match answer {
                        Effect::Send { path, to, bytes } if to == Some(address(99)) => {
                            events.push_back(received(0, path, bytes));
                        }
                        Effect::Send { .. } => {}
                        effect => pair.happened[0].push(effect),
                    }
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
    let mut beat = member("two", "one", 22, 0).beat(0, Run(11), 1);
    let mut check = |beat: &Beat, key: &BeatKey, path, expected: Refusal| {
        let event = received(1, path, beat.encode(key));
        let mut out = Vec::new();
        for _ in 0..2 {
            node.step(0, &event, &mut out);
        }
        out.retain(|effect| !matches!(effect, Effect::Send { .. }));
        let told = Effect::Refused {
            path,
            refusal: expected,
            times: 1,
        };
        assert_eq!(out, [told], "once is enough");
    };
    let wrong = key(b"a secret of another cluster");
    check(&beat, &wrong, 0, BeatFault::Forged.into());
    check(&beat, &right_key(), 1, Refusal::OtherPath(0));
    beat.node = id("three");
    check(&beat, &right_key(), 0, Refusal::OtherNode);
    beat.cluster = Uuid::from_name("cluster", "d");
    check(&beat, &right_key(), 0, Refusal::OtherCluster);
    let mut own = member("one", "two", 99, 0).beat(0, Run::NONE, 0);
    check(&own, &right_key(), 0, Refusal::OwnName);
    own.run = Run(11);
    check(&own, &right_key(), 0, Refusal::Echo);
}

proptest! {
    #[test]
    fn a_beat_round_trips(ids in any::<[[u8; 16]; 2]>(), numbers in any::<[u64; 4]>(), path: u8, kind in 0..3usize, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let beat = Beat {
            cluster: Uuid(ids[0]),
            node: Uuid(ids[1]),
            path,
            run: Run(numbers[0]),
            heard: Run(numbers[1]),
            heard_sequence: numbers[3],
            sequence: numbers[2],
            kind: [Kind::Alive, Kind::Leaving, Kind::Doubting][kind],
            body,
        };
        prop_assert_eq!(Beat::decode(&beat.encode(&right_key()), &right_key()), Ok(beat));
    }

    #[test]
    fn no_change_of_a_beat_goes_unnoticed(at in 0..104usize, change in 1u8..) {
        let mut bytes = member("one", "two", 11, 0).beat(0, Run(3), 1).encode(&right_key());
        bytes[at] ^= change;
        prop_assert!(Beat::decode(&bytes, &right_key()).is_err());
    }

    #[test]
    fn noise_is_no_beat(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Beat::decode(&bytes, &right_key()).is_err());
    }
}
