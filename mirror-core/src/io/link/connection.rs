//! A link that stands: a reader and a writer on each of its two connections.
//!
//! It ends once, with one call of [`Handler::down`]; after that no message comes from it. When one
//! connection ends in order, the other is heard for a moment longer, so that the last words of a
//! peer that takes leave are not lost because they came on the other connection.

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use rustls::Connection;
use socket2::SockRef;
use tokio::net::TcpStream;
use tracing::debug;

use super::Pair;
use super::error::LinkError;
use super::handshake::Trusted;
use super::outbox::{OUTBOX_MESSAGES_MAX, Outbox};
use super::{reader, writer};
use crate::io::buffers::BufferPool;
use crate::link::compression::{Compression, Compressor, Savings};
use crate::units::LinkId;
use crate::wire::message::{Channel, Envelope};

/// How long the other connection is heard after one ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a link that this side closes may take to send what waits.
const PARTING: Duration = Duration::from_secs(1);

/// Bytes on the wire, and messages in line for it, of all links of a mirror.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    pub sent: Rc<Cell<u64>>,
    pub received: Rc<Cell<u64>>,
    /// Data that may go compressed, as it was and as it went.
    pub savings: Rc<Cell<Savings>>,
    /// Most messages that ever waited at once on one connection.
    pub waiting_max: Rc<Cell<usize>>,
}

/// Who is told what happens on a link.
pub trait Handler {
    fn message(&self, link: LinkId, envelope: Envelope);
    /// The link is gone, and why.
    fn down(&self, link: LinkId, reason: LinkError);
}

/// An established link.
pub struct Link {
    id: LinkId,
    handler: Rc<dyn Handler>,
    control: End,
    data: End,
    waiting_max: Rc<Cell<usize>>,
    readers: Cell<u8>,
    /// Down, or closed by this side: nothing is delivered any more.
    silent: Cell<bool>,
    ending: Cell<bool>,
    reason: RefCell<Option<LinkError>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

struct End {
    stream: Rc<TcpStream>,
    tls: Option<Rc<RefCell<Connection>>>,
    outbox: Rc<Outbox>,
}

impl End {
    fn new(trusted: Trusted) -> Self {
        Self {
            stream: Rc::new(trusted.stream),
            tls: trusted.tls.map(|tls| Rc::new(RefCell::new(tls))),
            outbox: Rc::default(),
        }
    }
}

impl Link {
    /// Starts to read and write. Messages may come before this returns to the caller's task.
    pub fn start(
        id: LinkId,
        pair: Pair,
        pool: &BufferPool,
        traffic: &Traffic,
        handler: Rc<dyn Handler>,
    ) -> Rc<Self> {
        let link = Rc::new(Self {
            id,
            handler,
            control: End::new(pair.control),
            data: End::new(pair.data),
            waiting_max: Rc::clone(&traffic.waiting_max),
            readers: Cell::new(2),
            silent: Cell::new(false),
            ending: Cell::new(false),
            reason: RefCell::default(),
        });
        for channel in [Channel::Control, Channel::Data] {
            tokio::task::spawn_local(Rc::clone(&link).read(channel, pool.clone(), traffic.clone()));
            tokio::task::spawn_local(Rc::clone(&link).write(channel, traffic.clone()));
        }
        link
    }

    pub fn id(&self) -> LinkId {
        self.id
    }

    /// Puts a message in line on its connection.
    pub fn send(self: &Rc<Self>, envelope: Envelope) {
        if self.silent.get() {
            return;
        }
        let end = self.end(envelope.message.channel());
        if !end.outbox.push(envelope) {
            self.fail(LinkError::Overflow {
                limit: OUTBOX_MESSAGES_MAX,
            });
        }
        self.waiting_max
            .set(self.waiting_max.get().max(end.outbox.len()));
    }

    /// The peer takes compressed data, and gets it from the next message on.
    pub fn compress(&self, compression: Compression) {
        self.data.outbox.compress(Compressor::new(compression));
    }

    /// Messages in line on the fuller of the two connections.
    pub fn waiting(&self) -> usize {
        self.control.outbox.len().max(self.data.outbox.len())
    }

    /// Closes the link from this side, after what waits to be said on the control connection. Bulk
    /// that was not sent is not sent any more: nobody would hear its acknowledgement. Nothing is
    /// delivered any more, `down` neither.
    pub fn close(self: &Rc<Self>) {
        if self.silent.replace(true) {
            return;
        }
        self.control.outbox.finish();
        self.data.outbox.finish();
        self.data.outbox.clear();
        self.shut_down_after(PARTING);
    }

    fn end(&self, channel: Channel) -> &End {
        match channel {
            Channel::Control => &self.control,
            Channel::Data => &self.data,
        }
    }

    async fn read(self: Rc<Self>, channel: Channel, pool: BufferPool, traffic: Traffic) {
        let end = self.end(channel);
        let source = reader::Source::new(Rc::clone(&end.stream), end.tls.clone(), traffic.received);
        let reason = reader::run(source, channel, pool, |envelope| {
            if !self.silent.get() {
                self.handler.message(self.id, envelope);
            }
        })
        .await;
        self.readers.set(self.readers.get() - 1);
        let orderly = matches!(reason, LinkError::Closed | LinkError::Broken(_));
        if orderly && self.readers.get() > 0 {
            self.end_soon(reason);
        } else {
            self.fail(reason);
        }
    }

    async fn write(self: Rc<Self>, channel: Channel, traffic: Traffic) {
        let end = self.end(channel);
        let sink = writer::Sink {
            stream: Rc::clone(&end.stream),
            tls: end.tls.clone(),
            sent: traffic.sent,
            savings: traffic.savings,
        };
        let outcome = writer::run(sink, Rc::clone(&end.outbox)).await;
        match outcome {
            Ok(()) => {
                let _ = SockRef::from(&*end.stream).shutdown(Shutdown::Write);
            }
            Err(reason) => self.end_soon(reason),
        }
    }

    /// Ends the link once the other connection has said its last words.
    fn end_soon(self: &Rc<Self>, reason: LinkError) {
        self.reason.borrow_mut().get_or_insert(reason);
        if self.ending.replace(true) {
            return;
        }
        let link = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LAST_WORDS).await;
            link.fail(LinkError::Closed);
        });
    }

    /// Ends the link now. The first reason counts.
    fn fail(self: &Rc<Self>, reason: LinkError) {
        self.shut_down();
        if self.silent.replace(true) {
            debug!(link = self.id.0, %reason, "connection of a closed link ended");
            return;
        }
        let first = self.reason.borrow_mut().take();
        self.handler.down(self.id, first.unwrap_or(reason));
    }

    fn shut_down_after(self: &Rc<Self>, pause: Duration) {
        let link = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            link.shut_down();
        });
    }

    fn shut_down(&self) {
        for end in [&self.control, &self.data] {
            end.outbox.finish();
            end.outbox.clear();
            let _ = SockRef::from(&*end.stream).shutdown(Shutdown::Both);
        }
    }
}
