//! What is asked of the agent: the state of the cluster, groups, nodes, monitors, and the alert log.

mod log;
mod screen;
mod status;

use std::collections::BTreeMap;
use std::time::Duration;

use agent::console::client::{AgentClient, ClientError};
use agent::control::CommandRequest;
use clap::Subcommand;

use crate::arguments::Global;
use crate::loss;
use crate::outcome::{Failure, Outcome};

/// Time for a question when --timeout says nothing.
const QUERY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Time for a command when --timeout says nothing. A group may take minutes to stop and to start.
const COMMAND_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the cluster: nodes, groups, monitors, mirrors, and what needs attention
    Status,
    /// Move a group to the other node, and say how long it was without service
    Switchover {
        group: String,
        /// Which node is to run it [default: the one that does not]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Start or stop a group, or end its being active on both nodes
    #[command(subcommand)]
    Group(GroupCommand),
    /// Take a node out of use for maintenance, and back
    #[command(subcommand)]
    Node(NodeCommand),
    /// Suspend all monitors, or let them go on
    #[command(subcommand)]
    Monitor(MonitorCommand),
    /// Show the alert log: what was decided and why, newest last
    Log {
        /// Keep showing what is decided until interrupted
        #[arg(long)]
        follow: bool,
        /// Only the last of them
        #[arg(short = 'n', long = "lines", value_name = "N")]
        lines: Option<usize>,
    },
}

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Start a group on this node
    Start {
        group: String,
        /// You know that the other node, which is silent, is really down
        #[arg(long)]
        peer_down: bool,
        /// The data of its mirrors here is the truth: the first start of a new group, or you give up what only the other
        /// node has
        #[arg(long)]
        force: bool,
    },
    /// Stop a group wherever it runs; it stays stopped until `group start`
    Stop { group: String },
    /// After both nodes were active: one side goes on, the other gives up what it wrote
    Resolve {
        group: String,
        /// The node whose data is kept
        #[arg(long, value_name = "NODE")]
        keep: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Groups leave the node, and none starts there until `node active` or a restart of its agent
    Standby {
        // `node` is the global option.
        #[arg(value_name = "NODE")]
        name: String,
    },
    /// Groups may run on the node again
    Active {
        #[arg(value_name = "NODE")]
        name: String,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum MonitorCommand {
    /// Faults are not looked for on either node, until `monitor resume` or a restart of its agent
    Suspend,
    /// Faults are looked for again on both nodes
    Resume,
}

pub async fn run(global: &Global, command: &Command) -> Outcome {
    let request = match command {
        Command::Status => return status::run(global).await,
        Command::Log { follow, lines } => return log::run(global, *follow, *lines).await,
        Command::Switchover { group, to } => CommandRequest::Switchover {
            group: group.clone(),
            to: to.clone(),
        },
        Command::Group(GroupCommand::Start {
            group,
            peer_down,
            force,
        }) => {
            let request = CommandRequest::GroupStart {
                group: group.clone(),
                peer_down: *peer_down,
                force: *force,
            };
            // What the step may cost has to be asked before it is taken.
            let may_lose = match force {
                true => losses(global, group).await?,
                false => Losses::new(),
            };
            return tell(global, &request, &may_lose).await;
        }
        Command::Group(GroupCommand::Stop { group }) => CommandRequest::GroupStop {
            group: group.clone(),
        },
        Command::Group(GroupCommand::Resolve { group, keep }) => CommandRequest::GroupResolve {
            group: group.clone(),
            keep: keep.clone(),
        },
        Command::Node(NodeCommand::Standby { name }) => {
            CommandRequest::NodeStandby { node: name.clone() }
        }
        Command::Node(NodeCommand::Active { name }) => {
            CommandRequest::NodeActive { node: name.clone() }
        }
        Command::Monitor(MonitorCommand::Suspend) => CommandRequest::MonitorSuspend,
        Command::Monitor(MonitorCommand::Resume) => CommandRequest::MonitorResume,
    };
    tell(global, &request, &Losses::new()).await
}

/// Told of a forced start, by mirror.
type Losses = BTreeMap<String, String>;

/// What a forced start of a group may lose. Nothing of one that is not there: the agent refuses that.
async fn losses(global: &Global, name: &str) -> Outcome<Losses> {
    let status = client(global, QUERY_TIMEOUT_DEFAULT).status().await?;
    let groups = status.groups.iter().filter(|group| group.name == name);
    let names: Vec<&String> = groups.flat_map(|group| &group.mirrors).collect();
    let its = status.mirrors.into_iter();
    let its = its.filter(|mirror| names.contains(&&mirror.name));
    let losses: Losses = its
        .map(|mirror| (mirror.name.clone(), loss::of_forced_promotion(&mirror)))
        .collect();
    if !global.json {
        for (mirror, loss) in &losses {
            eprintln!("group start --force {name} may lose, of {mirror}: {loss}");
        }
    }
    Ok(losses)
}

/// Passes a command on and waits for its outcome.
async fn tell(global: &Global, request: &CommandRequest, may_lose: &Losses) -> Outcome {
    let client = client(global, COMMAND_TIMEOUT_DEFAULT);
    let reply = client.command(request).await.map_err(goes_on)?;
    if global.json {
        let mut report = serde_json::to_value(&reply).map_err(anyhow::Error::from)?;
        if !may_lose.is_empty() {
            report["may_lose"] = serde_json::json!(may_lose);
        }
        println!("{report}");
    } else if !global.quiet {
        println!("{}", reply.message);
        if let Some(without_ms) = reply.without_service_ms {
            println!("{} without service", seconds(without_ms));
        }
    }
    Ok(())
}

/// Who stops waiting for a command does not stop the command.
fn goes_on(error: ClientError) -> Failure {
    match error {
        ClientError::TimedOut { .. } => Failure::TimedOut(format!(
            "{error}. The command goes on: see `mirrorctl status` and `mirrorctl log`"
        )),
        other => other.into(),
    }
}

fn client(global: &Global, timeout_default: Duration) -> AgentClient {
    let timeout = global.timeout.unwrap_or(timeout_default);
    AgentClient::new(&global.run_dir, timeout)
}

/// Milliseconds as people read them.
fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}
