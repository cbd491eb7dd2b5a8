//! Effects of an agent become calls that take their time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use agent::group::{Action, Failure};
use agent::node::config::Reach;

use super::*;
use crate::cluster::settings::{APPLICATION, ASK_TIMEOUT_MS, DISK, PROBE_PORT};

/// Longest that the driver waits for `mirrord`.
const MIRROR_TIMEOUT_MS: u64 = 2_000;
/// Datagrams that whoever sends them again keeps.
const TAPE_MAX: usize = 500;
/// Why a promotion is refused for a moment.
const PASSING: [&str; 3] = ["busy", "peer-is-primary", "the peer does not agree in time"];
/// A resolver target that does not answer.
const RESOLVE_TIMEOUT_MS: u64 = 400;
/// Where datagrams come from: there is nobody else to answer.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 29_002);
/// A stopped node is on again after this; nobody is that fast.
const BACK_MS: u64 = 8_000;

impl World {
    pub(super) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Datagram { to, path, bytes } => {
                let from = ADDRESS;
                self.hand_agent(to, Event::Received { path, from, bytes });
            }
            Happening::ToAgent { node, run, event } => {
                if self.run_of(node) == Some(run) {
                    self.hand_agent(node, event);
                }
            }
            Happening::AtWitness {
                from,
                run,
                number,
                request,
                sent_ms,
            } => self.at_witness(from, run, number, &request, sent_ms),
            Happening::AtMirror {
                node,
                run,
                number,
                command,
                late_ms,
            } => self.at_mirror(node, run, number, command, late_ms),
            Happening::Probe { node, run, number } => {
                let well = self.machines[node].mounted
                    && self.mirrors[node].is_in_service()
                    && !self.machines[node].trouble.probe_fails;
                let result = if well {
                    Ok(())
                } else {
                    Err("the disk gives errors".into())
                };
                if self.run_of(node) == Some(run) {
                    self.hand_agent(node, Event::Probed { number, result });
                }
            }
            Happening::StopTakesEffect { by, asked_ms } => {
                let victim = 1 - by;
                if self.machines[victim].powered {
                    self.say(|| format!("{victim} is stopped by {by}"));
                    self.checker.on_stopped(by, asked_ms, self.now_ms);
                    self.power_off(victim);
                }
                let back_ms = self.now_ms + BACK_MS + self.random.below(10_000);
                let boot_ms = &mut self.machines[victim].boot_ms;
                *boot_ms = Some(boot_ms.map_or(back_ms, |at_ms| at_ms.max(back_ms)));
            }
        }
    }

    fn run_of(&self, node: usize) -> Option<u64> {
        self.machines[node].agent.as_ref().map(|agent| agent.run)
    }

    pub(super) fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            let Some(run) = self.run_of(node) else {
                return;
            };
            self.carry_out_one(node, run, effect);
        }
    }

    fn carry_out_one(&mut self, node: usize, run: u64, effect: Effect) {
        match effect {
            Effect::Send { path, bytes, .. } => self.send(node, path, bytes),
            Effect::Resolve { number, resolver } => {
                let target = match self.settings.resolvers[resolver] {
                    Reach::Http => Line::WebTarget(node),
                    _ => Line::Target(node),
                };
                let (delay_ms, result) = if self.network.passes(target) {
                    (self.random.between(1, 30), Ok(()))
                } else {
                    (RESOLVE_TIMEOUT_MS, Err("no answer".into()))
                };
                self.answer_after(delay_ms, node, run, Event::Resolved { number, result });
            }
            Effect::Ask { number, request } => {
                let sent_ms = self.machines[node].clock.read(self.now_ms);
                if self.network.passes(Line::ToWitness(node)) {
                    let delay_ms = self.random.between(1, 20) + self.jitter();
                    let ask = Happening::AtWitness {
                        from: node,
                        run,
                        number,
                        request,
                        sent_ms,
                    };
                    self.after(delay_ms, ask);
                }
                let result = Err("no answer in time".into());
                let event = Event::Answered { number, result };
                self.answer_after(ASK_TIMEOUT_MS, node, run, event);
            }
            Effect::Fence(effect) => self.call_provider(node, run, &effect),
            Effect::Mirror {
                number, command, ..
            } => {
                let late_ms = self.now_ms + MIRROR_TIMEOUT_MS;
                let delay_ms = self.random.between(1, 8);
                let call = Happening::AtMirror {
                    node,
                    run,
                    number,
                    command,
                    late_ms,
                };
                self.after(delay_ms, call);
            }
            Effect::Run {
                group,
                number,
                resource,
                action,
                timeout_ms,
                permit,
            } => {
                self.say(|| format!("{node} runs {action:?} of {resource}, {permit:?}"));
                let due_ms = self.now_ms + self.random.between(5, 150);
                self.machines[node].jobs.push(Job {
                    run,
                    group,
                    number,
                    resource,
                    action,
                    permit,
                    due_ms,
                    late_ms: self.now_ms + timeout_ms,
                    stage: Stage::Begin,
                });
            }
            Effect::Probe { number, .. } => {
                let delay_ms = self.random.between(1, 50);
                self.after(delay_ms, Happening::Probe { node, run, number });
            }
            Effect::Act(action) => self.act(node, action),
            Effect::Alert(alert) => self.note_alert(node, alert),
            Effect::Ready { .. } => {}
            Effect::CommandDone { id, result } => {
                self.commands.retain(|(_, _, command)| *command != id.0);
                let result = result
                    .map(|reply| reply.message)
                    .map_err(|refusal| refusal.reason);
                self.say(|| format!("{node} -> {} {result:?}", id.0));
                self.outcomes.push((id.0, result));
            }
            Effect::Exit => self.kill_agent(node, 3_000),
        }
    }

    fn jitter(&mut self) -> u64 {
        let delay_ms = self.network.delay_ms;
        self.random.below(delay_ms + 1)
    }

    fn send(&mut self, from: usize, path: usize, bytes: Vec<u8>) {
        self.record(path, &bytes);
        if self.random.percent(self.network.again_percent) {
            let at = self.random.below(self.tape.len() as u64) as usize;
            let (path, bytes) = self.tape[at].clone();
            let to = self.random.below(2) as usize;
            self.after(1, Happening::Datagram { to, path, bytes });
        }
        if !self.network.passes(Line::Beat { path, from })
            || self.random.percent(self.network.loss_percent)
        {
            return;
        }
        let times = 1 + u64::from(self.random.percent(self.network.twice_percent));
        for _ in 0..times {
            let delay_ms = self.random.between(1, 5) + self.jitter();
            let bytes = bytes.clone();
            let to = 1 - from;
            self.after(delay_ms, Happening::Datagram { to, path, bytes });
        }
    }

    /// Old ones are kept beside new ones.
    fn record(&mut self, path: usize, bytes: &[u8]) {
        let entry = (path, bytes.to_vec());
        if self.tape.len() < TAPE_MAX {
            self.tape.push(entry);
        } else {
            let at = self.random.below(TAPE_MAX as u64) as usize;
            self.tape[at] = entry;
        }
    }

    fn at_witness(&mut self, from: usize, run: u64, number: u64, request: &Request, sent_ms: u64) {
        let lease_ms = self.settings.lease_ms;
        let Some(reply) = self
            .witness
            .ask(self.now_ms, NAMES[from], lease_ms, request)
        else {
            return;
        };
        if !matches!(request, Request::Beat { .. }) {
            self.say(|| format!("witness: {from} {request:?}: {reply:?}"));
        }
        if !self.network.passes(Line::FromWitness(from)) {
            return;
        }
        let confirmed = &mut self.machines[from].confirmed;
        confirmed.push_back((sent_ms, self.now_ms));
        if confirmed.len() > 64 {
            confirmed.pop_front();
        }
        let delay_ms = self.random.between(1, 20) + self.jitter();
        let answer = agent::node::event::Answer { reply, sent_ms };
        let result = Ok(answer);
        self.answer_after(delay_ms, from, run, Event::Answered { number, result });
    }

    fn at_mirror(
        &mut self,
        node: usize,
        run: u64,
        number: u64,
        command: MirrorCommand,
        late_ms: u64,
    ) {
        if !self.machines[node].powered {
            return;
        }
        let alive = self.mirrors[node].process.is_some();
        if alive && !self.machines[node].mirror_runs(self.now_ms) {
            // It finds the call in its socket when it runs again, whoever has given up waiting.
            if self.now_ms >= late_ms && late_ms != 0 {
                let result = Err("mirrord does not answer".into());
                self.answer_after(1, node, run, Event::MirrorDone { number, result });
            }
            let late_ms = if self.now_ms >= late_ms { 0 } else { late_ms };
            let again = Happening::AtMirror {
                node,
                run,
                number,
                command,
                late_ms,
            };
            self.after(20, again);
            return;
        }
        let node_ms = self.machines[node].clock.read(self.now_ms);
        let result = self.mirrors[node].command(node_ms, command);
        if !matches!(command, MirrorCommand::Lease { .. }) {
            self.say(|| format!("{node} mirror {command:?}: {result:?}"));
        }
        if let MirrorCommand::Lease { deadline_ms, .. } = command {
            self.date_confirmed(node, deadline_ms);
        }
        if late_ms != 0 {
            self.answer_after(1, node, run, Event::MirrorDone { number, result });
        }
    }

    fn call_provider(&mut self, node: usize, run: u64, effect: &fencing::Effect) {
        let reached = self.network.passes(Line::Provider(node));
        let works = reached && !self.provider_fails;
        let refused = || Err("the provider does not answer".to_owned());
        let delay_ms = self.random.between(10, 200);
        match *effect {
            fencing::Effect::Check { number } => {
                let result = if works { Ok(()) } else { Err("no".into()) };
                let event = fencing::Event::CheckAnswered { number, result };
                self.answer_after(delay_ms, node, run, Event::Fenced(event));
            }
            fencing::Effect::Query { number } => {
                let result = if works {
                    Ok(!self.machines[1 - node].powered)
                } else {
                    refused().map(|()| false)
                };
                let event = fencing::Event::QueryAnswered { number, result };
                self.answer_after(delay_ms, node, run, Event::Fenced(event));
            }
            fencing::Effect::Stop { number } => {
                let answered = |result| Event::Fenced(fencing::Event::Answered { number, result });
                if !works {
                    let event = answered(refused().map(|()| fencing::Stopped::Accepted));
                    return self.answer_after(delay_ms, node, run, event);
                }
                let takes_ms =
                    self.random.between(20, self.settings.stop_takes_ms) + self.provider_slow_ms;
                let asked_ms = self.now_ms;
                if !self.mistakes.stop_lies {
                    self.after(takes_ms, Happening::StopTakesEffect { by: node, asked_ms });
                }
                let waits = takes_ms < 800 && self.random.coin();
                if waits || self.mistakes.stop_lies {
                    let event = answered(Ok(fencing::Stopped::Confirmed));
                    self.answer_after(takes_ms + 10, node, run, event);
                } else {
                    let event = answered(Ok(fencing::Stopped::Accepted));
                    self.answer_after(delay_ms.min(takes_ms), node, run, event);
                }
            }
            _ => {}
        }
    }

    fn act(&mut self, node: usize, action: FinalAction) {
        self.say(|| format!("{node} acts: {action:?}"));
        match action {
            FinalAction::None | FinalAction::StopGroup | FinalAction::StopService => {}
            FinalAction::StopServiceAndShutdown => {
                self.power_off(node);
                self.machines[node].boot_ms = Some(self.now_ms + 60_000);
            }
            FinalAction::Reboot | FinalAction::SysrqPanic | FinalAction::WatchdogReset => {
                self.power_off(node);
                self.machines[node].boot_ms = Some(self.now_ms + 3_000);
            }
        }
    }

    pub(super) fn run_jobs(&mut self, node: usize) {
        let now_ms = self.now_ms;
        // Children of the agent, stopped with it.
        if !self.machines[node].is_running(now_ms) {
            return;
        }
        let jobs = std::mem::take(&mut self.machines[node].jobs);
        for job in jobs {
            if !self.machines[node].powered {
                return;
            }
            if now_ms < job.due_ms && now_ms < job.late_ms {
                self.machines[node].jobs.push(job);
                continue;
            }
            let outcome = if now_ms >= job.late_ms {
                Some(Err("it took too long".to_owned()))
            } else {
                self.run_job(node, job)
            };
            let Some(result) = outcome else { continue };
            self.say(|| format!("{node} {:?} of {}: {result:?}", job.action, job.resource));
            let result = result.map_err(|reason| Failure {
                passing: PASSING.contains(&reason.as_str()),
                reason,
            });
            let event = Event::ResourceDone {
                group: job.group,
                number: job.number,
                result,
            };
            self.answer_after(1, node, job.run, event);
        }
    }

    /// None: it goes on.
    fn run_job(&mut self, node: usize, job: Job) -> Option<Result<(), String>> {
        let trouble = self.machines[node].trouble;
        let again = |world: &mut Self, stage: Stage, delay_ms: u64| {
            world.machines[node].jobs.push(Job {
                stage,
                due_ms: world.now_ms + delay_ms,
                ..job
            });
            None
        };
        let there = &self.machines[1 - node];
        let runs_there = there.application || there.mounted;
        // A node that was never heard is not stopped; the arbiter's grant is proof that it answers nothing any more.
        let proved = job.permit.grant.is_some() && !self.has_heard_peer(node);
        if job.action == Action::Start && runs_there && self.settings.stops_first() && !proved {
            self.checker.report(Violation::BothRun { node });
        }
        match (job.action, job.resource) {
            (Action::Start, _) if trouble.start_hangs => again(self, job.stage, 100),
            (Action::Start, APPLICATION) => {
                // Also where it fails: it may have started in part.
                self.machines[node].application = true;
                Some(match trouble.start_fails {
                    true => Err("the application does not start".into()),
                    false => Ok(()),
                })
            }
            (Action::Start, PROBE_PORT) => {
                self.machines[node].probe_port = true;
                Some(Ok(()))
            }
            (Action::Start, _) => self.start_disk(node, job),
            (Action::Stop { .. }, _) if trouble.stop_fails => Some(Err("it does not stop".into())),
            (Action::Stop { .. }, _) if trouble.stop_slow_ms > 0 && job.stage == Stage::Begin => {
                let slow_ms = self
                    .random
                    .between(trouble.stop_slow_ms / 2, trouble.stop_slow_ms);
                again(self, Stage::Mounting, slow_ms)
            }
            (Action::Stop { .. }, APPLICATION) => {
                self.machines[node].application = false;
                Some(Ok(()))
            }
            (Action::Stop { .. }, PROBE_PORT) => {
                self.machines[node].probe_port = false;
                Some(Ok(()))
            }
            (Action::Stop { force }, _) => {
                if self.mirrors[node].process.is_none() || self.mirrors[node].demote(force) {
                    self.machines[node].mounted = false;
                    return Some(Ok(()));
                }
                again(self, job.stage, 50)
            }
        }
    }

    fn start_disk(&mut self, node: usize, job: Job) -> Option<Result<(), String>> {
        debug_assert_eq!(job.resource, DISK);
        let node_ms = self.machines[node].clock.read(self.now_ms);
        let stage = match job.stage {
            Stage::Begin => {
                if self.mirrors[node].process.is_none() {
                    return Some(Err("mirrord does not answer".into()));
                }
                if !self.machines[node].mirror_runs(self.now_ms) {
                    Stage::Begin
                } else {
                    self.jobs += 1;
                    self.mirrors[node].promote(node_ms, self.jobs, job.permit);
                    Stage::Promoting(self.jobs)
                }
            }
            Stage::Promoting(id) => {
                let Some(process) = &self.mirrors[node].process else {
                    return Some(Err("mirrord does not answer".into()));
                };
                match process.outcomes.get(&id).cloned() {
                    None => job.stage,
                    Some(outcome) => {
                        self.mirrors[node].forget(id);
                        if let Err(reason) = outcome {
                            return Some(Err(reason));
                        }
                        let epoch = self.mirrors[node].disk.epoch;
                        self.say(|| format!("{node} is primary, epoch {epoch}"));
                        Stage::Mounting
                    }
                }
            }
            Stage::Mounting => {
                if !self.mirrors[node].is_primary() {
                    return Some(Err("the mirror is not primary any more".into()));
                }
                // A mount reads and writes.
                if self.mirrors[node].is_serving(node_ms) {
                    self.machines[node].mounted = true;
                    return Some(Ok(()));
                }
                job.stage
            }
        };
        let delay_ms = if stage == Stage::Mounting { 40 } else { 10 };
        self.machines[node].jobs.push(Job {
            stage,
            due_ms: self.now_ms + delay_ms,
            ..job
        });
        None
    }
}
