//! Two volumes wired back to back, with disks that complete at once: the plain course of events.
//! Faults are the simulator's business.

use std::collections::VecDeque;

use super::config::{PeerLoss, Rates, Seed, VolumeConfig};
use super::effect::Effect;
use super::event::{Command, Event, Output};
use super::promotion::NOT_REINSTATED;
use super::{Now, Volume};
use crate::control::Connection;
use crate::layout::geometry::SUPERBLOCK_OFFSETS;
use crate::layout::metadata::{FreshParams, fresh, parse};
use crate::request::{Answer, Operation, Request};
use crate::units::{ByteRange, CommandId, LinkId, RequestId, Uuid};
use crate::volume::refusal::Refusal;
use crate::wire::message::{DiskState, InitialSync, Mode, Role};

const SIZE: u64 = 16 << 20;

struct Node {
    volume: Volume,
    data: Vec<u8>,
    metadata: Vec<u8>,
    connect: bool,
    answers: Vec<(RequestId, Answer)>,
    commands: Vec<Result<String, Refusal>>,
    metadata_writes: u64,
}

struct Pair {
    nodes: [Option<Node>; 2],
    disks: [(Vec<u8>, Vec<u8>); 2],
    queue: VecDeque<(usize, Event)>,
    link: Option<LinkId>,
    next: u64,
    now: Now,
    cut: bool,
}

fn name(side: usize) -> String {
    format!("server{}", side + 1)
}

pub(super) fn config(side: usize) -> VolumeConfig {
    VolumeConfig {
        name: "md1".into(),
        node_name: name(side),
        peer_name: name(1 - side),
        cluster: Uuid::from_name("cluster", "c"),
        mirror: Uuid::from_name("mirror", "md1"),
        node: Uuid::from_name("node", &name(side)),
        peer: Uuid::from_name("node", &name(1 - side)),
        mode: Mode::Sync,
        initial_sync: InitialSync::Full,
        peer_loss: PeerLoss::Continue,
        fast_zero: true,
        config_digest: [0; 16],
        usable_bytes: SIZE,
        logical_block_bytes: 512,
        first: side == 0,
        peer_timeout_ms: 6_000,
        resync_rates: Rates::default(),
        resync_in_flight: 4,
        arbitration: None,
        checkpoint_bytes: 64 << 20,
        queue_bytes: 1 << 20,
        bandwidth_max: 0,
        compression: crate::volume::config::Compression::None,
        queue_full: crate::volume::config::QueueFull::Block,
    }
}

/// A new mirror's metadata.
pub(super) fn fresh_metadata(side: usize) -> Vec<u8> {
    let config = config(side);
    let params = FreshParams {
        cluster: config.cluster,
        mirror: config.mirror,
        node: config.node,
        peer: config.peer,
        usable_bytes: SIZE,
        logical_block_bytes: 512,
        adopted: None,
    };
    let (_, image) = fresh(params).expect("a plain geometry");
    let mut metadata = vec![0; image.area_bytes() as usize];
    for piece in image {
        let start = piece.offset as usize;
        metadata[start..start + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    metadata
}

impl Pair {
    fn new() -> Self {
        let disks = [0, 1].map(|side| (vec![side as u8 + 1; SIZE as usize], fresh_metadata(side)));
        let mut pair = Self {
            nodes: [None, None],
            disks,
            queue: VecDeque::new(),
            link: None,
            next: 1,
            now: Now::default(),
            cut: false,
        };
        pair.start(0);
        pair.start(1);
        pair.run();
        pair
    }

    fn start(&mut self, side: usize) {
        let (data, metadata) = self.disks[side].clone();
        let loaded = parse(metadata.len() as u64, |offset, buffer| {
            let start = offset as usize;
            buffer.copy_from_slice(&metadata[start..start + buffer.len()]);
            Ok(())
        })
        .expect("readable metadata");
        self.next += 1;
        let seed = Seed {
            incarnation: Uuid([self.next as u8; 16]),
            boot: Uuid([9; 16]),
            entropy: self.next * 77 + side as u64,
        };
        let mut effects = Vec::new();
        let volume = Volume::open(config(side), loaded, seed, self.now, &mut effects);
        self.nodes[side] = Some(Node {
            volume,
            data,
            metadata,
            connect: false,
            answers: Vec::new(),
            commands: Vec::new(),
            metadata_writes: 0,
        });
        self.carry_out(side, effects);
        self.run();
    }

    fn kill(&mut self, side: usize) {
        if let Some(node) = self.nodes[side].take() {
            self.disks[side] = (node.data, node.metadata);
        }
        self.queue.retain(|(to, _)| *to != side);
        self.drop_link();
        self.run();
    }

    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.queue
                .retain(|(_, event)| !matches!(event, Event::Message { .. }));
            for side in 0..2 {
                self.queue.push_back((side, Event::LinkDown { link }));
            }
        }
    }

    fn cut(&mut self) {
        self.cut = true;
        self.drop_link();
        self.run();
    }

    fn node(&mut self, side: usize) -> &mut Node {
        self.nodes[side].as_mut().expect("the node runs")
    }

    fn run(&mut self) {
        for _ in 0..200_000 {
            let wanted = self
                .nodes
                .iter()
                .flatten()
                .filter(|node| node.connect)
                .count()
                == 2;
            if self.link.is_none() && wanted && !self.cut {
                self.next += 1;
                let link = LinkId(self.next);
                self.link = Some(link);
                for side in 0..2 {
                    self.queue.push_back((side, Event::LinkUp { link }));
                }
            }
            let Some((side, event)) = self.queue.pop_front() else {
                return;
            };
            let now = self.now;
            let Some(node) = &mut self.nodes[side] else {
                continue;
            };
            let mut effects = Vec::new();
            node.volume.step(now, event, &mut effects);
            node.volume.check_invariants();
            self.carry_out(side, effects);
        }
        panic!("the pair does not come to rest");
    }

    fn carry_out(&mut self, side: usize, effects: Vec<Effect>) {
        for effect in effects {
            let link = self.link;
            let node = self.nodes[side].as_mut().expect("the node runs");
            let span = |range: ByteRange| range.offset as usize..range.end() as usize;
            let done = |io, output| Event::LocalDone {
                io,
                result: Ok(output),
            };
            let event = match effect {
                Effect::Read { io, range } | Effect::ReadSparse { io, range } => {
                    done(io, Output::Data(node.data[span(range)].to_vec().into()))
                }
                Effect::Write {
                    io, range, data, ..
                } => {
                    node.data[span(range)].copy_from_slice(&data);
                    done(io, Output::Nothing)
                }
                Effect::WriteZeroes { io, range, .. } => {
                    node.data[span(range)].fill(0);
                    done(io, Output::Nothing)
                }
                Effect::Flush { io } => done(io, Output::Nothing),
                Effect::WriteMetadata { io, offset, bytes } => {
                    node.metadata_writes += 1;
                    let start = offset as usize;
                    node.metadata[start..start + bytes.len()].copy_from_slice(&bytes);
                    Event::MetadataDone { io, result: Ok(()) }
                }
                Effect::Send { link: on, envelope } => {
                    if link == Some(on) && self.nodes[1 - side].is_some() {
                        self.queue
                            .push_back((1 - side, Event::Message { link: on, envelope }));
                    }
                    continue;
                }
                Effect::CloseLink { link: on } => {
                    if link == Some(on) {
                        self.link = None;
                        self.queue
                            .push_back((1 - side, Event::LinkDown { link: on }));
                    }
                    continue;
                }
                Effect::Connect { wanted } => {
                    node.connect = wanted;
                    continue;
                }
                Effect::Answer { id, answer } => {
                    node.answers.push((id, answer));
                    continue;
                }
                Effect::CommandDone { result, .. } => {
                    node.commands.push(result);
                    continue;
                }
                Effect::Serve { .. }
                | Effect::Compress { .. }
                | Effect::Resized { .. }
                | Effect::Measure
                | Effect::ConfirmWanted { .. } => continue,
                Effect::Wake => Event::Tick,
                Effect::Report(_) => continue,
            };
            self.queue.push_back((side, event));
        }
    }

    fn command(&mut self, side: usize, command: Command) -> Result<String, Refusal> {
        self.next += 1;
        let id = CommandId(self.next);
        self.queue.push_back((side, Event::Command { id, command }));
        self.run();
        self.node(side)
            .commands
            .pop()
            .expect("the command was answered")
    }

    fn write(&mut self, side: usize, offset: u64, byte: u8) -> Answer {
        let range = ByteRange::new(offset, 4096);
        let operation = Operation::Write {
            data: vec![byte; 4096].into(),
            fua: false,
        };
        self.request(side, range, operation)
    }

    fn request(&mut self, side: usize, range: ByteRange, operation: Operation) -> Answer {
        self.next += 1;
        let id = RequestId(self.next);
        self.queue.push_back((
            side,
            Event::Request(Request {
                id,
                range,
                operation,
            }),
        ));
        self.run();
        self.node(side)
            .answers
            .pop()
            .expect("the request was answered")
            .1
    }

    fn promote(&mut self, side: usize, peer_down: bool, force: bool) -> Result<String, Refusal> {
        self.command(
            side,
            Command::Promote {
                peer_down,
                force,
                grant: None,
            },
        )
    }

    fn synced() -> Self {
        let mut pair = Self::new();
        pair.promote(0, false, true).expect("forced");
        pair.expect_synced();
        pair
    }

    fn expect_synced(&mut self) {
        for side in 0..2 {
            let status = self.node(side).volume.status();
            assert_eq!(
                status.connection,
                Connection::Connected,
                "{side}: {status:?}"
            );
            assert_eq!(status.disk, DiskState::UpToDate, "{side}: {status:?}");
            assert_eq!(status.out_of_sync_bytes, 0, "{side}: {status:?}");
            assert_eq!(status.sync, None, "{side}");
        }
        assert!(
            self.nodes[0].as_ref().map(|node| &node.data)
                == self.nodes[1].as_ref().map(|node| &node.data),
            "sides differ"
        );
    }
}

#[test]
fn two_fresh_sides_wait_until_one_is_declared_the_truth() {
    let mut pair = Pair::new();
    assert_eq!(
        pair.node(0).volume.status().connection,
        Connection::Connected
    );
    let refusal = pair.promote(0, false, false).expect_err("no data yet");
    assert_eq!(refusal.rule, "no-data-yet");
    pair.promote(0, false, true).expect("forced");
    pair.expect_synced();
    assert_eq!(pair.node(1).data[0], 1, "the forced side's data won");
}

#[test]
fn a_write_is_on_both_disks_when_it_is_answered() {
    let mut pair = Pair::synced();
    assert_eq!(pair.write(0, 8192, 7), Answer::Done);
    assert_eq!((pair.node(0).data[8192], pair.node(1).data[8192]), (7, 7));
    let before = pair.node(0).metadata_writes;
    assert_eq!(pair.write(0, 16384, 8), Answer::Done);
    assert_eq!(
        pair.node(0).metadata_writes,
        before,
        "a hot extent costs no metadata"
    );
    assert_eq!(
        pair.request(0, ByteRange::new(0, 0), Operation::Flush),
        Answer::Done
    );
}

#[test]
fn a_returning_secondary_gets_only_what_it_missed() {
    let mut pair = Pair::synced();
    pair.cut();
    assert_eq!(pair.write(0, 0, 9), Answer::Done);
    assert_eq!(pair.node(0).volume.status().out_of_sync_bytes, 4096);
    pair.cut = false;
    pair.run();
    pair.expect_synced();
    assert_eq!(pair.node(0).volume.status().last_sync_copied_bytes, 4096);
}

#[test]
fn a_killed_primary_returns_as_secondary_and_catches_up() {
    let mut pair = Pair::synced();
    pair.write(0, 0, 5);
    pair.kill(0);
    let refusal = pair
        .promote(1, false, false)
        .expect_err("the peer may be ahead");
    assert_eq!(refusal.rule, "peer-may-be-ahead");
    pair.promote(1, true, false).expect("the operator's word");
    pair.write(1, 4 << 20, 6);
    pair.start(0);
    pair.expect_synced();
    assert_eq!(pair.node(0).volume.status().role, Role::Secondary);
    assert_eq!((pair.node(0).data[0], pair.node(0).data[4 << 20]), (5, 6));
    assert_eq!(
        pair.node(1).volume.status().last_sync_copied_bytes,
        4096,
        "doubt is compared"
    );
}

#[test]
fn a_primary_that_died_is_reinstated_in_its_epoch_when_the_peer_was_not_promoted() {
    let mut pair = Pair::synced();
    pair.write(0, 0, 5);
    let epoch = pair.node(0).volume.status().epoch;
    for byte in 6..9 {
        pair.kill(0);
        pair.start(0);
        pair.expect_synced();
        pair.command(0, Command::Reinstate { alone: false })
            .expect("nobody else was primary");
        let status = pair.node(0).volume.status();
        assert_eq!((status.role, status.epoch), (Role::Primary, epoch));
        pair.write(0, 4096, byte);
        pair.expect_synced();
    }
}

#[test]
fn a_walk_makes_way_for_the_clients_of_a_device_before_they_are_back() {
    let mut pair = Pair::synced();
    pair.kill(0);
    pair.start(0);
    let steps_begun = |pair: &mut Pair| {
        let mut effects = Vec::new();
        let (id, now) = (CommandId(0), pair.now);
        let command = Command::Verify { repair: false };
        let volume = &mut pair.node(0).volume;
        volume.step(now, Event::Command { id, command }, &mut effects);
        let reads = effects
            .iter()
            .filter(|it| matches!(it, Effect::Read { .. }));
        let begun = reads.count();
        pair.carry_out(0, effects);
        pair.run();
        begun
    };
    pair.run();
    assert_eq!(steps_begun(&mut pair), 4, "no client is active");
    pair.command(0, Command::Reinstate { alone: false })
        .expect("nobody else was primary");
    assert_eq!(steps_begun(&mut pair), 1, "clients are to come back");
    pair.expect_synced();
    pair.now.monotonic_ms += 2_100;
    assert_eq!(steps_begun(&mut pair), 4, "they did not");
}

#[test]
fn nobody_is_reinstated_after_another_or_without_its_word() {
    const REINSTATE: Command = Command::Reinstate { alone: false };
    let rule = |result: Result<String, Refusal>| result.expect_err("it proves nothing").rule;
    let mut pair = Pair::synced();
    assert_eq!(
        rule(pair.command(1, REINSTATE)),
        NOT_REINSTATED,
        "never primary"
    );
    pair.kill(1);
    pair.kill(0);
    pair.start(0);
    assert_eq!(rule(pair.command(0, REINSTATE)), "peer-not-seen");
    let alone = Command::Reinstate { alone: true };
    assert_eq!(
        rule(pair.command(0, alone)),
        "peer-not-seen",
        "nobody grants anything"
    );
    pair.kill(0);
    pair.start(1);
    pair.start(0);
    pair.command(0, REINSTATE).expect("the peer was down");

    // The other one is primary for a moment, and writes nothing.
    pair.kill(0);
    pair.promote(1, true, false).expect("the operator's word");
    pair.command(1, Command::Demote).expect("demoted");
    pair.start(0);
    assert_eq!(rule(pair.command(0, REINSTATE)), NOT_REINSTATED);
    pair.promote(0, false, false).expect("a new epoch");
    pair.command(0, Command::Demote).expect("demoted");
    assert_eq!(rule(pair.command(0, REINSTATE)), NOT_REINSTATED, "it left");
}

#[test]
fn both_sides_written_alone_is_a_split_brain_until_one_is_given_up() {
    let mut pair = Pair::synced();
    pair.cut();
    pair.write(0, 0, 5);
    pair.promote(1, true, false).expect("a wrong word");
    pair.write(1, 4096, 6);
    pair.cut = false;
    pair.drop_link();
    // Split brains are met again and again; take them one meeting at a time.
    for side in 0..2 {
        pair.queue.push_back((
            side,
            Event::LinkUp {
                link: LinkId(1 << 40),
            },
        ));
    }
    pair.link = Some(LinkId(1 << 40));
    pair.cut = true;
    pair.run();
    assert_eq!(
        pair.node(0).volume.status().connection,
        Connection::SplitBrain
    );
    assert_eq!(
        pair.node(1).volume.status().connection,
        Connection::SplitBrain
    );
    pair.command(1, Command::Demote).expect("demoted");
    let discard = Command::Resync {
        full: false,
        discard_local: true,
    };
    pair.command(1, discard).expect("given up");
    pair.cut = false;
    pair.run();
    pair.expect_synced();
    assert_eq!((pair.node(1).data[0], pair.node(1).data[4096]), (5, 1));
}

#[test]
fn roles_swap_without_a_resync_and_after_a_clean_stop_no_word_is_needed() {
    let mut pair = Pair::synced();
    pair.write(0, 0, 5);
    pair.command(0, Command::Demote).expect("demoted");
    pair.promote(1, false, false)
        .expect("connected and up to date");
    assert_eq!(pair.write(1, 0, 6), Answer::Done);
    pair.expect_synced();
    pair.command(1, Command::Stop).expect("stopped");
    pair.kill(1);
    pair.promote(0, false, false)
        .expect("the peer stopped cleanly");
    pair.write(0, 4096, 7);
    pair.start(1);
    pair.expect_synced();
}

#[test]
fn verify_finds_and_repairs_a_silent_difference() {
    let mut pair = Pair::synced();
    pair.node(1).data[1 << 20] ^= 1;
    pair.command(0, Command::Verify { repair: false })
        .expect("started");
    let status = pair.node(0).volume.status();
    assert_eq!(status.last_verify_mismatch_bytes, Some(4096));
    assert_eq!(status.out_of_sync_bytes, 4096);
    pair.command(0, Command::Verify { repair: true })
        .expect("started");
    pair.expect_synced();
}

#[test]
fn a_lost_superblock_copy_is_the_first_to_be_written_again() {
    for copy in [0, 1] {
        let mut metadata = Pair::new().nodes[0].take().expect("started").metadata;
        metadata[SUPERBLOCK_OFFSETS[copy] as usize + 100] ^= 1;
        let loaded = parse(metadata.len() as u64, |offset, buffer| {
            let start = offset as usize;
            buffer.copy_from_slice(&metadata[start..start + buffer.len()]);
            Ok(())
        })
        .expect("the other copy is good");
        let seed = Seed {
            incarnation: Uuid([1; 16]),
            boot: Uuid([9; 16]),
            entropy: 1,
        };
        let mut effects = Vec::new();
        Volume::open(config(0), loaded, seed, Now::default(), &mut effects);
        let first = effects.iter().find_map(|effect| match effect {
            Effect::WriteMetadata { offset, .. } => Some(*offset),
            _ => None,
        });
        assert_eq!(first, Some(SUPERBLOCK_OFFSETS[copy]));
    }
}
