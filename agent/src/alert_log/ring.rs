//! The last alerts, for the console.

use std::time::{Duration, SystemTime};

use nbd_frontend::control::ring::Ring;

use crate::alert::Alert;
use crate::control::{AlertPage, AlertRecord};

/// Shared by the agent's task, which pushes, and the console, which reads.
#[derive(Debug, Clone, Default)]
pub struct AlertRing(Ring<AlertRecord>);

impl AlertRing {
    /// Goes on after `records`, which are numbered without a gap.
    pub(super) fn restored(records: Vec<AlertRecord>) -> Self {
        let newest = records.last().map_or(0, |record| record.number);
        Self(Ring::restored(records, newest))
    }

    /// Numbers and stamps an alert.
    pub fn push(&self, node: &str, alert: Alert) -> AlertRecord {
        let mut record = AlertRecord {
            number: 0,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            node: node.into(),
            alert,
        };
        self.0.push(|number| {
            record.number = number;
            record.clone()
        });
        record
    }

    /// Alerts after number `after`, at once if there are any, else after at most `wait`.
    pub async fn page(&self, after: u64, wait: Duration) -> AlertPage {
        let page = self.0.page(after, wait).await;
        AlertPage {
            alerts: page.records,
            next: page.next,
            dropped: page.dropped,
        }
    }
}
