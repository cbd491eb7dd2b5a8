//! The third party that grants epochs and leases, and records who holds current data (A3).
//!
//! [`call`] is what is asked of any arbiter; a witness over HTTP, an S3 object or etcd can stand behind
//! it. Leases are counted from sending the request here and from granting it there.

pub mod call;
