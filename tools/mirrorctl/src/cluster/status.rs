//! `status`: the cluster as the agent of this node sees it. While no agent answers, what `mirrord` knows
//! of the mirrors: it is then that somebody looks.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use agent::console::client::ClientError;
use nbd_frontend::config::{Config, ConfigError};
use nbd_frontend::control::client::Client;

use super::{QUERY_TIMEOUT_DEFAULT, client, screen};
use crate::arguments::Global;
use crate::mdstat;
use crate::outcome::Outcome;

pub async fn run(global: &Global) -> Outcome {
    match client(global, QUERY_TIMEOUT_DEFAULT).status().await {
        Ok(status) if global.json => {
            let text = serde_json::to_string(&status).map_err(anyhow::Error::from)?;
            println!("{text}");
            Ok(())
        }
        Ok(status) => {
            let text = screen::render(&status);
            let mut out = std::io::stdout().lock();
            let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            if coloured {
                out.write_all(paint(&text).as_bytes())?;
            } else {
                out.write_all(text.as_bytes())?;
            }
            out.flush()?;
            Ok(())
        }
        Err(error) => {
            if matches!(
                error,
                ClientError::Unreachable { .. } | ClientError::TimedOut { .. }
            ) {
                mirrors_alone(global).await?;
            }
            Err(error.into())
        }
    }
}

/// Shows the mirrors of this node without an agent.
async fn mirrors_alone(global: &Global) -> Outcome {
    let limit = QUERY_TIMEOUT_DEFAULT;
    let limit: Duration = global.timeout.map_or(limit, |timeout| timeout.min(limit));
    let found = Client::new(&global.run_dir, limit).status().await;
    let mut out = std::io::stdout().lock();
    if global.json {
        let mut report = match &found {
            Ok(status) => serde_json::to_value(status).map_err(anyhow::Error::from)?,
            Err(_) => serde_json::json!({}),
        };
        report["agent"] = serde_json::Value::Null;
        report["configuration"] = problems(global).into();
        writeln!(out, "{report}")?;
        return Ok(());
    }
    match found {
        Ok(status) => {
            writeln!(
                out,
                "The agent of {} does not answer: nothing fails over, and nothing starts or stops by itself.\n\
                 Its mirrors, as mirrord knows them:\n",
                status.node
            )?;
            out.write_all(mdstat::render(&status).as_bytes())?;
        }
        Err(error) => writeln!(out, "Neither the agent nor mirrord answers: {error}")?,
    }
    if let Some(problems) = problems(global) {
        writeln!(out, "\n{problems}")?;
    }
    Ok(())
}

/// What is wrong with the file, where that keeps an agent from starting.
fn problems(global: &Global) -> Option<String> {
    match Config::load(&global.config) {
        Ok(_) => None,
        Err(ConfigError::Invalid(found)) => Some(format!(
            "No agent starts with this configuration:\n{found}\n`mirrorctl check` looks at the rest, too."
        )),
        Err(error) => Some(format!("No agent starts: {error}")),
    }
}

/// Warnings in bold red.
fn paint(text: &str) -> String {
    let lines = text.lines().map(|line| {
        if line.trim_start().starts_with(screen::MARK) {
            format!("\x1b[1;31m{line}\x1b[0m\n")
        } else {
            format!("{line}\n")
        }
    });
    lines.collect()
}
