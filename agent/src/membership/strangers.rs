//! What is said to a node, and taken from it, before it is known: answers, by which the next beat is fresh, and the word
//! that there is a second machine under a name. Each at most once an interval and path, so that recordings are no lever.

use super::namesake::{Newcomer, TAKEN_UP_INTERVALS, Whose};
use super::{Beat, Came, ENDED_RUNS_MAX, Effect, Kind, Membership, Peer, Refusal, Run};

impl Membership {
    /// After a cut or a restart the other node names what it heard before, until it hears this one. Only where that
    /// lasts, or where the other node has heard this one already, something is wrong.
    pub(super) fn judge_stale(&mut self, beat: &Beat) -> Result<(), Refusal> {
        if beat.heard == Run::NONE {
            return Ok(());
        }
        let since_ms = *self.stale_since_ms.get_or_insert(self.stepped_ms);
        let patience_ms = TAKEN_UP_INTERVALS * self.config.interval_ms;
        let lasts = self.stepped_ms.saturating_sub(since_ms) >= patience_ms;
        if lasts || self.is_peer_speaking() {
            Err(Refusal::Stale)
        } else {
            Ok(())
        }
    }

    /// Whoever answers what this run just said is no recording: there is a second machine with this node's name.
    /// It is told so the same way.
    pub(super) fn on_own_name(
        &mut self,
        came: &Came,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if came.beat.run == self.run {
            return Err(Refusal::Echo);
        }
        let proved = self.answers(&came.beat, &self.just_now);
        self.doubt(came, out);
        if !proved {
            return Err(Refusal::OwnName);
        }
        if self.namesakes.notice(Whose::Mine, self.stepped_ms) {
            out.push(Effect::SameName {
                path: came.path,
                whose: Whose::Mine,
            });
        }
        Ok(())
    }

    /// The other node knows another machine under this node's name. For a moment that is this node's former run.
    pub(super) fn on_doubted(&mut self, came: &Came, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if !self.answers(&came.beat, &self.just_now) {
            return Err(Refusal::Stale);
        }
        // By which the other one knows that this is no recording.
        self.answer_stranger(came, out);
        if self.namesakes.on_overlooked(self.stepped_ms) {
            out.push(Effect::SameName {
                path: came.path,
                whose: Whose::Mine,
            });
        }
        Ok(())
    }

    /// The other end does not know this run yet: tell it, so that its next beat is fresh. At most once
    /// an interval and path, so that replayed beats are no lever.
    pub(super) fn answer_stranger(&mut self, came: &Came, out: &mut Vec<Effect>) {
        // An answer would tell a second machine under the peer's name that it is the peer.
        if self.is_peer_speaking() && came.beat.run != self.peer_run {
            return self.doubt(came, out);
        }
        let answered_ms = &mut self.paths[came.path].answered_ms;
        if is_soon(*answered_ms, self.stepped_ms, self.config.interval_ms) {
            return;
        }
        *answered_ms = Some(self.stepped_ms);
        let bytes = self.answer(came, false);
        out.push(Effect::Send {
            path: came.path,
            to: None,
            bytes,
        });
    }

    /// Tells whoever speaks under a name that there is another one. To where it came from: the address of the path
    /// is that of the other one. At most once an interval and path, and with nothing in it.
    fn doubt(&mut self, came: &Came, out: &mut Vec<Effect>) {
        let doubted_ms = &mut self.paths[came.path].doubted_ms;
        if is_soon(*doubted_ms, self.stepped_ms, self.config.interval_ms) {
            return;
        }
        *doubted_ms = Some(self.stepped_ms);
        let bytes = self.answer(came, true);
        out.push(Effect::Send {
            path: came.path,
            to: Some(came.from),
            bytes,
        });
    }

    fn answer(&mut self, came: &Came, doubting: bool) -> Vec<u8> {
        let mut beat = self.beat(came.path, came.beat.run, came.beat.sequence);
        if doubting {
            beat.kind = Kind::Doubting;
            beat.body.clear();
        }
        beat.encode(&self.config.key)
    }

    /// The run of the peer that is known speaks on.
    fn is_peer_speaking(&self) -> bool {
        self.peer == Peer::Up && !self.namesakes.is_silent(self.heard_ms, self.stepped_ms)
    }

    /// False if the run may not follow the present one yet. A new one begins its sequences anew.
    pub(super) fn take_run(&mut self, came: &Came, out: &mut Vec<Effect>) -> bool {
        if self.peer == Peer::Up {
            let newcomer =
                self.namesakes
                    .on_newcomer(came.beat.run, self.heard_ms, self.stepped_ms);
            if newcomer == Newcomer::Namesake {
                out.push(Effect::SameName {
                    path: came.path,
                    whose: Whose::Peers,
                });
            }
            if newcomer != Newcomer::Follows {
                self.doubt(came, out);
                return false;
            }
        }
        if self.peer_run != Run::NONE {
            if self.ended.len() == ENDED_RUNS_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(self.peer_run);
        }
        self.peer_run = came.beat.run;
        self.peer_sequence = came.beat.sequence;
        // It forgot what it was: whoever cares learns of the new run as of a new node.
        self.peer = Peer::Unknown;
        self.body_sequence = 0;
        for path in &mut self.paths {
            path.sequence = 0;
        }
        true
    }
}

fn is_soon(last_ms: Option<u64>, now_ms: u64, interval_ms: u64) -> bool {
    last_ms.is_some_and(|last_ms| now_ms.saturating_sub(last_ms) < interval_ms)
}
