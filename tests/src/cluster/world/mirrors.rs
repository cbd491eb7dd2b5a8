//! The mirrors' processes, their cable, and the clients before them.

use super::*;
use crate::cluster::handshake::{meet, settle};
use crate::cluster::mirror::What;

/// Of a hundred steps, those in which a client asks something.
const ASKS_PERCENT: u64 = 8;
const WRITES_PERCENT: u64 = 70;

impl World {
    pub(super) fn run_mirrors(&mut self) {
        let now_ms = self.now_ms;
        self.join();
        for from in 0..2 {
            self.pump(from);
        }
        self.finish_copy();
        for node in 0..2 {
            if !self.machines[node].mirror_runs(now_ms) {
                continue;
            }
            self.ask_as_client(node);
            let node_ms = self.machines[node].clock.read(now_ms);
            self.mirrors[node].tick(node_ms, now_ms, &mut self.promotions, &mut self.generations);
        }
        for node in 0..2 {
            self.take_answers(node);
            self.post(node);
        }
    }

    fn ask_as_client(&mut self, node: usize) {
        let machine = &self.machines[node];
        if !machine.application || !machine.mounted || !self.random.percent(ASKS_PERCENT) {
            return;
        }
        let write = self.random.percent(WRITES_PERCENT);
        if !self.mirrors[node].can_take(write) {
            return;
        }
        let what = if write {
            self.writes += 1;
            What::Write(self.writes)
        } else {
            let holds = &self.mirrors[node].disk.data;
            What::Read {
                stale: self.checker.first_missing_in(holds),
            }
        };
        let node_ms = self.machines[node].clock.read(self.now_ms);
        self.mirrors[node].submit(node_ms, what);
    }

    fn take_answers(&mut self, node: usize) {
        let Some(process) = &mut self.mirrors[node].process else {
            return;
        };
        let answers = std::mem::take(&mut process.answers);
        for answer in answers {
            let had = self.checker.violation().is_some();
            self.checker
                .on_answer(self.now_ms, node, &answer, &self.mirrors[node].disk.data);
            if !had && self.checker.violation().is_some() {
                self.say(|| format!("{node} answers {answer:?}"));
            }
        }
    }

    /// Answers that a lease confirmation released were proved when the arbiter gave it.
    pub(super) fn date_confirmed(&mut self, node: usize, deadline_ms: u64) {
        let config = self.settings.node(node);
        let trusted_ms = config.arbiter.map_or(0, |arbiter| arbiter.trusted_ms());
        let sent_ms = deadline_ms.saturating_sub(trusted_ms);
        let at_ms = self.machines[node]
            .confirmed
            .iter()
            .rev()
            .find(|(sent, _)| *sent == sent_ms)
            .map_or(self.now_ms, |(_, at_ms)| *at_ms);
        if let Some(process) = &mut self.mirrors[node].process {
            for answer in &mut process.answers {
                if answer.ok && answer.proved_ms == 0 {
                    answer.proved_ms = at_ms;
                }
            }
        }
        self.take_answers(node);
    }

    fn post(&mut self, from: usize) {
        let epoch = self.mirrors[from].disk.epoch;
        let Some(process) = &mut self.mirrors[from].process else {
            return;
        };
        for message in std::mem::take(&mut process.outbox) {
            let last_ms = self.cable[from].back().map_or(0, |(due_ms, ..)| *due_ms);
            let due_ms = (self.now_ms + self.random.between(1, 6)).max(last_ms);
            self.cable[from].push_back((due_ms, self.session, epoch, message));
        }
    }

    /// In order, when the line passes and the receiver runs; held up until then.
    fn pump(&mut self, from: usize) {
        let to = 1 - from;
        if !self.network.passes(Line::Mirror { from })
            || !self.machines[to].mirror_runs(self.now_ms)
        {
            return;
        }
        while let Some((due_ms, session, epoch, message)) = self.cable[from].front().copied() {
            if due_ms > self.now_ms {
                return;
            }
            self.cable[from].pop_front();
            let node_ms = self.machines[to].clock.read(self.now_ms);
            self.mirrors[to].receive(
                node_ms,
                self.now_ms,
                session,
                epoch,
                message,
                &mut self.promotions,
            );
        }
    }

    fn join(&mut self) {
        if !self.network.links_mirrors() {
            return;
        }
        let now_ms = self.now_ms;
        let nodes_ms = [0, 1].map(|node: usize| self.machines[node].clock.read(now_ms));
        let ready = (0..2).all(|node| {
            self.machines[node].mirror_runs(now_ms)
                && self.mirrors[node].process.as_ref().is_some_and(|process| {
                    process.link.is_none() && nodes_ms[node] >= process.retry_ms
                })
        });
        if !ready {
            return;
        }
        self.session += 1;
        if let Some(what) = meet(&mut self.mirrors, nodes_ms, self.session) {
            self.say(|| what);
        }
    }

    fn finish_copy(&mut self) {
        if !self.network.links_mirrors()
            || !(0..2).all(|node| self.machines[node].mirror_runs(self.now_ms))
        {
            return;
        }
        let sides = [0, 1].map(|node: usize| {
            let process = self.mirrors[node].process.as_ref()?;
            let link = process.link.as_ref()?;
            Some((link.session, process.is_source, process.resync_until_ms))
        });
        let [Some((one, ..)), Some((other, ..))] = sides else {
            return;
        };
        if one != other {
            return;
        }
        for (node, side) in sides.into_iter().enumerate() {
            let node_ms = self.machines[node].clock.read(self.now_ms);
            if let Some((_, true, Some(until_ms))) = side
                && node_ms >= until_ms
            {
                settle(&mut self.mirrors, node);
                self.say(|| format!("mirrors: {node} has copied"));
            }
        }
    }
}
