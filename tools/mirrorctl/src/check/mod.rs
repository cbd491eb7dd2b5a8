//! `mirrorctl check`: every problem of the file at once, every choice with a price, and what of both
//! this machine shows. The file is judged by the parser; where this host is one of the nodes, [`machine`]
//! looks at it and [`outside`] asks what the agent will rely on elsewhere.

mod findings;
mod machine;
mod outside;
mod ports;

use nbd_frontend::config::{Config, ConfigError, key};

use crate::arguments::Global;
use crate::outcome::{Failure, Outcome};
use findings::Findings;

/// Warnings alone are no failure. `offline`: nothing outside this machine is asked.
pub fn run(global: &Global, offline: bool) -> Outcome {
    let mut findings = Findings::new(&global.config);
    let mut startup_delay = None;
    let mut notes = Vec::new();
    match Config::load(&global.config) {
        Ok(config) => {
            let node = this_node(global, &config)?;
            findings.places = config.places.clone();
            findings.warnings.extend(config.warnings.iter().cloned());
            let key = key::load(&config.key_file);
            if let Err(error) = &key {
                let remedy = "every node needs the same key";
                findings.problem("cluster key_file", error.to_string(), remedy);
            }
            if let Err(found) = config.load_nbd_tls() {
                findings.problems.extend(found.into_vec());
            }
            if let Some(agent) = &config.agent {
                match node {
                    Some(node) => {
                        machine::look(agent, node, &global.run_dir, &mut findings);
                        if !offline {
                            let key = key.as_ref().ok();
                            outside::look(&config, agent, node, key, &mut findings)?;
                        }
                    }
                    None => notes.push(
                        "this host is none of the nodes, so that only the file was looked at; say \
                         which node it is with --node",
                    ),
                }
                startup_delay = Some((
                    agent.startup_delay_explained(),
                    agent.startup_delay,
                    agent.startup_delay_needed,
                ));
            }
        }
        Err(ConfigError::Invalid(found)) => findings.problems.extend(found.into_vec()),
        Err(error) => return Err(anyhow::Error::from(error).into()),
    }
    findings.problems.sort_by_key(|problem| problem.line);
    findings.warnings.sort_by_key(|warning| warning.line);
    if global.json {
        let startup_delay = startup_delay.map(|(explained, delay, needed)| {
            serde_json::json!({
                "ms": u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "needed_ms": u64::try_from(needed.as_millis()).unwrap_or(u64::MAX),
                "explained": explained,
            })
        });
        println!(
            "{}",
            serde_json::json!({
                "problems": findings.problems,
                "warnings": findings.warnings,
                "notes": notes,
                "startup_delay": startup_delay,
            })
        );
    } else {
        for problem in &findings.problems {
            println!("{problem}");
        }
        for warning in &findings.warnings {
            println!("warning: {warning}");
        }
        if !global.quiet {
            for note in notes {
                println!("note: {note}");
            }
            if let Some((explained, ..)) = startup_delay {
                println!("service start-up delay: {explained}");
            }
        }
    }
    if findings.problems.is_empty() {
        if !global.json && !global.quiet {
            println!("{}: no problems", global.config.display());
        }
        return Ok(());
    }
    Err(Failure::Failed(anyhow::anyhow!(
        "{} has {}; mend what is listed and check again",
        global.config.display(),
        match findings.problems.len() {
            1 => "1 problem".into(),
            count => format!("{count} problems"),
        }
    )))
}

/// The node that was named, or that has the name of this host. A file may be checked elsewhere, too.
fn this_node(global: &Global, config: &Config) -> Result<Option<usize>, anyhow::Error> {
    match (config.node_index(global.node.as_deref()), &global.node) {
        (Ok(node), _) => Ok(Some(node)),
        (Err(_), None) => Ok(None),
        (Err(error), Some(_)) => Err(error.into()),
    }
}
