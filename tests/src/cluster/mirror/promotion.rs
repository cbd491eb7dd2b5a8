//! How a side of the model gets the role and loses it.

use agent::node::event::Permit;

use super::{Message, Mirror, Order, PROMOTE_MS_MAX, Promoting, WORD_OVER_MS};

impl Mirror {
    /// The arbiter granted a later epoch to the other side.
    pub fn step_aside(&mut self) {
        self.fail_all();
        let Some(process) = &mut self.process else {
            return;
        };
        process.primary = false;
        process.alone_durable = false;
        process.lease = None;
        if process.order == Order::Failing {
            process.order = Order::Open;
        }
        if let Some(promoting) = process.promoting.take() {
            process
                .outcomes
                .insert(promoting.id, Err("superseded".into()));
        }
        self.disk.primary = false;
        self.disk.outdated = true;
        self.disk.discard_local |= self.disk.base != 0;
    }

    pub fn promote(&mut self, now_ms: u64, id: u64, permit: Permit) {
        let refused = self.refuse_promotion(permit);
        let Some(process) = &mut self.process else {
            return;
        };
        if let Some(outcome) = refused {
            process.outcomes.insert(id, outcome);
            return;
        }
        process.promoting = Some(Promoting {
            id,
            permit,
            since_ms: now_ms,
            asked: false,
        });
        let follows = process.link.as_ref().is_some_and(|link| link.peer_primary);
        if follows && permit.grant.is_some() {
            // It stops acknowledging before it is primary itself.
            self.break_link(now_ms);
        }
    }

    pub(super) fn refuse_promotion(&self, permit: Permit) -> Option<Result<(), String>> {
        let process = self.process.as_ref()?;
        let own = self.disk.epoch;
        if process.primary {
            return Some(match permit.grant {
                Some(grant) if grant.epoch < own => Err("grant-is-old".into()),
                _ => Ok(()),
            });
        }
        if process.promoting.is_some() {
            return Some(Err("busy".into()));
        }
        let peer_is_primary = process.link.as_ref().is_some_and(|link| link.peer_primary);
        match (permit.grant, self.rules.arbiter) {
            // Its demotion may be on its way.
            (None, false) if peer_is_primary => return Some(Err("peer-is-primary".into())),
            (None, true) => return Some(Err("no-grant".into())),
            (Some(grant), true) if grant.epoch <= own => return Some(Err("grant-is-old".into())),
            _ => {}
        }
        if !self.disk.is_current() && (!permit.force || process.link.is_some()) {
            return Some(Err("outdated or inconsistent".into()));
        }
        None
    }

    pub fn forget(&mut self, id: u64) {
        if let Some(process) = &mut self.process {
            process.outcomes.remove(&id);
        }
    }

    pub(super) fn advance_promotion(
        &mut self,
        now_ms: u64,
        next_promotion: &mut u64,
        next_generation: &mut u64,
    ) {
        let Some(promoting) = self.process.as_ref().and_then(|process| process.promoting) else {
            return;
        };
        let give_up = |mirror: &mut Self, reason: &str| {
            if let Some(process) = &mut mirror.process {
                process.promoting = None;
                process.outcomes.insert(promoting.id, Err(reason.into()));
            }
        };
        if now_ms.saturating_sub(promoting.since_ms) >= PROMOTE_MS_MAX {
            return give_up(self, "the peer does not agree in time");
        }
        let is_current = self.disk.is_current();
        let force = promoting.permit.force;
        let Some(process) = &mut self.process else {
            return;
        };
        if !is_current && (!force || process.link.is_some()) {
            return give_up(self, "outdated or inconsistent");
        }
        if let Some(link) = &process.link {
            if link.peer_primary {
                return give_up(self, "peer-is-primary");
            }
            if !promoting.asked {
                let epoch = promoting
                    .permit
                    .grant
                    .map_or(self.disk.epoch + 1, |grant| grant.epoch);
                process.outbox.push(Message::PromoteRequest { epoch });
                process.promoting = Some(Promoting {
                    asked: true,
                    ..promoting
                });
            }
            return;
        }
        if promoting.asked {
            return give_up(self, "peer-lost");
        }
        if promoting.permit.grant.is_some() {
            if now_ms < process.vouched_ms + WORD_OVER_MS {
                return;
            }
        } else if !force && !process.peer_seen {
            return give_up(self, "peer-not-seen");
        } else if !force && !promoting.permit.peer_down {
            return give_up(self, "peer-may-be-ahead");
        }
        if force {
            self.disk.outdated = false;
            self.disk.inconsistent = false;
            self.disk.discard_local = false;
            self.disk.leave_peer_behind(next_generation);
        }
        self.disk.peer_confirmed_down |= promoting.permit.peer_down || force;
        self.become_primary(next_promotion);
    }

    /// It was primary when it died, and nobody else was since.
    pub(super) fn may_be_reinstated(&self) -> bool {
        let epoch = self
            .process
            .as_ref()
            .and_then(|process| process.reinstatable);
        epoch == Some(self.disk.epoch) && self.disk.primary && self.disk.is_current()
    }

    /// Primary again in the epoch in which it died, with the leave of a peer that was not since, and no lease.
    pub(super) fn reinstate(&mut self, next_promotion: &mut u64) {
        let may = self.may_be_reinstated();
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(link) = &mut process.link else {
            return;
        };
        let asked = process.promoting.is_some() || process.primary;
        let gives = !link.peer_primary && process.resync_until_ms.is_none();
        if asked || !gives || !may {
            return;
        }
        link.replicating = true;
        *next_promotion += 1;
        process.reinstatable = None;
        process.primary = true;
        process.promotion = *next_promotion;
        process.alone_durable = false;
        process.lease = None;
        process.outbox.push(Message::State {
            primary: true,
            current: true,
        });
    }

    pub(super) fn become_primary(&mut self, next_promotion: &mut u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(promoting) = process.promoting.take() else {
            return;
        };
        *next_promotion += 1;
        process.reinstatable = None;
        process.primary = true;
        process.promotion = *next_promotion;
        process.alone_durable = false;
        process.lease = promoting.permit.grant;
        if process.order == Order::Failing {
            process.order = Order::Open;
        }
        self.disk.epoch = promoting
            .permit
            .grant
            .map_or(self.disk.epoch + 1, |grant| grant.epoch);
        self.disk.primary = true;
        self.disk.last_primary = true;
        process.outcomes.insert(promoting.id, Ok(()));
        process.outbox.push(Message::State {
            primary: true,
            current: true,
        });
        if let Some(link) = &mut process.link {
            link.replicating = true;
        }
    }

    /// False: requests wait for the lost peer's fate.
    pub fn demote(&mut self, force: bool) -> bool {
        if !self.is_primary() {
            return true;
        }
        let waits = self
            .process
            .as_ref()
            .is_some_and(|process| !process.pending.is_empty());
        if waits && !force {
            return false;
        }
        self.fail_all();
        if let Some(process) = &mut self.process {
            process.primary = false;
            process.alone_durable = false;
            process.lease = None;
            if process.order == Order::Failing {
                process.order = Order::Open;
            }
            process.outbox.push(Message::State {
                primary: false,
                current: self.disk.is_current(),
            });
        }
        self.disk.primary = false;
        true
    }
}
