//! A mirror's thread, and the handle by which the rest of the daemon reaches it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::control::{Explanation, MirrorStatus, Refusal};
use crate::io::boot;
use crate::io::buffers::BufferPool;
use crate::io::driver::{Driver, Resources, now};
use crate::io::error::OpenError;
use crate::io::link::connect::Connector;
use crate::io::link::error::LinkError;
use crate::io::link::handshake::{Credentials, random_bytes};
use crate::io::link::listen::Listener;
use crate::io::link::{Pair, Wanted};
use crate::io::local::LocalMirror;
use crate::io::open::{self, MirrorSettings};
use crate::io::probe;
use crate::link::preface::Terms;
use crate::units::Uuid;
use crate::volume::Volume;
use crate::volume::config::Seed;
use crate::volume::event::{Command, Event, TICK_MS};
use crate::volume::notice::Notice;

/// Questions that may wait for the mirror's thread.
pub const ASKS_MAX: usize = 64;
/// Notices that a slow reader may be behind.
pub const NOTICES_MAX: usize = 1024;
/// New links that may wait to be taken up.
const PAIRS_MAX: usize = 4;
/// How long the last words to the peer may take once all is durable.
const PARTING: Duration = Duration::from_millis(200);

enum Ask {
    Command {
        command: Command,
        reply: oneshot::Sender<Result<String, Refusal>>,
    },
    Status {
        statistics: bool,
        reply: oneshot::Sender<MirrorStatus>,
    },
    Explain(oneshot::Sender<Explanation>),
    Stop {
        deadline: Instant,
        reply: oneshot::Sender<Result<String, StopError>>,
    },
}

/// How a mirror's thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was stopped.
    Stopped,
    /// It found itself in a state that must not be, and served no further.
    Panicked(String),
}

/// The mirror's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mirror's thread has ended; the log says why")]
pub struct Gone;

/// Why a mirror did not stop cleanly. It has ended all the same, unless it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("what was in flight did not finish in time; the next start checks what it touched")]
    TimedOut,
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// Reaches a mirror from any thread.
#[derive(Debug, Clone)]
pub struct MirrorHandle {
    name: String,
    asks: mpsc::Sender<Ask>,
    notices: broadcast::Sender<Notice>,
    /// From before the mirror was opened; the first to ask gets it, so that nothing is missed.
    first_notices: Arc<Mutex<Option<broadcast::Receiver<Notice>>>>,
    ended: watch::Receiver<Option<Ended>>,
    /// Newest ticket of an answer that waits for a confirmed lease.
    tickets: watch::Receiver<u64>,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

impl MirrorHandle {
    /// Starts the mirror's thread and opens its disks there; waits until that is done, which takes
    /// `claim_timeout` at most. `front` then runs on that thread and may spawn tasks with
    /// `tokio::task::spawn_local`; they end with the mirror.
    pub fn spawn(
        settings: MirrorSettings,
        front: impl FnOnce(LocalMirror) + Send + 'static,
    ) -> Result<Self, OpenError> {
        let name = settings.volume.name.clone();
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (notices, first_notices) = broadcast::channel(NOTICES_MAX);
        let (ending, ended) = watch::channel(None);
        let (publish, tickets) = watch::channel(0);
        let (opened, opening) = std::sync::mpsc::sync_channel(1);
        let thread_notices = notices.clone();
        std::thread::Builder::new()
            .name(format!("mirror-{name}"))
            .spawn(move || {
                let work = AssertUnwindSafe(|| {
                    run_thread(settings, front, asked, publish, thread_notices, &opened)
                });
                let how = match catch_unwind(work) {
                    Ok(how) => how,
                    Err(panic) => Ended::Panicked(panic_message(&*panic)),
                };
                ending.send_replace(Some(how));
            })
            .map_err(|source| OpenError::System {
                action: "start a thread for the mirror",
                source,
            })?;
        opening.recv().unwrap_or(Err(OpenError::ThreadEnded))?;
        Ok(Self {
            name,
            asks,
            notices,
            first_notices: Arc::new(Mutex::new(Some(first_notices))),
            ended,
            tickets,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn command(&self, command: Command) -> Result<Result<String, Refusal>, Gone> {
        self.ask(|reply| Ask::Command { command, reply }).await
    }

    /// Waits until an answer wants a lease that is asked for after a ticket above `after`.
    pub async fn confirm_wanted(&self, after: u64) -> Result<u64, Gone> {
        let mut tickets = self.tickets.clone();
        let ticket = tickets.wait_for(|ticket| *ticket > after).await;
        ticket.map(|ticket| *ticket).map_err(|_| Gone)
    }

    pub async fn status(&self) -> Result<MirrorStatus, Gone> {
        let statistics = false;
        self.ask(|reply| Ask::Status { statistics, reply }).await
    }

    /// With what it did so far, which takes its thread a little longer.
    pub async fn status_with_statistics(&self) -> Result<MirrorStatus, Gone> {
        let statistics = true;
        self.ask(|reply| Ask::Status { statistics, reply }).await
    }

    pub async fn explain(&self) -> Result<Explanation, Gone> {
        self.ask(Ask::Explain).await
    }

    /// Notices: for the first who asks all since the start, for others from here on. A reader that is more than [`NOTICES_MAX`] behind is told how many it
    /// missed.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        let mut first = self
            .first_notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.take().unwrap_or_else(|| self.notices.subscribe())
    }

    /// Finishes what is in flight, makes everything durable, takes leave of the peer and ends the
    /// thread. After `timeout` it ends as it is; a refusal leaves it running.
    pub async fn stop(&self, timeout: Duration) -> Result<String, StopError> {
        let deadline = Instant::now() + timeout;
        let stopped = self.ask(|reply| Ask::Stop { deadline, reply }).await??;
        self.ended().await;
        Ok(stopped)
    }

    /// Returns when the thread has ended and the disks are released, and says how.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or(Ended::Stopped),
            Err(_) => Ended::Panicked("the thread vanished".to_owned()),
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

type Opening = std::sync::mpsc::SyncSender<Result<(), OpenError>>;

fn run_thread(
    settings: MirrorSettings,
    front: impl FnOnce(LocalMirror),
    asked: mpsc::Receiver<Ask>,
    tickets: watch::Sender<u64>,
    notices: broadcast::Sender<Notice>,
    opened: &Opening,
) -> Ended {
    let runtime = match probe::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = opened.send(Err(error.into()));
            return Ended::Stopped;
        }
    };
    runtime.block_on(async {
        match Mirror::open(settings, tickets, notices) {
            Ok(mirror) => {
                front(LocalMirror::new(Rc::clone(&mirror.driver)));
                let _ = opened.send(Ok(()));
                mirror.run(asked).await
            }
            Err(error) => {
                let _ = opened.send(Err(error));
                Ended::Stopped
            }
        }
    })
}

/// What runs on the thread: the driver, and the tasks that feed it.
struct Mirror {
    driver: Rc<Driver>,
    pairs: mpsc::Receiver<Pair>,
    link_makers: Vec<JoinHandle<()>>,
}

impl Mirror {
    fn open(
        mut settings: MirrorSettings,
        tickets: watch::Sender<u64>,
        notices: broadcast::Sender<Notice>,
    ) -> Result<Self, OpenError> {
        let system = |action| move |source| OpenError::System { action, source };
        let pool = BufferPool::new(settings.buffer_bytes)
            .map_err(system("take the mirror's buffer memory"))?;
        let opened = open::open(&mut settings, &pool)?;
        let incarnation = random_bytes().map_err(system("read random bytes"))?;
        let entropy = random_bytes().map_err(system("read random bytes"))?;
        let seed = Seed {
            incarnation: Uuid(incarnation),
            boot: boot::this_boot(),
            entropy: u64::from_le_bytes(entropy),
        };
        let credentials = Credentials::new(Terms {
            key: settings.key.clone(),
            mirror: settings.volume.mirror,
            encrypted: settings.encrypted,
        })
        .map_err(OpenError::Encryption)?;

        let wanted = Wanted::default();
        let (pair_maker, pairs) = mpsc::channel(PAIRS_MAX);
        let refused: Rc<RefusedSlot> = Rc::default();
        let tell = Rc::clone(&refused);
        let tell: Rc<dyn Fn(&LinkError)> = Rc::new(move |error| tell.tell(error));
        // The first node connects and the second accepts. The first listens all the same: whoever comes
        // there runs under the same name or another order of the nodes, and the hello says so.
        let listener = Listener::bind(
            settings.listen,
            settings.peer,
            Rc::clone(&credentials),
            wanted.clone(),
            pair_maker.clone(),
            Rc::clone(&tell),
        )?;
        let mut link_makers = vec![tokio::task::spawn_local(listener.run())];
        if settings.volume.first {
            let connector = Connector {
                peer: settings.peer,
                credentials,
                wanted: wanted.clone(),
                pairs: pair_maker,
                refused: tell,
            };
            link_makers.push(tokio::task::spawn_local(connector.run()));
        }

        let resources = Resources {
            geometry: opened.loaded.geometry,
            data: opened.data,
            metadata: opened.metadata,
            pool,
        };
        let mut effects = Vec::new();
        let volume = Volume::open(settings.volume, opened.loaded, seed, now(), &mut effects);
        let driver = Driver::new(
            volume,
            resources,
            wanted,
            settings.busy_poll,
            tickets,
            notices,
        );
        refused.set(&driver);
        driver.start(effects);
        Ok(Self {
            driver,
            pairs,
            link_makers,
        })
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) -> Ended {
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let driver = Rc::clone(&self.driver);
        loop {
            tokio::select! {
                () = driver.broken() => {
                    return Ended::Panicked("a step of the mirror failed; see the log".to_owned());
                }
                _ = ticks.tick() => driver.handle(Event::Tick),
                Some(pair) = self.pairs.recv() => driver.link_up(pair),
                ask = asked.recv() => match ask {
                    Some(Ask::Command { command, reply }) => driver.command(command, reply),
                    Some(Ask::Status { statistics, reply }) => {
                        let mut status = driver.status();
                        status.statistics = statistics.then(|| driver.statistics());
                        let _ = reply.send(status);
                    }
                    Some(Ask::Explain(reply)) => {
                        let _ = reply.send(driver.explain());
                    }
                    Some(Ask::Stop { deadline, reply }) => {
                        let outcome = self.stop(deadline, &mut ticks).await;
                        let refused = matches!(outcome, Err(StopError::Refused(_)));
                        let _ = reply.send(outcome);
                        if !refused {
                            return Ended::Stopped;
                        }
                    }
                    // Nobody is left who could ask for anything.
                    None => return Ended::Stopped,
                },
            }
        }
    }

    async fn stop(
        &mut self,
        deadline: Instant,
        ticks: &mut tokio::time::Interval,
    ) -> Result<String, StopError> {
        let (reply, mut stopped) = oneshot::channel();
        let driver = Rc::clone(&self.driver);
        driver.command(Command::Stop, reply);
        let time_out = tokio::time::sleep_until(deadline.into());
        tokio::pin!(time_out);
        let message = loop {
            tokio::select! {
                stopped = &mut stopped => break stopped.map_err(|_| Gone)??,
                _ = ticks.tick() => driver.handle(Event::Tick),
                () = driver.broken() => return Err(Gone.into()),
                () = &mut time_out => return Err(StopError::TimedOut),
            }
        };
        tokio::select! {
            () = driver.settled() => {}
            () = &mut time_out => return Err(StopError::TimedOut),
        }
        driver.part();
        tokio::time::sleep(PARTING).await;
        Ok(message)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for link_maker in &self.link_makers {
            link_maker.abort();
        }
        self.driver.release();
    }
}

/// Where refused connections are told of; the driver comes to exist after the one who tells.
#[derive(Default)]
struct RefusedSlot(std::cell::OnceCell<std::rc::Weak<Driver>>);

impl RefusedSlot {
    fn set(&self, driver: &Rc<Driver>) {
        let _ = self.0.set(Rc::downgrade(driver));
    }

    fn tell(&self, error: &LinkError) {
        if let Some(driver) = self.0.get().and_then(std::rc::Weak::upgrade) {
            driver.link_refused(error);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    text.or(owned).unwrap_or("panic").to_owned()
}
