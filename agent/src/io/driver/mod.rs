//! The agent at work: the node's effects carried out, their outcomes brought back as events.
//!
//! One task owns the [`Node`]. Whatever takes time runs in a task of its own and answers through one
//! bounded channel; nothing here decides.

mod mirrord;
mod paths;
mod settings;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mirror_core::control::Refusal;
use nbd_frontend::config::agent::{AgentConfig, FinalAction};
use nbd_frontend::config::{self, ClusterKey, Config};
use nbd_frontend::daemon::notify;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::alert;
use crate::alert_log::AlertLog;
use crate::console::{AgentPort, Ask, Console};
use crate::control::{ClusterStatus, CommandReply, State};
use crate::fencing;
use crate::group::{Action, Failure};
use crate::io::arbiter::WitnessClient;
use crate::io::clock::boottime_ms;
use crate::io::final_action::Machine;
use crate::io::forced_stop::{ForcedStopDriver, Servers};
use crate::io::probe::{MonitorProbe, ResolverProbe};
use crate::io::resource::{Presence, Resource};
use crate::membership::Run;
use crate::node::Node;
use crate::node::event::{Answer, CommandId, Effect, Event, Permit};

use mirrord::Mirrors;
use paths::Paths;

/// Outcomes and datagrams that may wait for the node.
const EVENTS_MAX: usize = 1024;
/// Commands of operators that may wait for their outcome.
const COMMANDS_MAX: usize = 64;
/// How long the last lines of the alert log may take to reach the disk before a final action.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// A little over what each step of a final action gives itself.
const ACT_LIMIT: Duration = Duration::from_secs(15);

/// The command line, parsed.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
    pub node: Option<String>,
    pub run_dir: PathBuf,
}

type Reply = oneshot::Sender<Result<CommandReply, Refusal>>;

/// Runs until the node ends. An error is the reason for a non-zero exit code.
pub fn run(options: &Options, machine: Machine) -> anyhow::Result<()> {
    let config = Config::load_trusted(&options.config)?;
    let me = config.node_index(options.node.as_deref())?;
    let agent = config.agent.clone().with_context(|| {
        format!(
            "{} has no [heartbeat] section: there is nothing for an agent to do; \
             docs/configuration.md shows what it takes",
            options.config.display()
        )
    })?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let key = config::key::load(&config.key_file)?;
    // Programs that serve a mount run elsewhere and outlive this one.
    let run_dir = std::path::absolute(&options.run_dir)
        .with_context(|| format!("cannot use the run directory {}", options.run_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the agent's runtime")?;
    let outcome = runtime.block_on(async {
        // Claimed before anything else, so that a second agent ends before it touches a group.
        let console = Console::claim(&run_dir)?;
        let log = AlertLog::open(&agent.alert_log, &config.nodes[me]);
        let ran = async {
            let log = log.clone();
            let driver = Driver::start(&config, agent, me, &key, &run_dir, machine, log).await?;
            driver.run(console).await
        };
        let ran = ran.await;
        if let Err(error) = &ran {
            log.record(alert::AGENT_FAILED.with(format!("The agent ends: {error:#}.")));
            log.flush(FLUSH_LIMIT).await;
        }
        ran
    });
    // A probe that hangs in the kernel must not keep the agent from ending.
    runtime.shutdown_background();
    outcome
}

struct Driver {
    node: Node,
    events: mpsc::Receiver<Event>,
    hands: Hands,
    monitor_kinds: Vec<String>,
    tick: Duration,
    asks: mpsc::Receiver<Ask>,
    port: AgentPort,
    effects: Vec<Effect>,
    ended: bool,
}

/// Everything that effects are carried out with.
struct Hands {
    events: mpsc::Sender<Event>,
    paths: Paths,
    mirrors: Mirrors,
    resolvers: Vec<Arc<ResolverProbe>>,
    arbiter: Option<Arc<WitnessClient>>,
    forced_stop: Option<Arc<ForcedStopDriver>>,
    peer: usize,
    resources: Vec<Vec<Arc<Resource>>>,
    monitors: Vec<Arc<MonitorProbe>>,
    machine: Machine,
    log: AlertLog,
    replies: HashMap<CommandId, Reply>,
    next_command: u64,
}

impl Driver {
    async fn start(
        config: &Config,
        agent: AgentConfig,
        me: usize,
        key: &ClusterKey,
        run_dir: &Path,
        machine: Machine,
        log: AlertLog,
    ) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut complaints = Vec::new();
        let paths = Paths::open(&agent.heartbeat.paths, me, key, &sender, &mut complaints)?;
        for complaint in complaints {
            log.record(alert::PATH_DOWN.with(format!("The agent {complaint}.")));
        }
        let names: Vec<String> = config
            .mirrors
            .iter()
            .map(|mirror| mirror.name.clone())
            .collect();
        let arbiter = agent
            .arbiter
            .as_ref()
            .map(|arbiter| {
                let lease_ms = u64::try_from(arbiter.lease.as_millis())
                    .context("the lease is longer than time")?;
                let client = WitnessClient::new(
                    &arbiter.url,
                    &config.cluster,
                    &config.nodes[me],
                    key,
                    arbiter.timeout,
                    lease_ms,
                )?;
                anyhow::Ok(Arc::new(client))
            })
            .transpose()?;
        let forced_stop = agent
            .forced_stop
            .as_ref()
            .map(|stop| {
                let servers = Servers {
                    cluster: config.cluster.clone(),
                    nodes: config.nodes.clone(),
                    local: me,
                };
                ForcedStopDriver::new(stop, servers).map(Arc::new)
            })
            .transpose()?;
        let mut resources = Vec::with_capacity(agent.groups.len());
        for group in &agent.groups {
            let mut made = Vec::with_capacity(group.resources.len());
            for resource in &group.resources {
                let resource = Resource::new(resource, &group.name, me, run_dir);
                // It is tried again when the group starts, which then fails by it.
                if let Err(error) = resource.prepare().await {
                    let (group, resource) = (&group.name, resource.name());
                    let text = format!("{resource} of {group} cannot be prepared: {error}.");
                    log.record(alert::RESOURCE_FAILED.with(text));
                }
                made.push(Arc::new(resource));
            }
            resources.push(made);
        }
        mirrord::ensure_own(run_dir, &config.nodes[me]).await?;
        let mirrors = Mirrors::watch(
            run_dir,
            &config.nodes[me],
            &names,
            arbiter.is_some(),
            &sender,
        );
        let hands = Hands {
            resolvers: agent
                .partition
                .resolvers
                .iter()
                .filter_map(ResolverProbe::new)
                .map(Arc::new)
                .collect(),
            monitors: agent
                .monitors
                .iter()
                .map(|monitor| Arc::new(MonitorProbe::new(monitor, me)))
                .collect(),
            log,
            events: sender,
            paths,
            mirrors,
            arbiter,
            forced_stop,
            peer: 1 - me,
            resources,
            machine,
            replies: HashMap::new(),
            next_command: 1,
        };
        let mut effects = Vec::new();
        let node = Node::new(
            settings::node(config, &agent, me),
            settings::membership(config, &agent, me, key),
            draw_run()?,
            boottime_ms(),
            &mut effects,
        );
        let (port, asks) = AgentPort::new();
        Ok(Self {
            node,
            events,
            hands,
            monitor_kinds: settings::monitor_kinds(&agent),
            tick: settings::tick(&agent),
            asks,
            port,
            effects,
            ended: false,
        })
    }

    async fn run(mut self, console: Console) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
        let ring = self.hands.log.ring();
        let mut serving = tokio::spawn(console.serve(self.port.clone(), ring));
        let mut hangup = tokio::spawn(self.hands.log.clone().reopen_on_hangup());
        self.find_running().await;
        notify::notify("READY=1");
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.carry_out().await;
        while !self.ended {
            tokio::select! {
                // Time first: a node that was frozen must know before it hears anything.
                biased;
                _ = ticks.tick() => self.step(Event::Tick).await,
                _ = terminate.recv() => self.shut_down().await,
                _ = interrupt.recv() => self.shut_down().await,
                Some(event) = self.events.recv() => self.step(event).await,
                Some(ask) = self.asks.recv() => self.answer(ask).await,
            }
        }
        self.hands.log.flush(FLUSH_LIMIT).await;
        serving.abort();
        hangup.abort();
        // Dropped, the console takes its socket away.
        let _ = (&mut serving).await;
        let _ = (&mut hangup).await;
        Ok(())
    }

    /// What an earlier run of the agent left running.
    async fn find_running(&mut self) {
        for group in 0..self.hands.resources.len() {
            let mut states = Vec::with_capacity(self.hands.resources[group].len());
            for resource in &self.hands.resources[group] {
                states.push(match resource.probe_state().await {
                    Ok(Presence::Online) => State::Online,
                    Ok(Presence::Offline) => State::Offline,
                    Ok(Presence::Partial) => State::Failed,
                    Err(error) => {
                        tracing::warn!(resource = resource.name(), "{error}");
                        State::Failed
                    }
                });
            }
            self.step(Event::Found { group, states }).await;
        }
    }

    async fn shut_down(&mut self) {
        notify::notify("STOPPING=1");
        self.step(Event::Shutdown).await;
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Ask::Command { request, reply } => {
                if self.hands.replies.len() >= COMMANDS_MAX {
                    let _ = reply.send(Err(Refusal::new(
                        "busy",
                        "too many commands wait already",
                        "wait for those to end",
                    )));
                    return;
                }
                let id = CommandId(self.hands.next_command);
                self.hands.next_command += 1;
                self.hands.replies.insert(id, reply);
                tracing::info!(?request, "command");
                self.step(Event::Command { id, request }).await;
            }
        }
    }

    fn status(&self) -> ClusterStatus {
        let mut status = self.node.status(&self.monitor_kinds);
        status.mirrors = self.hands.mirrors.last();
        status.warnings.extend(self.hands.log.trouble());
        status
    }

    async fn step(&mut self, event: Event) {
        self.node.step(boottime_ms(), event, &mut self.effects);
        self.carry_out().await;
    }

    async fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            if self.hands.carry_out(effect).await {
                self.ended = true;
            }
        }
    }
}

impl Hands {
    /// True if the agent is to end.
    async fn carry_out(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Send { path, to, bytes } => self.paths.send(path, to, &bytes),
            Effect::Resolve { number, resolver } => self.resolve(number, resolver),
            Effect::Ask { number, request } => {
                let Some(arbiter) = self.arbiter.clone() else {
                    return false;
                };
                self.later(async move {
                    let result = match arbiter.call(request).await {
                        Ok(answered) => Ok(Answer {
                            reply: answered.reply,
                            sent_ms: answered.sent_ms,
                        }),
                        Err(error) => Err(error.to_string()),
                    };
                    Event::Answered { number, result }
                });
            }
            Effect::Fence(effect) => self.fence(effect),
            Effect::Mirror {
                number,
                mirror,
                command,
            } => {
                if !self.mirrors.command(number, mirror, command) {
                    let result = Err("mirrord does not answer".to_owned());
                    self.later(async move { Event::MirrorDone { number, result } });
                }
            }
            Effect::Run {
                group,
                number,
                resource,
                action,
                timeout_ms,
                permit,
            } => self.run(group, number, resource, action, timeout_ms, permit),
            Effect::Probe {
                number,
                monitor,
                timeout_ms,
            } => self.probe(number, monitor, timeout_ms),
            Effect::Act(action) => self.act(action).await,
            Effect::Alert(alert) => self.log.record(alert),
            Effect::Ready { group, ready } => {
                for resource in &self.resources[group] {
                    if let Err(error) = resource.set_ready(ready).await {
                        tracing::warn!(resource = resource.name(), "{error}");
                    }
                }
            }
            Effect::CommandDone { id, result } => {
                if let Some(reply) = self.replies.remove(&id) {
                    // Nobody may wait for it any more.
                    let _ = reply.send(result);
                }
            }
            Effect::Exit => return true,
        }
        false
    }

    fn resolve(&self, number: u64, resolver: usize) {
        let probe = Arc::clone(&self.resolvers[resolver]);
        self.later(async move {
            let result = probe.probe().await;
            Event::Resolved { number, result }
        });
    }

    fn fence(&self, effect: fencing::Effect) {
        let Some(driver) = self.forced_stop.clone() else {
            return;
        };
        let target = self.peer;
        self.later(async move {
            let text = |error: crate::io::forced_stop::StopError| error.to_string();
            Event::Fenced(match effect {
                fencing::Effect::Stop { number } => fencing::Event::Answered {
                    number,
                    result: driver.stop(target).await.map_err(text),
                },
                fencing::Effect::Query { number } => fencing::Event::QueryAnswered {
                    number,
                    result: driver.is_down(target).await.map_err(text),
                },
                fencing::Effect::Check { number } => fencing::Event::CheckAnswered {
                    number,
                    result: driver.check(target).await.map_err(text),
                },
                _ => fencing::Event::Tick,
            })
        });
    }

    fn run(
        &self,
        group: usize,
        number: u64,
        resource: usize,
        action: Action,
        timeout_ms: u64,
        permit: Permit,
    ) {
        let driver = Arc::clone(&self.resources[group][resource]);
        self.later(async move {
            let work = async {
                match action {
                    Action::Start => driver.start(&permit).await,
                    Action::Stop { force } => driver.stop(force).await,
                }
            };
            let result = match tokio::time::timeout(Duration::from_millis(timeout_ms), work).await {
                Ok(result) => result.map_err(|error| Failure {
                    reason: error.to_string(),
                    passing: error.is_passing(),
                }),
                Err(_) => Err(format!("it took longer than {timeout_ms} ms").into()),
            };
            Event::ResourceDone {
                group,
                number,
                result,
            }
        });
        self.mirrors.look();
    }

    fn probe(&self, number: u64, monitor: usize, timeout_ms: u64) {
        let probe = Arc::clone(&self.monitors[monitor]);
        let mirrors = self.mirrors.last();
        self.later(async move {
            let work = probe.probe(&mirrors);
            let result = match tokio::time::timeout(Duration::from_millis(timeout_ms), work).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {timeout_ms} ms")),
            };
            Event::Probed { number, result }
        });
    }

    async fn act(&mut self, action: FinalAction) {
        self.log.flush(FLUSH_LIMIT).await;
        let machine = self.machine.clone();
        let starved = action == FinalAction::WatchdogReset && starve_watchdogs(&self.monitors);
        // A thread of its own: what hangs must not keep the rest of this from being told.
        let acting = tokio::task::spawn_blocking(move || machine.act(action, starved));
        let failure = match tokio::time::timeout(ACT_LIMIT, acting).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => format!("{error:#}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it did not come to an end".into(),
        };
        let text = format!("The final action failed: {failure}.");
        self.log.record(alert::FINAL_ACTION_FAILED.with(text));
    }

    /// Runs work beside the node; its outcome is the node's next event.
    fn later(&self, work: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = work.await;
            // The agent has ended.
            let _ = events.send(event).await;
        });
    }
}

/// Of all monitors, so that none feeds what is to run out. True if one held a watchdog.
fn starve_watchdogs(monitors: &[Arc<MonitorProbe>]) -> bool {
    let held: Vec<bool> = monitors
        .iter()
        .map(|monitor| monitor.starve_watchdog())
        .collect();
    held.contains(&true)
}

fn draw_run() -> anyhow::Result<Run> {
    loop {
        let bytes =
            mirror_core::io::link::handshake::random_bytes().context("cannot read random bytes")?;
        let run = u64::from_le_bytes(bytes);
        if run != 0 {
            return Ok(Run(run));
        }
    }
}
