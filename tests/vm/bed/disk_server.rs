//! A [`VolatileDisk`] as QEMU takes it: an NBD export on a Unix socket, served by a thread.
//!
//! It outlives the machine it is in, as a disk outlives the power. It is the project's own NBD server with another
//! disk behind it: foreign clients try that one in the group `conformance`, and QEMU is one of them.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use local_machines::{Disk, Loss};
use local_pair::Deadline;
use mirror_core::io::buffers::{BufferPool, Reserve};
use mirror_core::io::ring::Runtime;
use mirror_core::request::{Answer, Operation};
use mirror_core::units::ByteRange;
use nbd_frontend::nbd::export::{Completion, Export, ExportInfo, Extent, StatusFuture};
use nbd_frontend::nbd::listener::{Address, Limits, Server};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::PATIENCE;
use super::volatile_disk::{SECTOR, VolatileDisk};

const POOL_BYTES: usize = 16 << 20;
/// Between two looks at who is connected.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct DiskServer {
    socket: PathBuf,
    disk: Arc<Mutex<VolatileDisk>>,
    /// As of the last look.
    clients: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DiskServer {
    pub fn start(socket: &Path, size_bytes: usize) -> Result<Self> {
        let disk = Arc::new(Mutex::new(VolatileDisk::new(size_bytes)));
        let clients = Arc::<AtomicUsize>::default();
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let (shared, counted) = (Arc::clone(&disk), Arc::clone(&clients));
        let address = Address::Unix(socket.into());
        let thread = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || {
                Runtime::new().expect("io_uring").block_on(async move {
                    let server = match serve(shared, address) {
                        Ok(server) => server,
                        Err(error) => return drop(ready.send(Err(error))),
                    };
                    let _ = ready.send(Ok(()));
                    let counting = async {
                        loop {
                            counted.store(server.connections(), Ordering::Release);
                            tokio::time::sleep(LOOK).await;
                        }
                    };
                    tokio::select! {
                        () = counting => {}
                        _ = stopped => {}
                    }
                });
            })?;
        started
            .recv_timeout(PATIENCE)
            .context("the disk server did not start")??;
        Ok(Self {
            socket: socket.into(),
            disk,
            clients,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Disk for DiskServer {
    fn node(&self) -> Value {
        json!({
            "driver": "nbd", "export": "disk", "discard": "unmap",
            "server": {"type": "unix", "path": self.socket},
        })
    }

    fn is_at_risk(&self) -> bool {
        lock(&self.disk).is_at_risk()
    }

    fn contents(&self) -> Result<Vec<u8>> {
        let disk = lock(&self.disk);
        let mut bytes = vec![0; disk.size_bytes()];
        disk.read(0, &mut bytes);
        Ok(bytes)
    }

    /// What was on its way is taken in first, then what is not durable goes.
    fn cut_power(&self, seed: u64) -> Result<Loss> {
        Deadline::after(PATIENCE).until("the end of a disk's connection", || {
            Ok((self.clients.load(Ordering::Acquire) == 0).then_some(()))
        })?;
        Ok(lock(&self.disk).cut_power(seed))
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(disk: Arc<Mutex<VolatileDisk>>, address: Address) -> Result<Server> {
    let pool = BufferPool::new(POOL_BYTES).context("no memory for a disk")?;
    let export = Rc::new(DiskExport { disk, pool });
    Ok(Server::start(export, &[address], None, Limits::default())?)
}

fn lock(disk: &Mutex<VolatileDisk>) -> MutexGuard<'_, VolatileDisk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct DiskExport {
    disk: Arc<Mutex<VolatileDisk>>,
    pool: BufferPool,
}

impl Export for DiskExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            name: "disk".into(),
            description: "a disk with a cache that forgets".into(),
            size_bytes: lock(&self.disk).size_bytes() as u64,
            logical_block_bytes: SECTOR as u32,
            fast_zero: true,
            serving: Ok(()),
        }
    }

    fn pool(&self) -> &BufferPool {
        &self.pool
    }

    fn submit(&self, range: ByteRange, operation: Operation, done: Completion) {
        let (offset, length) = (range.offset as usize, range.length as usize);
        let mut disk = lock(&self.disk);
        match operation {
            Operation::Read => {
                let (shared, pool) = (Arc::clone(&self.disk), self.pool.clone());
                tokio::task::spawn_local(async move {
                    let mut buffer = pool.take(length, Reserve::Normal).await;
                    lock(&shared).read(offset, &mut buffer);
                    done.finish(Answer::Data(buffer.freeze()));
                });
                return;
            }
            Operation::Write { data, fua } => disk.write(offset, &data, fua),
            Operation::Trim { fua } | Operation::WriteZeroes { fua, .. } => {
                disk.zero(offset, length, fua);
            }
            Operation::Flush => disk.flush(),
        }
        drop(disk);
        done.finish(Answer::Done);
    }

    fn block_status(&self, range: ByteRange) -> StatusFuture {
        let extent = Extent {
            length: u64::from(range.length),
            hole: false,
        };
        Box::pin(ready(Ok(vec![extent])))
    }
}
