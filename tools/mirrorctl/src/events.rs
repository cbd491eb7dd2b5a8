//! `events`: what happened on this node, oldest first.

use std::io::Write as _;
use std::time::Duration;

use mirror_core::control::{EventRecord, Severity};

use crate::arguments::Global;
use crate::outcome::Outcome;

/// Longest wait of one call; the daemon answers at once when something happens.
const FOLLOW_WAIT: Duration = Duration::from_secs(10);

pub async fn run(global: &Global, follow: bool) -> Outcome {
    let client = global.client();
    // A call that waits must not be cut off by a short --timeout.
    let wait = global
        .timeout
        .map_or(FOLLOW_WAIT, |timeout| FOLLOW_WAIT.min(timeout / 2));
    let mut after = 0;
    let mut caught_up = false;
    loop {
        let wait = if caught_up { wait } else { Duration::ZERO };
        let page = client.events(after, wait).await?;
        if page.dropped > 0 && !global.quiet {
            eprintln!(
                "mirrorctl: {} older events are no longer kept",
                page.dropped
            );
        }
        let mut out = std::io::stdout().lock();
        for event in &page.events {
            let line = if global.json {
                serde_json::to_string(event).map_err(anyhow::Error::from)?
            } else {
                render(event)
            };
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        caught_up = page.events.is_empty();
        after = page.next;
        if caught_up && !follow {
            return Ok(());
        }
    }
}

fn render(event: &EventRecord) -> String {
    let severity = match event.notice.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    format!(
        "{} {severity:7} {} {}: {}",
        event.time, event.mirror, event.notice.kind, event.notice.message
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::control::Notice;

    #[test]
    fn an_event_is_one_line() {
        let event = EventRecord {
            number: 1,
            time: "2026-01-02T03:04:05.678Z".into(),
            mirror: "md1".into(),
            notice: Notice::warning("peer-lost", "server2 is gone"),
        };
        assert_eq!(
            render(&event),
            "2026-01-02T03:04:05.678Z warning md1 peer-lost: server2 is gone"
        );
    }
}
