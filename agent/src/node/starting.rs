//! From the decision to start a group to the first of its resources: the arbiter's grants come in between,
//! and whoever waits says for what.

use super::Node;
use super::placement::{Cause, Other, Placement, Reason, Situation, There, place};
use crate::alert::{self, Kind};
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
                let kind = match reason {
                    Reason::FailoverLimit => alert::FAILOVER_LIMIT,
                    _ => alert::GROUP_WAITS,
                };
                self.wait_for(group, Some((kind, text)));
            }
            Placement::Start(cause) => {
                let settle_ms = self.settle_ms(&situation);
                let (_, since_ms) = *self.controls[group]
                    .decided
                    .get_or_insert((cause, self.now_ms));
                if self.now_ms.saturating_sub(since_ms) >= settle_ms {
                    self.start_group(group, cause);
                }
            }
        }
    }

    /// How long a start waits for what the other node may be about to say: that it starts the group too.
    fn settle_ms(&self, situation: &Situation) -> u64 {
        let beats_ms = 2 * self.membership.interval_ms();
        match situation.other {
            Other::Up if !situation.preferred => beats_ms,
            // Its side of the mirrors is connected, so it lives; its agent may be heard at any moment, and come to the
            // same conclusion before that.
            Other::NeverHeard if self.rights.is_none() && situation.preferred => beats_ms,
            Other::NeverHeard if self.rights.is_none() => self.membership.timeout_ms(),
            _ => 0,
        }
    }

    pub(super) fn start_group(&mut self, group: usize, cause: Cause) {
        let name = self.config.groups[group].config.name.clone();
        let here = self.config.my_name().to_owned();
        self.wait_for(group, None);
        let control = &mut self.controls[group];
        control.decided = None;
        control.refused_start = None;
        control.cause = Some(cause);
        control.failures.start();
        if cause == Cause::Failover {
            self.alert(
                alert::FAILING_OVER,
                format!("Failing over the group {name} to {here}."),
            );
        }
        let unproven = self.is_unproven(group);
        self.controls[group].doubt_told = unproven;
        if unproven {
            let text = format!(
                "{name} starts although nothing proves that {} is down: it may be active on both nodes.",
                self.config.peer_name()
            );
            self.alert(alert::MAY_BE_ACTIVE_TWICE, text);
        }
        let force = cause == Cause::Operator { force: true };
        if force {
            let text = format!(
                "{name} starts by force: its data on {here} is the truth, and what {} has beyond it is given up.",
                self.config.peer_name()
            );
            self.alert(alert::GROUP_FORCED, text);
        }
        self.controls[group].waits_for_grant = true;
        self.controls[group].started_ms = self.now_ms;
        for mirror in self.group_mirrors(group) {
            self.want_grant(mirror, force);
        }
        self.await_grants(group);
    }

    fn want_grant(&mut self, mirror: usize, force: bool) {
        match &mut self.rights {
            Some(rights) if force => rights.want_by_force(mirror),
            Some(rights) => rights.want(mirror, true),
            None => {}
        }
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
                    if rights.is_idle(mirror) {
                        // What was lost meanwhile is an epoch of before.
                        let cause = self.controls[group].cause;
                        self.want_grant(mirror, cause == Some(Cause::Operator { force: true }));
                    }
                    self.wait_for(group, Some((alert::GROUP_WAITS, reason)));
                } else {
                    for mirror in mirrors {
                        if let Some(rights) = &mut self.rights {
                            rights.want(mirror, false);
                        }
                    }
                    let by_hand = self.is_started_by_hand(group);
                    let control = &mut self.controls[group];
                    control.refused_start = by_hand.then_some(reason);
                    control.waits_for_grant = false;
                    control.cause = None;
                }
                return;
            }
        }
        self.assert_may_start(group);
        self.controls[group].waits_for_grant = false;
        self.wait_for(group, None);
        self.alert(alert::GROUP_STARTING, format!("{name} starts."));
        self.group_step(group, group::Event::Start);
    }

    /// The order of safety (A2, A3): a node that is silent is confirmed to be down, or the arbiter has granted, or it was
    /// said that neither is so.
    fn assert_may_start(&self, group: usize) {
        let mirrors = self.group_mirrors(group);
        let granted = match &self.rights {
            Some(rights) => {
                let live = |mirror: &usize| rights.is_live(*mirror, self.now_ms);
                assert!(
                    mirrors.iter().all(live),
                    "no resource starts before every mirror of its group has its grant"
                );
                !mirrors.is_empty()
            }
            None => false,
        };
        let silent = self.membership.peer() == Peer::Lost;
        let told = !self.is_unproven(group) || self.controls[group].doubt_told;
        assert!(
            granted || !silent || (self.partition.may_act() && told),
            "no group starts in silence before a forced stop, a grant, or a word that there is neither"
        );
        let there = self.situation(group).there;
        let heard = self.membership.peer() == Peer::Up;
        assert!(
            granted || !heard || there != There::Active,
            "no group starts beside the other node's, nor where that one has not stopped"
        );
    }

    /// An operator's word, until its first resource starts.
    pub(super) fn is_started_by_hand(&self, group: usize) -> bool {
        let control = &self.controls[group];
        control.waits_for_grant && matches!(control.cause, Some(Cause::Operator { .. }))
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

    /// What it waits for, and as which alert that is told.
    pub(super) fn wait_for(&mut self, group: usize, what: Option<(Kind, String)>) {
        let (kind, what) = what.unzip();
        if self.controls[group].waits_for == what {
            return;
        }
        // A countdown in the text is no news.
        let plain = |text: &Option<String>| {
            text.as_ref()
                .map(|text| text.replace(|c: char| c.is_ascii_digit(), ""))
        };
        let news = plain(&self.controls[group].waits_for) != plain(&what);
        if let (Some(what), Some(kind), true) = (&what, kind, news) {
            let text = format!(
                "{} waits for {what}.",
                self.config.groups[group].config.name
            );
            self.alert(kind, text);
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
            Reason::Data => self.explain_old_data(group),
            Reason::Linked => {
                format!("its mirrors, which are connected to {peer} as their primary")
            }
            Reason::DidNotStop => format!(
                "{peer}, where it did not stop; once that node is down, start it by hand (`mirrorctl group start --peer-down`)"
            ),
            Reason::Connection => format!("the connection of its mirrors to {peer}"),
            Reason::OtherHasNewer => format!(
                "{peer}, which may have newer data; {}",
                self.explain_giving_up(group)
            ),
            Reason::FailoverLimit => {
                let name = &self.config.groups[group].config.name;
                format!(
                    "an operator: {}; mend the cause, then `mirrorctl group start {name}`",
                    self.limit(group)
                )
            }
        }
    }

    fn explain_old_data(&self, group: usize) -> String {
        let mut mirrors = self.group_mirrors(group).into_iter();
        let Some(mirror) = mirrors.find(|mirror| !self.is_good_for_a_start(*mirror)) else {
            return "up-to-date data on this node".into();
        };
        let name = &self.config.mirrors[mirror].name;
        let view = self.mirrors[mirror].view.unwrap_or_default();
        let elsewhere = view.outdated || self.is_outdated_on_record(mirror);
        if elsewhere && self.membership.peer() != Peer::Up {
            format!(
                "{}, which has newer data of {name}; {}",
                self.config.peer_name(),
                self.explain_giving_up(group)
            )
        } else if self.membership.peer() == Peer::Up && !self.could_run_there(group) {
            format!(
                "up-to-date data of {name}, which is certain on neither node; to make what is here the truth, `mirrorctl group start {} --force`",
                self.config.groups[group].config.name
            )
        } else {
            format!("up-to-date data of {name} on this node")
        }
    }

    /// The way on without a node that does not come back.
    fn explain_giving_up(&self, group: usize) -> String {
        format!(
            "if it is gone for good, `mirrorctl group start {} --peer-down --force` takes what is here",
            self.config.groups[group].config.name
        )
    }

    /// That the limit of failovers is reached.
    pub(super) fn limit(&self, group: usize) -> String {
        let patience = &self.config.groups[group].patience;
        format!(
            "it failed over {} times within {} s, which is its limit for so long",
            patience.failovers_max,
            patience.failover_window_ms / 1_000
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use mirror_core::link::preface::ClusterKey;
    use mirror_core::units::Uuid;
    use nbd_frontend::config::agent::{FinalAction, Need};

    use super::*;
    use crate::membership::{BeatKey, MembershipConfig, Run};
    use crate::node::config::{NodeConfig, PlacedGroup, Reach, ResolverConfig};
    use crate::node::event::{Effect, Event};
    use crate::node::failures::Patience;

    const TIMEOUT_MS: u64 = 1_000;

    /// One of two nodes with a group of nothing, and a resolver that nobody answers for.
    fn node(me: usize) -> Node {
        let group = PlacedGroup {
            config: group::GroupConfig {
                name: "service".into(),
                resources: Vec::new(),
            },
            kinds: Vec::new(),
            nodes: vec![0, 1],
            automatic_start: false,
            failover: true,
            failback: false,
            patience: Patience {
                failovers_max: 0,
                failover_window_ms: 1_000,
                reset_ms: None,
            },
            final_action: FinalAction::None,
            mirrors: Vec::new(),
            in_agent: Vec::new(),
        };
        let config = NodeConfig {
            cluster: "pair".into(),
            names: ["alpha", "beta"].map(String::from),
            me,
            config_digest: 1,
            startup_delay_ms: 0,
            resolvers: vec![ResolverConfig {
                name: "gateway".into(),
                kind: Reach::Ping,
                interval_ms: 100,
                timeout_ms: 100,
            }],
            need: Need::Any,
            isolation_timeout_ms: TIMEOUT_MS,
            final_action: FinalAction::None,
            arbiter: None,
            forced_stop: None,
            mirrors: Vec::new(),
            groups: vec![group],
            monitors: Vec::new(),
            monitor_actions: Vec::new(),
        };
        let id = |node: usize| Uuid([node as u8 + 1; 16]);
        let membership = MembershipConfig {
            key: BeatKey::new(&ClusterKey::new(&[7; 32]).expect("it is long enough")),
            cluster: Uuid([9; 16]),
            node: id(me),
            peer: id(1 - me),
            paths: vec!["only".into()],
            interval_ms: 100,
            timeout_ms: TIMEOUT_MS,
        };
        Node::new(config, membership, Run(me as u64 + 1), 0, &mut Vec::new())
    }

    /// The first of two nodes that heard each other, and the time at which it has lost the second.
    fn bereaved() -> (Node, u64) {
        let mut nodes = [node(0), node(1)];
        let from = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 29_002);
        let mut coming = [Vec::new(), Vec::new()];
        for now_ms in (0..500).step_by(50) {
            for at in 0..2 {
                let mut effects = Vec::new();
                let received = std::mem::take(&mut coming[at]);
                for event in [Event::Tick].into_iter().chain(received) {
                    nodes[at].step(now_ms, event, &mut effects);
                }
                coming[1 - at].extend(effects.into_iter().filter_map(|effect| match effect {
                    Effect::Send { path, bytes, .. } => Some(Event::Received { path, from, bytes }),
                    _ => None,
                }));
            }
        }
        let [mut node, _] = nodes;
        assert_eq!(node.membership.peer(), Peer::Up);
        let mut now_ms = 500;
        while node.membership.peer() != Peer::Lost {
            assert!(now_ms < 10 * TIMEOUT_MS, "its silence goes unnoticed");
            now_ms += 50;
            node.step(now_ms, Event::Tick, &mut Vec::new());
        }
        (node, now_ms)
    }

    #[test]
    #[should_panic(expected = "no group starts in silence")]
    fn no_group_starts_before_the_silence_is_decided_on() {
        let (mut node, _) = bereaved();
        node.start_group(0, Cause::Automatic);
    }

    #[test]
    fn a_group_starts_in_silence_on_an_operators_word() {
        let (mut node, now_ms) = bereaved();
        node.take_word_that_peer_is_down();
        node.start_group(0, Cause::Operator { force: false });
        node.step(now_ms + 50, Event::Tick, &mut Vec::new());
        assert_eq!(node.controls[0].group.state(), State::Online);
    }
}
