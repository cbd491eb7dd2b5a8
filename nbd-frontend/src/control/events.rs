//! The last events of this daemon, for everyone who asks.

use std::time::{Duration, SystemTime};

use mirror_core::control::{EventPage, EventRecord, Notice};

use super::ring::Ring;

/// Shared by the mirrors' threads, which push, and the control API, which reads.
#[derive(Debug, Clone, Default)]
pub struct EventRing(Ring<EventRecord>);

impl EventRing {
    pub fn push(&self, mirror: &str, notice: Notice) {
        self.0.push(|number| EventRecord {
            number,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            mirror: mirror.into(),
            notice,
        });
    }

    /// Events after number `after`, at once if there are any, else after at most `wait`.
    pub async fn page(&self, after: u64, wait: Duration) -> EventPage {
        let page = self.0.page(after, wait).await;
        EventPage {
            events: page.records,
            next: page.next,
            dropped: page.dropped,
        }
    }
}
