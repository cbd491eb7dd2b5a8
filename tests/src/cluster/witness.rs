//! The witness: the agent's own registry behind a file and a process that stops.
//!
//! What it changed is in the file before the reply goes. A restart reads the file; a lost file is a new
//! registry.

use agent::arbiter::call::{Reply, Request};
use agent::arbiter::registry::{Caller, Records, Registry};

use super::machine::Clock;

#[derive(Debug)]
pub struct Witness {
    registry: Option<Registry>,
    file: Records,
    pub clock: Clock,
    /// A mistake on purpose: grants while another's lease lives.
    pub forgets_leases: bool,
}

impl Witness {
    pub fn new(clock: Clock) -> Self {
        Self {
            registry: Some(Registry::new()),
            file: Records::new(),
            clock,
            forgets_leases: false,
        }
    }

    pub fn stop(&mut self) {
        self.registry = None;
    }

    pub fn start(&mut self, now_ms: u64) {
        if self.registry.is_none() {
            let now_ms = self.clock.read(now_ms);
            self.registry = Some(Registry::restore(self.file.clone(), now_ms));
        }
    }

    pub fn lose_file(&mut self) {
        self.file = Records::new();
    }

    pub fn knows_nothing(&self) -> bool {
        self.file.is_empty()
    }

    pub fn is_up(&self) -> bool {
        self.registry.is_some()
    }

    /// None: it does not run.
    pub fn ask(
        &mut self,
        now_ms: u64,
        node: &str,
        lease_ms: u64,
        request: &Request,
    ) -> Option<Reply> {
        let registry = self.registry.as_mut()?;
        let now_ms = self.clock.read(now_ms);
        if self.forgets_leases && matches!(request, Request::Acquire { .. }) {
            let mut records = registry.records();
            for record in records.values_mut() {
                record.holder = None;
                record.lease_ms = 0;
            }
            *registry = Registry::restore(records, now_ms);
        }
        let step = registry.step(now_ms, Caller { node, lease_ms }, request);
        registry.check_invariants();
        if step.changed {
            self.file = registry.records();
        }
        Some(step.reply)
    }
}
