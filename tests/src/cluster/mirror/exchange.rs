//! Requests of clients, and what the two sides of the model say to each other.

use std::collections::VecDeque;

use super::{
    Answer, KEEPALIVE_MS, Message, Mirror, Order, PEER_TIMEOUT_MS, Pending, What, Word, Work,
};

/// Requests of one kind that are under way at once.
const CLIENTS: usize = 3;

impl Mirror {
    /// Clients beyond the limit wait outside. Those that read do not wait for those that write.
    pub fn can_take(&self, write: bool) -> bool {
        self.process.as_ref().is_some_and(|process| {
            let same = |pending: &&Pending| matches!(pending.what, What::Write(_)) == write;
            process.primary && process.pending.iter().filter(same).count() < CLIENTS
        })
    }

    pub fn submit(&mut self, now_ms: u64, what: What) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.order == Order::Failing || !process.primary {
            return;
        }
        let work = match what {
            What::Read { .. } => Work::Done { word: None },
            What::Write(number) => {
                self.disk.data.insert(number);
                if process.is_replicating() {
                    process.outbox.push(Message::Write {
                        number,
                        asked_ms: now_ms,
                    });
                    Work::AtPeer
                } else {
                    Work::Alone
                }
            }
        };
        process.pending.push_back(Pending {
            what,
            work,
            question: 0,
            ticket: 0,
        });
    }

    pub fn fail_all(&mut self) {
        let epoch = self.disk.epoch;
        if let Some(process) = &mut self.process {
            for pending in process.pending.drain(..) {
                process.answers.push(Answer {
                    what: pending.what,
                    ok: false,
                    promotion: process.promotion,
                    epoch,
                    proved_ms: 0,
                });
            }
        }
    }

    pub fn break_link(&mut self, now_ms: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.link.take().is_none() {
            return;
        }
        process.outbox.push(Message::End);
        process.retry_ms = now_ms + 300;
        process.question_ms = None;
        process.resync_until_ms = None;
        for pending in &mut process.pending {
            if pending.work == Work::AtPeer {
                pending.work = Work::Alone;
            }
        }
    }

    /// `true_ms` is for the checker alone.
    pub fn receive(
        &mut self,
        now_ms: u64,
        true_ms: u64,
        session: u64,
        sender_epoch: u64,
        message: Message,
        next: &mut u64,
    ) {
        let own = self.disk.epoch;
        let arbiter = self.rules.arbiter;
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(link) = &mut process.link else {
            return;
        };
        if link.session != session {
            return;
        }
        link.heard_ms = now_ms;
        if message == Message::End {
            self.break_link(now_ms);
            return;
        }
        if arbiter && sender_epoch > own && process.primary {
            self.step_aside();
            self.break_link(now_ms);
            return;
        }
        match message {
            Message::KeepAlive | Message::End => {}
            Message::State { primary, current } => {
                link.peer_primary = primary;
                link.peer_current = current;
            }
            Message::Write { number, asked_ms } => {
                if process.primary || (arbiter && sender_epoch < own) {
                    self.break_link(now_ms);
                    return;
                }
                process.vouched_ms = now_ms;
                process.outbox.push(Message::Ack {
                    number,
                    asked_ms,
                    given_ms: true_ms,
                });
                self.disk.data.insert(number);
            }
            Message::Ack {
                number,
                asked_ms,
                given_ms,
            } => {
                let word = Some(Word { asked_ms, given_ms });
                for pending in &mut process.pending {
                    if pending.what == What::Write(number) && pending.work == Work::AtPeer {
                        pending.work = Work::Done { word };
                    }
                }
            }
            Message::Confirm { question, asked_ms } => {
                if !process.primary && process.promoting.is_none() && sender_epoch == own {
                    process.vouched_ms = now_ms;
                    process.outbox.push(Message::Confirmed {
                        question,
                        asked_ms,
                        given_ms: true_ms,
                    });
                }
            }
            Message::Confirmed {
                question,
                asked_ms,
                given_ms,
            } => {
                process.question_ms = None;
                let word = Word { asked_ms, given_ms };
                for pending in &mut process.pending {
                    if let Work::Done { word: old } = &mut pending.work
                        && pending.question != 0
                        && pending.question <= question
                    {
                        *old = Some(word);
                    }
                }
            }
            Message::PromoteRequest { epoch } => {
                let racing = process.promoting.is_some() && self.rules.first;
                let copying = process.resync_until_ms.is_some();
                let granted = !(process.primary || racing || copying || (arbiter && epoch <= own));
                if granted {
                    link.peer_primary = true;
                    self.disk.epoch = own.max(epoch);
                    self.disk.last_primary = false;
                }
                process.outbox.push(Message::PromoteReply { granted });
            }
            Message::PromoteReply { granted } => {
                let Some(promoting) = process.promoting.filter(|promoting| promoting.asked) else {
                    return;
                };
                if granted && self.disk.is_current() {
                    self.become_primary(next);
                } else {
                    process.promoting = None;
                    process
                        .outcomes
                        .insert(promoting.id, Err("peer-refused".into()));
                }
            }
        }
    }

    pub(super) fn on_confirmed_lease(&mut self, now_ms: u64, confirmed: u64) {
        let live = self.is_live(now_ms);
        let epoch = self.disk.epoch;
        let Some(process) = &mut self.process else {
            return;
        };
        if !live || !self.rules.round_trip || process.order != Order::Open {
            return;
        }
        let promotion = process.promotion;
        let (go, stay): (VecDeque<_>, VecDeque<_>) =
            process.pending.drain(..).partition(|pending: &Pending| {
                matches!(pending.work, Work::Done { .. })
                    && pending.ticket != 0
                    && pending.ticket <= confirmed
            });
        process.pending = stay;
        for pending in go {
            process.answers.push(Answer {
                what: pending.what,
                ok: true,
                promotion,
                epoch,
                // When the arbiter confirmed; the world knows better and fills it in.
                proved_ms: 0,
            });
        }
    }

    pub(super) fn watch_link(&mut self, now_ms: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(link) = &mut process.link else {
            return;
        };
        if now_ms.saturating_sub(link.heard_ms) >= PEER_TIMEOUT_MS {
            self.break_link(now_ms);
            return;
        }
        if now_ms.saturating_sub(link.said_ms) >= KEEPALIVE_MS {
            link.said_ms = now_ms;
            process.outbox.push(Message::KeepAlive);
        }
    }
}
