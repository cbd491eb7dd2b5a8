//! `mirrorctl check`: every problem of the file at once, every choice with a price, and what of both
//! this machine shows. The file is judged by the parser; where this host is one of the nodes, [`mirrors`]
//! and [`machine`] look at it and [`outside`] asks what the agent will rely on elsewhere. A file with problems is no reason
//! to say less: what is good of it is looked at all the same.

mod findings;
mod machine;
mod mirrors;
mod outside;
mod ports;

use agent::io::forced_stop::Servers;
use nbd_frontend::config::{Config, Examined, key, node_index};

use crate::arguments::Global;
use crate::outcome::{Failure, Outcome};
use findings::Findings;

/// Warnings alone are no failure. `offline`: nothing outside this machine is asked.
pub fn run(global: &Global, offline: bool) -> Outcome {
    let mut findings = Findings::new(&global.config);
    let mut startup_delay = None;
    let mut notes = Vec::new();
    let Examined {
        problems,
        warnings,
        places,
        parts,
    } = Config::examine(&global.config).map_err(anyhow::Error::from)?;
    let file_is_good = problems.is_empty();
    findings.problems = problems;
    findings.warnings = warnings;
    findings.places = places;
    let key = parts.key_file.as_deref().map(key::load);
    if let Some(Err(error)) = &key {
        let remedy = "every node needs the same key";
        findings.problem("cluster key_file", error.to_string(), remedy);
    }
    let tls = parts.nbd_tls.as_ref();
    if let Some(Err(found)) = tls.map(|tls| tls.load(&global.config)) {
        findings.problems.extend(found.into_vec());
    }
    if let Some(nodes) = &parts.nodes {
        let node = this_node(global, nodes, file_is_good)?;
        if let Some(node) = node {
            let agent = parts.agent.as_ref();
            let (name, run_dir) = (&nodes[node], &global.run_dir);
            mirrors::look(&parts.mirrors, agent, node, name, run_dir, &mut findings);
        }
        if let (Some(node), Some(agent)) = (node, &parts.agent) {
            machine::look(agent, node, &global.run_dir, &mut findings);
            if let Some(cluster) = &parts.cluster
                && !offline
            {
                let key = key.as_ref().and_then(|key| key.as_ref().ok());
                let servers = Servers {
                    cluster: cluster.clone(),
                    nodes: nodes.clone(),
                    local: node,
                };
                outside::look(servers, agent, key, &mut findings)?;
            }
        }
        if node.is_none() {
            notes.push(
                "this host is none of the nodes, so that only the file was looked at; say which node \
                 it is with --node",
            );
        }
    }
    if let Some(agent) = &parts.agent
        // The sum of what the file does not say would be wrong.
        && file_is_good
    {
        startup_delay = Some((
            agent.startup_delay_explained(),
            agent.startup_delay,
            agent.startup_delay_needed,
        ));
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

/// The node that was named, or that has the name of this host. A file may be checked elsewhere, too; and where it has
/// problems, a name that it does not have may be one of them.
fn this_node(
    global: &Global,
    nodes: &[String; 2],
    file_is_good: bool,
) -> Result<Option<usize>, anyhow::Error> {
    let named = global.node.as_deref();
    match node_index(&global.config, nodes, named) {
        Ok(node) => Ok(Some(node)),
        Err(error) if named.is_some() && file_is_good => Err(error.into()),
        Err(_) => Ok(None),
    }
}
