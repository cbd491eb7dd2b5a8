//! One connection in transmission, without I/O: requests in, pieces for the mirror out, answers in,
//! replies out.
//!
//! The driver feeds bytes to [`Session::parse`], takes work from [`Session::next_work`], brings
//! answers to [`Session::complete`] and sends what [`Session::take_output`] gives. Large requests are
//! cut at extents and at the largest request of the engine, and their answers joined.
//!
//! Invariants and limits:
//! - At most [`REQUESTS_MAX`] requests are in flight, each in one slot until its reply is in the
//!   output; further ones are left in the socket.
//! - Bytes being read or waiting to be sent stay under a budget, so that a client that does not
//!   read its replies holds only its share of the buffer pool. One piece is always allowed.
//! - A large reply that must be in one run of bytes (a simple reply, or one chunk) is read piece after
//!   piece, alone: no other read is then in flight on the connection, and other replies wait
//!   behind it. So no connection holds memory while it waits for memory, and many of them
//!   cannot block each other. If such a read fails half-way, the connection ends: the protocol
//!   has no other way to say so.
//! - Replies that wait stay under [`OUTPUT_BYTES_MAX`] beside their payload: a client that sends bad
//!   requests and reads no answers is not listened to further.

mod slot;

use std::collections::VecDeque;

use mirror_core::request::{Answer, Failure, Operation};
use mirror_core::units::{ByteRange, REQUEST_BYTES_MAX};

use super::handshake::Agreed;
use super::info::{ExportInfo, Extent};
use super::protocol::*;
use super::reply::Output;
use slot::{Kind, Slot};

/// Requests in flight on one connection.
pub const REQUESTS_MAX: usize = 128;
/// Headers and messages that may wait to be sent before no further request is taken.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Extents of one answer to a block status request.
pub const STATUS_EXTENTS_MAX: usize = 1024;
/// Payload of a refused write is skipped up to here; a client that sends more is cut off.
pub const SKIP_BYTES_MAX: u32 = 4 * PAYLOAD_BYTES_MAX;

/// What a call to [`Session::parse`] found at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole header: read more.
    More,
    /// A request was taken or refused; there may be work, output, and more input.
    Taken,
    /// A write: its payload comes next. Call [`Session::next_payload`] until it gives nothing.
    Payload,
    /// All slots are in use, or too many replies wait to be sent: come back after the next answer
    /// or the next [`Session::take_output`].
    Full,
    /// The client took its leave. Answer what is in flight, then close.
    Disconnect,
}

/// Why a connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("client sent no NBD request where one was due")]
    Magic,
    #[error("client announced a write of {0} bytes; the limit is {PAYLOAD_BYTES_MAX}")]
    WriteTooLarge(u32),
}

/// Something for the mirror to do.
#[derive(Debug, Clone)]
pub enum Work {
    Submit(Tag, Operation),
    BlockStatus(Tag),
}

/// One piece of one client request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    slot: u16,
    range: ByteRange,
}

impl Tag {
    pub fn range(self) -> ByteRange {
        self.range
    }
}

#[derive(Debug)]
pub struct Session {
    agreed: Agreed,
    size_bytes: u64,
    logical_block_bytes: u64,
    fast_zero: bool,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots with pieces to hand out, in turn. Each at most once.
    runnable: VecDeque<u16>,
    /// The write whose payload the client is sending.
    writing: Option<u16>,
    skip_bytes: u32,
    /// Bytes of reads handed out, in the output, or being sent.
    read_bytes: usize,
    read_bytes_max: usize,
    output: Output,
    /// The large read whose reply is being put into the output piece by piece.
    exclusive: Option<u16>,
    /// Replies behind it. They carry no payload, as no other read is in flight.
    held: Output,
    /// Later requests are refused with ESHUTDOWN.
    refusing: bool,
    /// A reply could not be finished; nothing may be sent after it.
    broken: bool,
    abandoned: bool,
}

impl Session {
    /// `read_bytes_max`: the connection's share of memory for reads.
    pub fn new(agreed: Agreed, export: &ExportInfo, read_bytes_max: usize) -> Self {
        Self {
            agreed,
            size_bytes: export.size_bytes,
            logical_block_bytes: u64::from(export.logical_block_bytes),
            fast_zero: export.fast_zero,
            slots: vec![Slot::FREE; REQUESTS_MAX],
            free: (0..REQUESTS_MAX as u16).rev().collect(),
            runnable: VecDeque::with_capacity(REQUESTS_MAX),
            writing: None,
            skip_bytes: 0,
            read_bytes: 0,
            read_bytes_max,
            output: Output::default(),
            exclusive: None,
            held: Output::default(),
            refusing: false,
            broken: false,
            abandoned: false,
        }
    }

    /// The export has grown, and the client knows.
    pub fn resize(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.max(size_bytes);
    }

    /// Takes at most one request from the front of `input`; returns how many bytes it took.
    pub fn parse(&mut self, input: &[u8]) -> Result<(usize, Parsed), SessionError> {
        assert!(self.writing.is_none(), "payload is due, not a request");
        if self.skip_bytes > 0 {
            let length = input.len().min(self.skip_bytes as usize);
            self.skip_bytes -= length as u32;
            let parsed = if length == 0 {
                Parsed::More
            } else {
                Parsed::Taken
            };
            return Ok((length, parsed));
        }
        let Some(header) = input.first_chunk::<REQUEST_HEADER_BYTES>() else {
            return Ok((0, Parsed::More));
        };
        let waiting_bytes = self.output.head_bytes() + self.held.head_bytes();
        if self.free.is_empty() || waiting_bytes > OUTPUT_BYTES_MAX {
            return Ok((0, Parsed::Full));
        }
        let header = RequestHeader::parse(header).ok_or(SessionError::Magic)?;
        if header.command == CMD_DISC {
            return Ok((REQUEST_HEADER_BYTES, Parsed::Disconnect));
        }
        let checked = if self.refusing {
            Err(Errno::Shutdown)
        } else {
            self.check(&header)
        };
        let parsed = match checked {
            Ok(kind) => self.accept(&header, kind),
            Err(errno) => {
                if header.command == CMD_WRITE {
                    if header.length > SKIP_BYTES_MAX {
                        return Err(SessionError::WriteTooLarge(header.length));
                    }
                    self.skip_bytes = header.length;
                }
                self.refuse(header.cookie, errno);
                Parsed::Taken
            }
        };
        Ok((REQUEST_HEADER_BYTES, parsed))
    }

    /// The next piece of the write whose payload is due: fill a buffer of its length from the
    /// stream and submit it. `None` when the payload is complete.
    pub fn next_payload(&mut self) -> Option<(Tag, bool)> {
        let index = self.writing?;
        let slot = &mut self.slots[index as usize];
        let Kind::Write { fua } = slot.kind else {
            return None;
        };
        if slot.next == slot.end {
            self.writing = None;
            self.finish_if_complete(index);
            return None;
        }
        let range = ByteRange::new(slot.next, slot.piece_bytes());
        slot.next = range.end();
        slot.outstanding += 1;
        Some((Tag { slot: index, range }, fua))
    }

    /// The next piece of work that limits allow now.
    pub fn next_work(&mut self) -> Option<Work> {
        let index = *self.runnable.front()?;
        let slot = &mut self.slots[index as usize];
        let range = ByteRange::new(slot.next, slot.piece_bytes());
        if slot.is_read() {
            let alone = slot.kind == Kind::ReadInOrder && range.end() < slot.end;
            let bytes = self.read_bytes + range.length as usize;
            let must_wait = match self.exclusive {
                Some(exclusive) if exclusive != index => true,
                None if alone => self.read_bytes > 0,
                _ => self.read_bytes > 0 && bytes > self.read_bytes_max,
            };
            if must_wait {
                return None;
            }
            if alone {
                self.exclusive = Some(index);
            }
            self.read_bytes = bytes;
        }
        slot.next = range.end();
        slot.outstanding += 1;
        self.runnable.pop_front();
        if slot.next < slot.end && slot.outstanding < slot.pieces_max() {
            self.runnable.push_back(index);
        }
        let tag = Tag { slot: index, range };
        let operation = match slot.kind {
            Kind::ReadInOrder | Kind::ReadChunks => Operation::Read,
            Kind::Flush => Operation::Flush,
            Kind::Trim { fua } => Operation::Trim { fua },
            Kind::WriteZeroes { fua, no_hole, fast } => {
                Operation::WriteZeroes { fua, no_hole, fast }
            }
            Kind::BlockStatus { .. } => return Some(Work::BlockStatus(tag)),
            Kind::Write { .. } => unreachable!("writes are handed out with their payload"),
        };
        Some(Work::Submit(tag, operation))
    }

    /// Takes the answer to one piece.
    pub fn complete(&mut self, tag: Tag, answer: Answer) {
        let slot = &mut self.slots[tag.slot as usize];
        match (slot.kind, answer) {
            (Kind::ReadInOrder | Kind::ReadChunks, Answer::Data(data))
                if slot.failed.is_none() && !self.abandoned =>
            {
                // Reads go to the output itself: behind an exclusive one there are none.
                assert_eq!(
                    data.len(),
                    tag.range.length as usize,
                    "read of another length"
                );
                let last_piece = slot.outstanding == 1 && slot.next == slot.end;
                let begun = std::mem::replace(&mut slot.begun, true);
                let (cookie, start) = (slot.cookie, slot.start);
                let total = (slot.end - start) as u32;
                match slot.kind {
                    Kind::ReadChunks => {
                        let ByteRange { offset, length } = tag.range;
                        self.output.offset_data(cookie, last_piece, offset, length);
                    }
                    _ if begun => {}
                    _ if self.agreed.structured => {
                        self.output.offset_data(cookie, true, start, total);
                    }
                    _ => self.output.simple(cookie, None),
                }
                self.output.payload(data);
            }
            (_, answer) => {
                if slot.is_read() {
                    self.read_bytes -= tag.range.length as usize;
                }
                let failure = match answer {
                    Answer::Failed(failure) => Some(failure),
                    // A read that brings no data, after another piece failed or not.
                    Answer::Done if slot.is_read() => Some(Failure::Io),
                    Answer::Done | Answer::Data(_) => None,
                };
                slot.failed = slot.failed.or(failure.map(Errno::from));
            }
        }
        self.piece_answered(tag.slot);
    }

    /// Takes the answer to a block status request.
    pub fn complete_status(&mut self, tag: Tag, extents: Result<Vec<Extent>, Failure>) {
        let slot = &mut self.slots[tag.slot as usize];
        let Kind::BlockStatus { one } = slot.kind else {
            unreachable!("block status answered for another request");
        };
        let most = if one { 1 } else { STATUS_EXTENTS_MAX };
        let extents = extents.map(|extents| clip(extents, tag.range.length, most));
        match extents {
            Ok(extents) if !extents.is_empty() && !self.abandoned => {
                let cookie = slot.cookie;
                self.replies().block_status(cookie, &extents);
            }
            Ok(_) => slot.failed = Some(Errno::Io),
            Err(failure) => slot.failed = Some(failure.into()),
        }
        self.piece_answered(tag.slot);
    }

    /// Swaps the replies that wait with `empty`. After they are sent, tell [`Session::sent`].
    pub fn take_output(&mut self, empty: &mut Output) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut self.output, empty);
    }

    /// So many bytes of payload have left.
    pub fn sent(&mut self, payload_bytes: usize) {
        self.read_bytes -= payload_bytes;
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// True if an answer cannot be given: send what is there and close.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn in_flight(&self) -> usize {
        REQUESTS_MAX - self.free.len()
    }

    /// From here on every request is refused with ESHUTDOWN.
    pub fn refuse_new(&mut self) {
        self.refusing = true;
    }

    /// The connection is lost: nothing more is handed out or put into the output. Answers still come.
    pub fn abandon(&mut self) {
        self.refusing = true;
        self.abandoned = true;
        self.read_bytes -= self.output.payload_bytes();
        self.output.clear();
        self.held.clear();
        self.exclusive = None;
        self.runnable.clear();
        self.writing = None;
        for index in 0..REQUESTS_MAX as u16 {
            let slot = &mut self.slots[index as usize];
            if slot.in_use {
                slot.next = slot.end;
                self.finish_if_complete(index);
            }
        }
    }

    pub fn check_invariants(&self) {
        let in_use = self.slots.iter().filter(|slot| slot.in_use).count();
        assert_eq!(in_use, self.in_flight());
        assert!(self.read_bytes >= self.output.payload_bytes());
        assert_eq!(self.held.payload_bytes(), 0);
        assert!(self.exclusive.is_some() || self.held.is_empty());
        for (position, &index) in self.runnable.iter().enumerate() {
            let slot = &self.slots[index as usize];
            assert!(slot.in_use && slot.outstanding < slot.pieces_max());
            assert!(!self.runnable.iter().skip(position + 1).any(|&i| i == index));
        }
        for slot in self.slots.iter().filter(|slot| slot.in_use) {
            assert!(slot.start <= slot.next && slot.next <= slot.end);
            assert!(slot.end <= self.size_bytes);
        }
    }

    fn check(&self, header: &RequestHeader) -> Result<Kind, Errno> {
        let flag = |bit: u16| header.flags & bit != 0;
        let fua = flag(CMD_FLAG_FUA);
        // FUA means nothing to a request that writes nothing, and is allowed on each.
        let (kind, flags) = match header.command {
            CMD_READ if self.agreed.structured && !flag(CMD_FLAG_DF) => {
                (Kind::ReadChunks, CMD_FLAG_FUA)
            }
            CMD_READ if self.agreed.structured => (Kind::ReadInOrder, CMD_FLAG_FUA | CMD_FLAG_DF),
            CMD_READ => (Kind::ReadInOrder, CMD_FLAG_FUA),
            CMD_WRITE => (Kind::Write { fua }, CMD_FLAG_FUA),
            // A hint for a cache that is not there: checked like a read, answered at once.
            CMD_FLUSH | CMD_CACHE => (Kind::Flush, CMD_FLAG_FUA),
            CMD_TRIM => (Kind::Trim { fua }, CMD_FLAG_FUA),
            CMD_WRITE_ZEROES => {
                let kind = Kind::WriteZeroes {
                    fua,
                    no_hole: flag(CMD_FLAG_NO_HOLE),
                    fast: flag(CMD_FLAG_FAST_ZERO),
                };
                let fast = if self.fast_zero {
                    CMD_FLAG_FAST_ZERO
                } else {
                    0
                };
                (kind, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | fast)
            }
            CMD_BLOCK_STATUS if self.agreed.allocation => {
                let one = flag(CMD_FLAG_REQ_ONE);
                (Kind::BlockStatus { one }, CMD_FLAG_FUA | CMD_FLAG_REQ_ONE)
            }
            _ => return Err(Errno::Invalid),
        };
        if header.flags & !flags != 0 {
            return Err(Errno::Invalid);
        }
        if header.command == CMD_FLUSH {
            return if header.offset == 0 && header.length == 0 {
                Ok(kind)
            } else {
                Err(Errno::Invalid)
            };
        }
        let carries_payload = matches!(header.command, CMD_READ | CMD_WRITE);
        if header.length == 0 || carries_payload && header.length > PAYLOAD_BYTES_MAX {
            return Err(Errno::Invalid);
        }
        let end = header.offset.checked_add(u64::from(header.length));
        if end.is_none_or(|end| end > self.size_bytes) {
            let grows = matches!(header.command, CMD_WRITE | CMD_WRITE_ZEROES);
            return Err(if grows {
                Errno::NoSpace
            } else {
                Errno::Invalid
            });
        }
        let block = self.logical_block_bytes;
        if !header.offset.is_multiple_of(block) || !u64::from(header.length).is_multiple_of(block) {
            return Err(Errno::Invalid);
        }
        if flag(CMD_FLAG_DF) && header.length > REQUEST_BYTES_MAX {
            return Err(Errno::Overflow);
        }
        Ok(kind)
    }

    fn accept(&mut self, header: &RequestHeader, kind: Kind) -> Parsed {
        if header.command == CMD_CACHE {
            self.replies().simple(header.cookie, None);
            return Parsed::Taken;
        }
        let Some(index) = self.free.pop() else {
            return Parsed::Full;
        };
        self.slots[index as usize] = Slot {
            cookie: header.cookie,
            kind,
            start: header.offset,
            next: header.offset,
            end: header.offset + u64::from(header.length),
            outstanding: 0,
            failed: None,
            begun: false,
            in_use: true,
        };
        if matches!(kind, Kind::Write { .. }) {
            self.writing = Some(index);
            return Parsed::Payload;
        }
        self.runnable.push_back(index);
        Parsed::Taken
    }

    fn refuse(&mut self, cookie: u64, errno: Errno) {
        if self.abandoned {
            return;
        }
        if self.agreed.structured {
            self.replies().error(cookie, errno);
        } else {
            self.replies().simple(cookie, Some(errno));
        }
    }

    fn replies(&mut self) -> &mut Output {
        match self.exclusive {
            Some(_) => &mut self.held,
            None => &mut self.output,
        }
    }

    fn piece_answered(&mut self, index: u16) {
        let slot = &mut self.slots[index as usize];
        let was_at_limit = slot.outstanding == slot.pieces_max();
        slot.outstanding -= 1;
        if slot.failed.is_some() && !matches!(slot.kind, Kind::Write { .. }) {
            // No further pieces; those that are out decide when the reply goes.
            if slot.next < slot.end && !was_at_limit {
                self.runnable.retain(|&other| other != index);
            }
            slot.next = slot.end;
        } else if was_at_limit && slot.next < slot.end && !self.abandoned {
            if self.exclusive == Some(index) {
                self.runnable.push_front(index);
            } else {
                self.runnable.push_back(index);
            }
        }
        self.finish_if_complete(index);
    }

    fn finish_if_complete(&mut self, index: u16) {
        let slot = self.slots[index as usize];
        if slot.outstanding > 0 || slot.next < slot.end || self.writing == Some(index) {
            return;
        }
        self.slots[index as usize].in_use = false;
        self.free.push(index);
        if self.abandoned {
            return;
        }
        let exclusive = self.exclusive == Some(index);
        if exclusive {
            self.exclusive = None;
        }
        match (slot.kind, slot.failed) {
            // Replied to piece by piece; the last one said so.
            (Kind::ReadInOrder | Kind::ReadChunks | Kind::BlockStatus { .. }, None) => {}
            (_, None) => self.replies().simple(slot.cookie, None),
            (Kind::ReadInOrder, Some(_)) if slot.begun => {
                self.broken = true;
                self.abandoned = true;
                self.refusing = true;
                self.runnable.clear();
                self.held.clear();
            }
            (_, Some(errno)) => self.refuse(slot.cookie, errno),
        }
        if exclusive {
            self.output.append_heads(&mut self.held);
        }
    }
}

/// The part of `extents` that may be told for a request of `length` bytes.
fn clip(extents: Vec<Extent>, length: u32, most: usize) -> Vec<Extent> {
    let mut left = u64::from(length);
    let mut clipped = Vec::with_capacity(extents.len().min(most));
    for extent in extents.into_iter().filter(|extent| extent.length > 0) {
        if left == 0 || clipped.len() == most {
            break;
        }
        let length = extent.length.min(left);
        left -= length;
        clipped.push(Extent { length, ..extent });
    }
    clipped
}

#[cfg(test)]
mod tests;
