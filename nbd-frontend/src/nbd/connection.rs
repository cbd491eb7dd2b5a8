//! One client connection: a task that reads requests and one that writes replies, around one
//! [`Session`].
//!
//! The reader hands pieces to the export as it parses; answers come back through [`Sink`] whenever
//! the export has them, and wake the writer, which sends all that has gathered at once. A
//! connection ends when the client leaves (in-flight requests are still answered), when it
//! misbehaves or stalls, when its mirror is demoted (after the answers in flight), or by force.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

use mirror_core::io::buffers::Reserve;
use mirror_core::request::{Answer, Operation};
use tokio::sync::Notify;

use super::export::{Completion, Export, ExportInfo, Sink, Tag};
use super::handshake::{Agreed, Handshake, HandshakeError, Progress, Tls};
use super::listener::Limits;
use super::reply::Output;
use super::session::{Parsed, Session, SessionError, Work};
use super::stream::{Input, Stream};
use super::tls_stream::StartError;

/// Why a connection ended other than by the client's leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the handshake took longer than {0:?}")]
    HandshakeTimeout(std::time::Duration),
    #[error(
        "the client, or someone between, sent {0} bytes in the clear behind its request for TLS; \
         they are not trusted"
    )]
    BehindStartTls(usize),
    #[error(transparent)]
    StartTls(#[from] StartError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("a read failed after its reply had begun")]
    Broken,
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
}

/// Speaks the handshake. `None` if the client left in good order.
pub(super) async fn shake_hands(
    stream: &Stream,
    input: &mut Input,
    export: &dyn Export,
) -> Result<Option<(Agreed, ExportInfo)>, ConnectionError> {
    let mut output = Vec::new();
    let tls = match stream {
        Stream::Plain(_) => Tls::Unavailable,
        Stream::Tls(_) => Tls::Required,
    };
    let mut handshake = Handshake::new(tls, &mut output);
    stream.send_bytes(std::mem::take(&mut output)).await?;
    loop {
        // Asked anew each time: the mirror may be promoted or demoted between two options.
        let info = export.info();
        let received = handshake.receive(input.unread(), &info, &mut output);
        if let Ok((taken, Progress::StartTls)) = received
            && input.unread().len() > taken
        {
            // A client waits for the answer. Whoever did not must not have words that came in the
            // clear taken for words from inside TLS.
            return Err(ConnectionError::BehindStartTls(
                input.unread().len() - taken,
            ));
        }
        // What was answered before an error is still worth sending.
        stream.send_bytes(std::mem::take(&mut output)).await?;
        let (taken, progress) = received?;
        input.consume(taken);
        match (progress, stream) {
            (Progress::More, _) => {
                if !input.refill(stream).await? {
                    return Ok(None);
                }
            }
            (Progress::StartTls, Stream::Tls(tls)) => {
                tls.start().await?;
                handshake = handshake.restart_inside_tls();
            }
            (Progress::Transmission(agreed), _) => return Ok(Some((agreed, info))),
            // StartTls is only offered where TLS is required.
            (Progress::StartTls, Stream::Plain(_)) | (Progress::Aborted, _) => return Ok(None),
        }
    }
}

/// A connection in transmission.
pub(super) struct Connection {
    me: Weak<Self>,
    stream: Rc<Stream>,
    export: Rc<dyn Export>,
    limits: Limits,
    session: RefCell<Session>,
    /// Something to send, or a reason to look whether the end has come.
    output_ready: Notify,
    /// A slot or room in the output became free.
    input_wanted: Notify,
    pumping: Cell<bool>,
    /// No further requests come; the writer leaves when all is answered.
    ending: Cell<bool>,
    /// Nothing can be sent any more.
    closed: Cell<bool>,
}

impl Connection {
    pub fn new(
        stream: Rc<Stream>,
        export: Rc<dyn Export>,
        limits: Limits,
        agreed: Agreed,
        info: &ExportInfo,
    ) -> Rc<Self> {
        let read_bytes_max = limits.read_bytes_max(export.pool().stats().total_bytes);
        Rc::new_cyclic(|me| Self {
            me: me.clone(),
            stream,
            export,
            limits,
            session: RefCell::new(Session::new(agreed, info, read_bytes_max)),
            output_ready: Notify::new(),
            input_wanted: Notify::new(),
            pumping: Cell::new(false),
            ending: Cell::new(false),
            closed: Cell::new(false),
        })
    }

    /// Serves the client until one of the ends described above.
    pub async fn run(self: &Rc<Self>, input: Input) -> Result<(), ConnectionError> {
        let writer = tokio::task::spawn_local({
            let connection = Rc::clone(self);
            async move {
                let result = connection.write().await;
                connection.closed.set(true);
                connection.session.borrow_mut().abandon();
                // Wakes the reader, in the socket or in the line for a slot.
                connection.stream.shutdown();
                connection.input_wanted.notify_one();
                result
            }
        });
        let read = self.read(input).await;
        let closed_before = self.closed.get();
        self.ending.set(true);
        if read.is_err() {
            self.close();
        }
        self.output_ready.notify_one();
        let written = writer.await.unwrap_or(Ok(()));
        // Whoever ended first had the reason; the other only saw its consequence.
        if closed_before {
            written
        } else {
            read.and(written)
        }
    }

    /// Requests may go up to there from here on.
    pub fn resize(&self, size_bytes: u64) {
        self.session.borrow_mut().resize(size_bytes);
    }

    /// Answers what is in flight, refuses what still comes, then ends.
    pub fn drain(&self) {
        self.session.borrow_mut().refuse_new();
        self.ending.set(true);
        self.output_ready.notify_one();
    }

    /// Ends at once; answers that still come are dropped.
    pub fn close(&self) {
        self.closed.set(true);
        self.session.borrow_mut().abandon();
        self.stream.shutdown();
        self.output_ready.notify_one();
        self.input_wanted.notify_one();
    }

    async fn read(self: &Rc<Self>, mut input: Input) -> Result<(), ConnectionError> {
        while !self.closed.get() {
            let (taken, parsed) = self.session.borrow_mut().parse(input.unread())?;
            input.consume(taken);
            match parsed {
                Parsed::Taken => self.pump(),
                Parsed::Payload => self.receive_payload(&mut input).await?,
                Parsed::Full => self.input_wanted.notified().await,
                Parsed::Disconnect => return Ok(()),
                Parsed::More => {
                    // The writer and other connections come first.
                    tokio::task::yield_now().await;
                    let inside = !input.unread().is_empty();
                    if !input.refill(&self.stream).await? {
                        if inside {
                            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                        }
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes in the payload of one write, piece by piece, each into the memory it stays in.
    async fn receive_payload(self: &Rc<Self>, input: &mut Input) -> Result<(), ConnectionError> {
        loop {
            let Some((tag, fua)) = self.session.borrow_mut().next_payload() else {
                break;
            };
            let range = tag.range();
            let completion = self.completion(tag);
            let length = range.length as usize;
            let buffer = match self.export.pool().try_take(length, Reserve::Normal) {
                Some(buffer) => buffer,
                None => self.export.pool().take(length, Reserve::Normal).await,
            };
            let data = input.fill(&self.stream, buffer).await?.freeze();
            if self.closed.get() {
                break;
            }
            let operation = Operation::Write { data, fua };
            self.export.submit(range, operation, completion);
        }
        self.after_change();
        Ok(())
    }

    async fn write(&self) -> Result<(), ConnectionError> {
        let mut batch = Output::default();
        loop {
            self.session.borrow_mut().take_output(&mut batch);
            if batch.is_empty() {
                if self.session.borrow().is_broken() {
                    return Err(ConnectionError::Broken);
                }
                if self.closed.get() || self.ending.get() && self.is_all_answered() {
                    return Ok(());
                }
                self.output_ready.notified().await;
                continue;
            }
            self.input_wanted.notify_one();
            self.stream.send(&batch, self.limits.stall_timeout).await?;
            if self.closed.get() {
                return Ok(());
            }
            let payload_bytes = batch.payload_bytes();
            batch.clear();
            self.session.borrow_mut().sent(payload_bytes);
            self.pump();
        }
    }

    fn is_all_answered(&self) -> bool {
        self.session.borrow().in_flight() == 0
    }

    /// Hands out what the session's limits allow. Answers may come while it does.
    fn pump(&self) {
        if self.pumping.replace(true) {
            return;
        }
        loop {
            let work = self.session.borrow_mut().next_work();
            match work {
                None => break,
                Some(Work::Submit(tag, operation)) => {
                    let completion = self.completion(tag);
                    self.export.submit(tag.range(), operation, completion);
                }
                Some(Work::BlockStatus(tag)) => self.ask_status(tag),
            }
        }
        self.pumping.set(false);
        if self.session.borrow().has_output() {
            self.output_ready.notify_one();
        }
    }

    fn ask_status(&self, tag: Tag) {
        let Some(me) = self.me.upgrade() else { return };
        tokio::task::spawn_local(async move {
            let extents = me.export.block_status(tag.range()).await;
            me.session.borrow_mut().complete_status(tag, extents);
            me.after_change();
        });
    }

    fn completion(&self, tag: Tag) -> Completion {
        let me = self.me.upgrade().expect("called on a living connection");
        Completion::new(me, tag)
    }

    fn after_change(&self) {
        self.output_ready.notify_one();
        self.input_wanted.notify_one();
        self.pump();
    }
}

impl Sink for Connection {
    fn complete(&self, tag: Tag, answer: Answer) {
        self.session.borrow_mut().complete(tag, answer);
        self.after_change();
    }
}
