//! What people see of a node. The mirrors' own state is added by the driver, which has it from `mirrord`.

use super::Node;
use super::config::Reach;
use super::rights::Rights;
use super::stage::Stage;
use crate::control::{
    ArbiterStatus, ClusterStatus, ForcedStopStatus, GroupStatus, Health, HealthStatus, LeaseStatus,
    MonitorStatus, NodeState, NodeStatus, ResourceStatus, StartupStatus, State,
};
use crate::fencing;
use crate::membership::{Peer, Whose};

impl Node {
    /// `monitor_kinds`: what each monitor is, for people.
    pub fn status(&self, monitor_kinds: &[String]) -> ClusterStatus {
        ClusterStatus {
            cluster: self.config.cluster.clone(),
            node: self.config.my_name().into(),
            nodes: (0..2).map(|node| self.node_status(node)).collect(),
            groups: (0..self.controls.len())
                .map(|group| self.group_status(group))
                .collect(),
            monitors: (0..self.config.monitors.len())
                .map(|monitor| self.monitor_status(monitor, monitor_kinds))
                .collect(),
            monitors_suspended: self.monitors_suspended,
            mirrors: Vec::new(),
            arbiter: self.arbiter_status(),
            forced_stop: self.forced_stop_status(),
            startup: self.starting_until_ms.map(|until_ms| StartupStatus {
                delay_ms: self.config.startup_delay_ms,
                remaining_ms: until_ms.saturating_sub(self.now_ms),
            }),
            warnings: self.warnings(),
        }
    }

    fn node_status(&self, node: usize) -> NodeStatus {
        let me = node == self.config.me;
        let report = self.peer_report.as_ref();
        let state = if me {
            if self.starting_until_ms.is_some() || self.is_freezing() {
                NodeState::Pending
            } else {
                NodeState::Online
            }
        } else {
            match self.membership.peer() {
                Peer::Unknown => NodeState::Unknown,
                Peer::Lost => NodeState::Lost,
                Peer::Left => NodeState::Offline,
                Peer::Up if report.is_some_and(|report| report.starting || report.isolated) => {
                    NodeState::Pending
                }
                Peer::Up => NodeState::Online,
            }
        };
        NodeStatus {
            name: self.config.names[node].clone(),
            state,
            standby: if me {
                self.standby
            } else {
                report.is_some_and(|report| report.standby)
            },
            paths: if me { Vec::new() } else { self.path_status() },
            resolvers: if me {
                self.resolver_status()
            } else {
                Vec::new()
            },
        }
    }

    /// The arbiter hears both nodes, which makes it one more path.
    fn path_status(&self) -> Vec<HealthStatus> {
        let health = |heard: Option<bool>| match (heard, self.membership.peer()) {
            (Some(true), _) => Health::Normal,
            (Some(false), Peer::Up) => Health::Error,
            _ => Health::Unknown,
        };
        let status = |name: &str, kind: &str, heard| HealthStatus {
            name: name.into(),
            kind: kind.into(),
            health: health(heard),
            detail: None,
        };
        let mut paths: Vec<_> = (0..self.membership.paths())
            .map(|path| {
                let heard = Some(self.membership.is_path_up(path));
                let refused = self.membership.refused(path);
                HealthStatus {
                    detail: refused.map(|refusal| format!("refused a datagram: {refusal}")),
                    ..status(self.membership.path_name(path), "LAN heartbeat", heard)
                }
            })
            .collect();
        paths.extend(
            self.rights
                .as_ref()
                .map(|rights| status("arbiter", "witness heartbeat", rights.hears_peer())),
        );
        paths
    }

    fn resolver_status(&self) -> Vec<HealthStatus> {
        let status = |resolver: &super::Resolver| {
            let arbiter = self
                .rights
                .as_ref()
                .and_then(Rights::last)
                .map(|last| last.map_err(ToOwned::to_owned));
            let last = match resolver.config.kind {
                Reach::Ping | Reach::Http => resolver.last().cloned(),
                Reach::Arbiter | Reach::Majority => arbiter,
            };
            HealthStatus {
                name: resolver.config.name.clone(),
                kind: resolver.config.kind.name().into(),
                health: match &last {
                    None => Health::Unknown,
                    Some(Ok(())) => Health::Normal,
                    Some(Err(_)) => Health::Error,
                },
                detail: last.and_then(Result::err),
            }
        };
        self.resolvers.iter().map(status).collect()
    }

    fn group_status(&self, group: usize) -> GroupStatus {
        let placed = &self.config.groups[group];
        let control = &self.controls[group];
        let here = control.group.state();
        let there = match (self.membership.peer(), self.peer_group(group)) {
            (Peer::Up, Some(there)) => there.state,
            (Peer::Left, _) => State::Offline,
            (Peer::Lost, _) if self.partition.is_peer_stopped() => State::Offline,
            _ => State::Unknown,
        };
        let mut states = vec![here, there];
        if self.config.me == 1 {
            states.reverse();
        }
        let active =
            |state: &State| !matches!(state, State::Offline | State::Failed | State::Unknown);
        GroupStatus {
            name: placed.config.name.clone(),
            state: here,
            current: states
                .iter()
                .zip(&self.config.names)
                .filter(|(state, _)| active(state))
                .map(|(_, name)| name.clone())
                .collect(),
            states,
            waits_for: control
                .waits_for
                .clone()
                .or_else(|| self.idle_until(group, there)),
            mirrors: self
                .group_mirrors(group)
                .into_iter()
                .map(|mirror| self.config.mirrors[mirror].name.clone())
                .collect(),
            resources: control
                .group
                .resource_states()
                .into_iter()
                .enumerate()
                .map(|(index, state)| ResourceStatus {
                    name: placed.config.resources[index].name.clone(),
                    kind: placed.kinds[index].clone(),
                    state,
                    error: control.group.resource_error(index).map(Into::into),
                })
                .collect(),
        }
    }

    /// Who or what has to act before a group starts here that nothing else keeps from it.
    fn idle_until(&self, group: usize, there: State) -> Option<String> {
        let control = &self.controls[group];
        if control.group.state() != State::Offline {
            return None;
        }
        let name = &self.config.groups[group].config.name;
        let there_says = self.peer_group(group);
        let patience = &self.config.groups[group].patience;
        let by_itself = match control.failures.forgotten_in_ms(self.now_ms, patience) {
            Some(left_ms) => format!("; by itself in {} s", left_ms.div_ceil(1_000)),
            None => String::new(),
        };
        if control.stopped || there_says.is_some_and(|there| there.stopped) {
            Some(format!(
                "an operator, who stopped it: `mirrorctl group start {name}`"
            ))
        } else if control.failures.is_halted() {
            Some(format!(
                "an operator: the final action of a monitor stopped it; mend what the alert log names, then `mirrorctl group start {name}`{by_itself}"
            ))
        } else if self.is_halted_there(group) {
            Some(format!(
                "an operator: the final action of a monitor on {} stopped it, as the alert log there says",
                self.config.peer_name()
            ))
        } else if control.failures.has_failed_start() {
            Some(format!(
                "an operator: its start failed here; mend what the alert log names, then `mirrorctl group start {name}`{by_itself}"
            ))
        } else if self.standby && there != State::Online {
            let me = self.config.my_name();
            Some(format!("an operator: `mirrorctl node active {me}`"))
        } else {
            None
        }
    }

    fn monitor_status(&self, monitor: usize, kinds: &[String]) -> MonitorStatus {
        MonitorStatus {
            name: self.config.monitors[monitor].name.clone(),
            kind: kinds.get(monitor).cloned().unwrap_or_default(),
            health: self.monitors.health(monitor),
            detail: self.monitors.detail(monitor).map(Into::into),
        }
    }

    fn arbiter_status(&self) -> Option<ArbiterStatus> {
        let rights = self.rights.as_ref()?;
        let leases = (0..self.mirrors.len()).filter_map(|mirror| {
            let grant = rights.grant(mirror)?;
            Some(LeaseStatus {
                mirror: self.config.mirrors[mirror].name.clone(),
                epoch: grant.epoch,
                remaining_ms: grant.deadline_ms.saturating_sub(self.now_ms),
            })
        });
        let refused = (0..self.mirrors.len()).find_map(|mirror| rights.refusal(mirror));
        Some(ArbiterStatus {
            url: self
                .config
                .arbiter
                .as_ref()
                .map_or_else(String::new, |arbiter| arbiter.url.clone()),
            health: match rights.last() {
                None => Health::Unknown,
                Some(Ok(())) => Health::Normal,
                Some(Err(_)) => Health::Error,
            },
            detail: match rights.last() {
                Some(Err(reason)) => Some(reason.to_owned()),
                _ => refused.map(ToString::to_string),
            },
            leases: leases.collect(),
        })
    }

    fn forced_stop_status(&self) -> Option<ForcedStopStatus> {
        let fencing = self.fencing.as_ref()?;
        let kind = &self.config.forced_stop.as_ref()?.kind;
        let (health, detail) = match fencing.health() {
            fencing::Health::Unknown => (Health::Unknown, None),
            fencing::Health::Works => (Health::Normal, None),
            fencing::Health::Fails { reason } => (Health::Error, Some(reason.clone())),
        };
        Some(ForcedStopStatus {
            kind: kind.clone(),
            health,
            detail,
        })
    }

    /// Gravest first.
    fn warnings(&self) -> Vec<String> {
        let peer = self.config.peer_name();
        let mut warnings = Vec::new();
        for group in self.orders.active_twice() {
            let name = &self.config.groups[*group].config.name;
            warnings.push(format!(
                "{name} is active on both nodes; `mirrorctl group resolve {name} --keep NODE` keeps one"
            ));
        }
        for (mirror, state) in self.mirrors.iter().enumerate() {
            let name = &self.config.mirrors[mirror].name;
            match state.view {
                None => warnings.push(format!("mirrord does not answer for {name}")),
                Some(view) if view.split_brain => {
                    warnings.push(format!("both sides of {name} were written to"));
                }
                Some(view) if view.suspended => warnings.push(format!(
                    "{name} holds its answers until {peer} is known to be down"
                )),
                Some(_) => {}
            }
        }
        match self.partition.stage() {
            Stage::CutOff { .. } => {
                warnings.push("this node is cut off; its mirrors are frozen".into());
            }
            Stage::Final { .. } => {
                warnings.push("this node is cut off for good; its groups stop".into());
            }
            Stage::Barred { reason } => warnings.push(format!(
                "the forced stop of {peer} failed ({reason}); nothing fails over"
            )),
            Stage::Resolving | Stage::Consent { .. } => {
                warnings.push(format!(
                    "{peer} is silent; what that means is being found out"
                ));
            }
            Stage::Fencing => warnings.push(format!("{peer} is silent and is being stopped")),
            Stage::Alone { .. } => {
                let doubtful = (0..self.controls.len()).any(|group| {
                    self.controls[group].group.state() != State::Offline && self.is_unproven(group)
                });
                if doubtful {
                    warnings.push(format!(
                        "nothing proves that {peer} is down: groups may be active on both nodes"
                    ));
                }
            }
            Stage::Together => {}
        }
        if self.doubt.is_some() {
            warnings
                .push("this node was frozen; its mirrors wait until its rights are known".into());
        }
        if self.membership.has_namesake(Whose::Mine) {
            let me = self.config.my_name();
            warnings.push(format!(
                "another machine calls itself {me} too; stop it, or give it a name of its own"
            ));
        }
        if self.membership.has_namesake(Whose::Peers) {
            warnings.push(format!(
                "two machines call themselves {peer}; the one that was heard first is believed"
            ));
        }
        let heard_elsewhere = self.rights.as_ref().and_then(Rights::hears_peer) == Some(true);
        if heard_elsewhere && self.membership.peer() == Peer::Lost {
            warnings.push(format!(
                "the arbiter hears {peer}: it runs, and the network between the nodes is broken"
            ));
        }
        if self.config_differs {
            warnings.push(format!("{peer} runs with another configuration"));
        }
        warnings
    }
}
