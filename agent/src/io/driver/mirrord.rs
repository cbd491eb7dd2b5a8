//! `mirrord` as the node sees it: a view of each mirror, taken at intervals and after every command, and
//! the commands, one at a time to a mirror and in order.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mirror_core::control::{CommandRequest, Connection, DiskState, MirrorStatus, NodeStatus, Role};
use nbd_frontend::control::client::{Client, ClientError};
use tokio::sync::{Notify, mpsc};

use crate::node::event::{Event, MirrorCommand, MirrorView};

/// Between two looks at the mirrors.
const POLL: Duration = Duration::from_millis(200);
/// Longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that wait for one mirror.
const COMMANDS_MAX: usize = 32;

/// Reaches `mirrord` on behalf of the node.
#[derive(Debug)]
pub struct Mirrors {
    commands: Vec<mpsc::Sender<(u64, MirrorCommand)>>,
    look: Arc<Notify>,
    last: Arc<Mutex<Vec<MirrorStatus>>>,
}

impl Mirrors {
    /// `confirms`: answers may wait for lease confirmations, which must not wait for the next look.
    pub fn watch(
        run_dir: &Path,
        node: &str,
        names: &[String],
        confirms: bool,
        events: &mpsc::Sender<Event>,
    ) -> Self {
        let client = Client::new(run_dir, CALL_TIMEOUT);
        let look = Arc::new(Notify::new());
        let last = Arc::new(Mutex::new(Vec::new()));
        let mut commands = Vec::with_capacity(names.len());
        for name in names {
            let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
            commands.push(sender);
            tokio::spawn(command(
                client.clone(),
                name.clone(),
                receiver,
                Arc::clone(&look),
                events.clone(),
            ));
            if confirms {
                tokio::spawn(await_confirms(
                    client.clone(),
                    name.clone(),
                    Arc::clone(&look),
                ));
            }
        }
        tokio::spawn(poll(
            client,
            node.to_owned(),
            names.to_vec(),
            Arc::clone(&look),
            Arc::clone(&last),
            events.clone(),
        ));
        Self {
            commands,
            look,
            last,
        }
    }

    /// False if too many wait already: `mirrord` does not answer.
    pub fn command(&self, number: u64, mirror: usize, command: MirrorCommand) -> bool {
        self.commands[mirror].try_send((number, command)).is_ok()
    }

    /// Something changed that the next look should see at once.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// The last state of every mirror, for people.
    pub fn last(&self) -> Vec<MirrorStatus> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Refuses a `mirrord` that is another node's: what it says would be taken for this node's. One that does not
/// answer yet is fine.
pub async fn ensure_own(run_dir: &Path, node: &str) -> anyhow::Result<()> {
    match Client::new(run_dir, CALL_TIMEOUT).status().await {
        Ok(status) if status.node != node => Err(anyhow::anyhow!(
            "mirrord in {} runs as {}, and this agent as {node}: start both with the --node of this machine",
            run_dir.display(),
            status.node
        )),
        _ => Ok(()),
    }
}

async fn poll(
    client: Client,
    node: String,
    names: Vec<String>,
    look: Arc<Notify>,
    last: Arc<Mutex<Vec<MirrorStatus>>>,
    events: mpsc::Sender<Event>,
) {
    let mut is_told = false;
    loop {
        let status = client.status().await;
        let mirrors = match status {
            Ok(status) if status.node == node => status.mirrors,
            Ok(NodeStatus { node: other, .. }) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(
                        "mirrord here runs as {other}, not as {node}: it is left alone"
                    );
                }
                Vec::new()
            }
            Err(error) => {
                tracing::debug!("mirrord: {error}");
                Vec::new()
            }
        };
        for (mirror, name) in names.iter().enumerate() {
            let status = mirrors.iter().find(|status| status.name == *name);
            let view = status.map(view);
            if events.send(Event::Mirror { mirror, view }).await.is_err() {
                return;
            }
        }
        *last.lock().unwrap_or_else(PoisonError::into_inner) = mirrors;
        let _ = tokio::time::timeout(POLL, look.notified()).await;
    }
}

fn view(status: &MirrorStatus) -> MirrorView {
    MirrorView {
        primary: status.role == Role::Primary,
        peer_primary: status.peer.role == Role::Primary,
        connected: status.connection == Connection::Connected,
        split_brain: status.connection == Connection::SplitBrain,
        current: status.disk == DiskState::UpToDate,
        peer_current: status.peer.disk == DiskState::UpToDate,
        outdated: status.disk == DiskState::Outdated,
        peer_outdated: status.peer_outdated,
        out_of_sync_bytes: status.out_of_sync_bytes,
        suspended: status.io_suspended,
        frozen: status.frozen,
        resuming: status.device_waits,
        epoch: status.epoch,
        confirm_wanted: status.confirm_wanted,
        heard_ms: status.peer_heard_ms,
    }
}

async fn command(
    client: Client,
    name: String,
    mut commands: mpsc::Receiver<(u64, MirrorCommand)>,
    look: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    while let Some((number, command)) = commands.recv().await {
        let result = carry_out(&client, &name, command).await;
        if let Err(error) = &result {
            tracing::debug!(mirror = name, ?command, "{error}");
        }
        let result = result.map_err(|error| error.to_string());
        if events
            .send(Event::MirrorDone { number, result })
            .await
            .is_err()
        {
            return;
        }
        look.notify_one();
    }
}

async fn carry_out(client: &Client, name: &str, command: MirrorCommand) -> Result<(), ClientError> {
    let request = match command {
        MirrorCommand::Lease {
            epoch,
            deadline_ms,
            confirmed,
        } => CommandRequest::Lease {
            epoch,
            deadline_ms,
            confirmed,
        },
        MirrorCommand::Freeze => CommandRequest::Freeze,
        MirrorCommand::Thaw => CommandRequest::Thaw,
        MirrorCommand::FailIo => CommandRequest::FailIo,
        MirrorCommand::Outdate => CommandRequest::Outdate,
        MirrorCommand::PeerDown => CommandRequest::PeerDown,
        // Refused while its device is in use.
        MirrorCommand::Demote => CommandRequest::Demote,
        MirrorCommand::EpochSeen { epoch } => CommandRequest::EpochSeen { epoch },
        MirrorCommand::DiscardLocal => CommandRequest::Resync {
            full: false,
            discard_local: true,
        },
    };
    client.command(name, &request).await?;
    if command == MirrorCommand::DiscardLocal {
        // It looks for its peer already unless someone disconnected it.
        client.command(name, &CommandRequest::Connect).await?;
    }
    Ok(())
}

/// Looks as soon as answers wait for a confirmation that none of the looks so far has seen.
async fn await_confirms(client: Client, name: String, look: Arc<Notify>) {
    let mut seen = 0;
    loop {
        match client.confirm_wanted(&name, seen, CALL_TIMEOUT / 2).await {
            Ok(wanted) => {
                if wanted.ticket > seen {
                    look.notify_one();
                }
                // A mirrord that was restarted counts anew.
                seen = wanted.ticket;
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
