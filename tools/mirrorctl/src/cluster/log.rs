//! `log`: the alerts of this node, oldest first, in the form of the alert log. Asked of the agent; while
//! none answers, read from the files that the configuration names.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Duration;

use agent::alert_log::{self, line};
use agent::console::client::ClientError;
use agent::control::AlertRecord;
use nbd_frontend::chain;
use nbd_frontend::config::Config;
use nbd_frontend::control::ring::RECORDS_KEPT_MAX;

use super::{QUERY_TIMEOUT_DEFAULT, client};
use crate::arguments::Global;
use crate::outcome::{Failure, Outcome};

/// Longest wait of one call; the agent answers at once when something happens.
const FOLLOW_WAIT: Duration = Duration::from_secs(10);

pub async fn run(global: &Global, follow: bool, lines: Option<usize>) -> Outcome {
    let client = client(global, QUERY_TIMEOUT_DEFAULT.max(2 * FOLLOW_WAIT));
    let (mut kept, mut after) = (VecDeque::new(), 0);
    loop {
        let page = match client.alerts(after, Duration::ZERO).await {
            Ok(page) => page,
            Err(error) => return Err(from_file(global, lines, error)?),
        };
        if after == 0 && page.dropped > 0 && lines.is_none() && !global.quiet {
            eprintln!(
                "mirrorctl: {} older alerts are in the alert log's file alone",
                page.dropped
            );
        }
        if page.alerts.is_empty() {
            break;
        }
        after = page.next;
        kept.extend(page.alerts);
        let surplus = kept.len().saturating_sub(lines.unwrap_or(RECORDS_KEPT_MAX));
        kept.drain(..surplus);
    }
    print(global, &kept)?;
    // A call that waits must not be cut off by a short --timeout.
    let wait = global
        .timeout
        .map_or(FOLLOW_WAIT, |timeout| FOLLOW_WAIT.min(timeout / 2));
    if !follow {
        return Ok(());
    }
    loop {
        let page = client.alerts(after, wait).await?;
        print(global, &page.alerts)?;
        after = page.next;
    }
}

/// Prints the end of the file, and returns what is still wrong: that the agent does not answer.
fn from_file(global: &Global, lines: Option<usize>, error: ClientError) -> Outcome<Failure> {
    if !matches!(error, ClientError::Unreachable { .. }) {
        return Ok(error.into());
    }
    match read_file(global, lines) {
        Ok((path, alerts)) => {
            if !global.quiet {
                eprintln!(
                    "mirrorctl: the agent does not answer; this is the end of {}",
                    path.display()
                );
            }
            print(global, &alerts)?;
        }
        Err(reason) => {
            return Ok(Failure::Unreachable(anyhow::anyhow!(
                "{error}\nmirrorctl: nor is there an alert log to read: {}",
                chain::text(reason.as_ref())
            )));
        }
    }
    Ok(error.into())
}

fn read_file(
    global: &Global,
    lines: Option<usize>,
) -> anyhow::Result<(std::path::PathBuf, Vec<AlertRecord>)> {
    let config = Config::load(&global.config)?;
    let node = config.node_index(global.node.as_deref())?;
    let Some(agent) = &config.agent else {
        anyhow::bail!(
            "{} has no [heartbeat], so there is no agent",
            config.path.display()
        );
    };
    let path = alert_log::json_path(&agent.alert_log);
    let count = lines.unwrap_or(RECORDS_KEPT_MAX);
    let alerts = alert_log::tail(&path, &config.nodes[node], count)
        .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?;
    Ok((path, alerts))
}

fn print<'a>(global: &Global, alerts: impl IntoIterator<Item = &'a AlertRecord>) -> Outcome {
    let mut out = std::io::stdout().lock();
    for alert in alerts {
        let line = if global.json {
            line::json(alert)
        } else {
            line::text(alert)
        };
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
