//! A whole connection without I/O: what listener and connection do, on byte slices. For property
//! tests and fuzzing of handshake and session.
//!
//! The mirror behind it is a pattern ([`contents`]): reads bring it, changes are only noted.

use mirror_core::buffer::Buffer;
use mirror_core::request::{Answer, Failure, Operation};
use mirror_core::units::ByteRange;

use super::handshake::{Agreed, Handshake, Progress, Tls};
use super::info::{ExportInfo, Extent};
use super::reply::Output;
use super::session::{Parsed, Session, Tag, Work};

const READ_BYTES_MAX: usize = 4 << 20;

/// The byte that the rehearsed mirror holds at `offset`.
pub fn contents(offset: u64) -> u8 {
    (offset ^ offset >> 9 ^ offset >> 20) as u8
}

/// Feeds a connection from its first byte on and answers everything at once. Must not panic
/// whatever `bytes` are; the entry for fuzzing.
pub fn fuzz_bytes(bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    let export = ExportInfo {
        name: "md1".into(),
        description: "rehearsal".into(),
        size_bytes: 64 << 20,
        logical_block_bytes: if choice & 1 == 0 { 512 } else { 4096 },
        fast_zero: choice & 2 == 0,
        serving: if choice & 4 == 0 {
            Ok(())
        } else {
            Err("secondary".into())
        },
    };
    // Most inputs should not have to find the way through the handshake first.
    let mut rehearsal = if choice & 8 == 0 {
        let agreed = Agreed {
            structured: choice & 16 == 0,
            allocation: choice & 16 == 0,
        };
        Rehearsal::in_transmission(export, agreed)
    } else {
        Rehearsal::new(export)
    };
    rehearsal.keep_answers = choice & 32 != 0;
    let step = usize::from(choice >> 6) * 7 + 1;
    for part in bytes.chunks(step * 64) {
        rehearsal.feed(part);
        if rehearsal.outstanding.len() > 3 {
            rehearsal.answer(usize::from(choice) % 4, choice & 64 == 0);
        }
    }
    while !rehearsal.outstanding.is_empty() {
        rehearsal.answer(0, true);
    }
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Box<Session>),
    Ended,
}

/// A piece that waits for its answer.
#[derive(Debug, Clone)]
pub enum Outstanding {
    Operation(Tag, Operation),
    BlockStatus(Tag),
}

/// A connection, its client's bytes and its replies.
#[derive(Debug)]
pub struct Rehearsal {
    export: ExportInfo,
    phase: Phase,
    input: Vec<u8>,
    /// The piece whose payload is being received.
    payload: Option<(Tag, bool)>,
    /// Everything that was sent to the client.
    pub output: Vec<u8>,
    /// Changes handed to the mirror, in order.
    pub changes: Vec<(ByteRange, Operation)>,
    pub outstanding: Vec<Outstanding>,
    /// Leave pieces in `outstanding` until [`Rehearsal::answer`] is called.
    pub keep_answers: bool,
}

impl Rehearsal {
    pub fn new(export: ExportInfo) -> Self {
        let mut output = Vec::new();
        let handshake = Handshake::new(Tls::Unavailable, &mut output);
        Self {
            export,
            phase: Phase::Handshake(handshake),
            input: Vec::new(),
            payload: None,
            output,
            changes: Vec::new(),
            outstanding: Vec::new(),
            keep_answers: false,
        }
    }

    /// One whose handshake is over.
    pub fn in_transmission(export: ExportInfo, agreed: Agreed) -> Self {
        let session = Session::new(agreed, &export, READ_BYTES_MAX);
        let mut rehearsal = Self::new(export);
        rehearsal.output.clear();
        rehearsal.phase = Phase::Transmission(Box::new(session));
        rehearsal
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Requests that were taken and not yet replied to.
    pub fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Transmission(session) => session.in_flight(),
            Phase::Handshake(_) | Phase::Ended => 0,
        }
    }

    /// The client sends `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        while self.advance() {}
    }

    /// The mirror answers the piece at `index` of those outstanding (modulo their number).
    pub fn answer(&mut self, index: usize, succeeds: bool) {
        if self.outstanding.is_empty() {
            return;
        }
        let index = index % self.outstanding.len();
        let piece = self.outstanding.swap_remove(index);
        if let Phase::Transmission(session) = &mut self.phase {
            complete(session, piece, succeeds);
        }
        while self.advance() {}
    }

    /// One step; false if only more bytes or an answer can bring another.
    fn advance(&mut self) -> bool {
        match &mut self.phase {
            Phase::Ended => false,
            Phase::Handshake(handshake) => {
                let received = handshake.receive(&self.input, &self.export, &mut self.output);
                let Ok((taken, progress)) = received else {
                    self.phase = Phase::Ended;
                    return false;
                };
                self.input.drain(..taken);
                match progress {
                    Progress::More => false,
                    Progress::Transmission(agreed) => {
                        let session = Session::new(agreed, &self.export, READ_BYTES_MAX);
                        self.phase = Phase::Transmission(Box::new(session));
                        true
                    }
                    Progress::StartTls | Progress::Aborted => {
                        self.phase = Phase::Ended;
                        false
                    }
                }
            }
            Phase::Transmission(session) => {
                session.check_invariants();
                let mut moved = false;
                while let Some(work) = session.next_work() {
                    moved = true;
                    let piece = match work {
                        Work::Submit(tag, operation) => Outstanding::Operation(tag, operation),
                        Work::BlockStatus(tag) => Outstanding::BlockStatus(tag),
                    };
                    note_change(&mut self.changes, &piece);
                    if self.keep_answers {
                        self.outstanding.push(piece);
                    } else {
                        complete(session, piece, true);
                    }
                }
                moved |= send(session, &mut self.output);
                if session.is_broken() {
                    self.phase = Phase::Ended;
                    self.outstanding.clear();
                    return false;
                }
                self.take_input() || moved
            }
        }
    }

    /// Takes one request, or one piece of payload, off the input.
    fn take_input(&mut self) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        if let Some((tag, fua)) = self.payload {
            let length = tag.range().length as usize;
            if self.input.len() < length {
                return false;
            }
            let data = Buffer::from(self.input.drain(..length).collect::<Vec<_>>());
            let piece = Outstanding::Operation(tag, Operation::Write { data, fua });
            note_change(&mut self.changes, &piece);
            if self.keep_answers {
                self.outstanding.push(piece);
            } else {
                complete(session, piece, true);
            }
            self.payload = session.next_payload();
            return true;
        }
        match session.parse(&self.input) {
            Ok((taken, parsed)) => {
                self.input.drain(..taken);
                match parsed {
                    Parsed::More | Parsed::Full => return false,
                    Parsed::Taken => {}
                    Parsed::Payload => self.payload = session.next_payload(),
                    Parsed::Disconnect => self.input.clear(),
                }
                true
            }
            Err(_) => {
                self.phase = Phase::Ended;
                self.outstanding.clear();
                false
            }
        }
    }
}

fn note_change(changes: &mut Vec<(ByteRange, Operation)>, piece: &Outstanding) {
    if let Outstanding::Operation(tag, operation) = piece
        && !matches!(operation, Operation::Read)
    {
        changes.push((tag.range(), operation.clone()));
    }
}

fn complete(session: &mut Session, piece: Outstanding, succeeds: bool) {
    match piece {
        Outstanding::Operation(tag, _) if !succeeds => {
            session.complete(tag, Answer::Failed(Failure::Io));
        }
        Outstanding::Operation(tag, Operation::Read) => {
            let range = tag.range();
            let data: Vec<u8> = (range.offset..range.end()).map(contents).collect();
            session.complete(tag, Answer::Data(data.into()));
        }
        Outstanding::Operation(tag, _) => session.complete(tag, Answer::Done),
        Outstanding::BlockStatus(tag) => {
            let extent = Extent {
                length: u64::from(tag.range().length),
                hole: false,
            };
            let extents = if succeeds {
                Ok(vec![extent])
            } else {
                Err(Failure::Io)
            };
            session.complete_status(tag, extents);
        }
    }
}

fn send(session: &mut Session, to: &mut Vec<u8>) -> bool {
    let mut output = Output::default();
    session.take_output(&mut output);
    for piece in output.pieces() {
        to.extend(piece.bytes());
    }
    session.sent(output.payload_bytes());
    !output.is_empty()
}
