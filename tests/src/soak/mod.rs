//! The fault campaign: a real cluster under load, one fault after the other, and clients that know what they were
//! answered.
//!
//! `faults` draws and carries out, `clients` has the load, `campaign` puts them in order and judges, `report` says
//! what was seen. It explores; what it finds is first reproduced in a simulator, and then mended.

mod campaign;
mod clients;
mod faults;
mod report;

pub use campaign::{Plan, run};
pub use report::Report;
