//! From the decision to start a group to the first of its resources: the arbiter's grants come in between,
//! and whoever waits says for what.

use super::Node;
use super::placement::{Cause, Other, Placement, Reason, place};
use crate::alert;
use crate::control::State;
use crate::group;
use crate::membership::Peer;

/// Longest that a start by hand waits for the arbiter.
const BY_HAND_MS_MAX: u64 = 30_000;

impl Node {
    pub(super) fn consider(&mut self, group: usize) {
        let control = &self.controls[group];
        if control.given_ms.is_some() || control.moving.is_some() {
            return;
        }
        let situation = self.situation(group);
        match place(&situation) {
            Placement::Stay => {
                self.controls[group].decided = None;
                self.wait_for(group, None);
            }
            Placement::Wait(reason) => {
                self.controls[group].decided = None;
                let text = self.explain_wait(group, reason);
                self.wait_for(group, Some(text));
            }
            Placement::Start(cause) => {
                // The other node may be about to say that it starts it too.
                let settle_ms = if situation.other == Other::Up && !situation.preferred {
                    2 * self.membership.interval_ms()
                } else {
                    0
                };
                let (_, since_ms) = *self.controls[group]
                    .decided
                    .get_or_insert((cause, self.now_ms));
                if self.now_ms.saturating_sub(since_ms) >= settle_ms {
                    self.start_group(group, cause);
                }
            }
        }
    }

    pub(super) fn start_group(&mut self, group: usize, cause: Cause) {
        let name = self.config.groups[group].config.name.clone();
        let here = self.config.my_name().to_owned();
        self.wait_for(group, None);
        let control = &mut self.controls[group];
        control.decided = None;
        control.cause = Some(cause);
        control.failed = false;
        if cause == Cause::Failover {
            self.alert(
                alert::FAILING_OVER,
                format!("Failing over the group {name} to {here}."),
            );
        }
        if self.is_unproven(group) {
            let text = format!(
                "{name} starts although nothing proves that {} is down: it may be active on both nodes.",
                self.config.peer_name()
            );
            self.alert(alert::MAY_BE_ACTIVE_TWICE, text);
        }
        self.controls[group].waits_for_grant = true;
        self.controls[group].started_ms = self.now_ms;
        for mirror in self.group_mirrors(group) {
            if let Some(rights) = &mut self.rights {
                rights.want(mirror, true);
            }
        }
        self.await_grants(group);
    }

    /// The arbiter first: no resource starts before every mirror of the group has its grant.
    pub(super) fn await_grants(&mut self, group: usize) {
        let name = self.config.groups[group].config.name.clone();
        let mirrors = self.group_mirrors(group);
        if let Some(rights) = &self.rights {
            let missing = mirrors
                .iter()
                .copied()
                .find(|mirror| !rights.is_live(*mirror, self.now_ms));
            if let Some(mirror) = missing {
                let reason = match rights.refusal(mirror) {
                    Some(refusal) => format!("the arbiter: {refusal}"),
                    None => "the arbiter's answer".to_owned(),
                };
                let still = if self.is_started_by_hand(group) {
                    self.may_still_start_by_hand(group)
                } else {
                    matches!(place(&self.situation(group)), Placement::Start(_))
                };
                if still {
                    self.wait_for(group, Some(reason));
                } else {
                    for mirror in mirrors {
                        if let Some(rights) = &mut self.rights {
                            rights.want(mirror, false);
                        }
                    }
                    self.controls[group].waits_for_grant = false;
                    self.controls[group].cause = None;
                }
                return;
            }
        }
        self.controls[group].waits_for_grant = false;
        self.wait_for(group, None);
        self.alert(alert::GROUP_STARTING, format!("{name} starts."));
        self.group_step(group, group::Event::Start);
    }

    /// An operator's word, until its first resource starts.
    pub(super) fn is_started_by_hand(&self, group: usize) -> bool {
        let control = &self.controls[group];
        control.waits_for_grant && control.cause == Some(Cause::Operator)
    }

    /// Not beside the other node, and not for ever.
    pub(super) fn may_still_start_by_hand(&self, group: usize) -> bool {
        let active_there = self.membership.peer() == Peer::Up
            && self
                .peer_group(group)
                .is_some_and(|there| matches!(there.state, State::Online));
        let since_ms = self.controls[group].started_ms;
        let late = self.now_ms.saturating_sub(since_ms) >= BY_HAND_MS_MAX;
        !active_there && !late && !self.is_freezing()
    }

    pub(super) fn wait_for(&mut self, group: usize, what: Option<String>) {
        if self.controls[group].waits_for == what {
            return;
        }
        // A countdown in the text is no news.
        let plain = |text: &Option<String>| {
            text.as_ref()
                .map(|text| text.replace(|c: char| c.is_ascii_digit(), ""))
        };
        let news = plain(&self.controls[group].waits_for) != plain(&what);
        if let (Some(what), true) = (&what, news) {
            let text = format!(
                "{} waits for {what}.",
                self.config.groups[group].config.name
            );
            let limited = self.is_limited(group);
            self.alert(
                if limited {
                    alert::FAILOVER_LIMIT
                } else {
                    alert::GROUP_WAITS
                },
                text,
            );
        }
        self.controls[group].waits_for = what;
    }

    pub(super) fn explain_wait(&self, group: usize, reason: Reason) -> String {
        let peer = self.config.peer_name();
        match reason {
            Reason::StartupDelay => "the end of the start-up delay".into(),
            Reason::CutOff => "an end of the isolation of this node".into(),
            Reason::Namesake => format!(
                "the end of another machine that calls itself {} too",
                self.config.my_name()
            ),
            Reason::OtherStarts => format!("{peer}, which is starting"),
            Reason::Partition => format!("the decision about the silence of {peer}"),
            Reason::ForcedStopFailed => {
                format!("{peer}: its forced stop failed, so it may still run")
            }
            Reason::Data => {
                let behind = self
                    .group_mirrors(group)
                    .into_iter()
                    .find(|mirror| !self.mirrors[*mirror].view.is_some_and(|view| view.current));
                let mirror = behind.map_or("its mirror", |mirror| {
                    self.config.mirrors[mirror].name.as_str()
                });
                format!("up-to-date data of {mirror} on this node")
            }
            Reason::Linked => format!("its mirrors to notice that {peer} is gone"),
            Reason::DidNotStop => format!(
                "{peer}, where it did not stop; once that node is down, start it by hand (`mirrorctl group start --peer-down`)"
            ),
            Reason::Connection => format!("the connection of its mirrors to {peer}"),
            Reason::OtherHasNewer => {
                format!(
                    "{peer}, which may have newer data; if it is gone for good, start the group by hand"
                )
            }
            Reason::FailoverLimit => {
                "an operator: it failed over too often and stays stopped".into()
            }
        }
    }
}
