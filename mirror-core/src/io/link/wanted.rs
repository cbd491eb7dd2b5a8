//! Whether a link to the peer is wanted, shared between the driver and whoever makes links.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// A flag to wait for. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wanted: Cell<bool>,
    linked: Cell<bool>,
    changed: Notify,
}

impl Wanted {
    /// Whether the volume looks for its peer.
    pub fn set(&self, wanted: bool) {
        self.shared.wanted.set(wanted);
        self.shared.changed.notify_one();
    }

    pub fn get(&self) -> bool {
        self.shared.wanted.get()
    }

    /// A link stands: there is no need to make another.
    pub fn mark_linked(&self) {
        self.shared.linked.set(true);
    }

    pub fn mark_unlinked(&self) {
        self.shared.linked.set(false);
        self.shared.changed.notify_one();
    }

    /// Returns when a link is wanted and there is none. For one waiter at a time.
    pub async fn wait_until_set(&self) {
        while !self.shared.wanted.get() || self.shared.linked.get() {
            self.shared.changed.notified().await;
        }
    }
}
