//! `mirror-witness` as a process, asked by the agent's own client and by whoever has a recording.

mod crashes;
mod hostile;
mod process;
mod service;
