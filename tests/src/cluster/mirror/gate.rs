//! The gate before every answer of the model, and going on alone.

use std::collections::VecDeque;

use super::{Answer, Message, Mirror, Order, Pending, Process, WORD_MS, Work};

impl Mirror {
    pub(super) fn is_frozen(&self, now_ms: u64) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        process.order != Order::Open || (process.primary && !self.can_prove(now_ms))
    }

    pub(super) fn is_live(&self, now_ms: u64) -> bool {
        self.process
            .as_ref()
            .and_then(|process| process.lease)
            .is_some_and(|lease| lease.epoch == self.disk.epoch && now_ms < lease.deadline_ms)
    }

    pub(super) fn can_prove(&self, now_ms: u64) -> bool {
        !self.rules.arbiter
            || self.rules.no_gate
            || self.is_live(now_ms)
            || self.process.as_ref().is_some_and(Process::is_replicating)
    }

    pub(super) fn go_alone(&mut self, next_generation: &mut u64) {
        let may = self.may_go_alone();
        let Some(process) = &mut self.process else {
            return;
        };
        if !process.primary || process.link.is_some() {
            return;
        }
        let waits = process
            .pending
            .iter()
            .any(|pending| pending.work == Work::Alone);
        if waits && !process.alone_durable && may {
            process.alone_durable = true;
            self.disk.leave_peer_behind(next_generation);
        }
        if process.alone_durable {
            for pending in &mut process.pending {
                if pending.work == Work::Alone {
                    pending.work = Work::Done { word: None };
                }
            }
        }
    }

    pub(super) fn advance_gate(&mut self, now_ms: u64, true_ms: u64) {
        let (rules, live, epoch) = (self.rules, self.is_live(now_ms), self.disk.epoch);
        let Some(process) = &mut self.process else {
            return;
        };
        if process.order != Order::Open || !process.primary {
            return;
        }
        let replicating = process.is_replicating();
        let promotion = process.promotion;
        let mut stay = VecDeque::new();
        for pending in process.pending.drain(..) {
            let Work::Done { word } = pending.work else {
                stay.push_back(pending);
                continue;
            };
            let fresh =
                word.filter(|word| replicating && now_ms.saturating_sub(word.asked_ms) <= WORD_MS);
            let open = !rules.arbiter || rules.no_gate;
            let proved_ms = if open || (live && !rules.round_trip) {
                Some(true_ms)
            } else {
                fresh.map(|word| word.given_ms)
            };
            match proved_ms {
                Some(proved_ms) => process.answers.push(Answer {
                    what: pending.what,
                    ok: true,
                    promotion,
                    epoch,
                    proved_ms,
                }),
                None => stay.push_back(pending),
            }
        }
        process.pending = stay;
        self.ask_for_proof(now_ms, replicating);
    }

    pub(super) fn ask_for_proof(&mut self, now_ms: u64, replicating: bool) {
        let round_trip = self.rules.round_trip;
        let Some(process) = &mut self.process else {
            return;
        };
        let done = |pending: &Pending| matches!(pending.work, Work::Done { .. });
        if replicating {
            let out = process
                .question_ms
                .is_some_and(|asked| now_ms.saturating_sub(asked) <= WORD_MS);
            if !out && process.pending.iter().any(done) {
                process.question += 1;
                process.question_ms = Some(now_ms);
                for pending in &mut process.pending {
                    if done(pending) && pending.question == 0 {
                        pending.question = process.question;
                    }
                }
                process.outbox.push(Message::Confirm {
                    question: process.question,
                    asked_ms: now_ms,
                });
            }
        } else if round_trip
            && process
                .pending
                .iter()
                .any(|pending| done(pending) && pending.ticket == 0)
        {
            process.ticket += 1;
            for pending in &mut process.pending {
                if done(pending) && pending.ticket == 0 {
                    pending.ticket = process.ticket;
                }
            }
        }
    }
}
