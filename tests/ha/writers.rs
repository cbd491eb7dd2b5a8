//! A client on each side that writes numbered blocks whenever its server answers.

use anyhow::{Context, Result, ensure};
use local_cluster::Bed;
use local_pair::{Answer, Pair, Side, WhenLost};

#[derive(Debug)]
pub struct Writers(local_pair::Writers);

impl Writers {
    pub fn start(pair: &Pair) -> Result<Self> {
        let exports = Side::BOTH.map(|side| pair.uri(side));
        let started = local_pair::Writers::start(pair.folder(), "side", &exports, WhenLost::GoOn);
        started.map(Self)
    }

    /// What a side answered so far, in order.
    pub fn answers(&self, side: Side) -> Vec<Answer> {
        self.0.answers(side.index())
    }

    /// A write was sent after this moment, and answered.
    pub fn answered_since(&self, side: Side, ns: u64) -> bool {
        let last = self.answers(side).pop();
        last.is_some_and(|answer| answer.sent_ns > ns)
    }

    pub fn count(&self, side: Side) -> usize {
        self.answers(side).len()
    }

    /// Waits until a side has answered 50 more.
    pub fn wait_for_more(&self, bed: &mut Bed, side: Side) -> Result<()> {
        let goal = self.count(side) + 50;
        bed.until(&format!("answers of {side:?}"), 60, |_| {
            Ok((self.count(side) >= goal).then_some(()))
        })
    }

    pub fn stop(&mut self) -> Result<()> {
        self.0.kill()
    }

    /// Every answered write of these sides is on the export of `from`.
    pub fn check(&self, pair: &Pair, of: &[Side], from: Side) -> Result<()> {
        for side in of {
            ensure!(self.count(*side) > 0, "{side:?} answered nothing to check");
        }
        let writers: Vec<usize> = of.iter().map(|side| side.index()).collect();
        self.0.check_those_of(&writers, &pair.uri(from))
    }
}

/// The service never was in two places: after the first answer of `new`, `old` gave none.
pub fn ensure_handed_over(old: &[Answer], new: &[Answer]) -> Result<()> {
    ensure_none_late(old.iter(), new)
}

/// The same where `old` stood still from `frozen_ns` on. A reply that was proved by then may have been on its way to the
/// client, who writes one block at a time, and comes as that side wakes up: `docs/leases.md` says why it is right.
pub fn ensure_handed_over_asleep(old: &[Answer], new: &[Answer], frozen_ns: u64) -> Result<()> {
    let in_flight = old.iter().rposition(|answer| answer.sent_ns < frozen_ns);
    let others = old.iter().enumerate();
    let others = others.filter(|(index, _)| Some(*index) != in_flight);
    ensure_none_late(others.map(|(_, answer)| answer), new)
}

fn ensure_none_late<'a>(old: impl Iterator<Item = &'a Answer>, new: &[Answer]) -> Result<()> {
    let first = new.first().context("the new side answered nothing")?;
    let late: Vec<_> = old
        .filter(|answer| answer.done_ns > first.done_ns)
        .collect();
    ensure!(
        late.is_empty(),
        "{} writes were answered by the old side after the new one began at {}: the first was sent at {} \
         and answered at {}",
        late.len(),
        first.done_ns,
        late[0].sent_ns,
        late[0].done_ns
    );
    Ok(())
}
