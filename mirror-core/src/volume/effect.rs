//! Everything a volume can ask of its driver. Effects are carried out in order of appearance, but for operations on the
//! data disk: those may begin and end in any order, so what has to come after one waits for its completion.
//! Completions come back as events.

use crate::buffer::Buffer;
use crate::link::compression::Compression;
use crate::request::Answer;
use crate::units::{ByteRange, CommandId, IoToken, LinkId, RequestId};
use crate::volume::notice::Notice;
use crate::volume::refusal::Refusal;
use crate::wire::message::Envelope;

#[derive(Debug)]
pub enum Effect {
    /// Read from the data partition; completes with `Output::Data`.
    Read {
        io: IoToken,
        range: ByteRange,
    },
    /// Like `Read`, but may complete with `Output::Hole` where the store knows the range to be
    /// unallocated.
    ReadSparse {
        io: IoToken,
        range: ByteRange,
    },
    /// `fua`: complete only when this data is durable.
    Write {
        io: IoToken,
        range: ByteRange,
        data: Buffer,
        fua: bool,
    },
    /// Afterwards the range reads as zeroes, edges included. `no_hole`: keep it allocated.
    WriteZeroes {
        io: IoToken,
        range: ByteRange,
        no_hole: bool,
        fua: bool,
    },
    /// Everything completed before becomes durable.
    Flush {
        io: IoToken,
    },
    /// Write `bytes` at `offset` of the metadata area; complete when durable.
    WriteMetadata {
        io: IoToken,
        offset: u64,
        bytes: Vec<u8>,
    },
    Send {
        link: LinkId,
        envelope: Envelope,
    },
    /// The peer on this link takes compressed data; what is sent from here on may be.
    Compress {
        link: LinkId,
        compression: Compression,
    },
    /// Drop the link; a `LinkDown` for it follows. The driver connects again while `Connect` holds.
    CloseLink {
        link: LinkId,
    },
    /// Whether the driver should keep looking for the peer.
    Connect {
        wanted: bool,
    },
    /// Whether client requests are accepted. Refused with `Failure::NotPrimary` otherwise.
    Serve {
        serving: bool,
    },
    Answer {
        id: RequestId,
        answer: Answer,
    },
    /// An answer waits for a lease that is asked for after this (`Command::Lease`).
    ConfirmWanted {
        ticket: u64,
    },
    CommandDone {
        id: CommandId,
        result: Result<String, Refusal>,
    },
    /// Measure the data partition anew and report it with `Event::Measured`.
    Measure,
    /// The mirror's size changed.
    Resized {
        size_bytes: u64,
    },
    /// Send a tick after [`WAKE_MS`](super::event::WAKE_MS), before the regular one.
    Wake,
    Report(Notice),
}
