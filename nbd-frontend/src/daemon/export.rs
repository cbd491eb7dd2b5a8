//! A mirror as an NBD export: the small adapter between the driver and the server, on the mirror's
//! own thread.

use std::rc::Rc;
use std::time::Duration;

use mirror_core::io::buffers::BufferPool;
use mirror_core::io::local::{ExportState, LocalMirror};
use mirror_core::request::Operation;
use mirror_core::units::ByteRange;

use tokio::sync::{mpsc, watch};

use crate::kernel::keeper::{DeviceOrder, ORDERS_MAX};
use crate::nbd::export::{Completion, Export, ExportInfo, Extent, StatusFuture};
use crate::nbd::listener::{Address, Limits, ListenError, Server};
use crate::nbd::tls::ServerTls;

/// How long clients get for their last answers when the mirror is no longer served.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What the server asks of a mirror.
#[derive(Debug)]
struct MirrorExport {
    mirror: LocalMirror,
    name: String,
    node: String,
}

impl Export for MirrorExport {
    fn info(&self) -> ExportInfo {
        let serving = if self.mirror.serving() {
            Ok(())
        } else {
            Err(format!(
                "{} is not served by {}, which is not its primary; connect to the other node, or \
                 run `mirrorctl promote {}` here",
                self.name, self.node, self.name
            ))
        };
        ExportInfo {
            name: self.name.clone(),
            description: format!("mirror {} on {}", self.name, self.node),
            size_bytes: self.mirror.size_bytes(),
            logical_block_bytes: self.mirror.logical_block_bytes(),
            fast_zero: self.mirror.fast_zero(),
            serving,
        }
    }

    fn pool(&self) -> &BufferPool {
        self.mirror.pool()
    }

    fn submit(&self, range: ByteRange, operation: Operation, done: Completion) {
        self.mirror
            .submit(range, operation, move |answer| done.finish(answer));
    }

    fn block_status(&self, range: ByteRange) -> StatusFuture {
        let found = self
            .mirror
            .block_status(range.offset, u64::from(range.length));
        let extents = found.map(|runs| {
            runs.into_iter()
                .map(|run| Extent {
                    length: run.length,
                    hole: run.hole,
                })
                .collect()
        });
        Box::pin(std::future::ready(extents))
    }
}

/// Begins to listen, and lets go of clients whenever the mirror is no longer served. Runs on the
/// mirror's thread and ends with it.
pub fn start(
    mirror: LocalMirror,
    name: String,
    node: String,
    addresses: &[Address],
    tls: Option<ServerTls>,
) -> Result<Bridge, ListenError> {
    let mut changes = mirror.changes();
    let state = mirror.changes();
    let export = Rc::new(MirrorExport { mirror, name, node });
    let server = Server::start(Rc::clone(&export) as _, addresses, tls, Limits::default())?;
    let server = Rc::new(server);
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    tokio::task::spawn_local(obey(Rc::clone(&server), export, ordered));
    tokio::task::spawn_local(async move {
        while changes.changed().await.is_ok() {
            if !changes.borrow_and_update().serving {
                server.drain(DRAIN_TIMEOUT).await;
            }
        }
    });
    Ok(Bridge { state, orders })
}

/// What the control plane has of the export.
#[derive(Debug)]
pub struct Bridge {
    pub state: watch::Receiver<ExportState>,
    pub orders: mpsc::Sender<DeviceOrder>,
}

/// Serves the kernel's sockets beside those of other clients.
async fn obey(
    server: Rc<Server>,
    export: Rc<MirrorExport>,
    mut ordered: mpsc::Receiver<DeviceOrder>,
) {
    while let Some(order) = ordered.recv().await {
        match order {
            DeviceOrder::Describe(reply) => {
                let _ = reply.send(export.info());
            }
            DeviceOrder::Adopt {
                socket,
                ended,
                number,
            } => {
                let tell = move || {
                    // Full: the keeper has as many ends before it as it needs.
                    let _ = ended.try_send(number);
                };
                if let Err(error) = server.adopt(socket, tell) {
                    tracing::error!(%error, "cannot serve the kernel's socket");
                }
            }
            DeviceOrder::Resize(size_bytes) => server.resize(size_bytes),
        }
    }
}
