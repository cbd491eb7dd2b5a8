//! Deliberate faults between the volumes and the world, which stand in for bugs of the core. Each must
//! be caught by a checker; a test keeps it so. Nothing of this is known to the core.

/// One kind of wrong behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A write is answered as soon as the local disk has it.
    AnswerBeforePeer,
    /// Metadata writes are reported durable and are not.
    SkipMetadataFlush,
    /// Resync data is acknowledged before it reached the target, so that its bits clear.
    ClearBitEarly,
    /// The primary's disk lets an older write land over a newer one that overlaps it.
    ReorderLocal,
    /// The secondary's disk does.
    ReorderPeer,
    /// Flushes of the data partition do nothing.
    SkipDataFlush,
    /// The secondary acknowledges writes that it never gives to its disk.
    DropReplicaWrite,
    /// Bitmap pages reach the disk without their bits.
    ForgetDirtyBits,
    /// A kernel device of before a crash is gone on with after any promotion.
    KeepDevice,
    /// A node that lost power says that its machine ran on.
    ForgetReboot,
    /// A primary answers reads as soon as its disk has them, lease or not.
    UngatedReads,
    /// An agent counts its lease from the arbiter's reply, and without a margin.
    LeaseCountedFromReply,
    /// The arbiter counts a lease from its grant, as if it had not been renewed.
    LeaseCountedFromBefore,
    /// An agent takes a confirmation for proof of what was done after it had asked for it.
    ConfirmedTooLate,
    /// Async: a write is lost out of the middle of the line, and what comes behind it arrives.
    DropFromLine,
    /// The primary takes a write for acknowledged as soon as it is sent, and lets go of its extent.
    AcknowledgedOnSending,
}
