//! Ctrl-C and its like end the wait that is running, so that the story unwinds and takes everything down.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// Takes SIGINT, SIGTERM and SIGHUP away from all threads started from here on, and waits for them in one.
pub fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            local_pair::interrupt();
        }
    });
    Ok(())
}
