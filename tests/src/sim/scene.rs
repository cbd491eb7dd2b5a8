//! What tests bring about by hand: a pair in sync, requests with their answers, and the end that every
//! scene must come to.

use std::ops::Range;

use mirror_core::control::Connection;
use mirror_core::request::Answer;
use mirror_core::units::EXTENT_BYTES;
use mirror_core::volume::event::Command;
use mirror_core::volume::refusal::Refusal;

use crate::sim::client::Asked;
use crate::sim::content::{self, Tag};
use crate::sim::disk::Unit;
use crate::sim::network::NodeIndex;
use crate::sim::settings::Settings;
use crate::sim::world::World;

/// Virtual time within which a scene's next state must come.
pub const SOON_MS: u64 = 20_000;

impl World {
    /// Two nodes in sync; node 0 serves. Panics where that does not come about.
    pub fn pair(seed: u64, settings: Settings) -> Self {
        let mut world = Self::founded(seed, settings);
        world.until("both sides are in sync", |world| world.is_settled());
        world
    }

    /// Two nodes in sync under an arbiter, and the one that serves. Panics where that does not come about.
    pub fn arbitrated_pair(seed: u64, settings: Settings) -> (Self, NodeIndex) {
        let mut world = Self::new(seed, settings, true);
        world.keep_answers();
        world.start(0);
        world.start(1);
        world.until("both are in sync and one serves", |world| {
            world.serving().is_some() && world.is_settled()
        });
        let node = world.serving().expect("somebody serves");
        (world, node)
    }

    /// Two nodes whose first sync is about to begin; node 0 serves.
    pub fn founded(seed: u64, settings: Settings) -> Self {
        let mut world = Self::new(seed, settings, true);
        world.keep_answers();
        world.start(0);
        world.start(1);
        world.must("force a first primary", |world| {
            world.promote(0, false, true).is_ok()
        });
        world
    }

    /// Panics with the trace if a rule is broken.
    pub fn assert_sound(&mut self) {
        if let Some(violation) = self.violation.clone() {
            let trace = self.take_trace();
            let from = trace.len().saturating_sub(60);
            panic!(
                "{} is broken: {}\n{}",
                violation.rule,
                violation.message,
                trace[from..].join("\n")
            );
        }
    }

    fn must(&mut self, what: &str, does: impl FnOnce(&mut Self) -> bool) {
        let done = does(self);
        self.assert_sound();
        if !done {
            let trace = self.take_trace();
            let from = trace.len().saturating_sub(60);
            panic!(
                "it did not come about: {what}\n{}",
                trace[from..].join("\n")
            );
        }
    }

    /// Lets time pass until something holds. Panics if it does not come, or if a rule is broken.
    pub fn until(&mut self, what: &str, holds: impl FnMut(&mut Self) -> bool) {
        self.must(what, |world| world.run_until(SOON_MS, holds));
    }

    pub fn promote(
        &mut self,
        node: NodeIndex,
        peer_down: bool,
        force: bool,
    ) -> Result<String, Refusal> {
        let command = Command::Promote {
            peer_down,
            force,
            grant: None,
        };
        let outcome = self.command(node, command);
        self.assert_sound();
        outcome.unwrap_or_else(|| panic!("{command:?} on node {node} never ended"))
    }

    /// Promotes a node although the other one serves: its data becomes a line of its own.
    pub fn promote_apart(&mut self, node: NodeIndex) {
        self.operator.diverging = Some(node);
        let done = self.promote(node, true, false);
        assert!(done.is_ok(), "{done:?}");
    }

    /// From now on both nodes are expected to follow the line of `winner`.
    pub fn give_up_line(&mut self, loser: NodeIndex, winner: NodeIndex) {
        self.line[loser] = self.line[winner];
    }

    /// Submits a request and returns its answer. Panics if none comes.
    pub fn asked(&mut self, node: NodeIndex, asked: Asked) -> Answer {
        let text = format!("{asked:?}");
        let answer = self.ask(node, asked);
        self.assert_sound();
        answer.unwrap_or_else(|| panic!("{text} on node {node} was never answered"))
    }

    /// Writes units and expects that to be answered as done.
    pub fn write(&mut self, node: NodeIndex, units: Range<Unit>) {
        let answer = self.asked(node, Asked::write(units.clone()));
        assert_eq!(answer, Answer::Done, "write of {units:?}");
    }

    /// The content that a read of one unit brings.
    pub fn read(&mut self, node: NodeIndex, unit: Unit) -> Tag {
        match self.asked(node, Asked::read(unit..unit + 1)) {
            Answer::Data(data) => {
                content::decode(self.settings.unit_bytes, &data).expect("whole units")[0]
            }
            answer => panic!("read of unit {unit}: {answer:?}"),
        }
    }

    /// The first unit of an extent.
    pub fn extent(&self, extent: u64) -> Unit {
        extent * (EXTENT_BYTES / u64::from(self.settings.unit_bytes))
    }

    /// The node says that it is connected.
    pub fn is_connected(&self, node: NodeIndex) -> bool {
        self.status(node)
            .is_some_and(|status| status.connection == Connection::Connected)
    }

    /// Heals everything; both sides must come to rest, be equal and hold what was promised.
    pub fn end_well(mut self) {
        self.end();
        self.assert_sound();
    }
}
