//! Operators' commands. What concerns the other node goes to it as an order in the beats, one at a time,
//! and its outcome comes back the same way; a number makes each of them happen once.

use mirror_core::control::Refusal;

use super::Node;
use super::event::{CommandId, Effect, MirrorCommand};
use super::moving::MovedBy;
use super::placement::{Cause, There};
use super::report::{Order, OrderKind, Outcome};
use crate::alert;
use crate::control::{CommandReply, CommandRequest, State};
use crate::group;
use crate::membership::Peer;
use crate::monitor;

/// Longest that the other node may take for an order, on top of its groups' own time-outs.
const ORDER_MARGIN_MS: u64 = 30_000;
/// Commands that wait for something at a time.
const WAITING_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Orders {
    last_number: u32,
    sent: Option<Sent>,
    /// Outcome of the other node's last order, told until it gives another.
    outcome: Option<Outcome>,
    /// The order of the other that is being carried out.
    running: Option<u32>,
    /// Commands that wait for a group to come to a state.
    waiting: Vec<Waiting>,
    /// A group that gives up its data once it has stopped: the mirrors left, and who asked.
    discarding: Option<Discarding>,
    both_active: Vec<usize>,
}

#[derive(Debug)]
struct Sent {
    order: Order,
    id: CommandId,
    since_ms: u64,
    limit_ms: u64,
    done: String,
}

#[derive(Debug)]
struct Waiting {
    id: CommandId,
    group: usize,
    online: bool,
}

#[derive(Debug)]
struct Discarding {
    group: usize,
    by: MovedBy,
    /// The command to each mirror that is not answered yet.
    commands: Vec<u64>,
    started: bool,
}

impl Orders {
    pub(super) fn sent(&self) -> Option<Order> {
        self.sent.as_ref().map(|sent| sent.order)
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.outcome.clone()
    }

    /// Remembers whether a group is active twice, and returns what was remembered.
    pub(super) fn both_active(&mut self, group: usize, both: bool) -> bool {
        let told = self.both_active.contains(&group);
        self.both_active.retain(|active| *active != group);
        if both {
            self.both_active.push(group);
        }
        told
    }

    pub(super) fn active_twice(&self) -> &[usize] {
        &self.both_active
    }
}

fn refusal(rule: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal::new(rule, reason, remedy)
}

impl Node {
    pub(super) fn on_command(&mut self, id: CommandId, request: CommandRequest) {
        let result = if self.leaving.is_some() {
            Err(refusal(
                "stopping",
                "this agent is stopping",
                "give the command to the other node",
            ))
        } else {
            self.try_command(id, request)
        };
        match result {
            Ok(Some(message)) => self.reply(id, Ok(message)),
            // The outcome comes later.
            Ok(None) => {}
            Err(refusal) => self.fx.push(Effect::CommandDone {
                id,
                result: Err(refusal),
            }),
        }
    }

    fn try_command(
        &mut self,
        id: CommandId,
        request: CommandRequest,
    ) -> Result<Option<String>, Refusal> {
        match request {
            CommandRequest::Switchover { group, to } => {
                let group = self.find_group(&group)?;
                let to = to.map(|name| self.find_node(&name)).transpose()?;
                self.switch_over(id, group, to)
            }
            CommandRequest::GroupStart {
                group,
                peer_down,
                force,
            } => {
                let group = self.find_group(&group)?;
                self.start_by_hand(id, group, peer_down, force)
            }
            CommandRequest::GroupStop { group } => {
                let group = self.find_group(&group)?;
                self.stop_by_hand(id, group)
            }
            CommandRequest::GroupResolve { group, keep } => {
                let group = self.find_group(&group)?;
                let keep = self.find_node(&keep)?;
                // Who stopped it on one node so that the damage did not grow, did not mean it to stay stopped.
                if keep == self.config.me {
                    self.clear(group);
                    let done = format!("{} gave up its data", self.config.peer_name());
                    return self.order(id, OrderKind::Discard, group, done);
                }
                self.clear_on_both(group);
                self.discard(group, MovedBy::Command(id));
                Ok(None)
            }
            CommandRequest::NodeStandby { node } => self.set_standby(id, &node, true),
            CommandRequest::NodeActive { node } => self.set_standby(id, &node, false),
            CommandRequest::MonitorSuspend => self.suspend_monitors(id, true),
            CommandRequest::MonitorResume => self.suspend_monitors(id, false),
        }
    }

    fn switch_over(
        &mut self,
        id: CommandId,
        group: usize,
        to: Option<usize>,
    ) -> Result<Option<String>, Refusal> {
        let name = self.config.groups[group].config.name.clone();
        let me = self.config.me;
        let here = self.controls[group].group.state();
        let there = self.peer_group(group).map(|there| there.state);
        if here == State::Online {
            if to == Some(me) {
                return Ok(Some(format!("{name} runs here already")));
            }
            return match self.give(group, MovedBy::Command(id)) {
                Ok(()) => Ok(None),
                Err(reason) => Err(refusal(
                    "cannot-move",
                    reason,
                    "mend that, or stop the group with `mirrorctl group stop`",
                )),
            };
        }
        if there == Some(State::Online) && self.membership.peer() == Peer::Up {
            if to == Some(1 - me) {
                return Ok(Some(format!(
                    "{name} runs on {} already",
                    self.config.peer_name()
                )));
            }
            let done = format!("{name} runs on {} now", self.config.my_name());
            return self.order(id, OrderKind::Give, group, done);
        }
        Err(refusal(
            "not-online",
            format!("{name} is online on neither node"),
            "start it with `mirrorctl group start` on the node where it shall run",
        ))
    }

    fn start_by_hand(
        &mut self,
        id: CommandId,
        group: usize,
        peer_down: bool,
        force: bool,
    ) -> Result<Option<String>, Refusal> {
        let name = self.config.groups[group].config.name.clone();
        let peer = self.config.peer_name().to_owned();
        let situation = self.situation(group);
        if situation.here == State::Online {
            self.clear_on_both(group);
            return Ok(Some(format!("{name} runs here already")));
        }
        if !situation.allowed {
            return Err(refusal(
                "not-its-node",
                format!("{name} does not list this node"),
                "start it on one of its nodes",
            ));
        }
        if situation.here != State::Offline {
            return Err(refusal(
                "busy",
                format!("{name} is on its way, or failed to stop, here"),
                "look at `mirrorctl status`",
            ));
        }
        let active = situation.there == There::Active;
        if self.membership.peer() == Peer::Left && active && !peer_down {
            return Err(refusal(
                "did-not-stop",
                format!("{name} did not stop on {peer} when its agent did: it may still run there"),
                format!("once {peer} is down, say so: `mirrorctl group start {name} --peer-down`"),
            ));
        }
        if self.membership.peer() == Peer::Up && active {
            return Err(refusal(
                "active-there",
                format!("{name} is active on {peer}"),
                format!("move it with `mirrorctl switchover {name}`"),
            ));
        }
        if force
            && self.membership.peer() == Peer::Up
            && self.peer_group(group).is_some_and(|there| there.able)
        {
            return Err(refusal(
                "current-there",
                format!("{peer} has up-to-date data of {name}"),
                format!("start it on {peer}, or leave out --force"),
            ));
        }
        if self.is_freezing() {
            return Err(refusal(
                "cut-off",
                "this node is cut off",
                format!("mend the network, or start {name} on {peer}"),
            ));
        }
        let silent = self.membership.peer() != Peer::Up;
        if peer_down && !silent {
            return Err(refusal(
                "peer-is-heard",
                format!("{peer} is not silent"),
                "leave out --peer-down",
            ));
        }
        // Alone without a forced stop, because nothing was to start then.
        let unstopped = self.config.forced_stop.is_some() && self.is_unproven(group);
        let may_act = self.partition.may_act() && !unstopped;
        if self.membership.peer() == Peer::Lost && !may_act && !peer_down {
            return Err(refusal(
                "undecided",
                format!("{peer} is silent, and it is not certain that it does not run {name}"),
                format!(
                    "wait until it is heard or decided on; or see that {peer} is down and use --peer-down"
                ),
            ));
        }
        if silent && situation.linked {
            return Err(refusal(
                "peer-is-primary",
                format!("a mirror of {name} is connected to {peer}, which is its primary"),
                format!(
                    "start the agent of {peer}, or stop what uses the mirror there and `mirrorctl demote` it"
                ),
            ));
        }
        let never_heard = self.membership.peer() == Peer::Unknown;
        if never_heard && !situation.sure && !peer_down && !self.has_primaries(group) {
            return Err(refusal(
                "not-heard",
                format!("{peer} was not heard since this agent started, and may run {name}"),
                format!("wait for it; or see that {peer} is down, and say so with --peer-down"),
            ));
        }
        self.check_waiting()?;
        if peer_down {
            self.take_word_that_peer_is_down();
        }
        self.withdraw_move(group, "was started by hand");
        self.clear_on_both(group);
        self.orders.waiting.push(Waiting {
            id,
            group,
            online: true,
        });
        self.start_group(group, Cause::Operator { force });
        Ok(None)
    }

    /// Somebody promoted them by hand.
    fn has_primaries(&self, group: usize) -> bool {
        let mirrors = self.group_mirrors(group).into_iter();
        let views = mirrors.map(|mirror| self.mirrors[mirror].view);
        let mut primaries = views.map(|view| view.is_some_and(|view| view.primary));
        primaries.all(|is_primary| is_primary)
    }

    fn clear_on_both(&mut self, group: usize) {
        self.clear(group);
        if self.membership.peer() == Peer::Up && self.orders.sent.is_none() {
            // Nobody waits for the outcome of this one.
            self.send_order(CommandId(0), OrderKind::Clear, group, String::new());
        }
    }

    /// That it was stopped, or failed, counts no more.
    fn clear(&mut self, group: usize) {
        self.controls[group].stopped = false;
        self.controls[group].failures.clear();
        // Told to the other node, which will say the same.
        if let Some(report) = &mut self.peer_report {
            let there = &mut report.groups[group];
            there.stopped = false;
            there.halted = false;
            there.failovers = 0;
        }
    }

    fn stop_by_hand(&mut self, id: CommandId, group: usize) -> Result<Option<String>, Refusal> {
        let name = self.config.groups[group].config.name.clone();
        let here = self.controls[group].group.state();
        let there = self.peer_group(group).map(|there| there.state);
        self.check_waiting()?;
        let active_there = self.membership.peer() == Peer::Up
            && !matches!(there, None | Some(State::Offline | State::Unknown));
        if here == State::Offline && active_there {
            self.controls[group].stopped = true;
            let done = format!("{name} is stopped on {}", self.config.peer_name());
            return self.order(id, OrderKind::Stop, group, done);
        }
        self.controls[group].stopped = true;
        self.withdraw_move(group, "was stopped by hand");
        if here == State::Offline {
            return Ok(Some(format!("{name} is stopped, and stays so")));
        }
        self.orders.waiting.push(Waiting {
            id,
            group,
            online: false,
        });
        self.stop_group(group);
        Ok(None)
    }

    pub(super) fn stop_group(&mut self, group: usize) {
        let text = format!("{} stops.", self.config.groups[group].config.name);
        self.alert(alert::GROUP_STOPPING, text);
        self.group_step(group, group::Event::Stop { force: false });
    }

    fn set_standby(
        &mut self,
        id: CommandId,
        node: &str,
        standby: bool,
    ) -> Result<Option<String>, Refusal> {
        let node = self.find_node(node)?;
        let word = if standby { "standby" } else { "active" };
        if node != self.config.me {
            let kind = if standby {
                OrderKind::Standby
            } else {
                OrderKind::Active
            };
            let done = format!("{} is {word}", self.config.peer_name());
            return self.order(id, kind, 0, done);
        }
        self.change_standby(standby).map_err(|reason| {
            refusal("cannot-move", reason, "mend that, or stop the groups first")
        })?;
        Ok(Some(format!("{} is {word}", self.config.my_name())))
    }

    fn change_standby(&mut self, standby: bool) -> Result<(), String> {
        if self.standby == standby {
            return Ok(());
        }
        if standby {
            for group in 0..self.controls.len() {
                if self.controls[group].group.state() == State::Online {
                    self.give(group, MovedBy::Node)?;
                }
            }
        }
        self.standby = standby;
        let word = if standby { "standby" } else { "active" };
        let text = format!("{} is {word}.", self.config.my_name());
        self.alert(alert::STANDBY, text);
        Ok(())
    }

    fn suspend_monitors(
        &mut self,
        id: CommandId,
        suspend: bool,
    ) -> Result<Option<String>, Refusal> {
        self.change_monitors(suspend);
        if self.membership.peer() != Peer::Up {
            return Ok(Some(format!(
                "done here; {} is not heard",
                self.config.peer_name()
            )));
        }
        let kind = if suspend {
            OrderKind::SuspendMonitors
        } else {
            OrderKind::ResumeMonitors
        };
        self.order(id, kind, 0, "done on both nodes".into())
    }

    fn change_monitors(&mut self, suspend: bool) {
        if self.monitors_suspended == suspend {
            return;
        }
        self.monitors_suspended = suspend;
        self.monitor_step(if suspend {
            monitor::Event::Suspend
        } else {
            monitor::Event::Resume
        });
        let word = if suspend { "suspended" } else { "resumed" };
        self.alert(
            alert::MONITORS_SUSPENDED,
            format!("Monitors are {word} on {}.", self.config.my_name()),
        );
    }

    /// Stops a group here and gives up what this side wrote, after both nodes were active.
    fn discard(&mut self, group: usize, by: MovedBy) {
        self.orders.discarding = Some(Discarding {
            group,
            by,
            commands: Vec::new(),
            started: false,
        });
        if self.controls[group].group.state() == State::Offline {
            self.on_group_stopped_for_discard(group);
        } else {
            let text = format!("{} stops.", self.config.groups[group].config.name);
            self.alert(alert::GROUP_STOPPING, text);
            self.group_step(group, group::Event::Stop { force: true });
        }
    }

    pub(super) fn on_group_stopped_for_discard(&mut self, group: usize) {
        let due = self
            .orders
            .discarding
            .as_ref()
            .is_some_and(|discarding| discarding.group == group && !discarding.started);
        if !due {
            return;
        }
        let commands = self
            .group_mirrors(group)
            .into_iter()
            .map(|mirror| self.command_mirror(mirror, MirrorCommand::DiscardLocal))
            .collect();
        if let Some(discarding) = &mut self.orders.discarding {
            discarding.started = true;
            discarding.commands = commands;
        }
        self.finish_discard(Ok(()));
    }

    pub(super) fn on_discarded(&mut self, number: u64, result: Result<(), String>) {
        let Some(discarding) = &mut self.orders.discarding else {
            return;
        };
        if !discarding.commands.contains(&number) {
            return;
        }
        discarding.commands.retain(|command| *command != number);
        self.finish_discard(result);
    }

    fn finish_discard(&mut self, result: Result<(), String>) {
        let over = self
            .orders
            .discarding
            .as_ref()
            .is_some_and(|discarding| discarding.started && discarding.commands.is_empty());
        if !over && result.is_ok() {
            return;
        }
        if let Some(discarding) = self.orders.discarding.take() {
            self.on_moved(discarding.by, result, 0);
        }
    }

    pub(super) fn on_moved(&mut self, by: MovedBy, outcome: Result<(), String>, took_ms: u64) {
        match by {
            MovedBy::Node | MovedBy::Monitor => {
                if let Err(reason) = outcome {
                    let text = format!("A group did not move: {reason}.");
                    self.alert(alert::FAILOVER_CANCELLED, text);
                }
            }
            MovedBy::Order(number) => self.finish_order(number, outcome, took_ms),
            MovedBy::Command(id) => {
                let result = match outcome {
                    Ok(()) => Ok(CommandReply {
                        message: "done".into(),
                        without_service_ms: (took_ms > 0).then_some(took_ms),
                    }),
                    Err(reason) => Err(refusal(
                        "failed",
                        reason,
                        "`mirrorctl status` and `mirrorctl log` show what happened",
                    )),
                };
                self.fx.push(Effect::CommandDone { id, result });
            }
        }
    }

    fn order(
        &mut self,
        id: CommandId,
        kind: OrderKind,
        group: usize,
        done: String,
    ) -> Result<Option<String>, Refusal> {
        let peer = self.config.peer_name().to_owned();
        if self.membership.peer() != Peer::Up {
            return Err(refusal(
                "not-heard",
                format!("{peer} is not heard"),
                format!("give the command on {peer} itself"),
            ));
        }
        if self.orders.sent.is_some() {
            return Err(refusal(
                "busy",
                format!("{peer} is carrying out another command"),
                "wait for that to end",
            ));
        }
        self.send_order(id, kind, group, done);
        Ok(None)
    }

    fn send_order(&mut self, id: CommandId, kind: OrderKind, group: usize, done: String) {
        self.orders.last_number += 1;
        let limit_ms: u64 = self.config.groups.get(group).map_or(0, |placed| {
            placed
                .config
                .resources
                .iter()
                .map(|resource| resource.start_timeout_ms + 2 * resource.stop_timeout_ms)
                .sum()
        }) + ORDER_MARGIN_MS;
        self.orders.sent = Some(Sent {
            order: Order {
                number: self.orders.last_number,
                kind,
                group: group as u8,
            },
            id,
            since_ms: self.now_ms,
            limit_ms,
            done,
        });
    }

    pub(super) fn on_peer_orders(&mut self) {
        let Some(report) = &self.peer_report else {
            return;
        };
        let outcome = report.outcome.clone();
        let order = report.order;
        if let Some(outcome) = outcome
            && self
                .orders
                .sent
                .as_ref()
                .is_some_and(|sent| sent.order.number == outcome.number)
        {
            self.end_order(outcome.result, u64::from(outcome.took_ms));
        }
        let Some(order) = order else {
            self.orders.running = None;
            return;
        };
        let known = self.orders.running == Some(order.number)
            || self
                .orders
                .outcome
                .as_ref()
                .is_some_and(|outcome| outcome.number == order.number);
        if !known {
            self.orders.running = Some(order.number);
            self.carry_out(order);
        }
    }

    fn carry_out(&mut self, order: Order) {
        let group = usize::from(order.group);
        if group >= self.controls.len().max(1) {
            return self.finish_order(order.number, Err("no such group here".into()), 0);
        }
        let by = MovedBy::Order(order.number);
        let result = match order.kind {
            OrderKind::Give => match self.give(group, by) {
                Ok(()) => return,
                Err(reason) => Err(reason),
            },
            OrderKind::Stop => {
                self.controls[group].stopped = true;
                self.withdraw_move(group, "was stopped by hand");
                self.stop_group(group);
                Ok(())
            }
            OrderKind::Clear => {
                self.clear(group);
                Ok(())
            }
            OrderKind::Discard => {
                self.clear(group);
                return self.discard(group, by);
            }
            OrderKind::Standby => self.change_standby(true),
            OrderKind::Active => self.change_standby(false),
            OrderKind::SuspendMonitors | OrderKind::ResumeMonitors => {
                self.change_monitors(order.kind == OrderKind::SuspendMonitors);
                Ok(())
            }
        };
        self.finish_order(order.number, result, 0);
    }

    fn finish_order(&mut self, number: u32, result: Result<(), String>, took_ms: u64) {
        self.orders.running = None;
        self.orders.outcome = Some(Outcome {
            number,
            took_ms: u32::try_from(took_ms).unwrap_or(u32::MAX),
            result,
        });
    }

    fn end_order(&mut self, result: Result<(), String>, took_ms: u64) {
        let Some(sent) = self.orders.sent.take() else {
            return;
        };
        if sent.done.is_empty() {
            return;
        }
        let result = match result {
            Ok(()) => Ok(CommandReply {
                message: sent.done,
                without_service_ms: (took_ms > 0).then_some(took_ms),
            }),
            Err(reason) => Err(refusal(
                "refused-there",
                format!("{}: {reason}", self.config.peer_name()),
                "mend that and give the command again",
            )),
        };
        self.fx.push(Effect::CommandDone {
            id: sent.id,
            result,
        });
    }

    pub(super) fn advance_orders(&mut self) {
        if let Some(sent) = &self.orders.sent {
            let late = self.now_ms.saturating_sub(sent.since_ms) >= sent.limit_ms;
            if self.membership.peer() != Peer::Up {
                self.end_order(Err("it is not heard any more".into()), 0);
            } else if late {
                self.end_order(Err("it did not answer in time".into()), 0);
            }
        }
        for waiting in std::mem::take(&mut self.orders.waiting) {
            let control = &self.controls[waiting.group];
            let name = self.config.groups[waiting.group].config.name.clone();
            let state = control.group.state();
            let result = match state {
                State::Online if waiting.online => Ok(format!("{name} is online")),
                State::Offline if !waiting.online => Ok(format!("{name} is stopped, and stays so")),
                State::Failed => Err(format!("{name} does not stop")),
                State::Offline if control.failures.has_failed_start() => {
                    Err(format!("{name} could not be started"))
                }
                State::Offline if control.cause.is_none() && waiting.online => {
                    Err(match &control.refused_start {
                        Some(refusal) => format!("{name} was not started, for want of {refusal}"),
                        None => format!("{name} was stopped again"),
                    })
                }
                _ => {
                    self.orders.waiting.push(waiting);
                    continue;
                }
            };
            match result {
                Ok(message) => self.reply(waiting.id, Ok(message)),
                Err(reason) => {
                    let error = self.first_error(waiting.group);
                    let reason = error.map_or(reason.clone(), |error| format!("{reason}: {error}"));
                    self.reply(
                        waiting.id,
                        Err(refusal(
                            "failed",
                            reason,
                            "mend that and give the command again",
                        )),
                    );
                }
            }
        }
    }

    fn first_error(&self, group: usize) -> Option<String> {
        let resources = &self.config.groups[group].config.resources;
        (0..resources.len()).find_map(|resource| {
            self.controls[group]
                .group
                .resource_error(resource)
                .map(|error| format!("{}: {error}", resources[resource].name))
        })
    }

    fn reply(&mut self, id: CommandId, result: Result<String, Refusal>) {
        self.fx.push(Effect::CommandDone {
            id,
            result: result.map(|message| CommandReply {
                message,
                without_service_ms: None,
            }),
        });
    }

    fn check_waiting(&self) -> Result<(), Refusal> {
        if self.orders.waiting.len() < WAITING_MAX {
            return Ok(());
        }
        Err(refusal(
            "busy",
            "too many commands wait already",
            "wait for those to end",
        ))
    }

    fn find_group(&self, name: &str) -> Result<usize, Refusal> {
        let names: Vec<&str> = self
            .config
            .groups
            .iter()
            .map(|placed| placed.config.name.as_str())
            .collect();
        names
            .iter()
            .position(|known| *known == name)
            .ok_or_else(|| {
                refusal(
                    "unknown-group",
                    format!("there is no group {name:?}"),
                    format!("the groups are: {}", names.join(", ")),
                )
            })
    }

    fn find_node(&self, name: &str) -> Result<usize, Refusal> {
        self.config
            .names
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| {
                refusal(
                    "unknown-node",
                    format!("there is no node {name:?}"),
                    format!("the nodes are: {}", self.config.names.join(", ")),
                )
            })
    }
}
