//! A mirror as an NBD export: the small adapter between the driver and the server, on the mirror's
//! own thread.

use std::rc::Rc;
use std::time::Duration;

use mirror_core::io::buffers::BufferPool;
use mirror_core::io::local::LocalMirror;
use mirror_core::request::Operation;
use mirror_core::units::ByteRange;

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
) -> Result<(), ListenError> {
    let mut changes = mirror.changes();
    let export = Rc::new(MirrorExport { mirror, name, node });
    let server = Server::start(export, addresses, tls, Limits::default())?;
    tokio_uring::spawn(async move {
        while changes.changed().await.is_ok() {
            if !changes.borrow_and_update().serving {
                server.drain(DRAIN_TIMEOUT).await;
            }
        }
    });
    Ok(())
}
