//! Serves memory over NBD until it is killed: `memory_nbd SOCKET MEBIBYTES`. For measurements of the
//! server alone; see `docs/nbd.md`.

use std::rc::Rc;

use anyhow::Context;
use mirror_core::io::buffers::BufferPool;
use mirror_core::io::ring::Runtime;
use mirror_tests::memory_export::MemoryExport;
use nbd_frontend::nbd::listener::{Address, Limits, Server};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments
        .next()
        .context("usage: memory_nbd SOCKET MEBIBYTES")?;
    let mebibytes: u64 = arguments.next().context("size in MiB missing")?.parse()?;
    Runtime::new()
        .map_err(anyhow::Error::from)?
        .block_on(async {
            let pool = BufferPool::new(48 << 20)?;
            let export = Rc::new(MemoryExport::new("memory", mebibytes << 20, 512, pool));
            let address = Address::Unix(socket.into());
            let _server = Server::start(export, &[address], None, Limits::default())?;
            std::future::pending::<anyhow::Result<()>>().await
        })
}
