//! The third party that grants epochs and leases, and records who holds current data (A3).
//!
//! [`call`] is what is asked of any arbiter; [`registry`] answers it for one cluster, and
//! [`envelope`] carries it between a node and a `mirror-witness`. Leases are counted from sending the
//! request here and from granting it there.
//!
//! There is one arbiter today, so there is no trait. Two others fit behind the same requests and
//! replies, because all that a register is, is one small value that is compared and swapped:
//!
//! - *An S3 object per mirror*, holding the register as JSON. `Acquire`, `Record`, `Release` and `Enrol`
//!   read it, apply [`registry`]'s rule, and put it back with `If-Match` on the version that was read
//!   (`If-None-Match: *` for a first claim); a refused put means that somebody else was first: read
//!   again. It has no clock, so `Beat` puts a counter that grows, and a challenger that sees the counter
//!   still for a whole lease of its own clock knows that the lease is over.
//! - *etcd*: the register is one key, changed in transactions that compare its revision. A lease may be
//!   etcd's own, attached to a key beside the register, or be timed as with S3.
//!
//! In both the client's driver does what the witness does here, and [`call::Reply`] stays what the agent
//! sees.

pub mod call;
pub mod enrolment;
pub mod envelope;
pub mod registry;
pub mod session;
