//! One volume against a scripted peer: what only another version, another configuration or a broken
//! peer would send.

use super::config::{Compression, Seed, VolumeConfig};
use super::effect::Effect;
use super::event::{Event, Output};
use super::tests::{config, fresh_metadata};
use super::{Now, Volume};
use crate::layout::metadata::parse;
use crate::link::handshake::{Rule, Strategy};
use crate::units::{ByteRange, Epoch, Generation, IoToken, LinkId, Sequence, Uuid};
use crate::wire::message::{
    DiskState, Envelope, FEATURE_COMPRESSION, Hello, InitialSync, Message, Mode, PeerLoss,
};

const LINK: LinkId = LinkId(1);

/// The second node; the test speaks for the first.
struct Scripted {
    volume: Volume,
    /// Everything but metadata writes, which are done at once.
    effects: Vec<Effect>,
}

impl Scripted {
    fn new(side: usize) -> Self {
        Self::with(side, config(side))
    }

    fn with(side: usize, config: VolumeConfig) -> Self {
        let metadata = fresh_metadata(side);
        let loaded = parse(metadata.len() as u64, |offset, buffer| {
            let start = offset as usize;
            buffer.copy_from_slice(&metadata[start..start + buffer.len()]);
            Ok(())
        })
        .expect("readable metadata");
        let seed = Seed {
            incarnation: Uuid([side as u8 + 1; 16]),
            boot: Uuid([9; 16]),
            entropy: side as u64,
        };
        let mut effects = Vec::new();
        let volume = Volume::open(config, loaded, seed, Now::default(), &mut effects);
        let mut scripted = Self {
            volume,
            effects: Vec::new(),
        };
        scripted.carry_out(effects);
        scripted.step(Event::LinkUp { link: LINK });
        scripted
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.volume.step(Now::default(), event, &mut effects);
        self.volume.check_invariants();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::WriteMetadata { io, .. } => {
                    self.step(Event::MetadataDone { io, result: Ok(()) });
                }
                other => self.effects.push(other),
            }
        }
    }

    fn hears(&mut self, message: Message) {
        let epoch = Epoch(0);
        self.step(Event::Message {
            link: LINK,
            envelope: Envelope { epoch, message },
        });
    }

    fn hello(&self) -> Hello {
        self.effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Send { envelope, .. } => match &envelope.message {
                    Message::Hello(hello) => Some((**hello).clone()),
                    _ => None,
                },
                _ => None,
            })
            .expect("a hello was sent")
    }

    /// What it was told to compress for its peer.
    fn compression(&self) -> Option<Compression> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Compress { link, compression } => (*link == LINK).then_some(*compression),
            _ => None,
        })
    }

    fn has_told(&self, kind: &str) -> bool {
        let mut effects = self.effects.iter();
        effects.any(|effect| matches!(effect, Effect::Report(notice) if notice.kind == kind))
    }

    fn has_closed(&self) -> bool {
        self.effects
            .iter()
            .any(|effect| matches!(effect, Effect::CloseLink { .. }))
    }

    /// The disk writes asked for since the last call.
    fn writes(&mut self) -> Vec<(IoToken, ByteRange)> {
        let writes = self
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Write { io, range, .. } => Some((*io, *range)),
                _ => None,
            })
            .collect();
        self.effects.clear();
        writes
    }

    /// Connected to a peer that is as fresh as this side.
    fn connected() -> Self {
        let mut scripted = Self::new(1);
        scripted.hears(Message::Hello(Box::new(Self::new(0).hello())));
        scripted.hears(Message::Verdict {
            rule: Rule::BothFresh.code(),
            strategy: Strategy::Idle.code(),
        });
        assert!(!scripted.has_closed());
        scripted.effects.clear();
        scripted
    }

    fn hears_write(&mut self, sequence: u64, depends_on: u64, range: ByteRange) {
        self.hears(Message::Write {
            sequence: Sequence(sequence),
            depends_on: Sequence(depends_on),
            range,
            fua: false,
            data: vec![7; range.length as usize].into(),
        });
    }
}

#[test]
fn every_misfit_of_a_hello_is_named() {
    type Change = fn(&mut Hello);
    let cases: [(Change, &[&str]); 13] = [
        (
            |hello| (hello.version_min, hello.version_max) = (7, 9),
            &["versions 7 to 9", "upgrade"],
        ),
        (
            |hello| (hello.version_min, hello.version_max) = (0, 0),
            &["versions 0 to 0", "upgrade"],
        ),
        (|hello| hello.cluster = Uuid([9; 16]), &["another cluster"]),
        (
            |hello| hello.mirror = Uuid([9; 16]),
            &["another cluster or mirror"],
        ),
        (
            |hello| hello.node = Uuid::from_name("node", "server2"),
            &["same identity", "--node"],
        ),
        (
            |hello| hello.node = Uuid([9; 16]),
            &["is not server1", "addresses"],
        ),
        (
            |hello| hello.features = 0,
            &["features", "0x1", "upgrade server1"],
        ),
        (
            |hello| hello.mode = Mode::Async,
            &["mode is sync here and async on server1", "same file"],
        ),
        (
            |hello| hello.initial_sync = InitialSync::Skip,
            &["initial_sync is full here and skip on server1"],
        ),
        (
            |hello| hello.peer_loss = PeerLoss::Hold,
            &["peer_loss is continue here and hold on server1"],
        ),
        (|hello| hello.first = false, &["another order"]),
        (
            |hello| hello.config_digest = [9; 16],
            &["settings", "same file"],
        ),
        (
            |hello| hello.size_bytes = 1 << 40,
            &["data partition of server2", "enlarge it"],
        ),
    ];
    for (change, words) in cases {
        let mut hello = Scripted::new(0).hello();
        change(&mut hello);
        let mut scripted = Scripted::new(1);
        scripted.hears(Message::Hello(Box::new(hello)));
        assert!(scripted.has_closed(), "{words:?}");
        let said = scripted
            .effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Report(notice) if notice.kind == "handshake-refused" => {
                    Some(notice.message.clone())
                }
                _ => None,
            })
            .expect("the reason is reported");
        for word in words {
            assert!(said.contains(word), "{word:?} in {said:?}");
        }
    }
}

#[test]
fn a_logical_block_is_agreed_once() {
    let mut hello = Scripted::new(0).hello();
    hello.logical_block_bytes = 4096;
    for had_copy in [false, true] {
        let mut scripted = Scripted::new(1);
        scripted.volume.superblock.peer.had_copy = had_copy;
        scripted.hears(Message::Hello(Box::new(hello.clone())));
        assert_eq!(scripted.has_told("handshake-refused"), had_copy);
        assert!(!had_copy || scripted.volume.logical_block_bytes() == 512);
    }
}

#[test]
fn data_goes_compressed_only_to_a_peer_that_takes_it() {
    let ours = Scripted::new(0).hello();
    assert_ne!(ours.features & FEATURE_COMPRESSION, 0, "it always takes it");
    let older = Hello {
        features: ours.features & !FEATURE_COMPRESSION,
        ..ours.clone()
    };
    let cases = [
        (Compression::None, &ours, None, false),
        (Compression::None, &older, None, false),
        (Compression::Resync, &ours, Some(Compression::Resync), false),
        (Compression::Both, &older, None, true),
    ];
    for (compression, hello, expected, told) in cases {
        let mut config = config(1);
        config.compression = compression;
        let mut scripted = Scripted::with(1, config);
        scripted.hears(Message::Hello(Box::new(hello.clone())));
        assert!(!scripted.has_closed());
        assert_eq!(scripted.compression(), expected, "{compression:?}");
        assert_eq!(scripted.has_told("compression-off"), told);
    }
}

#[test]
fn an_older_peer_that_comes_back_is_told_of_once() {
    let mut hello = Scripted::new(0).hello();
    let mut config = config(1);
    config.compression = Compression::Both;
    let mut scripted = Scripted::with(1, config);
    for (takes_it, told) in [(false, true), (false, false), (true, false), (false, true)] {
        hello.features &= !FEATURE_COMPRESSION;
        hello.features |= if takes_it { FEATURE_COMPRESSION } else { 0 };
        scripted.hears(Message::Hello(Box::new(hello.clone())));
        assert_eq!(scripted.has_told("compression-off"), told);
        assert_eq!(scripted.compression().is_some(), takes_it);
        scripted.step(Event::LinkDown { link: LINK });
        scripted.effects.clear();
        scripted.step(Event::LinkUp { link: LINK });
    }
}

#[test]
fn overlapping_operations_of_the_peer_are_done_in_their_order() {
    let mut scripted = Scripted::connected();
    let (first, second) = (ByteRange::new(0, 8192), ByteRange::new(4096, 8192));
    scripted.hears_write(10, 0, first);
    scripted.hears_write(11, 0, second);
    scripted.hears_write(12, 0, ByteRange::new(1 << 20, 4096));
    let begun = scripted.writes();
    assert_eq!(
        begun.iter().map(|(_, range)| *range).collect::<Vec<_>>(),
        [first, ByteRange::new(1 << 20, 4096)],
        "what does not overlap is not held up"
    );
    scripted.step(Event::LocalDone {
        io: begun[0].0,
        result: Ok(Output::Nothing),
    });
    assert_eq!(scripted.writes()[0].1, second);
}

#[test]
fn an_operation_waits_for_all_up_to_its_barrier() {
    let mut scripted = Scripted::connected();
    scripted.hears_write(10, 0, ByteRange::new(0, 4096));
    scripted.hears_write(11, 0, ByteRange::new(8192, 4096));
    scripted.hears_write(12, 11, ByteRange::new(1 << 20, 4096));
    let begun = scripted.writes();
    assert_eq!(begun.len(), 2);
    let done = |io| Event::LocalDone {
        io,
        result: Ok(Output::Nothing),
    };
    scripted.step(done(begun[1].0));
    assert!(scripted.writes().is_empty(), "10 is still under way");
    scripted.step(done(begun[0].0));
    assert_eq!(scripted.writes().len(), 1);
}

#[test]
fn an_operation_that_waits_for_itself_ends_the_link() {
    let mut scripted = Scripted::connected();
    scripted.hears_write(10, 10, ByteRange::new(0, 4096));
    assert!(scripted.has_closed());
}

#[test]
fn an_operation_past_the_end_ends_the_link() {
    let mut scripted = Scripted::connected();
    let end = scripted.volume.size_bytes();
    scripted.hears_write(10, 0, ByteRange::new(end, 4096));
    assert!(scripted.has_closed());
}

/// Every way in which two sides that fit may end without a link has its words and its ways out.
#[test]
fn every_refusing_rule_is_explained_with_a_way_out() {
    type Change = fn(&mut Hello);
    let cases: [(Change, Rule, &str); 2] = [
        (
            |hello| hello.disk = DiskState::Failed,
            Rule::DiskFailed,
            "mirrorctl init md1   (on server1",
        ),
        (
            |hello| {
                hello.generations.current = Generation(5);
                hello.disk = DiskState::Inconsistent;
            },
            Rule::SourceInconsistent,
            "mirrorctl promote md1 --force",
        ),
    ];
    for (change, rule, command) in cases {
        let mut hello = Scripted::new(0).hello();
        change(&mut hello);
        let mut scripted = Scripted::new(1);
        scripted.hears(Message::Hello(Box::new(hello)));
        scripted.hears(Message::Verdict {
            rule: rule.code(),
            strategy: Strategy::Refuse.code(),
        });
        assert!(scripted.has_closed(), "{rule}");
        let explanation = scripted.volume.explain();
        assert_eq!(explanation.rule.as_deref(), Some(rule.name()));
        assert!(
            explanation
                .choices
                .iter()
                .any(|choice| choice.command.contains(command)),
            "{explanation:?}"
        );
    }
}
