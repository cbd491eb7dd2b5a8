//! What goes wrong under a group that is online: a mirror that is gone from under it, and what the monitors
//! find. A restart comes first, then the other node, then the final action.

use nbd_frontend::config::agent::FinalAction;

use super::Node;
use super::event::Effect;
use super::moving::MovedBy;
use crate::alert;
use crate::control::State;
use crate::group;
use crate::monitor;

/// Looks in a row at which a mirror under a group that is online was no primary, before that counts: the
/// first may have been on their way since before it was promoted.
const LOST_VIEWS: u32 = 3;

impl Node {
    /// A mirror that is no longer primary under a group that runs: its daemon was restarted, and what was
    /// mounted on it is gone. Or its daemon has not answered for as long as a node may be silent. It and what
    /// stands on it start again, here if they can.
    pub(super) fn notice_lost_primary(&mut self, group: usize) {
        if self.controls[group].group.state() != State::Online
            || self.controls[group].moving.is_some()
        {
            return;
        }
        let mirrors = self.config.groups[group].mirrors.iter().enumerate();
        let lost = mirrors
            .filter_map(|(resource, mirror)| Some((resource, self.why_lost((*mirror)?)?)))
            .next();
        let Some((resource, why)) = lost else { return };
        let placed = &self.config.groups[group].config;
        let text = format!(
            "{} of {} lost its mirror: {why}. It is started again.",
            placed.resources[resource].name, placed.name
        );
        self.alert(alert::RESOURCE_FAILED, text);
        self.group_step(group, group::Event::Restart { resource });
    }

    fn why_lost(&self, mirror: usize) -> Option<String> {
        let state = &self.mirrors[mirror];
        let silent_ms = state
            .silent_since_ms
            .map_or(0, |since_ms| self.now_ms.saturating_sub(since_ms));
        if state.secondary_views >= LOST_VIEWS {
            Some("mirrord was restarted under it".into())
        } else if silent_ms >= self.membership.timeout_ms() {
            Some(format!("mirrord has not answered for {silent_ms} ms"))
        } else {
            None
        }
    }

    pub(super) fn monitor_step(&mut self, event: monitor::Event) {
        let mut effects = Vec::new();
        self.monitors.step(self.now_ms, event, &mut effects);
        for effect in effects {
            self.on_monitor(effect);
        }
    }

    pub(super) fn on_monitor(&mut self, effect: monitor::Effect) {
        let name = |node: &Self, monitor: usize| node.config.monitors[monitor].name.clone();
        match effect {
            monitor::Effect::Probe {
                number,
                monitor,
                timeout_ms,
            } => self.fx.push(Effect::Probe {
                number,
                monitor,
                timeout_ms,
            }),
            monitor::Effect::Warn { monitor, reason } => {
                let text = format!("{}: {reason}.", name(self, monitor));
                self.alert(alert::MONITOR_WARNING, text);
            }
            monitor::Effect::Recovered { monitor } => {
                let text = format!("{} is in order again.", name(self, monitor));
                self.alert(alert::MONITOR_RECOVERED, text);
            }
            monitor::Effect::Restart {
                monitor,
                group,
                resource,
                reason,
            } => {
                let text = format!("{}: {reason}; restart.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                let event = match resource {
                    Some(resource) => group::Event::Restart { resource },
                    None => group::Event::RestartAll,
                };
                self.group_step(group, event);
            }
            monitor::Effect::Failover {
                monitor,
                group,
                reason,
            } => {
                let text = format!("{}: {reason}; failover.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                if self.is_limited(group) {
                    let text = format!("The failover does not take place: {}.", self.limit(group));
                    self.alert(alert::FAILOVER_LIMIT, text);
                } else if let Err(why) = self.give(group, MovedBy::Monitor) {
                    let text = format!("The failover does not take place: {why}.");
                    self.alert(alert::FAILOVER_CANCELLED, text);
                }
            }
            monitor::Effect::FinalAction { monitor, reason } => {
                let text = format!("{}: {reason}; final action.", name(self, monitor));
                self.alert(alert::MONITOR_ACTION, text);
                let action = self.config.monitor_actions[monitor];
                let group = self.config.monitors[monitor].group;
                self.take_last_action(action, group);
            }
        }
    }

    /// The group first, which then stays stopped: on both nodes where that is all, else on this one, for the other
    /// may run it once this machine is gone.
    fn take_last_action(&mut self, action: FinalAction, group: Option<usize>) {
        let why = "a monitor found a fault that nothing mended";
        let Some(group) = group.filter(|_| action != FinalAction::None) else {
            return self.take_final_action(action, why);
        };
        let control = &mut self.controls[group];
        if action == FinalAction::StopGroup {
            control.failures.halt(self.now_ms);
        } else {
            control.failures.start_failed(self.now_ms);
        }
        if control.group.state() == State::Offline {
            return self.take_final_action(action, why);
        }
        control.action_due = Some((action, why));
        self.stop_group(group);
    }
}
