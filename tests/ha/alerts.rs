//! What the alert log of a server says, and in which order.

use agent::alert::Kind;
use anyhow::{Context, Result};
use local_cluster::Bed;
use local_pair::Side;

/// Position of the first alert of a kind at or after `from`.
pub fn find(alerts: &[String], kind: Kind, from: usize) -> Option<usize> {
    // Level, date, time, server, module, id.
    let has_id = |line: &String| line.split_whitespace().nth(5) == Some(&kind.id.to_string());
    let found = alerts.iter().skip(from).position(has_id)?;
    Some(from + found)
}

pub fn ensure_order(alerts: &[String], kinds: &[Kind]) -> Result<()> {
    let mut from = 0;
    for kind in kinds {
        let found = find(alerts, *kind, from);
        let at = found.with_context(|| {
            format!(
                "{} ({}) is not there or too early:\n{}",
                kind.id,
                kind.meaning,
                alerts.join("\n")
            )
        })?;
        from = at + 1;
    }
    Ok(())
}

/// Waits for an alert of a kind with all these words, and gives its line.
pub fn wait_alert(bed: &mut Bed, side: Side, kind: Kind, words: &[&str]) -> Result<String> {
    wait_alert_after(bed, side, 0, kind, words)
}

/// The same behind the first `known` lines of the log, which outlives agents and power cuts.
pub fn wait_alert_after(
    bed: &mut Bed,
    side: Side,
    known: usize,
    kind: Kind,
    words: &[&str],
) -> Result<String> {
    let id = kind.id.to_string();
    bed.until(
        &format!("the alert {id} with {words:?} on {side:?}"),
        60,
        |bed| {
            Ok(bed.alerts(side).into_iter().skip(known).find(|line| {
                line.split_whitespace().nth(5) == Some(&id)
                    && words.iter().all(|word| line.contains(word))
            }))
        },
    )
}
