//! Carries out what a volume decides, and brings back what came of it.
//!
//! All of a mirror lives on one thread: volume, disks, link and clients. [`Driver::handle`] is the
//! one way in. It is never re-entered: an event that arises while effects are carried out waits in a
//! queue. Effects are started in the order in which the volume gave them, but writes to a disk in memory after what the
//! same batch of events sends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tracing::{info, warn};

use crate::control::{Explanation, MemoryUse, MirrorStatus, QueueDepth, Refusal, Statistics};
use crate::io::buffers::{BufferPool, Reserve};
use crate::io::busy_poll::BusyPoll;
use crate::io::disk::DataDisk;
use crate::io::link::connection::{Handler, Link, Traffic};
use crate::io::link::error::LinkError;
use crate::io::link::{Pair, Wanted};
use crate::io::metadata_disk::MetadataDisk;
use crate::io::metrics::{Begun, Metrics, Timed};
use crate::io::open;
use crate::layout::geometry::Geometry;
use crate::request::{Answer, Failure, Operation, Request};
use crate::units::{ByteRange, CommandId, IoToken, LinkId, Now, RequestId};
use crate::volume::Volume;
use crate::volume::effect::Effect;
use crate::volume::event::{Command, DiskFault, Event, Output, WAKE_MS};
use crate::volume::notice::Notice;
use crate::wire::message::Envelope;

mod memory_writes;

use memory_writes::{MemoryWrite, MemoryWrites};

const NS_PER_MS: u64 = 1_000_000;
/// Effects of one step that there is memory for from the start.
const EFFECTS: usize = 256;

/// What a front end waits for changes of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportState {
    /// Client requests are accepted.
    pub serving: bool,
    pub size_bytes: u64,
}

type Done = Box<dyn FnOnce(Answer)>;

/// A client's request that is not answered yet.
struct Unanswered {
    done: Done,
    begun: Option<Begun>,
}

/// An event in line for the volume, and what was timed until it came.
struct Occurred {
    event: Event,
    timed: Option<Begun>,
}

impl From<Event> for Occurred {
    fn from(event: Event) -> Self {
        let timed = None;
        Self { event, timed }
    }
}

type CommandResult = Result<String, Refusal>;

/// The disks and memory of one mirror.
pub(super) struct Resources {
    pub data: DataDisk,
    pub metadata: MetadataDisk,
    pub pool: BufferPool,
    /// What the metadata area was laid out for.
    pub geometry: Geometry,
}

/// One mirror at work.
pub(super) struct Driver {
    volume: RefCell<Volume>,
    events: RefCell<VecDeque<Occurred>>,
    stepping: Cell<bool>,
    resources: Resources,
    wanted: Wanted,
    link: RefCell<Option<Rc<Link>>>,
    traffic: Traffic,
    unanswered: RefCell<FxHashMap<RequestId, Unanswered>>,
    metrics: Metrics,
    commands: RefCell<FxHashMap<CommandId, oneshot::Sender<CommandResult>>>,
    next_id: Cell<u64>,
    export: watch::Sender<ExportState>,
    tickets: watch::Sender<u64>,
    notices: broadcast::Sender<Notice>,
    last_refused: RefCell<String>,
    /// Operations that the disks have not answered yet.
    in_flight: Cell<usize>,
    memory_writes: MemoryWrites,
    /// Empty between two steps: the memory of each.
    effects: Cell<Vec<Effect>>,
    settled: Notify,
    broken: Notify,
    busy_poll: Rc<BusyPoll>,
}

impl Driver {
    /// `first` are the effects that opening the volume brought; they wait for [`Self::start`].
    pub fn new(
        volume: Volume,
        resources: Resources,
        wanted: Wanted,
        busy_poll: Duration,
        tickets: watch::Sender<u64>,
        notices: broadcast::Sender<Notice>,
    ) -> Rc<Self> {
        let export = ExportState {
            serving: volume.is_serving(),
            size_bytes: volume.size_bytes(),
        };
        Rc::new(Self {
            volume: RefCell::new(volume),
            events: RefCell::default(),
            stepping: Cell::new(false),
            resources,
            wanted,
            link: RefCell::default(),
            traffic: Traffic::default(),
            unanswered: RefCell::default(),
            metrics: Metrics::new(boot_clock_ns()),
            commands: RefCell::default(),
            next_id: Cell::new(1),
            export: watch::Sender::new(export),
            tickets,
            notices,
            last_refused: RefCell::default(),
            in_flight: Cell::new(0),
            memory_writes: MemoryWrites::new(),
            effects: Cell::new(Vec::with_capacity(EFFECTS)),
            settled: Notify::new(),
            broken: Notify::new(),
            busy_poll: BusyPoll::new(busy_poll),
        })
    }

    /// Carries out the effects that opening the volume brought.
    pub fn start(self: &Rc<Self>, effects: Vec<Effect>) {
        for effect in effects {
            self.carry_out(effect, Reserve::Internal);
        }
        self.handle(Event::Tick);
    }

    /// Lets the volume decide on an event, and on all that follows from it at once.
    pub fn handle(self: &Rc<Self>, event: Event) {
        self.occurred(event.into());
    }

    fn occurred(self: &Rc<Self>, occurred: Occurred) {
        self.events.borrow_mut().push_back(occurred);
        if self.stepping.replace(true) {
            return;
        }
        let guard = BreakGuard(self);
        let mut effects = self.effects.take();
        loop {
            let Some(Occurred { event, timed }) = self.events.borrow_mut().pop_front() else {
                break;
            };
            let now_ns = boot_clock_ns();
            self.metrics.advance(now_ns);
            if !matches!(event, Event::Tick) && self.busy_poll.begin(now_ns) {
                tokio::task::spawn_local(Rc::clone(&self.busy_poll).look(boot_clock_ns));
            }
            if let Some(begun) = timed {
                self.metrics.end(begun);
            }
            match &event {
                Event::Message { envelope, .. } => self.metrics.on_message(envelope),
                Event::LinkDown { .. } => self.metrics.on_link_lost(),
                _ => {}
            }
            // A client's read begins in the very step that takes the request.
            let reserve = match &event {
                Event::Request(Request {
                    operation: Operation::Read,
                    ..
                }) => Reserve::Normal,
                _ => Reserve::Internal,
            };
            self.volume
                .borrow_mut()
                .step(now_at(now_ns), event, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect, reserve);
            }
        }
        drop(guard);
        // A step that had much to do, and they are few, has not taken it for good.
        effects.shrink_to(EFFECTS);
        self.effects.set(effects);
        self.stepping.set(false);
    }

    /// Takes a client request; `done` gets its answer, perhaps before this returns.
    pub fn submit(
        self: &Rc<Self>,
        range: ByteRange,
        operation: Operation,
        done: impl FnOnce(Answer) + 'static,
    ) {
        if !self.export.borrow().serving {
            return done(Answer::Failed(Failure::NotPrimary));
        }
        let id = RequestId(self.fresh_id());
        let what = match operation {
            Operation::Read => Some(Timed::Read),
            Operation::Write { .. } => Some(Timed::Write),
            Operation::Flush => Some(Timed::Flush),
            Operation::Trim { .. } | Operation::WriteZeroes { .. } => None,
        };
        let begun = what.map(|what| self.metrics.begin_at(what, boot_clock_ns()));
        let done = Box::new(done);
        let mut unanswered = self.unanswered.borrow_mut();
        unanswered.insert(id, Unanswered { done, begun });
        self.metrics.note_requests(unanswered.len());
        drop(unanswered);
        self.handle(Event::Request(Request {
            id,
            range,
            operation,
        }));
    }

    pub fn command(self: &Rc<Self>, command: Command, reply: oneshot::Sender<CommandResult>) {
        let id = CommandId(self.fresh_id());
        self.commands.borrow_mut().insert(id, reply);
        self.handle(Event::Command { id, command });
    }

    pub fn link_up(self: &Rc<Self>, pair: Pair) {
        if !self.wanted.get() {
            self.wanted.mark_unlinked();
            return;
        }
        // The peer made a new link, so the old one is dead even if its sockets do not know it.
        if let Some(old) = self.link.borrow_mut().take() {
            old.close();
            self.events
                .borrow_mut()
                .push_back(Event::LinkDown { link: old.id() }.into());
        }
        let id = LinkId(self.fresh_id());
        let handler: Rc<dyn Handler> = Rc::new(LinkHandler(Rc::clone(self)));
        let link = Link::start(id, pair, &self.resources.pool, &self.traffic, handler);
        *self.link.borrow_mut() = Some(link);
        self.wanted.mark_linked();
        self.last_refused.borrow_mut().clear();
        info!(link = id.0, "link to the peer established");
        self.handle(Event::LinkUp { link: id });
    }

    /// A connection came to nothing. Said once until something else happens.
    pub fn link_refused(&self, error: &LinkError) {
        let reason = error.to_string();
        if *self.last_refused.borrow() == reason {
            return;
        }
        warn!(%reason, "no link to the peer");
        let kind = match error {
            LinkError::Preface(_) | LinkError::Tls(_) => "link-refused",
            _ => "link-failed",
        };
        self.report(Notice::warning(kind, reason.clone()));
        *self.last_refused.borrow_mut() = reason;
    }

    pub fn status(&self) -> MirrorStatus {
        let mut status = self.volume.borrow().status();
        status.counters.bytes_sent = self.traffic.sent.get();
        status.counters.bytes_received = self.traffic.received.get();
        let savings = self.traffic.savings.get();
        status.counters.bytes_before_compression = savings.before_bytes;
        status.counters.bytes_after_compression = savings.after_bytes;
        status.compression_ratio = savings.ratio();
        status
    }

    /// What was done so far and how long it took. Walks through all histograms, so it is not for every status.
    pub fn statistics(&self) -> Statistics {
        let Resources { pool, geometry, .. } = &self.resources;
        let pool = pool.stats();
        let link = self.link.borrow();
        let send_queue = QueueDepth {
            now: link.as_ref().map_or(0, |link| link.waiting()) as u64,
            max: self.traffic.waiting_max.get() as u64,
        };
        let memory = MemoryUse {
            buffer_bytes: pool.total_bytes as u64,
            buffer_used_bytes: (pool.total_bytes - pool.free_bytes) as u64,
            buffer_waits: pool.waits,
            bitmap_bytes: (geometry.words() * size_of::<u64>()) as u64,
            ..MemoryUse::default()
        };
        let requests = self.unanswered.borrow().len();
        self.metrics
            .statistics(boot_clock_ns(), send_queue, requests, memory)
    }

    pub fn explain(&self) -> Explanation {
        self.volume.borrow().explain()
    }

    pub fn export(&self) -> watch::Receiver<ExportState> {
        self.export.subscribe()
    }

    pub fn volume(&self) -> std::cell::Ref<'_, Volume> {
        self.volume.borrow()
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// True if the local disk holds what clients see.
    pub fn disk_is_current(&self) -> bool {
        self.volume.borrow().holds_what_clients_see()
    }

    /// Returns when a step has panicked: the volume is then of no use any more.
    pub async fn broken(&self) {
        self.broken.notified().await;
    }

    /// Returns when nothing is in flight on the disks.
    pub async fn settled(&self) {
        while self.in_flight.get() > 0 || !self.volume.borrow().is_idle() {
            self.settled.notified().await;
        }
    }

    /// Sends what waits for the peer and lets go of it.
    pub fn part(&self) {
        self.wanted.set(false);
        if let Some(link) = self.link.borrow_mut().take() {
            link.close();
        }
    }

    /// Drops what waits for answers, so that nothing keeps the disks open any longer.
    pub fn release(&self) {
        self.part();
        let unanswered = std::mem::take(&mut *self.unanswered.borrow_mut());
        drop(unanswered);
        self.commands.borrow_mut().clear();
    }

    fn carry_out(self: &Rc<Self>, effect: Effect, reserve: Reserve) {
        match effect {
            Effect::Read { io, range } => {
                let data = self.resources.data.clone();
                let begun = self.metrics.begin_local_read(range);
                self.local(
                    io,
                    Some(begun),
                    async move { data.read(range, reserve).await },
                );
            }
            Effect::ReadSparse { io, range } => {
                let driver = Rc::clone(self);
                self.local(io, None, async move {
                    let found = driver.resources.data.read_sparse(range).await;
                    if matches!(found, Ok(Output::Data(_))) {
                        driver.metrics.count_local_read(range);
                    }
                    found
                });
            }
            Effect::Write {
                io,
                range,
                data,
                fua,
            } => {
                let begun = self.metrics.begin_local_write(range);
                let disk = &self.resources.data;
                if disk.is_in_memory() {
                    return self.write_in_memory(MemoryWrite {
                        io,
                        range,
                        data,
                        fua,
                        begun,
                    });
                }
                let disk = disk.clone();
                self.local(io, Some(begun), async move {
                    disk.write(range, data, fua).await
                });
            }
            Effect::WriteZeroes {
                io,
                range,
                no_hole,
                fua,
            } => {
                let data = self.resources.data.clone();
                self.local(io, None, async move {
                    data.write_zeroes(range, no_hole, fua).await
                });
            }
            Effect::Flush { io } => {
                let data = self.resources.data.clone();
                let begun = self.metrics.begin_local_flush();
                self.local(io, Some(begun), async move { data.flush().await });
            }
            Effect::WriteMetadata { io, offset, bytes } => {
                let metadata = self.resources.metadata.clone();
                let driver = Rc::clone(self);
                let is_log = self.resources.geometry.is_in_log(offset);
                let begun = is_log.then(|| self.metrics.begin(Timed::LogTransaction));
                self.run(async move {
                    let result = metadata.write(offset, &bytes).await;
                    driver.tell_fault(metadata.take_fault());
                    let timed = begun.filter(|_| result.is_ok());
                    let event = Event::MetadataDone { io, result };
                    Occurred { event, timed }
                });
            }
            Effect::Send { link, envelope } => self.send(link, envelope),
            Effect::Compress { link, compression } => {
                if let Some(link) = self.current_link(link) {
                    link.compress(compression);
                }
            }
            Effect::CloseLink { link } => self.close_link(link),
            Effect::Connect { wanted } => self.wanted.set(wanted),
            Effect::Serve { serving } => self.export.send_modify(|state| state.serving = serving),
            Effect::Answer { id, answer } => {
                let unanswered = self.unanswered.borrow_mut().remove(&id);
                if let Some(Unanswered { done, begun }) = unanswered {
                    if let Some(begun) = begun
                        && !matches!(answer, Answer::Failed(_))
                    {
                        self.metrics.end(begun);
                    }
                    done(answer);
                }
            }
            Effect::ConfirmWanted { ticket } => {
                self.tickets.send_replace(ticket);
            }
            Effect::CommandDone { id, result } => {
                let reply = self.commands.borrow_mut().remove(&id);
                if let Some(reply) = reply {
                    // Whoever asked may have given up waiting.
                    let _ = reply.send(result);
                }
            }
            Effect::Measure => self.measure(),
            Effect::Resized { size_bytes } => self
                .export
                .send_modify(|state| state.size_bytes = size_bytes),
            Effect::Wake => self.run(async {
                tokio::time::sleep(Duration::from_millis(WAKE_MS)).await;
                Event::Tick.into()
            }),
            Effect::Report(notice) => self.report(notice),
        }
    }

    fn local(
        self: &Rc<Self>,
        io: IoToken,
        begun: Option<Begun>,
        work: impl Future<Output = Result<Output, DiskFault>> + 'static,
    ) {
        let driver = Rc::clone(self);
        self.run(async move {
            let result = work.await;
            driver.local_done(io, begun, result)
        });
    }

    /// An operation on the data disk has ended.
    fn local_done(
        &self,
        io: IoToken,
        begun: Option<Begun>,
        result: Result<Output, DiskFault>,
    ) -> Occurred {
        self.tell_fault(self.resources.data.take_fault());
        let timed = begun.filter(|_| result.is_ok());
        let event = Event::LocalDone { io, result };
        Occurred { event, timed }
    }

    /// What the system said comes before what the volume makes of it.
    fn tell_fault(&self, fault: Option<String>) {
        if let Some(fault) = fault {
            self.report(Notice::error("disk-fault", fault));
        }
    }

    fn run(self: &Rc<Self>, work: impl Future<Output = Occurred> + 'static) {
        self.in_flight.set(self.in_flight.get() + 1);
        let driver = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let guard = BreakGuard(&driver);
            let occurred = work.await;
            driver.ended(occurred);
            drop(guard);
        });
    }

    /// What was in flight is not any more.
    fn ended(self: &Rc<Self>, occurred: Occurred) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.occurred(occurred);
        self.settled.notify_one();
    }

    fn send(&self, link: LinkId, envelope: Envelope) {
        if let Some(current) = self.current_link(link) {
            self.metrics.on_send(&envelope);
            current.send(envelope);
        }
    }

    fn current_link(&self, link: LinkId) -> Option<Rc<Link>> {
        let current = self.link.borrow().clone();
        current.filter(|current| current.id() == link)
    }

    fn close_link(&self, link: LinkId) {
        let mut current = self.link.borrow_mut();
        if current.as_ref().is_some_and(|current| current.id() == link)
            && let Some(closed) = current.take()
        {
            closed.close();
            self.wanted.mark_unlinked();
            self.events
                .borrow_mut()
                .push_back(Event::LinkDown { link }.into());
        }
    }

    fn link_down(self: &Rc<Self>, link: LinkId, reason: &LinkError) {
        let mut current = self.link.borrow_mut();
        if current.as_ref().is_none_or(|current| current.id() != link) {
            return;
        }
        *current = None;
        drop(current);
        match reason {
            LinkError::Closed | LinkError::Broken(_) => {
                info!(link = link.0, %reason, "link to the peer lost");
            }
            fault => {
                warn!(link = link.0, %reason, "link to the peer closed: the peer is at fault");
                self.report(Notice::warning("link-fault", fault.to_string()));
            }
        }
        self.wanted.mark_unlinked();
        self.handle(Event::LinkDown { link });
    }

    fn measure(&self) {
        let Resources {
            data,
            metadata,
            geometry,
            ..
        } = &self.resources;
        let usable_bytes = match open::usable_bytes(data, metadata, *geometry) {
            Ok(bytes) => bytes,
            Err(error) => {
                warn!(%error, "cannot measure the data partition; its size stays as it was");
                0
            }
        };
        self.events
            .borrow_mut()
            .push_back(Event::Measured { usable_bytes }.into());
    }

    fn report(&self, notice: Notice) {
        // Without a listener there is nobody to tell.
        let _ = self.notices.send(notice);
    }

    fn fresh_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }
}

/// The clock that runs from the boot of the machine and also while it is suspended. The agent names deadlines on
/// it, so both daemons of a node read the same one.
fn boot_clock_ns() -> u64 {
    let time =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    let ns = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
    u64::try_from(ns).expect("the time since boot is not negative")
}

/// As of the last tick of the kernel, which is a few milliseconds old at most and takes no look at a hardware clock.
fn wall_clock_s() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
        .expect("Linux has had this clock since 2.6.32");
    u64::try_from(time.tv_sec()).unwrap_or(0)
}

/// The time of a step.
pub(super) fn now() -> Now {
    now_at(boot_clock_ns())
}

fn now_at(boot_ns: u64) -> Now {
    Now {
        monotonic_ms: boot_ns / NS_PER_MS,
        unix_s: wall_clock_s(),
    }
}

struct LinkHandler(Rc<Driver>);

impl Handler for LinkHandler {
    fn message(&self, link: LinkId, envelope: Envelope) {
        self.0.handle(Event::Message { link, envelope });
    }

    fn down(&self, link: LinkId, reason: LinkError) {
        self.0.link_down(link, &reason);
    }
}

/// A panic inside a task ends only that task; this tells the mirror's thread of it.
struct BreakGuard<'a>(&'a Driver);

impl Drop for BreakGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.notify_one();
        }
    }
}
